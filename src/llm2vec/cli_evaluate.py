"""The commands that measure: `probe` for words and `tag` with what it learned, `evaluate` for sentences."""

import sys
from collections.abc import Mapping
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm2vec.config_keys import WORD_TASKS
from llm2vec.configs import Translated, probe_arguments, read_config
from llm2vec.errors import UsageError
from llm2vec.terminal import Drawn, answer, people, results, table

if TYPE_CHECKING:
    from llm2vec.batching import Layer
    from llm2vec.evaluate.difference import Difference
    from llm2vec.evaluate.probe import Probed
    from llm2vec.evaluate.sentences import Score

Models = Annotated[
    list[str], typer.Argument(help="Encoder folders or hub ids; `uni:DECODER`, `auto:ENCODER` (BERT ...).")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, nothing else there.")]

_TASKS = ("sts", "classification", "clustering", "retrieval", "pairs")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(
        epilog="Examples:\n\n"
        "`llm2vec probe uni:decoder encoder.stages/* --train train.conllu --test test.conllu`\n\n"
        "`llm2vec probe encoder --train train.txt --test test.txt --column -1 --metric entity-f1 --json`\n\n"
        "`llm2vec probe pos_tags.json --train train.conllu --test test.conllu --column upos`"
    )(probe)
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
    app.command(epilog="Example: `llm2vec tag --probe pos 'The old man the boat.'`")(tag)


def probe(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Encoder folders or hub ids; `uni:DECODER`, `auto:ENCODER` (BERT ...); or FILE.json of a word task."
        ),
    ],
    train: Annotated[str | None, typer.Option(help="Labelled sentences: .conllu, .jsonl, columns, `hub:NAME`.")] = None,
    test: Annotated[str | None, typer.Option(help="The same, to measure on.")] = None,
    dev: Annotated[str | None, typer.Option(help="The same, to choose a reading on; none: a tenth of train.")] = None,
    column: Annotated[str | None, typer.Option(help="Label column, by number or name.")] = None,
    metric: Annotated[str, typer.Option(help="accuracy, or entity-f1.")] = "accuracy",
    reading: Annotated[
        str | None, typer.Option(help="own, before (a token earlier), or auto (default): the better on dev.")
    ] = None,
    merge: Annotated[str | None, typer.Option(help="Of a word's tokens: mean (default), first, last.")] = None,
    layer: Annotated[
        str,
        typer.Option(help="last; a number (0: the embedding, -1: the last); or all: the last, and a value for each."),
    ] = "last",
    seeds: Annotated[int, typer.Option(help="Classifiers trained.")] = 3,
    save: Annotated[Path | None, typer.Option(help="Keep the (one) model's probe here, for `llm2vec tag`.")] = None,
    states: Annotated[
        Path | None, typer.Option(help="Keep words' states in this folder; other labels then need no model run.")
    ] = None,
    json: Json = False,
) -> None:
    """Probe word vectors: part-of-speech, chunks, entities, any label a word has."""
    given = {"train": train, "test": test, "dev": dev, "column": column, "reading": reading, "merge": merge}
    chosen = probe_arguments(given, _word_task(models))
    _one_of("--metric", metric, ("accuracy", "entity-f1"))
    _one_of("--reading", chosen["reading"], ("own", "before", "auto"))
    _one_of("--merge", chosen["merge"], ("mean", "first", "last"))
    chosen_layer = _layer(layer)
    if not (chosen["train"] and chosen["test"]):
        raise UsageError("say what to train and to measure on: --train and --test")
    if save is not None and (len(models) > 1 or chosen["adapters"]):
        raise UsageError("--save keeps the probe of one encoder folder, not of several or of an adapter")
    from llm2vec.evaluate.columns import read_tagged

    roles = {"train": chosen["train"], "test": chosen["test"], "validation": chosen["dev"]}
    parts = [read_tagged(path, column=chosen["column"], split=role) if path else [] for role, path in roles.items()]
    from llm2vec.evaluate import models as named
    from llm2vec.evaluate import probe as probing
    from llm2vec.evaluate.agreement import floors
    from llm2vec.evaluate.tagger import save_probe

    found = {}
    for name in models:
        encoder = named.open_encoder(chosen.get("model", name), adapters=chosen["adapters"])
        found[name] = probing.probe(
            encoder,
            parts[0],
            parts[1],
            dev=parts[2],
            metric=metric,  # type: ignore[arg-type]  # checked above
            reading=chosen["reading"],
            merge=chosen["merge"],
            layer=chosen_layer,
            seeds=seeds,
            states=states,
        )
        people.print(f"{name}: {metric} {found[name].value:.4f}, read from {found[name].reading}")
    if save is not None:
        save_probe(found[models[0]], save, encoder=chosen.get("model", models[0]), merge=chosen["merge"], model=encoder)
        people.print(f"{save} is ready: llm2vec tag --probe {save} 'some text'")
    least = floors(parts[0], parts[1], metric)  # type: ignore[arg-type]
    if json:
        answer({**_with_differences(found), "floors": least})
    else:
        _show_probes(found, least, metric)


def _layer(value: str) -> "Layer":
    if value == "all":
        return "all"
    try:
        return -1 if value == "last" else int(value)
    except ValueError as error:
        raise UsageError(f"--layer {value}: there is last, all, or a number (0 is the embedding)") from error


def _word_task(models: list[str]) -> Translated | None:
    """The word task's file that stands where models would; each note of its translation is a line for people."""
    files = [name for name in models if Path(name).suffix == ".json"]
    if not files:
        return None
    if len(models) > 1:
        raise UsageError(f"{files[0]} names its model; give no other beside it")
    translated = read_config(Path(files[0]), among=WORD_TASKS)
    for note in translated.notes:
        people.print(f"note: {note}", markup=False)
    return translated


def _differences(found: "Mapping[str, Probed] | Mapping[str, Score]") -> "dict[str, Difference]":
    """How far each model is above the first, where both were measured on the same draws."""
    from llm2vec.evaluate.difference import difference

    first, *others = found
    differences = {name: difference(found[name], found[first]) for name in others}
    return {name: each for name, each in differences.items() if each is not None}


def _with_differences(found: "Mapping[str, Probed] | Mapping[str, Score]") -> dict[str, dict[str, Any]]:
    """Each model's facts for JSON, with its difference from the first."""
    first, differences = next(iter(found)), _differences(found)
    return {
        name: each.to_dict()
        | ({"against": {"model": first, **differences[name].to_dict()}} if name in differences else {})
        for name, each in found.items()
    }


def _against(
    found: "Mapping[str, Probed] | Mapping[str, Score]", *, times: int, digits: int
) -> tuple[list[str], dict[str, list[str]]]:
    """The column of differences from the first model: its head, and each model's cell; both empty where none are."""
    differences = _differences(found)
    if not differences:
        return [], {name: [] for name in found}
    shown = {
        name: f"{times * each.value:+.{digits}f} ({times * each.low:.{digits}f} to {times * each.high:.{digits}f})"
        for name, each in differences.items()
    }
    return [f"against {next(iter(found))}"], {name: [shown.get(name, "")] for name in found}


def _show_probes(found: Mapping[str, "Probed"], least: Mapping[str, float], metric: str) -> None:
    head, against = _against(found, times=100, digits=2)
    rows = [[name, f"{value:.2%}", "", *([""] * len(head)), ""] for name, value in least.items()]
    for name, each in found.items():
        numbers = [f"{each.value:.2%}", f"{each.low:.2%} - {each.high:.2%}", *against[name]]
        place = each.reading if each.layer == -1 else f"{each.reading}, layer {each.layer}"
        rows.append([name, *numbers, place, *_layers(each.by_layer)])
    layered = any(each.by_layer for each in found.values())
    table("", ["model", metric, "95%", *head, "read from", *(["layers"] if layered else [])], rows)
    if unseen := max(each.unseen for each in found.values()):
        results.print(f"{unseen} test words have a label that no training word has; they count as wrong")
    if unread := max(each.unread for each in found.values()):
        results.print(f"{unread} test words are beyond the longest sequence or have no token; their vector is zero")
    if len(found) == 1:
        _show_labels(next(iter(found.values())))


def _show_labels(probed: "Probed") -> None:
    """Each label of the first seed, the most frequent first."""
    ordered = sorted(probed.by_label.items(), key=lambda each: -each[1]["count"])
    rows = [
        [label or "(no type)", *(f"{each[key]:.2%}" for key in ("precision", "recall", "f1")), f"{each['count']:.0f}"]
        for label, each in ordered
    ]
    rows.append(["all", f"{probed.precision:.2%}", f"{probed.recall:.2%}", f"{probed.value:.2%}", ""])
    results.print()
    table("", ["label", "precision", "recall", "f1", "in test"], rows)


def tag(
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; none: standard input, a text a line.")] = None,
    probe_folder: Annotated[Path, typer.Option("--probe", help="A folder that `llm2vec probe --save` made.")] = Path(
        "probe"
    ),
    file: Annotated[Path | None, typer.Option(help="Texts from a file: .txt, .jsonl, .csv, .parquet.")] = None,
    column: Annotated[str | None, typer.Option(help="Column of that file.")] = None,
    json: Json = False,
) -> None:
    """Label the words or entities of raw texts with a saved probe: spans with character offsets."""
    from llm2vec.vectors import texts_for

    rows = texts_for(texts, file=file, column=column, stdin=sys.stdin)
    from llm2vec.evaluate.tagger import Tagger

    found = [
        {"text": text, "spans": [asdict(span) for span in spans]}
        for text, spans in zip(rows, Tagger.open(probe_folder).tag(rows), strict=True)
    ]
    if json:
        answer(found)
        return
    for row in found:
        sys.stdout.write(dumps(row, ensure_ascii=False) + "\n")


def report(
    run: Annotated[Path, typer.Argument(help="An encoder folder that `llm2vec convert` made.")],
    out: Annotated[Path | None, typer.Option(help="Folder for report.html, .md and .json; none: RUN itself.")] = None,
    baseline: Annotated[list[str] | None, typer.Option(help="Another encoder to draw a line for; repeat it.")] = None,
    train: Annotated[str | None, typer.Option(help="Your labelled sentences instead of the bundled ones.")] = None,
    test: Annotated[str | None, typer.Option(help="The same, to measure on.")] = None,
    column: Annotated[str | None, typer.Option(help="Label column, by number or name.")] = None,
    metric: Annotated[str, typer.Option(help="accuracy, or entity-f1.")] = "accuracy",
    sts: Annotated[Path | None, typer.Option(help="Your graded pairs instead of the bundled ones.")] = None,
    json: Json = False,
) -> None:
    """Measure a finished conversion against its decoder and write one page: figures, tables, proofs.

    Stages are measured where they were kept (`convert --keep-stages`).
    """
    _one_of("--metric", metric, ("accuracy", "entity-f1"))
    if (train is None) != (test is None):
        raise UsageError("--train and --test go together")
    from llm2vec.evaluate.columns import read_tagged

    labelled = [
        read_tagged(path, column=column, split=name) for name, path in (("train", train), ("test", test)) if path
    ]
    from llm2vec.evaluate import report as reporting
    from llm2vec.evaluate.page import write_report

    words = sentences = None
    if labelled:
        about = f"{train}: {len(labelled[0])} sentences to train on, {len(labelled[1])} to test on"
        words = [reporting.WordTask(column or "labels", labelled[0], labelled[1], metric, about)]  # type: ignore[arg-type]
    if sts is not None:
        sentences = [reporting.SentenceTask(sts.stem, sts, str(sts))]
    drawn = Drawn()
    try:
        facts = reporting.measure(run, baselines=baseline or (), words=words, sentences=sentences, progress=drawn)
    finally:
        drawn.close()
    page = write_report(facts, out or run)
    if json:
        answer(facts)
    people.print(f"{page} is ready, with report.md and report.json beside it")


def _layers(values: tuple[float, ...]) -> list[str]:
    return [" ".join(f"{value:.3f}" for value in values)] if values else []


def evaluate(
    models: Models,
    task: Annotated[str | None, typer.Option(help=f"One of {', '.join(_TASKS)}.")] = None,
    data: Annotated[Path | None, typer.Option(help="The file or folder to measure on.")] = None,
    train: Annotated[Path | None, typer.Option(help="Texts to train on (classification).")] = None,
    mteb: Annotated[
        str | None, typer.Option(help="Instead: a benchmark of mteb, its tasks with commas between, or `paper15`.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where mteb's results go; what stands there is not run again.")] = Path(
        "mteb"
    ),
    pooling: Annotated[str | None, typer.Option(help="Instead of the encoder's own.")] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Before every text, not pooled; in retrieval, before queries alone.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure sentence vectors on your own data, or on MTEB; `tfidf` and `random:DECODER` are floors."""
    if mteb is not None:
        if task or data or train or prompt:
            raise UsageError("--mteb brings its own data and prompts; leave out --task, --data, --train and --prompt")
        _mteb(models, mteb, out, pooling=pooling, json=json)
        return
    if task is None or data is None:
        raise UsageError("say what to measure: --task and --data, or --mteb")
    _one_of("--task", task, _TASKS)
    if (task == "classification") != (train is not None):
        raise UsageError("--train goes with --task classification, which needs it")
    from llm2vec.evaluate import models as named
    from llm2vec.evaluate.sentences import TASKS

    found = {}
    for name in models:
        extra = {} if train is None else {"train": train}
        found[name] = TASKS[task](named.open_embedder(name, pooling=pooling), data, prompt=prompt, **extra)
        people.print(f"{name}: {found[name].metric} {found[name].value:.4f}")
    if json:
        answer(_with_differences(found))
    else:
        _show_scores(found)


def _show_scores(found: Mapping[str, "Score"]) -> None:
    others = list(next(iter(found.values())).others)
    head, against = _against(found, times=1, digits=4)
    rows = []
    for name, each in found.items():
        numbers = [f"{each.value:.4f}", f"{each.low:.4f} - {each.high:.4f}", *against[name]]
        rows.append([name, *numbers, *(f"{each.others[key]:.4f}" for key in others)])
    table("", ["model", next(iter(found.values())).metric, "range", *head, *others], rows)


def _mteb(models: list[str], names: str, out: Path, *, pooling: str | None, json: bool) -> None:
    from llm2vec.evaluate import mteb as benchmark
    from llm2vec.evaluate.models import open_encoder

    tasks = benchmark.chosen_tasks(names)
    found = {}
    for model in models:
        encoder = open_encoder(model, pooling=pooling)
        name = Path(model).resolve().name if Path(model).is_dir() else model.replace(":", "-")
        found[model] = benchmark.run_mteb(
            encoder, tasks, out=out, name=name, seen=lambda score: people.print(f"{score.task}: {score.value:.4f}")
        )
    if json:
        answer({model: [score.to_dict() for score in scores] for model, scores in found.items()})
        return
    first = next(iter(found.values()))
    rows = [
        [score.task, score.metric, *(f"{scores[index].value:.4f}" for scores in found.values())]
        for index, score in enumerate(first)
    ]
    means = [f"{sum(score.value for score in scores) / len(scores):.4f}" for scores in found.values()]
    table("", ["task", "metric", *models], [*rows, ["mean", "", *means]])


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{option} {value}: there is {', '.join(known)}")
