"""How a vector is kept: as float32, float16, int8 with a scale, or one bit a number.

And how it is read again.

Each row is kept by itself, so that a vector does not depend on what else is in the file. Knows
nothing of files.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import pyarrow

Store = Literal["float32", "float16", "int8", "binary"]
"""Of a number in a shard.

`int8`: whole numbers from -127 to 127, and a scale for each row to multiply them by.
`binary`: the signs alone, eight to a byte, the first in the highest bit (numpy's `packbits`)."""

_LARGEST_INT8 = 127


@dataclass(frozen=True)
class Kept:
    """Vectors as they are kept.

    Attributes:
        numbers_BD: What goes into the column `vector`; D is an eighth where signs are kept.
        scale_B: What int8 numbers are multiplied by; None for others.
    """

    numbers_BD: np.ndarray
    scale_B: np.ndarray | None = None


def keep(embedding_BD: np.ndarray, *, store: Store) -> Kept:
    """Vectors as they are kept.

    Example:
        >>> keep(np.array([[1.0, -0.5]], dtype="float32"), store="int8").numbers_BD.tolist()
        [[127, -64]]
        >>> keep(np.array([[1.0, -0.5]], dtype="float32"), store="binary").numbers_BD.tolist()
        [[128]]
    """
    if store == "binary":
        return Kept(np.packbits(embedding_BD > 0, axis=-1))
    if store == "int8":
        largest_B = np.abs(embedding_BD).max(axis=-1, initial=0)
        scale_B = np.where(largest_B > 0, largest_B / _LARGEST_INT8, 1).astype(np.float32)
        return Kept(np.rint(embedding_BD / scale_B[:, None]).astype(np.int8), scale_B)
    return Kept(embedding_BD.astype(store))


def comparable(numbers_BD: np.ndarray, *, store: Store, dimension: int) -> np.ndarray:
    """Kept vectors as float32, to compare by cosine: without their scale, and signs as 1 and -1.

    Args:
        numbers_BD: The column `vector`.
        store: How they are kept.
        dimension: Numbers of a vector.
    """
    if store == "binary":
        bits_BD = np.unpackbits(numbers_BD, axis=-1, count=dimension)
        signs_BD: np.ndarray = bits_BD.astype(np.float32) * 2 - 1
        return signs_BD
    return numbers_BD.astype(np.float32)


def number_type(store: Store) -> Any:
    """The Arrow type of a number in the column `vector`."""
    import pyarrow

    types = {
        "float32": pyarrow.float32(),
        "float16": pyarrow.float16(),
        "int8": pyarrow.int8(),
        "binary": pyarrow.uint8(),
    }
    return types[store]


def as_column(numbers_BD: np.ndarray, *, store: Store) -> "pyarrow.Array":
    """A column of lists of one size."""
    import pyarrow

    flat = pyarrow.array(np.ascontiguousarray(numbers_BD).reshape(-1), type=number_type(store))
    return pyarrow.FixedSizeListArray.from_arrays(flat, numbers_BD.shape[1])
