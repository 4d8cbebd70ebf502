"""Comparison of an export with its source, on fixed and random texts that both encode."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llm2vec.evaluation.subjects import Embedder

_FIXED = (
    "The old man the boats.",
    "Yes",
    "a",
    "",
    "Two  spaces, a\ttab and\na line break.",
    "def area(radius): return 3.14159 * radius ** 2  # in m²",
    "Ce qui est simple est toujours faux. Ce qui ne l'est pas est inutilisable.",
    "Быстрая коричневая лиса перепрыгивает через ленивую собаку.",
    "快速的棕色狐狸跳过了懒狗。",
    "الثعلب البني السريع يقفز فوق الكلب الكسول.",
    "तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है।",
    "🦊 jumps over 🐶, e\u0301 and \u00e9, ﬁne.",
)
_LONG = (
    "Encoders read a text in both directions, so that every word may look at what follows. " * 200
)
_SYLLABLES = (
    "ba",
    "ne",
    "ti",
    "stro",
    "lum",
    "ark",
    "qui",
    "ven",
    "oth",
    "zig",
    "é",
    "ß",
    "7",
    "-",
)
_RANDOM_TEXTS = 24
_MOST_RANDOM_WORDS = 90


@dataclass(frozen=True)
class Agreement:
    """How near the vectors of an export are to those of its source.

    Attributes:
        texts: Number of vectors that were compared.
        least_cosine: Least cosine; a zero vector agrees with a zero vector alone.
        mean_cosine: Mean cosine.
        worst: Beginning of the text with the least cosine.
    """

    texts: int
    least_cosine: float
    mean_cosine: float
    worst: str

    def to_dict(self) -> dict[str, Any]:
        """The agreement as plain data for JSON."""
        return asdict(self)


def comparison_texts(*, seed: int = 0) -> list[str]:
    """Texts to compare on: short, long, empty, in several scripts, and of random syllables."""
    drawn = random.Random(seed)  # noqa: S311  # nothing secret

    def word() -> str:
        return "".join(drawn.choices(_SYLLABLES, k=drawn.randint(1, 4)))

    made = [
        " ".join(word() for _ in range(drawn.randint(1, _MOST_RANDOM_WORDS)))
        for _ in range(_RANDOM_TEXTS)
    ]
    return [*_FIXED, _LONG, *made]


def compare(
    source: Embedder, exported: Embedder, texts: Sequence[str], *, prompts: Sequence[str] = ()
) -> Agreement:
    """Encode each text by both, alone and after each prompt, and compare the vectors.

    Args:
        source: Encoder that was exported.
        exported: Export, opened again.
        texts: Texts, from `comparison_texts`.
        prompts: Prompts that are put before each text in further rounds.
    """
    cosines: list[float] = []
    compared: list[str] = []
    for prompt in (None, *prompts):
        ours_BD = source(texts, prompt=prompt)
        theirs_BD = exported(texts, prompt=prompt)
        cosines += _cosines(ours_BD, theirs_BD).tolist()
        compared += [f"{prompt or ''}{text}" for text in texts]
    worst = int(np.argmin(cosines))
    mean = float(np.mean(cosines))
    return Agreement(len(cosines), cosines[worst], mean, compared[worst][:60])


def _cosines(ours_BD: np.ndarray, theirs_BD: np.ndarray) -> np.ndarray:
    """The cosine of each pair of rows.

    It is 1 if both rows are zero, 0 if one is, and -1 if one is not finite.
    """
    ours_BD = ours_BD.astype(np.float64)
    theirs_BD = theirs_BD.astype(np.float64)
    ours_B = np.linalg.norm(ours_BD, axis=1)
    theirs_B = np.linalg.norm(theirs_BD, axis=1)
    products_B = (ours_BD * theirs_BD).sum(1)
    cosines_B = products_B / np.maximum(ours_B * theirs_B, 1e-12)
    both_zero_B = (ours_B < 1e-9) & (theirs_B < 1e-9)
    found_B: np.ndarray = np.where(both_zero_B, 1.0, cosines_B)
    finite_B: np.ndarray = np.nan_to_num(found_B, nan=-1.0, posinf=-1.0, neginf=-1.0)
    return finite_B
