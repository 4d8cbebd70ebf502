"""The commands that measure: `evaluate` for sentences, `report` for a whole conversion."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm2vec.cli.comparing import difference_column, with_differences
from llm2vec.cli.console import Drawn, answer, one_of, people, table
from llm2vec.cli.inputs import WordColumnOption, labelled_sentences
from llm2vec.errors import UsageError

if TYPE_CHECKING:
    from llm2vec.evaluation.sentence_tasks import Score

Models = Annotated[
    list[str],
    typer.Argument(help="Encoder folders or hub ids; `uni:DECODER`, `auto:ENCODER` (BERT ...)."),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document on standard output, nothing else there."),
]

_TASKS = ("sts", "classification", "clustering", "retrieval", "pairs")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(
        epilog="Examples:\n\n"
        "`llm2vec evaluate encoder uni:decoder tfidf --task sts --data stsb.test.tsv`\n\n"
        "`llm2vec evaluate encoder --task classification --train train.jsonl --data test.jsonl --json`\n\n"
        "`llm2vec evaluate encoder uni:decoder --mteb paper15 --out results`"
    )(evaluate)
    app.command(
        epilog="Examples:\n\n`llm2vec report encoder`\n\n"
        "`llm2vec report encoder --baseline auto:bert-base-cased --train train.conllu --test test.conllu`"
    )(report)


def report(
    run: Annotated[Path, typer.Argument(help="An encoder folder that `llm2vec convert` made.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.html, .md and .json; none: RUN itself.")
    ] = None,
    decoder: Annotated[
        str | None,
        typer.Option(help="The decoder it was made from; none: where the run's folder says it is."),
    ] = None,
    baseline: Annotated[
        list[str] | None, typer.Option(help="Another encoder to draw a line for; repeat it.")
    ] = None,
    train: Annotated[
        str | None, typer.Option(help="Your labelled sentences instead of the bundled ones.")
    ] = None,
    test: Annotated[str | None, typer.Option(help="The same, to measure on.")] = None,
    column: Annotated[str | None, typer.Option(help="Label column, by number or name.")] = None,
    word_column: WordColumnOption = None,
    metric: Annotated[str, typer.Option(help="accuracy, or entity-f1.")] = "accuracy",
    sts: Annotated[
        Path | None, typer.Option(help="Your graded pairs instead of the bundled ones.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure a finished conversion against its decoder and write one page: figures, tables, proofs.

    Stages are measured where they were kept (`convert --keep-stages`).
    """
    one_of("--metric", metric, ("accuracy", "entity-f1"))
    if (train is None) != (test is None):
        raise UsageError("--train and --test go together")
    from llm2vec.report.html import report_folder, write_report

    report_folder(out or run)
    labelled = [
        labelled_sentences(path, column, word_column, split=name)
        for name, path in (("train", train), ("test", test))
        if path
    ]
    from llm2vec.report import measure as reporting

    words = sentences = None
    if labelled:
        about = f"{train}: {len(labelled[0])} sentences to train on, {len(labelled[1])} to test on"
        words = [reporting.WordTask(column or "labels", labelled[0], labelled[1], metric, about)]  # type: ignore[arg-type]
    if sts is not None:
        sentences = [reporting.SentenceTask(sts.stem, sts, str(sts))]
    drawn = Drawn()
    try:
        facts = reporting.measure(
            run,
            decoder=decoder,
            baselines=baseline or (),
            words=words,
            sentences=sentences,
            progress=drawn,
        )
    finally:
        drawn.close()
    page = write_report(facts, out or run)
    if json:
        answer(facts)
    people.print(f"{page} is ready, with report.md and report.json beside it")


def evaluate(
    models: Models,
    task: Annotated[str | None, typer.Option(help=f"One of {', '.join(_TASKS)}.")] = None,
    data: Annotated[str | None, typer.Option(help="The file or folder to measure on.")] = None,
    train: Annotated[str | None, typer.Option(help="Texts to train on (classification).")] = None,
    mteb: Annotated[
        str | None,
        typer.Option(
            help="Instead: a benchmark of mteb, its tasks with commas between, or `paper15`."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Where mteb's results go; what stands there is not run again.")
    ] = Path("mteb"),
    pooling: Annotated[str | None, typer.Option(help="Instead of the encoder's own.")] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="Before every text, not pooled; in retrieval, before queries alone."),
    ] = None,
    json: Json = False,
) -> None:
    """Measure sentence vectors on your own data, or on MTEB; `tfidf` and `random:DECODER` are floors."""
    if mteb is not None:
        if task or data or train or prompt:
            raise UsageError(
                "--mteb brings its own data and prompts; leave out --task, --data, --train and --prompt"
            )
        _mteb(models, mteb, out, pooling=pooling, json=json)
        return
    if task is None or data is None:
        raise UsageError("say what to measure: --task and --data, or --mteb")
    one_of("--task", task, _TASKS)
    if (task == "classification") != (train is not None):
        raise UsageError("--train goes with --task classification, which needs it")
    from llm2vec.evaluation import subjects as named
    from llm2vec.evaluation.sentence_tasks import TASKS

    found = {}
    for name in models:
        extra = {} if train is None else {"train": train}
        found[name] = TASKS[task](
            named.open_embedder(name, pooling=pooling), data, prompt=prompt, **extra
        )
        people.print(f"{name}: {found[name].metric} {found[name].value:.4f}")
    if json:
        answer(with_differences(found))
    else:
        _show_scores(found)


def _show_scores(found: Mapping[str, "Score"]) -> None:
    others = list(next(iter(found.values())).others)
    head, against = difference_column(found, times=1, digits=4)
    rows = []
    for name, each in found.items():
        numbers = [f"{each.value:.4f}", f"{each.low:.4f} - {each.high:.4f}", *against[name]]
        rows.append([name, *numbers, *(f"{each.others[key]:.4f}" for key in others)])
    table("", ["model", next(iter(found.values())).metric, "range", *head, *others], rows)


def _mteb(models: list[str], names: str, out: Path, *, pooling: str | None, json: bool) -> None:
    from llm2vec.evaluation import mteb as benchmark
    from llm2vec.evaluation.subjects import open_encoder

    tasks = benchmark.chosen_tasks(names)
    found = {}
    for model in models:
        encoder = open_encoder(model, pooling=pooling)
        name = Path(model).resolve().name if Path(model).is_dir() else model.replace(":", "-")
        found[model] = benchmark.run_mteb(
            encoder,
            tasks,
            out=out,
            name=name,
            on_score=lambda score: people.print(f"{score.task}: {score.value:.4f}"),
        )
    if json:
        answer({model: [score.to_dict() for score in scores] for model, scores in found.items()})
        return
    first = next(iter(found.values()))
    rows = [
        [score.task, score.metric, *(f"{scores[index].value:.4f}" for scores in found.values())]
        for index, score in enumerate(first)
    ]
    means = [
        f"{sum(score.value for score in scores) / len(scores):.4f}" for scores in found.values()
    ]
    table("", ["task", "metric", *models], [*rows, ["mean", "", *means]])
