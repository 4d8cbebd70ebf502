"""Vectors of words, sentences or tokens with their offsets, in shards: `llm2vec words --out`.

A shard has a row for each part of a text; `row` and `id` say which text it is of. A whole text goes
through the model, so that each part's vector knows what is around it.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from llm2vec.bulk.memory import budget_for
from llm2vec.bulk.rows import BulkRow, IdType, Window
from llm2vec.bulk.shards import Made
from llm2vec.bulk.storing import Store, as_column, keep
from llm2vec.bulk.vectors import as_table, row_columns
from llm2vec.encoder.chunks import Chunks, Unit, chunks_of

if TYPE_CHECKING:
    from llm2vec.encoder.encoder import Encoder

_WINDOW_BYTES = 1 << 28
"""Bytes of the vectors in a window, if every character were a part."""

_FEWEST_CHARACTERS = 1024


@dataclass(frozen=True)
class PartOptions:
    """What a part is, and how its vector is kept.

    Attributes:
        unit: What texts are cut into.
        store: How a number is kept.
    """

    unit: Unit = "word"
    store: Store = "float32"


class PartTask:
    """Makes a table of the parts of each window's texts.

    Args:
        encoder: The encoder.
        options: What a part is.
        on_note: Hears what a person should know.
    """

    def __init__(
        self,
        encoder: "Encoder",
        options: PartOptions,
        *,
        on_note: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._encoder, self._options = encoder, options
        self.budget = budget_for(encoder, on_note=on_note)

    @property
    def made(self) -> str:
        """What a row of a shard is: `words`, `sentences` or `tokens`."""
        return f"{self._options.unit}s"

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that a vector depends on beside model and text."""
        return {
            "max_length": self._encoder.settings.max_length,
            "dtype": str(self._encoder.model.dtype).removeprefix("torch."),
            **asdict(self._options),
            "dimension": self._encoder.dimension,
        }

    @property
    def window_characters(self) -> int:
        """Characters of a window's texts, whose parts' vectors are in memory together."""
        return max(_WINDOW_BYTES // (4 * self._encoder.dimension), _FEWEST_CHARACTERS)

    def prepare(self, window: Window) -> Window:
        """Nothing: texts are cut and tokenised with their offsets where they are encoded."""
        return window

    def finish(self, prepared: Window, *, id_type: IdType | None) -> Made:
        """The parts of a window's texts."""
        if prepared.left_out:
            return Made(prepared)
        texts = [row.text for row in prepared.rows]
        found = self.budget.run(lambda most: self._chunks(texts, most))
        counts = [len(each.offsets) for each in found]
        owners = [
            row for row, count in zip(prepared.rows, counts, strict=True) for _ in range(count)
        ]
        return Made(
            prepared,
            as_table(self._columns(owners, found, id_type)),
            tokens=sum(each.tokens for each in found),
            empty=counts.count(0),
        )

    def _chunks(self, texts: Sequence[str], most: int) -> list[Chunks]:
        return chunks_of(
            self._encoder.model,
            self._encoder.tokenizer,
            texts,
            unit=self._options.unit,
            max_length=self._encoder.settings.max_length,
            max_tokens=most,
        )

    def _columns(
        self, owners: Sequence[BulkRow], found: Sequence[Chunks], id_type: IdType | None
    ) -> dict[str, Any]:
        import pyarrow

        columns = row_columns(owners, id_type=id_type, keep_text=False)
        names = list(chain.from_iterable(each.texts for each in found))
        pairs = list(chain.from_iterable(each.offsets for each in found))
        offsets = np.array(pairs, dtype=np.int32).reshape(-1, 2)
        vectors = [each.vectors_CD.numpy() for each in found]
        vectors_ND = np.concatenate([np.zeros((0, self._encoder.dimension), np.float32), *vectors])
        kept = keep(vectors_ND, store=self._options.store)
        columns[self._options.unit] = pyarrow.array(names, type=pyarrow.large_string())
        columns["start"], columns["end"] = offsets[:, 0], offsets[:, 1]
        if kept.scale_B is not None:
            columns["scale"] = kept.scale_B
        columns["vector"] = as_column(kept.numbers_BD, store=self._options.store)
        return columns
