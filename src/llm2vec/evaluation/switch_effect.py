"""What the switch alone does to a decoder, before any training: will it need MNTP?

The decoder is measured causally and bidirectionally on the project's own small sets, for sentences
and for words. Cheaper measures were looked at and foretell nothing: states that are near under both
masks, and vectors that point one way (docs/results.md, "Will it need MNTP?").
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llm2vec.backbone.source import Source
from llm2vec.corpus.tagged import read_tagged
from llm2vec.encoder.encoder import Encoder
from llm2vec.evaluation.analysis import BUNDLED_SETS
from llm2vec.evaluation.bootstrap import Measured, PairedDifference, paired_difference
from llm2vec.evaluation.probe import probe
from llm2vec.evaluation.sentence_tasks import sts

Verdict = Literal["harms", "helps", "no clear effect"]


@dataclass(frozen=True)
class SwitchEffect:
    """What the change of the mask alone does to one kind of vectors.

    Attributes:
        vectors: `sentences` or `words`.
        measured: What was measured, for people.
        uni: Value of the causal decoder.
        bi: Value of the same weights, bidirectional.
        difference: How far the second is above the first.
    """

    vectors: str
    measured: str
    uni: float
    bi: float
    difference: PairedDifference

    @property
    def verdict(self) -> Verdict:
        """Whether the interval of the difference is below 0, above 0, or neither."""
        if self.difference.high < 0:
            return "harms"
        return "helps" if self.difference.low > 0 else "no clear effect"

    def to_dict(self) -> dict[str, Any]:
        """The effect as data for JSON."""
        return {
            "vectors": self.vectors,
            "measured": self.measured,
            "uni": self.uni,
            "bi": self.bi,
            "difference": self.difference.to_dict(),
            "verdict": self.verdict,
        }


def switch_effects(source: str | Path | Source) -> list[SwitchEffect]:
    """Measure a decoder under both masks, for sentences and for words.

    Args:
        source: Decoder: a folder, a hub id or `bundled`, or a `Source` with the ways to fetch it.

    Raises:
        ModelError: The decoder cannot be loaded or made bidirectional.
    """
    uni = list(_measured(Encoder.from_pretrained(source, bidirectional=False)))
    bi = list(_measured(Encoder.from_pretrained(source, bidirectional=True)))
    found = []
    for (vectors, about), before, after in zip(_ABOUT, uni, bi, strict=True):
        difference = paired_difference(after, before)
        if difference is not None:
            found.append(SwitchEffect(vectors, about, before.value, after.value, difference))
    return found


_ABOUT = (
    ("sentences", "similarity, Spearman, 275 bundled pairs"),
    ("words", "part-of-speech, accuracy, 687 bundled sentences"),
)
"""Kinds of vectors, and what is measured of them."""


def _measured(encoder: Encoder) -> Iterator[Measured]:
    """The measures of one encoder, in the order of `_ABOUT`."""

    def embed(texts: Any, *, prompt: str | None = None) -> Any:
        return encoder.encode(list(texts), prompt=prompt, convert_to_numpy=True)

    yield sts(embed, BUNDLED_SETS / "pairs.jsonl")
    train = read_tagged(BUNDLED_SETS / "words.train.jsonl", column="pos")
    test = read_tagged(BUNDLED_SETS / "words.test.jsonl", column="pos")
    yield probe(encoder, train, test, reading="own")
