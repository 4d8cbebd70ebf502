"""Whether an export gives the vectors of its source: fixed and random texts, encoded by both and compared."""

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
        texts: How many vectors were compared.
        least_cosine: Of all of them; a zero vector agrees with a zero vector alone.
        mean_cosine: Of all of them.
        worst: The start of the text with the least cosine.
    """

    texts: int
    least_cosine: float
    mean_cosine: float
    worst: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def comparison_texts(*, seed: int = 0) -> list[str]:
    """Short, long, empty, in several scripts, and made of random syllables."""
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
    """Encode every text by both, alone and after each prompt, and compare.

    Args:
        source: The encoder.
        exported: What was written, opened again.
        texts: As of `comparison_texts`.
        prompts: What is put before every text in further rounds.
    """
    cosines, read = list[float](), list[str]()
    for prompt in (None, *prompts):
        ours_BD, theirs_BD = (embed(texts, prompt=prompt) for embed in (source, exported))
        cosines += _cosines(ours_BD, theirs_BD).tolist()
        read += [f"{prompt or ''}{text}" for text in texts]
    worst = int(np.argmin(cosines))
    return Agreement(len(cosines), cosines[worst], float(np.mean(cosines)), read[worst][:60])


def _cosines(ours_BD: np.ndarray, theirs_BD: np.ndarray) -> np.ndarray:
    """Cosine of each pair of rows: 1 where both are zero, 0 where one is, and -1 where one is not finite."""
    ours_BD, theirs_BD = ours_BD.astype(np.float64), theirs_BD.astype(np.float64)
    ours_B, theirs_B = (np.linalg.norm(each, axis=1) for each in (ours_BD, theirs_BD))
    products_B = (ours_BD * theirs_BD).sum(1)
    cosines_B = products_B / np.maximum(ours_B * theirs_B, 1e-12)
    both_zero_B = (ours_B < 1e-9) & (theirs_B < 1e-9)
    found_B: np.ndarray = np.where(both_zero_B, 1.0, cosines_B)
    finite_B: np.ndarray = np.nan_to_num(found_B, nan=-1.0, posinf=-1.0, neginf=-1.0)
    return finite_B
