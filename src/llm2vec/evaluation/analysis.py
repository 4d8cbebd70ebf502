"""The paper's analyses (section 4), how an encoder's vectors are spread, and nearest neighbours."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from llm2vec.backbone.loading import embedding_rows, load_decoder, load_tokenizer
from llm2vec.backbone.positions import position_limit
from llm2vec.backbone.source import Source
from llm2vec.backbone.switch import allow_partly, is_bidirectional, make_bidirectional
from llm2vec.backbone.vocabulary import fit_tokenizer
from llm2vec.encoder.batching import layer_states
from llm2vec.encoder.encoder import Encoder
from llm2vec.encoder.tokenization import Tokens, borders, tokenize
from llm2vec.errors import ModelError

BUNDLED_SETS = Path(__file__).parents[1] / "assets" / "evaluation"

_ENDINGS = ("start", "text", "paraphrase", "different")


@dataclass(frozen=True)
class Triple:
    """A beginning with three endings.

    Attributes:
        start: Beginning of the sentence.
        text: One ending.
        paraphrase: Ending that says the same in other words.
        different: Ending that gives the beginning another sense.
    """

    start: str
    text: str
    paraphrase: str
    different: str


@dataclass(frozen=True)
class FutureTokens:
    """How much the states of a beginning depend on its ending; those of a causal model do not.

    Attributes:
        paraphrase: For each triple, the cosine of the beginning before the text and the beginning
            before its paraphrase.
        different: For each triple, the cosine of the beginning before the text and the beginning
            before the other sense.
    """

    paraphrase: tuple[float, ...]
    different: tuple[float, ...]

    @property
    def gap(self) -> float:
        """The mean of paraphrase minus different; 0 for a causal model."""
        return float(np.mean(np.subtract(self.paraphrase, self.different)))

    @property
    def right(self) -> float:
        """The share of triples in which the paraphrase's beginning is nearer; a tie counts half."""
        difference = np.subtract(self.paraphrase, self.different)
        return float(np.mean(np.where(np.abs(difference) < 1e-6, 0.5, difference > 0)))


def bundled_triples() -> list[Triple]:
    """The project's own triples."""
    lines = (BUNDLED_SETS / "future.jsonl").read_text(encoding="utf8").splitlines()
    rows = map(json.loads, lines)
    return [Triple(**{key: row[key] for key in _ENDINGS}) for row in rows]


def bundled_sentences() -> list[str]:
    """The project's own sentences for looking at neighbours: 12 themes, 5 sentences each."""
    return (BUNDLED_SETS / "neighbours.txt").read_text(encoding="utf8").splitlines()


def future_tokens(encoder: Encoder, triples: Sequence[Triple]) -> FutureTokens:
    """Compare a beginning's pooled states under different endings (paper, section 4.1).

    Args:
        encoder: Encoder to analyse; it pools the beginning's own tokens.
        triples: Beginnings with endings.
    """
    base = _beginnings(encoder, [(each.start, each.text) for each in triples])
    paraphrase = _beginnings(encoder, [(each.start, each.paraphrase) for each in triples])
    different = _beginnings(encoder, [(each.start, each.different) for each in triples])
    return FutureTokens(
        paraphrase=tuple((base * paraphrase).sum(1).tolist()),
        different=tuple((base * different).sum(1).tolist()),
    )


def _beginnings(encoder: Encoder, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """The vectors of beginnings, pooled alone and of length 1, each before its ending."""
    starts, endings = zip(*pairs, strict=True)
    spaced = [" " + ending for ending in endings]
    before = borders(encoder.tokenizer).before
    whole = tokenize(
        encoder.tokenizer, spaced, max_length=encoder.settings.max_length, prompts=starts
    )
    vectors_BD = encoder.encode_tokens([Tokens(each.ids, before, each.first) for each in whole])
    return nn.functional.normalize(vectors_BD.double(), dim=-1).numpy()


@dataclass(frozen=True)
class Similarity:
    """How near a decoder's causal states are to those without the causal mask, before training.

    The paper found them near in Mistral-7B, which gains by the switch alone. On smaller decoders
    nearness did not foretell that (docs/results.md); `switch_effect` measures it.

    Attributes:
        cosine_LT: Cosine at each token, for the embedding and each layer.
    """

    cosine_LT: tuple[tuple[float, ...], ...]

    @property
    def by_layer(self) -> tuple[float, ...]:
        """The mean over tokens of each layer; of the embedding, which no mask changes, it is 1."""
        return tuple(float(np.mean(row)) for row in self.cosine_LT)


def bundled_paragraph() -> str:
    """The project's own paragraph for looking at states, about 170 words."""
    return (BUNDLED_SETS / "paragraph.txt").read_text(encoding="utf8").strip()


@torch.inference_mode()
def layer_similarity(
    source: str | Path | Source, text: str | None = None, *, partial: bool = False
) -> Similarity:
    """Compare a decoder's states of one text under both masks, layer by layer (paper, section 4.2).

    Args:
        source: Decoder: a folder, a hub id or `bundled`, or a `Source` with the ways to fetch it.
        text: Text to compare on, cut to the model's positions; None takes the bundled paragraph.
        partial: Whether a hybrid may keep layers that read left to right.

    Raises:
        ModelError: The decoder cannot be loaded or made bidirectional.
    """
    tokenizer = load_tokenizer(source)
    model = load_decoder(source, head=False, dtype=torch.float32).eval()
    fit_tokenizer(tokenizer, rows=embedding_rows(model))
    ids = tokenizer(text or bundled_paragraph())["input_ids"][: position_limit(model.config)]
    if is_bidirectional(model.config):
        raise ModelError(f"{source} is bidirectional already; this compares a decoder with itself")
    pad_id = int(tokenizer.pad_token_id)
    causal = layer_states(model, [ids], pad_id=pad_id)
    if partial:
        allow_partly(model)
    make_bidirectional(model)
    both = layer_states(model, [ids], pad_id=pad_id)
    cosines = [
        nn.functional.cosine_similarity(one.double(), other.double(), dim=-1)
        for one, other in zip(causal, both, strict=True)
    ]
    return Similarity(tuple(tuple(row.tolist()) for row in cosines))


@dataclass(frozen=True)
class Geometry:
    """How an encoder's vectors are spread, which SimCSE should improve (Wang and Isola 2020).

    Attributes:
        anisotropy: Mean cosine of different texts: 1 if all vectors point one way, 0 if they are
            spread out.
        uniformity: Logarithm of the mean of exp(-2 d^2) over pairs of texts at distance d; lower is
            more evenly spread.
        alignment: Mean d^2 over pairs of texts that mean the same; lower is nearer.
    """

    anisotropy: float
    uniformity: float
    alignment: float


def geometry(encoder: Encoder, alike: Sequence[tuple[str, str]], others: Sequence[str]) -> Geometry:
    """How the vectors of an encoder are spread.

    Args:
        encoder: Encoder to analyse.
        alike: Pairs of texts that mean the same.
        others: Texts that mean different things.
    """
    first_texts, second_texts = zip(*alike, strict=True)
    first_PD = encoder.encode(list(first_texts), normalize=True)
    second_PD = encoder.encode(list(second_texts), normalize=True)
    vectors_BD = encoder.encode(list(others), normalize=True)
    cosine_BB = vectors_BD @ vectors_BD.T
    apart = cosine_BB[~torch.eye(len(others), dtype=torch.bool)].double()
    return Geometry(
        anisotropy=float(apart.mean()),
        uniformity=float((-2 * (2 - 2 * apart)).exp().mean().log()),
        alignment=float((first_PD - second_PD).double().square().sum(1).mean()),
    )


def bundled_pairs() -> list[tuple[float, str, str]]:
    """The project's own graded pairs: similarity from 0 to 5, and two texts."""
    lines = (BUNDLED_SETS / "pairs.jsonl").read_text(encoding="utf8").splitlines()
    return [(row["score"], row["text1"], row["text2"]) for row in map(json.loads, lines)]


@dataclass(frozen=True)
class Neighbour:
    """A text that is near another one.

    Attributes:
        text: Near text.
        cosine: Cosine of the two vectors.
    """

    text: str
    cosine: float


def neighbours(
    encoder: Encoder, texts: Sequence[str], *, of: Sequence[int], count: int = 3
) -> list[list[Neighbour]]:
    """The nearest neighbours of some texts.

    Args:
        encoder: Encoder to analyse.
        texts: All texts.
        of: Indices of the texts whose neighbours are wanted.
        count: Number of neighbours of each.

    Returns:
        For each of these texts, its neighbours, nearest first, without the text itself.
    """
    vectors_BD = encoder.encode(list(texts), normalize=True, convert_to_numpy=True)
    cosine_QB = vectors_BD[list(of)] @ vectors_BD.T
    cosine_QB[np.arange(len(of)), list(of)] = -np.inf
    nearest = np.argsort(-cosine_QB, axis=1)[:, :count]
    found = []
    for cosine_B, indices in zip(cosine_QB, nearest, strict=True):
        found.append([Neighbour(texts[index], float(cosine_B[index])) for index in indices])
    return found
