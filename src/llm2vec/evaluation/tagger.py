"""A saved probe as a tool that labels texts with spans and character offsets.

Its folder holds `probe.json` and `probe.safetensors`, with the name of the encoder. The encoder
itself stays where it is.
"""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from llm2vec.corpus.tagged import entities, has_scheme
from llm2vec.encoder.encoder import Encoder
from llm2vec.encoder.layers import states_width
from llm2vec.encoder.words import Merge, Reading, Words
from llm2vec.errors import ModelError
from llm2vec.evaluation.linear_classifier import Classifier
from llm2vec.evaluation.probe import ProbeResult
from llm2vec.evaluation.subjects import open_encoder, relative_model_name, resolved_model_name
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
        start: Index of the first character.
        end: Index after the last character.
        text: Characters of the piece.
        label: Label of a word, or type of an entity.
    """

    start: int
    end: int
    text: str
    label: str


@dataclass(frozen=True)
class TaggedText:
    """A text's words with their labels.

    Attributes:
        words: Words of the text.
        tags: Label of each word; None for a word that has no vector.
        spans: Labelled pieces, as `Tagger.tag` returns them.
    """

    words: tuple[str, ...]
    tags: tuple[str | None, ...]
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Facts:
    """What a saved probe knows of itself, beside its weights.

    Attributes:
        encoder: Name of the encoder: a hub id, or a folder's path relative to the probe's folder,
            after `uni:` or another prefix.
        labels: Labels in the classifier's order.
        reading: Reading of a word's states.
        merge: How the tokens of a word make one vector.
        metric: Metric that the probe was measured by.
        value: Value of the metric on the test sentences.
        layer: Layer that is read. Probes of earlier versions do not say it and read the last one.
        weights: Fingerprint of the encoder, by which another one in its place is noticed; empty if
            it is not known.
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
        [[Span(start=0, end=4, text='Anna', label='PER'), Span(start=14, end=20, ...)]]
    """

    def __init__(self, encoder: Encoder, classifier: Classifier, facts: Facts) -> None:
        self.encoder, self.classifier, self.facts = encoder, classifier, facts

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        encoder: str | None = None,
        trust_remote_code: bool = False,
    ) -> "Tagger":
        """Open a saved probe with its encoder.

        Args:
            folder: Folder of the probe.
            encoder: Name of the probe's encoder; None takes the name that the probe knows.
            trust_remote_code: Whether to run model code that comes with the encoder.

        Raises:
            ModelError: The folder holds no probe, or its encoder is gone or has changed.
        """
        folder = Path(folder)
        facts, weights = _read_probe(folder)
        name = encoder or resolved_model_name(folder, facts.encoder)
        try:
            opened = open_encoder(name, trust_remote_code=trust_remote_code)
        except ModelError as error:
            raise ModelError(
                f"{error}; the probe in {folder} was trained on it: say --encoder where it is now"
            ) from error
        _check_encoder(opened, name, folder, facts, weights)
        return cls(opened, Classifier(weights["weight"], weights["bias"]), facts)

    def tag(self, texts: Sequence[str] | Sequence[Sequence[str]]) -> list[list[Span]]:
        """The spans of each text: whole entities if labels follow a scheme such as BIO, else words.

        A word beyond the longest sequence, or without any token, has no span.

        Args:
            texts: Raw texts, which are cut into words, or lists of words, which are joined by
                spaces.
        """
        return [list(each.spans) for each in self.read(texts)]

    def read(self, texts: Sequence[str | Sequence[str]]) -> list["TaggedText"]:
        """The words, tags and spans of each text; arguments as of `tag`."""
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
        tags = self._tags(words)
        if has_scheme(self.facts.labels):
            pieces = sorted(entities([tag or "O" for tag in tags]))
        else:
            pieces = [(index, index + 1, tag) for index, tag in enumerate(tags) if tag is not None]
        whole = well_formed(text if isinstance(text, str) else " ".join(text))
        spans = []
        for first, last, label in pieces:
            start, end = words.offsets[first][0], words.offsets[last - 1][1]
            spans.append(Span(start, end, whole[start:end], label))
        return TaggedText(words.words, tuple(tags), tuple(spans))

    def _tags(self, words: Words) -> list[str | None]:
        """The label of each word; None for a word with the zero vector."""
        if not words.words:
            return []
        indices = self.classifier(words.vectors_WD).tolist()
        has_vector = words.vectors_WD.any(1).tolist()
        labels = self.facts.labels
        return [
            labels[index] if known else None
            for index, known in zip(indices, has_vector, strict=True)
        ]


def _read_probe(folder: Path) -> tuple[Facts, dict[str, Tensor]]:
    if not _is_probe(folder):
        save = shlex.quote(str(folder))
        raise ModelError(f"{folder} holds no probe; `llm2vec probe ... --save {save}` makes one")
    values: dict[str, Any] = read_json(folder / _FACTS)
    facts = Facts(**{**values, "labels": tuple(values["labels"])})
    return facts, load_file(folder / _WEIGHTS)


def _check_encoder(
    encoder: Encoder, name: str, folder: Path, facts: Facts, weights: dict[str, Tensor]
) -> None:
    """Refuse an encoder that the probe was not trained on."""
    width = weights["weight"].shape[1]
    if states_width(encoder.model, layer=facts.layer) != width:
        raise ModelError(
            f"{folder} was trained on vectors of {width} numbers; {name} has others now"
        )
    is_known = fingerprint.comparable(facts.weights)
    if is_known and facts.weights != _fingerprint(encoder):
        raise ModelError(
            f"{name} is not the encoder that {folder} was trained on; probe it again (--save)"
        )


def probe_folder(path: Path) -> Path:
    """The real path of a folder that a probe can be saved into.

    Raises:
        RunError: The folder holds something other than a probe.
        UsageError: The path is a file.
    """
    folder = resolved_folder(path, option="--save")
    if not _is_probe(folder) and not _is_part_of_probe(folder):
        refuse_occupied(folder)
    return folder


def _is_part_of_probe(folder: Path) -> bool:
    """Whether a folder holds no more than a part of a probe, which a stopped `--save` leaves."""
    return folder.is_dir() and {each.name for each in folder.iterdir()} <= {_FACTS, _WEIGHTS}


def _fingerprint(encoder: Encoder) -> str:
    """The fingerprint of what a probe's vectors depend on: weights and kind of attention."""
    return fingerprint.of_values(
        fingerprint.of_weights(encoder.model), encoder.settings.bidirectional
    )


def _is_probe(folder: Path) -> bool:
    return (folder / _FACTS).is_file() and (folder / _WEIGHTS).is_file()


def save_probe(
    probed: ProbeResult,
    folder: Path,
    *,
    encoder: str,
    merge: Merge = "mean",
    model: Encoder | None = None,
) -> None:
    """Save the first seed's classifier. A probe in the folder is replaced, other files stay.

    Args:
        probed: Result of `probe`.
        folder: Folder to make, or one that holds a probe.
        encoder: Name of the encoder. The path of a folder is kept relative to the probe's folder,
            so that both can be moved together.
        merge: How the tokens of a word made one vector in training.
        model: Encoder itself, whose fingerprint is kept so that `Tagger.open` notices another in
            its place; None keeps no fingerprint.

    Raises:
        RunError: The folder holds something other than a probe.
    """
    folder = probe_folder(folder)
    weights = "" if model is None else _fingerprint(model)
    facts = Facts(
        relative_model_name(folder, encoder),
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
