"""The commands about words: `probe` trains and measures a classifier over word vectors, `tag` uses it."""

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm2vec.cli.comparing import difference_column, with_differences
from llm2vec.cli.console import (
    Drawn,
    answer,
    one_line,
    one_of,
    pasted,
    people,
    results,
    table,
)
from llm2vec.cli.inputs import (
    ColumnOption,
    DelimiterOption,
    FileOption,
    FormatOption,
    Texts,
    TextSource,
    WordColumnOption,
    given_texts,
    labelled_sentences,
)
from llm2vec.corpus.texts import TextRow
from llm2vec.errors import UsageError
from llm2vec.legacy.config_keys import WORD_TASKS
from llm2vec.legacy.configs import Translated, probe_arguments, read_config
from llm2vec.runtime.files import resolved_folder

if TYPE_CHECKING:
    from llm2vec.encoder.layers import Layer
    from llm2vec.evaluation.probe import Probed
    from llm2vec.evaluation.tagger import TaggedText

Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document on standard output, nothing else there."),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(
        epilog="Examples:\n\n"
        "`llm2vec probe uni:decoder encoder.stages/[0-9]-* --train train.conllu --test test.conllu`\n\n"
        "`llm2vec probe encoder --train train.txt --test test.txt --column -1 --metric entity-f1 --json`\n\n"
        "`llm2vec probe pos_tags.json --train train.conllu --test test.conllu --column upos`"
    )(probe)
    app.command(epilog="Example: `llm2vec tag --probe pos 'The old man the boat.'`")(tag)


def probe(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Encoder folders or hub ids; `uni:DECODER`, `auto:ENCODER` (BERT ...); or FILE.json of a word task."
        ),
    ],
    train: Annotated[
        str | None, typer.Option(help="Labelled sentences: .conllu, .jsonl, columns, `hub:NAME`.")
    ] = None,
    test: Annotated[str | None, typer.Option(help="The same, to measure on.")] = None,
    dev: Annotated[
        str | None, typer.Option(help="The same, to choose a reading on; none: a tenth of train.")
    ] = None,
    column: Annotated[str | None, typer.Option(help="Label column, by number or name.")] = None,
    word_column: WordColumnOption = None,
    metric: Annotated[str, typer.Option(help="accuracy, or entity-f1.")] = "accuracy",
    reading: Annotated[
        str | None,
        typer.Option(help="own, before (a token earlier), or auto (default): the better on dev."),
    ] = None,
    merge: Annotated[
        str | None, typer.Option(help="Of a word's tokens: mean (default), first, last.")
    ] = None,
    layer: Annotated[
        str,
        typer.Option(
            help="last; a number (0: the embedding, -1: the last); or all: the last, and a value for each."
        ),
    ] = "last",
    seeds: Annotated[int, typer.Option(help="Classifiers trained.")] = 3,
    save: Annotated[
        Path | None, typer.Option(help="Keep the (one) model's probe here, for `llm2vec tag`.")
    ] = None,
    states: Annotated[
        Path | None,
        typer.Option(
            help="Keep words' states in this folder; other labels then need no model run."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Probe word vectors: part-of-speech, chunks, entities, any label a word has."""
    given = {
        "train": train,
        "test": test,
        "dev": dev,
        "column": column,
        "reading": reading,
        "merge": merge,
    }
    chosen_layer, chosen = _layer(layer), _chosen(models, given, metric=metric)
    if save is not None and (len(models) > 1 or chosen["adapters"]):
        raise UsageError(
            "--save keeps the probe of one encoder folder, not of several or of an adapter"
        )
    if save is not None:
        from llm2vec.evaluation.tagger import probe_folder

        probe_folder(save)
    if states is not None:
        resolved_folder(states, option="--states")
    roles = {"train": chosen["train"], "test": chosen["test"], "validation": chosen["dev"]}
    parts = [
        labelled_sentences(path, chosen["column"], word_column, split=role) if path else []
        for role, path in roles.items()
    ]
    from llm2vec.evaluation import probe as probing
    from llm2vec.evaluation import subjects as named
    from llm2vec.evaluation.tagger import save_probe
    from llm2vec.evaluation.word_metrics import floors

    found, drawn = {}, Drawn()
    for name in models:
        encoder = named.open_encoder(chosen.get("model", name), adapters=chosen["adapters"])
        drawn.start(name, total=sum(map(len, parts)))
        try:
            probed = found[name] = probing.probe(
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
                on_progress=drawn.advance,
            )
        finally:
            drawn.close()
        people.print(f"{name}: {metric} {probed.value:.4f}, read from {probed.reading}")
    if save is not None:
        save_probe(
            found[models[0]],
            save,
            encoder=chosen.get("model", models[0]),
            merge=chosen["merge"],
            model=encoder,
        )
        people.print(f"{save} is ready: llm2vec tag --probe {pasted(save)} 'some text'")
    least = floors(parts[0], parts[1], metric)  # type: ignore[arg-type]
    if json:
        answer({**with_differences(found), "floors": least})
    else:
        _show_probes(found, least, metric)


def _chosen(models: list[str], given: Mapping[str, str | None], *, metric: str) -> dict[str, Any]:
    """Options as given, over what a word task's file says, over the defaults; wrong ones are told first."""
    chosen = probe_arguments(given, _word_task(models))
    one_of("--metric", metric, ("accuracy", "entity-f1"))
    one_of("--reading", chosen["reading"], ("own", "before", "auto"))
    one_of("--merge", chosen["merge"], ("mean", "first", "last"))
    if not (chosen["train"] and chosen["test"]):
        raise UsageError("say what to train and to measure on: --train and --test")
    return chosen


def _layer(value: str) -> "Layer":
    if value == "all":
        return "all"
    try:
        return -1 if value == "last" else int(value)
    except ValueError as error:
        raise UsageError(
            f"--layer {value}: there is last, all, or a number (0 is the embedding)"
        ) from error


def _word_task(models: list[str]) -> Translated | None:
    """The word task's file that stands where models would; each note of its translation is a line for people."""
    files = [name for name in models if Path(name).suffix == ".json"]
    if not files:
        return None
    if len(models) > 1:
        raise UsageError(f"{files[0]} names its model; give no other beside it")
    translated = read_config(Path(files[0]), among=WORD_TASKS)
    for note in translated.notes:
        people.print(f"note: {note}")
    return translated


def _show_probes(found: Mapping[str, "Probed"], least: Mapping[str, float], metric: str) -> None:
    head, against = difference_column(found, times=100, digits=2)
    rows = [[name, f"{value:.2%}", "", *([""] * len(head)), ""] for name, value in least.items()]
    for name, each in found.items():
        numbers = [f"{each.value:.2%}", f"{each.low:.2%} - {each.high:.2%}", *against[name]]
        place = each.reading if each.layer == -1 else f"{each.reading}, layer {each.layer}"
        rows.append([name, *numbers, place, *_layers(each.by_layer)])
    layered = any(each.by_layer for each in found.values())
    table("", ["model", metric, "95%", *head, "read from", *(["layers"] if layered else [])], rows)
    if unseen := max(each.unseen for each in found.values()):
        results.print(
            f"{unseen} test words have a label that no training word has; they count as wrong"
        )
    if unread := max(each.unread for each in found.values()):
        results.print(
            f"{unread} test words are beyond the longest sequence or have no token; their vector is zero"
        )
    if len(found) == 1:
        _show_labels(next(iter(found.values())))


def _layers(values: tuple[float, ...]) -> list[str]:
    return [" ".join(f"{value:.3f}" for value in values)] if values else []


def _show_labels(probed: "Probed") -> None:
    """Each label of the first seed, the most frequent first."""
    ordered = sorted(probed.by_label.items(), key=lambda each: -each[1]["count"])
    rows = [
        [
            label or "(no type)",
            *(f"{each[key]:.2%}" for key in ("precision", "recall", "f1")),
            f"{each['count']:.0f}",
        ]
        for label, each in ordered
    ]
    rows.append(
        ["all", f"{probed.precision:.2%}", f"{probed.recall:.2%}", f"{probed.value:.2%}", ""]
    )
    results.print()
    table("", ["label", "precision", "recall", "f1", "in test"], rows)


def tag(
    texts: Texts = None,
    probe_folder: Annotated[
        Path, typer.Option("--probe", help="A folder that `llm2vec probe --save` made.")
    ] = Path("probe"),
    encoder: Annotated[
        str | None,
        typer.Option(help="The probe's encoder; none: where the probe's folder says it is."),
    ] = None,
    file: FileOption = None,
    column: ColumnOption = None,
    word_column: WordColumnOption = None,
    as_format: FormatOption = None,
    delimiter: DelimiterOption = None,
    tokenized: Annotated[
        bool, typer.Option("--tokenized", help="Texts are words already, with spaces between.")
    ] = False,
    json: Json = False,
) -> None:
    """Label the words or entities of texts with a saved probe: spans with character offsets.

    Raw texts are cut into words. Texts that are tokenised already - a word a line (.conllu, .conll), a
    column of lists, or --tokenized - stay as they are, and each of their words gets a tag.
    """
    source = TextSource(file, column, as_format, delimiter, True, word_column, tokenized)
    rows = given_texts(texts, source, stdin=sys.stdin).rows
    from llm2vec.evaluation.tagger import Tagger

    tagger = Tagger.open(probe_folder, encoder=encoder)
    tagged = tagger.read([row.words or row.text for row in rows])
    found = [_answered(row, each) for row, each in zip(rows, tagged, strict=True)]
    if json:
        answer(found)
        return
    for row in found:
        sys.stdout.write(one_line(row, sys.stdout) + "\n")


def _answered(row: TextRow, tagged: "TaggedText") -> dict[str, Any]:
    """A row of the answer; the words and tags only of a text that came tokenised."""
    found: dict[str, Any] = {"text": row.text, "spans": [asdict(span) for span in tagged.spans]}
    if row.words is not None:
        found |= {"words": list(tagged.words), "tags": list(tagged.tags)}
    return found
