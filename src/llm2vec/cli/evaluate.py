"""The command `evaluate`: sentence vectors on a user's own data, or on MTEB."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm2vec.cli.console import answer, one_of, people
from llm2vec.cli.options import Json, Models, Pooling, TrustRemoteCode
from llm2vec.cli.scores import print_mteb_scores, print_scores, with_differences
from llm2vec.errors import UsageError

if TYPE_CHECKING:
    from llm2vec.evaluation.mteb import TaskScore

_TASKS = ("sts", "classification", "clustering", "retrieval", "pairs")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Examples:\n\n"
        "`llm2vec evaluate encoder uni:decoder tfidf --task sts --data stsb.test.tsv`\n\n"
        "`llm2vec evaluate encoder --task classification --train train.jsonl --data test.jsonl "
        "--json`\n\n"
        "`llm2vec evaluate encoder uni:decoder --mteb paper15 --out results`"
    )(evaluate)


def evaluate(
    models: Models,
    task: Annotated[str | None, typer.Option(help=f"Task to measure: {', '.join(_TASKS)}.")] = None,
    data: Annotated[str | None, typer.Option(help="File or folder to measure on.")] = None,
    train: Annotated[
        str | None, typer.Option(help="Texts to train on, for --task classification.")
    ] = None,
    mteb: Annotated[
        str | None,
        typer.Option(
            help="Tasks of mteb instead: a benchmark, task names with commas between, or `paper15`."
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(help="Folder for mteb's results; results that are there are not run again."),
    ] = Path("mteb"),
    pooling: Pooling = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="Prompt before every text, in retrieval before queries only; it is not pooled."
        ),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Measure sentence vectors on your own data, or on MTEB.

    The models `tfidf` and `random:DECODER` show what is reached without any training, and
    `prompt:DECODER`, `prompt+1:DECODER` and `echo:DECODER` what an untrained decoder knows if it is
    asked well.
    """
    if mteb is not None:
        if task or data or train or prompt:
            raise UsageError(
                "--mteb brings its own data and prompts; leave out --task, --data, --train and "
                "--prompt"
            )
        opening = {"pooling": pooling, "trust_remote_code": trust_remote_code}
        _evaluate_mteb(models, mteb, out, opening=opening, json=json)
        return
    if task is None or data is None:
        raise UsageError("say what to measure: --task and --data, or --mteb")
    one_of("--task", task, _TASKS)
    if (task == "classification") != (train is not None):
        raise UsageError("--train goes with --task classification, which needs it")
    from llm2vec.evaluation.sentence_tasks import TASKS
    from llm2vec.evaluation.subjects import check_models, open_embedder

    check_models(models)
    scores = {}
    for name in models:
        embed = open_embedder(name, pooling=pooling, trust_remote_code=trust_remote_code)
        extra = {} if train is None else {"train": train}
        scores[name] = TASKS[task](embed, data, prompt=prompt, **extra)
        people.print(f"{name}: {scores[name].metric} {scores[name].value:.4f}")
    if json:
        answer(with_differences(scores))
    else:
        print_scores(scores)


def _evaluate_mteb(
    models: list[str], names: str, out: Path, *, opening: Mapping[str, Any], json: bool
) -> None:
    from llm2vec.evaluation.mteb import chosen_tasks, run_mteb
    from llm2vec.evaluation.subjects import check_models, open_encoder

    check_models(models)
    tasks = chosen_tasks(names)
    scores = {}
    for model in models:
        encoder = open_encoder(model, **opening)
        name = _result_name(model)
        scores[model] = run_mteb(encoder, tasks, out=out, name=name, on_score=_print_task)
    if json:
        answer({model: [each.to_dict() for each in found] for model, found in scores.items()})
    else:
        print_mteb_scores(scores)


def _result_name(model: str) -> str:
    """The name that mteb files a model's results under."""
    folder = Path(model)
    return folder.resolve().name if folder.is_dir() else model.replace(":", "-")


def _print_task(score: "TaskScore") -> None:
    people.print(f"{score.task}: {score.value:.4f}")
