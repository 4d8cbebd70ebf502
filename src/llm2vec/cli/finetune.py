"""The commands of labels: `train tagger`, `train classifier`, and `classify`, which uses one."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from llm2vec.cli.console import ProgressDisplay, answer, one_line, one_of, pasted, people
from llm2vec.cli.inputs import TextSource, given_texts, labelled_sentences, print_labelled
from llm2vec.cli.options import (
    Delimiter,
    Json,
    LabelColumn,
    TextColumn,
    TextFile,
    TextFormat,
    Texts,
    TrustRemoteCode,
    WordColumn,
)
from llm2vec.cli.run_recipe import is_first_process
from llm2vec.cli.train import train_app
from llm2vec.errors import UsageError

if TYPE_CHECKING:
    from llm2vec.encoder.words import Reading
    from llm2vec.finetuning.data import LabelledTexts
    from llm2vec.finetuning.finetune import Finetuned
    from llm2vec.finetuning.recipe import FinetuneRecipe
    from llm2vec.recipe.knobs import Pooling

_METHODS, _READINGS = ("lora", "full"), ("own", "before")
_POOLINGS, _WEIGHTS = ("last", "mean", "weighted_mean", "first"), ("none", "balanced")
_HELD_OUT_EVERY = 10

Start = Annotated[
    str,
    typer.Argument(
        help="Decoder or encoder folder; `uni:DECODER` stays causal; `auto:ENCODER` is any "
        "encoder of transformers (BERT ...)."
    ),
]
Out = Annotated[Path, typer.Option(help="Folder to make.")]
Method = Annotated[
    str,
    typer.Option(
        help="How to train: lora trains adapters and merges them, full trains every weight."
    ),
]
Epochs = Annotated[float | None, typer.Option(help="Longest training, in epochs.")]
BatchSize = Annotated[int | None, typer.Option(help="Texts in a step, per process.")]
LearningRate = Annotated[
    float | None, typer.Option(help="Peak learning rate: by default 5e-4 (lora) or 5e-5 (full).")
]
Patience = Annotated[
    int | None,
    typer.Option(help="Number of evaluations without a better score after which training stops."),
]
MaxLength = Annotated[int | None, typer.Option(help="Longest text, in tokens.")]
ClassWeights = Annotated[
    str,
    typer.Option(
        help="Weights of the labels in the loss: balanced makes rare labels count more, or none."
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change another setting, such as lora.r=8, warmup_steps=20 or precision=float32.",
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of order, adapters and dropout.")]
Development = Annotated[
    str | None,
    typer.Option(
        "--dev", help="Data whose score stops the training. By default every tenth of --train."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    train_app.command(
        epilog="Examples:\n\n"
        "`llm2vec train tagger encoder --train train.conllu --dev test.conllu --out words`\n\n"
        "`llm2vec train tagger uni:decoder --train train.txt --column -1 --method full --out names`"
    )(tagger)
    train_app.command(
        epilog="Examples:\n\n"
        "`llm2vec train classifier encoder --train train.jsonl --dev test.jsonl --out verbs`"
        "\n\n"
        "`llm2vec train classifier decoder --train train.jsonl --class-weights balanced --pooling "
        "mean --out topics`"
    )(classifier)
    app.command(
        epilog="Examples:\n\n"
        "`llm2vec classify classifier 'The cat sleeps.' 'The dog runs.'`\n\n"
        "`cat texts.txt | llm2vec classify classifier --json`"
    )(classify)


def tagger(
    start: Start,
    train: Annotated[
        str, typer.Option(help="Labelled sentences, in any file that `llm2vec probe` reads.")
    ],
    out: Out,
    dev: Development = None,
    column: LabelColumn = None,
    word_column: WordColumn = None,
    reading: Annotated[
        str,
        typer.Option(
            help="own reads a word from its own token; before from the one in front of it, where "
            "MNTP writes."
        ),
    ] = "own",
    method: Method = "lora",
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    patience: Patience = None,
    max_length: MaxLength = None,
    class_weights: ClassWeights = "none",
    sets: Sets = None,
    seed: Seed = 42,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Fine-tune a model to label words: entities, parts of speech, or any other label.

    Training stops when entity F1 (or macro F1, for labels without entities) no longer rises on the
    development data. Stopped, the same command goes on from the last checkpoint.
    """
    one_of("--reading", reading, _READINGS)
    given = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "patience": patience,
        "max_length": max_length,
    }
    recipe = _recipe(given, method, class_weights, sets)
    sentences = labelled_sentences(train, column, word_column, split="train")
    if dev is None:
        sentences, development = _split(sentences)
    else:
        development = labelled_sentences(dev, column, word_column, split="validation")
    from llm2vec.finetuning.finetune import train_tagger

    found = train_tagger(
        start,
        sentences,
        development,
        out=out,
        recipe=recipe,
        reading=cast("Reading", reading),
        seed=seed,
        trust_remote_code=trust_remote_code,
        progress=ProgressDisplay(),
    )
    _show(found, f"llm2vec tag {pasted(found.folder)} 'some text'", json=json)


def classifier(
    start: Start,
    train: Annotated[
        str,
        typer.Option(
            help="Rows with `text` and `label`, or `labels` for a list: .jsonl, .csv, .parquet ..."
        ),
    ],
    out: Out,
    dev: Development = None,
    column: LabelColumn = None,
    pooling: Annotated[
        str,
        typer.Option(
            help="How states become one vector. last is what transformers' classifiers of "
            "decoders do; mean, weighted_mean and first open with this package alone."
        ),
    ] = "last",
    method: Method = "lora",
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    patience: Patience = None,
    max_length: MaxLength = None,
    class_weights: ClassWeights = "none",
    sets: Sets = None,
    seed: Seed = 42,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Fine-tune a model to label texts, with one label each or with several.

    Training stops when macro F1 no longer rises on the development data. Stopped, the same command
    goes on from the last checkpoint.
    """
    one_of("--pooling", pooling, _POOLINGS)
    given = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "patience": patience,
        "max_length": max_length,
    }
    recipe = _recipe(given, method, class_weights, sets)
    from llm2vec.finetuning.data import read_labelled_texts
    from llm2vec.finetuning.finetune import train_classifier

    texts = read_labelled_texts(train, column=column)
    if dev is None:
        texts, development = _split_texts(texts)
    else:
        development = read_labelled_texts(dev, column=column)
    found = train_classifier(
        start,
        texts,
        development,
        out=out,
        recipe=recipe,
        pooling=cast("Pooling", pooling),
        seed=seed,
        trust_remote_code=trust_remote_code,
        progress=ProgressDisplay(),
    )
    _show(found, f"llm2vec classify {pasted(found.folder)} 'some text'", json=json)


def classify(
    folder: Annotated[Path, typer.Argument(help="Folder that `llm2vec train classifier` made.")],
    texts: Texts = None,
    file: TextFile = None,
    column: TextColumn = None,
    as_format: TextFormat = None,
    delimiter: Delimiter = None,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Label texts with a fine-tuned classifier: labels and the probability of each."""
    given = given_texts(texts, TextSource(file, column, as_format, delimiter), stdin=sys.stdin)
    from llm2vec.finetuning.folder import TextClassifier

    classifier = TextClassifier.open(folder, trust_remote_code=trust_remote_code)
    labelled = classifier.classify(given.texts)
    pairs = zip(given.texts, labelled, strict=True)
    found = [{"text": text, **asdict(each)} for text, each in pairs]
    if json:
        answer(found)
        return
    for row in found:
        sys.stdout.write(one_line(row, sys.stdout) + "\n")
    print_labelled(given.tally, f"labels of {len(found):,} texts")


def _recipe(
    given: Mapping[str, Any], method: str, class_weights: str, sets: Sequence[str] | None
) -> "FinetuneRecipe":
    """The settings that the options say, over the defaults."""
    one_of("--method", method, _METHODS)
    one_of("--class-weights", class_weights, _WEIGHTS)
    from llm2vec.finetuning.recipe import read_finetune_recipe
    from llm2vec.recipe.files import read_settings

    values = {name: value for name, value in given.items() if value is not None}
    more = read_settings(sets or ())
    return read_finetune_recipe(
        {"method": method, "class_weights": class_weights, **values, **more}
    )


def _split(sentences: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Every tenth item is held out."""
    if len(sentences) < _HELD_OUT_EVERY:
        raise UsageError(
            f"--train holds {len(sentences)} items, too few to hold some out; say --dev FILE"
        )
    held_out = list(sentences[::_HELD_OUT_EVERY])
    rest = [each for index, each in enumerate(sentences) if index % _HELD_OUT_EVERY]
    return rest, held_out


def _split_texts(data: "LabelledTexts") -> "tuple[LabelledTexts, LabelledTexts]":
    from llm2vec.finetuning.data import LabelledTexts

    parts = _split(list(zip(data.texts, data.labels, strict=True)))
    made = []
    for part in parts:
        texts, labels = zip(*part, strict=True)
        made.append(LabelledTexts(texts, labels, data.several, empty=0))
    return made[0], made[1]


def _show(found: "Finetuned", next_line: str, *, json: bool) -> None:
    """Write the page, and print what was reached; of several processes the first one does."""
    if not is_first_process():
        return
    page = _page(found.folder)
    reached = found.development
    if json:
        summary = {
            "folder": str(found.folder),
            "plain_transformers": found.plain,
            "why_not": found.why_not,
            "steps": list(found.steps),
            "report": page,
        }
        answer({**summary, "development": reached.to_dict()})
        return
    people.print(
        f"{reached.metric} {reached.value:.4f}, accuracy {reached.accuracy:.4f} on the development "
        f"data, by the weights of step {found.steps[1]} of {found.steps[0]}"
    )
    if found.why_not:
        people.print(f"opens with this package alone: {found.why_not}")
    if page is not None:
        people.print(f"the report: {page}")
    people.print(f"{found.folder} is ready: {next_line}")


def _page(folder: Path) -> str | None:
    """Write the report page; None, and a note, where its libraries are not installed."""
    from llm2vec.finetuning.page import write_page

    try:
        return str(write_page(folder))
    except UsageError as error:
        people.print(f"no report page: {error}")
        return None
