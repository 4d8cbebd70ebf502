"""A trained probe as a tool: kept in a folder with the name of its encoder, it labels raw texts with spans and offsets.

The folder holds `probe.json` and `probe.safetensors`; the encoder itself stays where it is.
"""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from llm2vec.corpus.tagged import entities, has_scheme
from llm2vec.encoder.encoder import Encoder
from llm2vec.encoder.layers import states_width
from llm2vec.encoder.words import Merge, Reading, Words
from llm2vec.errors import ModelError
from llm2vec.evaluation.probe import Classifier, Probed
from llm2vec.evaluation.subjects import name_found_from, name_seen_from, open_encoder
from llm2vec.runtime import fingerprint
from llm2vec.runtime.files import (
    folder_beside,
    publish,
    read_json,
    refuse_occupied,
    resolved_folder,
    write_json,
)
from llm2vec.runtime.unicode import well_formed

_FACTS, _WEIGHTS = "probe.json", "probe.safetensors"


@dataclass(frozen=True)
class Span:
    """A labelled piece of a text.

    Attributes:
        start, end: First character and one past the last.
        text: What stands there.
        label: A word's label, or an entity's type.
    """

    start: int
    end: int
    text: str
    label: str


@dataclass(frozen=True)
class TaggedText:
    """A text's words with their labels.

    Attributes:
        words: The words.
        tags: The label of each word; None for a word that was not read.
        spans: The labelled pieces, as `Tagger.tag` gives them.
    """

    words: tuple[str, ...]
    tags: tuple[str | None, ...]
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Facts:
    """What a saved probe says of itself, beside its weights.

    Attributes:
        encoder: Its encoder: a hub id, or a folder by its path from the probe's folder; `uni:` and the like before it.
        labels: In the classifier's order.
        reading, merge: Where a word is read.
        metric, value: What it reached on its test set.
        layer: Whose states are read; probes of earlier versions, which do not say, read the last.
        weights: The fingerprint of the encoder, so that another in its place is noticed; empty: not known.
    """

    encoder: str
    labels: tuple[str, ...]
    reading: Reading
    merge: Merge
    metric: str
    value: float
    layer: int = -1
    weights: str = ""


class Tagger:
    """An encoder with a classifier over its words.

    Example:
        >>> Tagger.open("probe").tag(["Anna lives in Berlin."])  # doctest: +SKIP
        [[Span(start=0, end=4, text='Anna', label='PER'), Span(start=14, end=20, text='Berlin', label='LOC')]]
    """

    def __init__(self, encoder: Encoder, classifier: Classifier, facts: Facts) -> None:
        self.encoder, self.classifier, self.facts = encoder, classifier, facts

    @classmethod
    def open(cls, folder: str | Path, *, encoder: str | None = None) -> "Tagger":
        """A saved probe with its encoder.

        Args:
            folder: The probe's folder.
            encoder: The name of its encoder, where it is not where the probe's folder says; None: it is.

        Raises:
            ModelError: The folder holds no probe, or its encoder is gone or is another one now.
        """
        folder = Path(folder)
        if not _is_probe(folder):
            save = shlex.quote(str(folder))
            raise ModelError(
                f"{folder} holds no probe; `llm2vec probe ... --save {save}` makes one"
            )
        values: dict[str, Any] = read_json(folder / _FACTS)
        facts = Facts(**{**values, "labels": tuple(values["labels"])})
        weights = load_file(folder / _WEIGHTS)
        name = encoder or name_found_from(folder, facts.encoder)
        try:
            opened = open_encoder(name)
        except ModelError as error:
            raise ModelError(
                f"{error}; the probe in {folder} was trained on it: say --encoder where it is now"
            ) from error
        width = weights["weight"].shape[1]
        if states_width(opened.model, layer=facts.layer) != width:
            raise ModelError(
                f"{folder} was trained on vectors of {width} numbers; {name} has others now"
            )
        known = fingerprint.comparable(facts.weights)
        if known and facts.weights != _fingerprint(opened):
            raise ModelError(
                f"{name} is not the encoder that {folder} was trained on; probe it again (--save)"
            )
        return cls(opened, Classifier(weights["weight"], weights["bias"]), facts)

    def tag(self, texts: Sequence[str] | Sequence[Sequence[str]]) -> list[list[Span]]:
        """Spans of each text: whole entities where labels follow a scheme such as BIO, else every word.

        A word beyond the longest sequence, or without any token, gets none.

        Args:
            texts: Raw texts, which are cut into words, or lists of words, which are joined by spaces.
        """
        return [list(each.spans) for each in self.read(texts)]

    def read(self, texts: Sequence[str | Sequence[str]]) -> list["TaggedText"]:
        """Words, tags and spans of each text; arguments as of `tag`."""
        facts = self.facts
        words_of_texts = self.encoder.words(
            texts,  # type: ignore[arg-type]  # raw texts beside lists of words
            reading=facts.reading,
            merge=facts.merge,
            layer=facts.layer,
        )
        return [
            self._tagged(text, words) for text, words in zip(texts, words_of_texts, strict=True)
        ]

    def _tagged(self, text: str | Sequence[str], words: Words) -> "TaggedText":
        labels = self.facts.labels
        numbers = self.classifier(words.vectors_WD).tolist() if words.words else []
        was_read = words.vectors_WD.any(1).tolist()
        tags = [
            labels[number] if read else None for number, read in zip(numbers, was_read, strict=True)
        ]
        if has_scheme(labels):
            pieces = sorted(entities([tag or "O" for tag in tags]))
        else:
            pieces = [(index, index + 1, tag) for index, tag in enumerate(tags) if tag is not None]
        whole = well_formed(text if isinstance(text, str) else " ".join(text))
        spans = []
        for first, last, label in pieces:
            start, end = words.offsets[first][0], words.offsets[last - 1][1]
            spans.append(Span(start, end, whole[start:end], label))
        return TaggedText(words.words, tuple(tags), tuple(spans))


def probe_folder(path: Path) -> Path:
    """The real path of a folder that a probe can be saved into.

    Raises:
        RunError: There is something in it, but no probe.
        UsageError: It is a file.
    """
    folder = resolved_folder(path, option="--save")
    half = folder.is_dir() and {each.name for each in folder.iterdir()} <= {_FACTS, _WEIGHTS}
    if not _is_probe(folder) and not half:
        refuse_occupied(folder)
    return folder


def _fingerprint(encoder: Encoder) -> str:
    """The fingerprint of what a probe's vectors come from: weights that attend to one side or to both."""
    return fingerprint.of_values(
        fingerprint.of_weights(encoder.model), encoder.settings.bidirectional
    )


def _is_probe(folder: Path) -> bool:
    return (folder / _FACTS).is_file() and (folder / _WEIGHTS).is_file()


def save_probe(
    probed: Probed,
    folder: Path,
    *,
    encoder: str,
    merge: Merge = "mean",
    model: Encoder | None = None,
) -> None:
    """Keep the first seed's classifier; a probe that is in the folder already is replaced, and all else stays.

    Args:
        probed: As from `probe`.
        folder: The folder to make, or one that holds a probe.
        encoder: The encoder's name; a folder is kept by its path from the probe's, so that both can be moved together.
        merge: As the probe was trained with.
        model: The encoder itself; its fingerprint is kept, so that `Tagger.open` notices another in its place.

    Raises:
        RunError: There is something in the folder, but no probe.
    """
    folder = probe_folder(folder)
    weights = "" if model is None else _fingerprint(model)
    facts = Facts(
        name_seen_from(folder, encoder),
        probed.labels,
        probed.reading,
        merge,
        probed.metric,
        probed.value,
        probed.layer,
        weights,
    )
    with folder_beside(folder) as partial:
        write_json(partial / _FACTS, asdict(facts))
        save_file(
            {"weight": probed.classifier.weight_CD, "bias": probed.classifier.bias_C},
            partial / _WEIGHTS,
        )
        publish(partial, folder, last=_FACTS)
