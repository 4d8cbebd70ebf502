"""The commands that measure: `probe` for words, `evaluate` for sentences."""

from pathlib import Path
from typing import Annotated

import typer

from llm2vec.errors import UsageError
from llm2vec.terminal import answer, people, results, table

Models = Annotated[list[str], typer.Argument(help="Encoder folders or hub ids; `uni:DECODER` reads one causally.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, nothing else there.")]

_TASKS = ("sts", "classification", "clustering", "retrieval", "pairs")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(
        epilog="Examples:\n\n"
        "`llm2vec probe uni:decoder encoder.stages/* --train train.conllu --test test.conllu`\n\n"
        "`llm2vec probe encoder --train train.txt --test test.txt --column -1 --metric entity-f1 --json`"
    )(probe)
    app.command(
        epilog="Examples:\n\n"
        "`llm2vec evaluate encoder uni:decoder tfidf --task sts --data stsb.test.tsv`\n\n"
        "`llm2vec evaluate encoder --task classification --train train.jsonl --data test.jsonl --json`"
    )(evaluate)


def probe(
    models: Models,
    train: Annotated[Path, typer.Option(help="Labelled sentences: .conllu, .jsonl, or columns.")],
    test: Annotated[Path, typer.Option(help="The same, to measure on.")],
    dev: Annotated[Path | None, typer.Option(help="The same, to choose a reading on; none: a tenth of train.")] = None,
    column: Annotated[str | None, typer.Option(help="Label column, by number or name.")] = None,
    metric: Annotated[str, typer.Option(help="accuracy, or entity-f1.")] = "accuracy",
    reading: Annotated[str, typer.Option(help="own, before (a token earlier), or auto: the better on dev.")] = "auto",
    merge: Annotated[str, typer.Option(help="Of a word's tokens: mean, first, last.")] = "mean",
    layer: Annotated[str, typer.Option(help="last, or all: a value for each layer too.")] = "last",
    seeds: Annotated[int, typer.Option(help="Classifiers trained.")] = 3,
    json: Json = False,
) -> None:
    """Probe word vectors: part-of-speech, chunks, entities, any label a word has."""
    _one_of("--metric", metric, ("accuracy", "entity-f1"))
    _one_of("--reading", reading, ("own", "before", "auto"))
    _one_of("--merge", merge, ("mean", "first", "last"))
    _one_of("--layer", layer, ("last", "all"))
    from llm2vec.evaluate import models as named
    from llm2vec.evaluate import probe as probing
    from llm2vec.evaluate.columns import read_tagged

    parts = [read_tagged(path, column=column) if path is not None else [] for path in (train, test, dev)]
    found = {}
    for name in models:
        found[name] = probing.probe(
            named.open_encoder(name),
            parts[0],
            parts[1],
            dev=parts[2],
            metric=metric,  # type: ignore[arg-type]  # checked above
            reading=reading,  # type: ignore[arg-type]
            merge=merge,  # type: ignore[arg-type]
            every_layer=layer == "all",
            seeds=seeds,
        )
        people.print(f"{name}: {metric} {found[name].value:.4f}, read from {found[name].reading}")
    if json:
        answer({name: each.to_dict() for name, each in found.items()})
        return
    rows = [
        [name, f"{each.value:.2%}", f"{each.low:.2%} - {each.high:.2%}", each.reading, *_layers(each.by_layer)]
        for name, each in found.items()
    ]
    table("", ["model", metric, "95%", "read from", *(["layers"] if layer == "all" else [])], rows)
    if unseen := max(each.unseen for each in found.values()):
        results.print(f"{unseen} test words have a label that no training word has; they count as wrong")


def _layers(values: tuple[float, ...]) -> list[str]:
    return [" ".join(f"{value:.3f}" for value in values)] if values else []


def evaluate(
    models: Models,
    task: Annotated[str, typer.Option(help=f"One of {', '.join(_TASKS)}.")],
    data: Annotated[Path, typer.Option(help="The file or folder to measure on.")],
    train: Annotated[Path | None, typer.Option(help="Texts to train on (classification).")] = None,
    pooling: Annotated[str | None, typer.Option(help="Instead of the encoder's own.")] = None,
    json: Json = False,
) -> None:
    """Measure sentence vectors on your own data. `tfidf` and `random:DECODER` are floors to compare with."""
    _one_of("--task", task, _TASKS)
    if (task == "classification") != (train is not None):
        raise UsageError("--train goes with --task classification, which needs it")
    from llm2vec.evaluate import models as named
    from llm2vec.evaluate.sentences import TASKS

    found = {}
    for name in models:
        extra = {} if train is None else {"train": train}
        found[name] = TASKS[task](named.open_embedder(name, pooling=pooling), data, **extra)
        people.print(f"{name}: {found[name].metric} {found[name].value:.4f}")
    if json:
        answer({name: each.to_dict() for name, each in found.items()})
        return
    others = list(next(iter(found.values())).others)
    rows = [
        [name, f"{each.value:.4f}", f"{each.low:.4f} - {each.high:.4f}", *(f"{each.others[key]:.4f}" for key in others)]
        for name, each in found.items()
    ]
    table("", ["model", next(iter(found.values())).metric, "range", *others], rows)


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{option} {value}: there is {', '.join(known)}")
