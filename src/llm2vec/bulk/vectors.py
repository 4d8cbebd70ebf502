"""One vector for each row, to a folder of shards: what `llm2vec encode --out FOLDER` does.

Tokenises in one thread while the model works in another. Identical texts of a window are encoded
once.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from llm2vec.backbone.mode import evaluating
from llm2vec.bulk.long_texts import Windows, windows_of
from llm2vec.bulk.memory import budget_for
from llm2vec.bulk.rows import WINDOW_CHARACTERS, BulkRow, IdType, Rejected, Window
from llm2vec.bulk.shards import Format, Made
from llm2vec.bulk.storing import Store, as_column, keep
from llm2vec.encoder.int8 import int8_copy
from llm2vec.encoder.tokenization import Tokens, borders
from llm2vec.errors import UsageError

if TYPE_CHECKING:
    import pyarrow

    from llm2vec.encoder.encoder import Encoder

Long = Literal["truncate", "window"]
"""The treatment of a text that is too long: its end is cut, or it is read in windows."""


@dataclass(frozen=True)
class VectorOptions:
    """What a vector is, and how it is kept.

    Attributes:
        prompt: What comes before every text that has none of its own; it is not pooled.
        normalize: Whether vectors are scaled to length 1, after they were shortened.
        dimensions: How many of a vector's first numbers are kept (Matryoshka); None is all.
        store: How a number is kept.
        long: What becomes of texts longer than the longest sequence.
        deterministic: One text at a time on one thread each: equal texts have equal vectors to the
            last bit.
        keep_text: Whether shards hold the texts too.
        vectors_in: Whether vectors are in the shard or in a `.npy` file beside it.
        int8: Whether linear layers compute in int8, on a CPU: faster on some processors, and less
            exact.
    """

    prompt: str = ""
    normalize: bool = False
    dimensions: int | None = None
    store: Store = "float32"
    long: Long = "truncate"
    deterministic: bool = False
    keep_text: bool = True
    vectors_in: Format = "parquet"
    int8: bool = False


@dataclass(frozen=True)
class _Prepared:
    """A window whose texts are tokenised.

    Attributes:
        window: The window.
        texts: Its different texts, in windows of the model.
        count: Number of different texts.
        text_indices: The text that each row has.
    """

    window: Window
    texts: Windows = field(default_factory=lambda: Windows([], [], []))
    count: int = 0
    text_indices: Sequence[int] = ()


class VectorTask:
    """Makes a table of vectors of each window.

    Args:
        encoder: The encoder.
        options: What a vector is.
        on_note: Hears what a person should know.

    Attributes:
        budget: Tokens of a batch.

    Raises:
        UsageError: The encoder has no vectors like that, or cannot compute in int8.
    """

    made = "vectors"

    def __init__(
        self,
        encoder: "Encoder",
        options: VectorOptions,
        *,
        on_note: Callable[[str], object] = lambda _: None,
    ) -> None:
        check_options(options, dimension=encoder.dimension)
        self._encoder = int8_copy(encoder) if options.int8 else encoder
        self._options = options
        self._edges = borders(encoder.tokenizer)
        self._dimension = options.dimensions or encoder.dimension
        self.budget = budget_for(encoder, on_note=on_note)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that a vector depends on beside model and text."""
        own = self._encoder.settings
        return {
            **{name: value for name, value in asdict(own).items() if name != "prompts"},
            "dtype": str(self._encoder.model.dtype).removeprefix("torch."),
            **asdict(self._options),
            "dimension": self._dimension,
        }

    @property
    def window_characters(self) -> int:
        """Characters of a window's texts."""
        return WINDOW_CHARACTERS

    def prepare(self, window: Window) -> _Prepared:
        """Tokenise a window.

        Rows whose prompt leaves no room for their text move to the rejected ones.
        """
        if window.left_out:
            return _Prepared(window)
        try:
            return self._prepared(window)
        except UsageError:
            if all(row.prompt is None for row in window.rows):
                raise
        kept = []
        for row in window.rows:
            try:
                self._tokens([self._asked(row)])
                kept.append(row)
            except UsageError as error:
                window.rejected.append(Rejected(row.number, row.location, str(error)))
        window.rows = kept
        window.rejected.sort(key=lambda each: each.row)
        return self._prepared(window)

    def finish(self, prepared: _Prepared, *, id_type: IdType | None) -> Made:
        """The vectors of a window."""
        window = prepared.window
        if window.left_out:
            return Made(window)
        embedding_UD = self._pooled(prepared)[:, : self._dimension]
        if self._options.normalize:
            embedding_UD = torch.nn.functional.normalize(embedding_UD, dim=-1)
        empty_U = ~embedding_UD.any(dim=-1)
        text_B = torch.tensor(prepared.text_indices, dtype=torch.long)
        kept = keep(embedding_UD[text_B].numpy(), store=self._options.store)
        beside = self._options.vectors_in == "npy"
        columns = row_columns(window.rows, id_type=id_type, keep_text=self._options.keep_text)
        if kept.scale_B is not None:
            columns["scale"] = kept.scale_B
        if not beside:
            columns["vector"] = as_column(kept.numbers_BD, store=self._options.store)
        return Made(
            window,
            as_table(columns),
            vectors=kept.numbers_BD if beside else None,
            tokens=sum(len(each.ids) for each in prepared.texts.tokens),
            empty=int(empty_U[text_B].sum()),
        )

    def _asked(self, row: BulkRow) -> tuple[str, str]:
        prompt = self._options.prompt if row.prompt is None else row.prompt
        return self._encoder.settings.before_text(prompt), row.text

    def _prepared(self, window: Window) -> _Prepared:
        asked = [self._asked(row) for row in window.rows]
        different = {each: index for index, each in enumerate(dict.fromkeys(asked))}
        texts = self._tokens(list(different))
        return _Prepared(window, texts, len(different), [different[each] for each in asked])

    def _tokens(self, asked: Sequence[tuple[str, str]]) -> Windows:
        """Texts after their prompts, tokenised, and cut into windows where that is asked for."""
        prompts, texts = [prompt for prompt, _ in asked], [text for _, text in asked]
        tokens = self._encoder.tokens(
            texts,
            prompts=prompts if any(prompts) else None,
            max_length=sys.maxsize if self._options.long == "window" else None,
        )
        return windows_of(tokens, self._edges, max_length=self._encoder.settings.max_length)

    def _pooled(self, prepared: _Prepared) -> Tensor:
        tokens = prepared.texts.tokens
        if self._options.deterministic:
            embedding_WD = self._one_by_one(tokens)
        else:
            embedding_WD = self.budget.run(
                lambda most: self._encoder.encode_tokens(tokens, max_tokens=most),
                tokens=sum(len(each.ids) for each in tokens),
            )
        return prepared.texts.pooled(embedding_WD, count=prepared.count)

    def _one_by_one(self, tokens: Sequence[Tokens]) -> Tensor:
        """Each text by itself on one thread: nothing about it depends on the others."""
        model, device = self._encoder.model, self._encoder.device
        embedding_WD = torch.zeros(len(tokens), self._encoder.dimension)

        def encode(index: int) -> None:
            with torch.inference_mode():
                embedding_WD[index] = self._encoder.embed([tokens[index]])[0].cpu()

        workers = torch.get_num_threads() if device.type == "cpu" else 1
        with evaluating(model), _one_thread(), ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(encode, range(len(tokens))):
                pass
        return embedding_WD


@contextmanager
def _one_thread() -> Iterator[None]:
    """Threads that begin in the block multiply by themselves, whose sums then have one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_options(options: VectorOptions, *, dimension: int) -> None:
    """Refuse what cannot be made.

    Raises:
        UsageError: More dimensions than there are, or none.
    """
    asked = options.dimensions
    if asked is not None and not 1 <= asked <= dimension:
        raise UsageError(f"--dimensions {asked}: this encoder's vectors have {dimension} numbers")


def row_columns(
    rows: Sequence[BulkRow], *, id_type: IdType | None, keep_text: bool
) -> dict[str, Any]:
    """The columns that every shard begins with: `row`, and `id` and `text` where they are kept."""
    import pyarrow

    columns: dict[str, Any] = {
        "row": pyarrow.array([row.number for row in rows], type=pyarrow.int64())
    }
    if id_type is not None:
        types = {"int64": pyarrow.int64(), "string": pyarrow.string()}
        columns["id"] = pyarrow.array([row.id for row in rows], type=types[id_type])
    if keep_text:
        columns["text"] = pyarrow.array([row.text for row in rows], type=pyarrow.large_string())
    return columns


def as_table(columns: dict[str, Any]) -> "pyarrow.Table":
    """A table of columns."""
    import pyarrow

    return pyarrow.table(
        {
            name: pyarrow.array(each) if isinstance(each, np.ndarray) else each
            for name, each in columns.items()
        }
    )
