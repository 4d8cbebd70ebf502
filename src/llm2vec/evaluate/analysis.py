"""The paper's analyses of what an encoder does with a text: future tokens (section 4.1) and nearest neighbours."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from llm2vec.encoder import LLM2Vec
from llm2vec.tokens import Tokens, borders, tokenize

BUNDLED_SETS = Path(__file__).parents[1] / "assets" / "evaluation"


@dataclass(frozen=True)
class Triple:
    """One beginning with three endings: a text, the same in other words, and another sense of the beginning."""

    start: str
    text: str
    paraphrase: str
    different: str


@dataclass(frozen=True)
class FutureTokens:
    """How much the states of a beginning tell of its ending; a causal model's tell nothing.

    Attributes:
        paraphrase: For each triple, cosine of the beginning before the text and before its paraphrase.
        different: The same for the text and the other sense.
    """

    paraphrase: tuple[float, ...]
    different: tuple[float, ...]

    @property
    def gap(self) -> float:
        """Mean of paraphrase minus different; 0 for a causal model."""
        return float(np.mean(np.subtract(self.paraphrase, self.different)))

    @property
    def right(self) -> float:
        """Share of the triples in which the paraphrase's beginning is the nearer one (a tie counts half)."""
        difference = np.subtract(self.paraphrase, self.different)
        return float(np.mean(np.where(np.abs(difference) < 1e-6, 0.5, difference > 0)))


def bundled_triples() -> list[Triple]:
    """The project's own triples."""
    lines = (BUNDLED_SETS / "future.jsonl").read_text(encoding="utf8").splitlines()
    rows = map(json.loads, lines)
    return [Triple(row["start"], row["text"], row["paraphrase"], row["different"]) for row in rows]


def bundled_sentences() -> list[str]:
    """The project's own sentences for looking at neighbours: 12 themes, 5 sentences each."""
    return (BUNDLED_SETS / "neighbours.txt").read_text(encoding="utf8").splitlines()


def future_tokens(encoder: LLM2Vec, triples: Sequence[Triple]) -> FutureTokens:
    """Compare a beginning's pooled states under different endings (paper, section 4.1).

    Args:
        encoder: Its pooling is used, over the beginning's own tokens.
        triples: Beginnings with endings.
    """
    base = _beginnings(encoder, [(each.start, each.text) for each in triples])
    paraphrase = _beginnings(encoder, [(each.start, each.paraphrase) for each in triples])
    different = _beginnings(encoder, [(each.start, each.different) for each in triples])
    return FutureTokens(tuple((base * paraphrase).sum(1).tolist()), tuple((base * different).sum(1).tolist()))


def _beginnings(encoder: LLM2Vec, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    starts, endings = zip(*pairs, strict=True)
    spaced = [" " + ending for ending in endings]
    before = borders(encoder.tokenizer).before
    whole = tokenize(encoder.tokenizer, spaced, max_length=encoder.settings.max_length, prompts=starts)
    vectors_BD = encoder.encode_tokens([Tokens(each.ids, before, each.first) for each in whole])
    return nn.functional.normalize(vectors_BD.double(), dim=-1).numpy()


@dataclass(frozen=True)
class Neighbour:
    """A text near another.

    Attributes:
        text: The near one.
        cosine: Of the two vectors.
    """

    text: str
    cosine: float


def neighbours(encoder: LLM2Vec, texts: Sequence[str], *, of: Sequence[int], count: int = 3) -> list[list[Neighbour]]:
    """The nearest of `texts` to some of them.

    Args:
        encoder: What embeds them.
        texts: All texts.
        of: Numbers of the texts whose neighbours are wanted.
        count: Neighbours of each.

    Returns:
        For each wanted text, its neighbours, nearest first, without itself.
    """
    vectors_BD = encoder.encode(list(texts), normalize=True, convert_to="numpy")
    cosine_QB = vectors_BD[list(of)] @ vectors_BD.T
    cosine_QB[np.arange(len(of)), list(of)] = -np.inf
    nearest = np.argsort(-cosine_QB, axis=1)[:, :count]
    return [
        [Neighbour(texts[place], float(row[place])) for place in places]
        for row, places in zip(cosine_QB, nearest, strict=True)
    ]
