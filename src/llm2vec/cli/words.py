"""The commands about words: `probe` trains and measures a classifier, `tag` uses one."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from llm2vec.cli.console import ProgressDisplay, answer, one_line, one_of, pasted, people
from llm2vec.cli.inputs import TextSource, given_texts, labelled_sentences, print_labelled
from llm2vec.cli.legacy import word_task_among
from llm2vec.cli.options import (
    Delimiter,
    Json,
    LabelColumn,
    TextColumn,
    TextFile,
    TextFormat,
    TrustRemoteCode,
    WordColumn,
    WordMetric,
)
from llm2vec.cli.scores import print_probes, with_differences
from llm2vec.corpus.texts import TextRow
from llm2vec.errors import UsageError
from llm2vec.runtime.files import resolved_folder

if TYPE_CHECKING:
    from llm2vec.corpus.tagged import TaggedSentence
    from llm2vec.encoder.encoder import Encoder
    from llm2vec.encoder.layers import Layer
    from llm2vec.evaluation.probe import ProbeResult
    from llm2vec.evaluation.tagger import TaggedText, Tagger
    from llm2vec.evaluation.word_metrics import Metric

_DATA_SETS = ("train", "test", "dev")


@dataclass(frozen=True)
class ProbeOptions:
    """What a probe reads, and from where.

    Attributes:
        train: Labelled sentences to train on.
        test: Labelled sentences to measure on.
        dev: Labelled sentences to choose a reading on.
        column: Column of the labels.
        reading: Where a word is read: `own`, `before` or `auto`.
        merge: How the tokens of a word make one vector.
        model: Name of the model that a word task's file gives; None takes the command's models.
        adapters: Adapters that a word task's file merges into that model.
    """

    train: str | None = None
    test: str | None = None
    dev: str | None = None
    column: str | None = None
    reading: str = "auto"
    merge: str = "mean"
    model: str | None = None
    adapters: Sequence[str] = ()


@dataclass(frozen=True)
class _Measuring:
    """How probes are trained and measured.

    Attributes:
        metric: Metric of the words.
        layer: Layer that is read.
        seeds: Number of classifiers.
        states: Folder of kept states; None keeps none.
    """

    metric: "Metric"
    layer: "Layer"
    seeds: int
    states: Path | None


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(
        epilog="Examples:\n\n"
        "`llm2vec probe uni:decoder encoder.stages/[0-9]-* --train train.conllu "
        "--test test.conllu`\n\n"
        "`llm2vec probe encoder --train train.txt --test test.txt --column -1 --metric entity-f1 "
        "--json`\n\n"
        "`llm2vec probe pos_tags.json --train train.conllu --test test.conllu --column upos`"
    )(probe)
    app.command(
        epilog="Examples:\n\n"
        "`llm2vec tag tagger 'The old man the boat.'`\n\n"
        "`llm2vec tag --probe pos --file texts.txt`"
    )(tag)


def probe(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Encoder folders or hub ids; `uni:DECODER`, `auto:ENCODER` (BERT ...); or the "
            "file of one word task of version 0.2.3 (JSON)."
        ),
    ],
    train: Annotated[
        str | None,
        typer.Option(
            help="Labelled sentences to train on: .conllu, .jsonl, columns, `hub:NAME` ..."
        ),
    ] = None,
    test: Annotated[str | None, typer.Option(help="Labelled sentences to measure on.")] = None,
    dev: Annotated[
        str | None,
        typer.Option(
            help="Labelled sentences to choose a reading on. By default a tenth of --train."
        ),
    ] = None,
    column: LabelColumn = None,
    word_column: WordColumn = None,
    metric: WordMetric = "accuracy",
    reading: Annotated[
        str | None,
        typer.Option(
            help="States that stand for a word: `own`, `before` (of the token before each), or "
            "`auto` (default), the better of both on the development sentences."
        ),
    ] = None,
    merge: Annotated[
        str | None,
        typer.Option(help="How a word's tokens make one vector: mean (default), first or last."),
    ] = None,
    layer: Annotated[
        str,
        typer.Option(
            help="Layer to read: `last`; a number, where 0 is the embedding and -1 the last "
            "layer; or `all`, the last layer and a value for each other one."
        ),
    ] = "last",
    seeds: Annotated[int, typer.Option(help="Number of classifiers to train.")] = 3,
    save: Annotated[
        Path | None,
        typer.Option(help="Folder to keep the probe of one model in, for `llm2vec tag`."),
    ] = None,
    states: Annotated[
        Path | None,
        typer.Option(
            help="Folder to keep the words' states in, so that a probe of other labels over the "
            "same sentences does not run the model again."
        ),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Probe word vectors: parts of speech, chunks, entities, or any other label of words."""
    given = {
        "train": train,
        "test": test,
        "dev": dev,
        "column": column,
        "reading": reading,
        "merge": merge,
    }
    measuring = _Measuring(word_metric(metric), _layer(layer), seeds, states)
    word_task = word_task_among(models)
    options = options_over(word_task.probe if word_task else {}, given)
    _check_options(options)
    _check_folders(save, states, may_save=len(models) == 1 and not options.adapters)
    sentences = _read_sentences(options, word_column)
    from llm2vec.evaluation.subjects import check_models, open_encoder

    check_models([options.model or name for name in models])
    probed = {}
    for name in models:
        encoder = open_encoder(
            options.model or name,
            adapters=options.adapters,
            trust_remote_code=trust_remote_code,
        )
        probed[name] = _probe_model(encoder, name, sentences, options, measuring)
    if save is not None:
        _save(probed[models[0]], save, encoder, options.model or models[0], merge=options.merge)
    _print_probed(probed, sentences, measuring.metric, json=json)


def _print_probed(
    probed: "Mapping[str, ProbeResult]",
    sentences: Mapping[str, "list[TaggedSentence]"],
    metric: "Metric",
    *,
    json: bool,
) -> None:
    from llm2vec.evaluation.word_metrics import floors

    least = floors(sentences["train"], sentences["test"], metric)
    if json:
        answer({**with_differences(probed), "floors": least})
    else:
        print_probes(probed, least, metric)


def options_over(file: Mapping[str, Any], given: Mapping[str, str | None]) -> ProbeOptions:
    """The options of a probe: those given, over those of a word task's file, over the defaults.

    Args:
        file: Options that a word task's file says; empty without such a file.
        given: Options of the command line by name; None for one that was not given. Its data sets
            replace all data sets of the file.
    """
    said = {name: value for name, value in given.items() if value is not None}
    behind = dict(file)
    if said.keys() & set(_DATA_SETS):
        behind |= dict.fromkeys(_DATA_SETS)
    return replace(ProbeOptions(), **{**behind, **said})


def _check_options(options: ProbeOptions) -> None:
    one_of("--reading", options.reading, ("own", "before", "auto"))
    one_of("--merge", options.merge, ("mean", "first", "last"))
    if not (options.train and options.test):
        raise UsageError("say what to train and to measure on: --train and --test")


def _check_folders(save: Path | None, states: Path | None, *, may_save: bool) -> None:
    """Refuse folders that cannot be written, before a model is loaded."""
    if save is not None:
        if not may_save:
            raise UsageError(
                "--save keeps the probe of one encoder folder, not of several or of an adapter"
            )
        from llm2vec.evaluation.tagger import probe_folder

        probe_folder(save)
    if states is not None:
        resolved_folder(states, option="--states")


def _read_sentences(
    options: ProbeOptions, word_column: str | None
) -> dict[str, "list[TaggedSentence]"]:
    """Labelled sentences by their use; an empty list for development sentences not given."""
    sources = {"train": options.train, "test": options.test, "dev": options.dev}
    hub_splits = {"train": "train", "test": "test", "dev": "validation"}
    sentences: dict[str, list[TaggedSentence]] = {}
    for use, source in sources.items():
        if source:
            sentences[use] = labelled_sentences(
                source, options.column, word_column, split=hub_splits[use]
            )
        else:
            sentences[use] = []
    return sentences


def _probe_model(
    encoder: "Encoder",
    name: str,
    sentences: Mapping[str, "list[TaggedSentence]"],
    options: ProbeOptions,
    measuring: _Measuring,
) -> "ProbeResult":
    """Probe one model, draw how many sentences it has read, and print its value."""
    from llm2vec.evaluation import probe as probing

    display = ProgressDisplay()
    display.start(name, total=sum(map(len, sentences.values())))
    try:
        probed = probing.probe(
            encoder,
            sentences["train"],
            sentences["test"],
            dev=sentences["dev"],
            metric=measuring.metric,
            reading=options.reading,  # type: ignore[arg-type]  # checked before
            merge=options.merge,  # type: ignore[arg-type]  # checked before
            layer=measuring.layer,
            seeds=measuring.seeds,
            states=measuring.states,
            on_progress=display.advance,
        )
    finally:
        display.close()
    people.print(f"{name}: {probed.metric} {probed.value:.4f}, read from {probed.reading}")
    return probed


def _save(
    probed: "ProbeResult", folder: Path, encoder: "Encoder", name: str, *, merge: str
) -> None:
    from llm2vec.evaluation.tagger import save_probe

    save_probe(
        probed,
        folder,
        encoder=name,
        merge=merge,  # type: ignore[arg-type]  # checked above
        model=encoder,
    )
    people.print(f"{folder} is ready: llm2vec tag --probe {pasted(folder)} 'some text'")


def word_metric(value: str) -> "Metric":
    """The metric of the words that an option names.

    Raises:
        UsageError: There is no such metric.
    """
    one_of("--metric", value, ("accuracy", "entity-f1"))
    return cast("Metric", value)


def _layer(value: str) -> "Layer":
    if value == "all":
        return "all"
    try:
        return -1 if value == "last" else int(value)
    except ValueError as error:
        raise UsageError(
            f"--layer {value}: there is last, all, or a number (0 is the embedding)"
        ) from error


def tag(
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folder of a tagger, unless --probe names a probe; then texts. Without texts, "
            "lines of standard input are read."
        ),
    ] = None,
    probe_folder: Annotated[
        Path | None, typer.Option("--probe", help="Folder that `llm2vec probe --save` made.")
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(help="Encoder of the probe, if it is no longer where the probe says."),
    ] = None,
    file: TextFile = None,
    column: TextColumn = None,
    word_column: WordColumn = None,
    as_format: TextFormat = None,
    delimiter: Delimiter = None,
    tokenized: Annotated[
        bool, typer.Option("--tokenized", help="Read texts as words with spaces between.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Label the words or entities of texts with a tagger or a saved probe: spans with offsets.

    Raw texts are cut into words. Texts that are tokenised already - a word a line (.conllu,
    .conll), a column of lists, or --tokenized - keep their words, and each word gets a tag.
    """
    folder, texts = _tagger_folder(texts or [], probe_folder)
    source = TextSource(file, column, as_format, delimiter, True, word_column, tokenized)
    given = given_texts(texts, source, stdin=sys.stdin)
    rows = given.rows
    tagger = _open_tagger(folder, encoder, trust_remote_code=trust_remote_code)
    tagged = tagger.read([row.words or row.text for row in rows])
    found = [_as_dict(row, each) for row, each in zip(rows, tagged, strict=True)]
    if json:
        answer(found)
        return
    for row in found:
        sys.stdout.write(one_line(row, sys.stdout) + "\n")
    spans = sum(len(each.spans) for each in tagged)
    print_labelled(given.tally, f"{spans:,} spans in {len(rows):,} texts")


def _tagger_folder(arguments: list[str], probe: Path | None) -> tuple[Path, list[str]]:
    """The folder of the tagger, and the texts among the arguments."""
    if probe is not None:
        return probe, arguments
    if not arguments or not Path(arguments[0]).is_dir():
        raise UsageError("say what labels the texts: a tagger's FOLDER first, or --probe FOLDER")
    return Path(arguments[0]), arguments[1:]


def _open_tagger(folder: Path, encoder: str | None, *, trust_remote_code: bool) -> "Tagger":
    from llm2vec.evaluation.tagger import Tagger
    from llm2vec.finetuning.folder import is_finetuned, open_tagger

    if is_finetuned(folder):
        return open_tagger(folder, trust_remote_code=trust_remote_code)
    return Tagger.open(folder, encoder=encoder, trust_remote_code=trust_remote_code)


def _as_dict(row: TextRow, tagged: "TaggedText") -> dict[str, Any]:
    """A text with its spans, and with its words and tags if it came tokenised."""
    found: dict[str, Any] = {"text": row.text, "spans": [asdict(span) for span in tagged.spans]}
    if row.words is not None:
        found |= {"words": list(tagged.words), "tags": list(tagged.tags)}
    return found
