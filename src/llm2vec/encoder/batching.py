"""Texts to batches by token budget, and batches to states, without padding where the model can.

A model whose attention implementation is the packed one (proved for it when it was loaded) reads
many texts in one row; any other model gets right-padded rows. Either way states come back flat,
text after text.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from threading import Event, Lock, Semaphore
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from llm2vec.backbone.packed_attention import is_packed_attention, packed_inputs, padded_inputs
from llm2vec.backbone.positions import longrope_call, longrope_limit, selection_limit
from llm2vec.runtime.memory import memory_checked
from llm2vec.runtime.onednn import fast_linear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Result = TypeVar("Result")

MAX_TOKENS = 1024
"""Tokens in a batch on a CPU; 512 to 4,096 are equally fast, and more would only take more
memory."""

MAX_TOKENS_GPU = 32_768
"""Tokens in a batch on a GPU."""

_starting_threads = Lock()


def is_packed(model: "PreTrainedModel") -> bool:
    """Whether texts go through this model in one row, where each sees only itself."""
    return is_packed_attention(model.config._attn_implementation)


def on_each_core(
    work: Callable[[list[int]], Result], batches: Sequence[list[int]], *, device: torch.device
) -> Iterator[Result]:
    """Apply `work` to every batch, in order; on a CPU each core works on a batch of its own.

    Cores that share one batch would wait for each other after every matrix product. Every batch
    runs without gradients and without autocast, whatever holds where this is called: what a thread
    has set does not reach other threads.

    Args:
        work: The work on one batch. Several threads call it at once, and the last batches may be
            done before the first results are taken.
        batches: Batches as from `plan_batches`.
        device: Device of the model.
    """

    def result_of(batch: list[int]) -> Result:
        without_autocast = torch.autocast(device.type, enabled=False)
        with torch.inference_mode(), without_autocast, fast_linear(device):
            return work(batch)

    cores = torch.get_num_threads() if device.type == "cpu" else 1
    threads = min(cores, len(batches))
    if threads < 2:
        yield from map(result_of, batches)
        return
    begun = Semaphore(0)
    may_work = Event()

    def begin() -> None:
        # A thread reads the count of the process when it first asks; from then on it has its own.
        torch.get_num_threads()
        torch.set_num_threads(1)
        begun.release()
        may_work.wait()

    with ThreadPoolExecutor(threads, initializer=begin) as pool:
        try:
            with _starting_threads:
                results = pool.map(result_of, batches)
                for _ in range(threads):
                    begun.acquire()
                # New threads of the whole process begin with the count that was set last.
                torch.set_num_threads(cores)
        finally:
            may_work.set()
        yield from results


def plan_for(
    model: "PreTrainedModel",
    lengths: Sequence[int],
    *,
    max_tokens: int,
    max_texts: int | None = None,
) -> list[list[int]]:
    """Batches in which a model gives each text the states that it has alone.

    Args:
        model: A body (without LM head), bidirectional or causal.
        lengths: Number of tokens of each text.
        max_tokens: Largest number of tokens in a batch.
        max_texts: Largest number of texts in a batch; None is no limit.

    Returns:
        The indices of the texts, batch by batch, as `plan_batches` gives them.
    """
    return plan_batches(
        lengths,
        max_tokens=max_tokens,
        max_texts=max_texts,
        padded=not is_packed(model),
        border=longrope_limit(model.config),
        unpadded_above=selection_limit(model.config),
    )


def plan_batches(
    lengths: Sequence[int],
    *,
    max_tokens: int,
    max_texts: int | None = None,
    padded: bool,
    border: int | None = None,
    unpadded_above: int | None = None,
) -> list[list[int]]:
    """Sort texts into batches of at most `max_tokens` tokens (padding counted), longest first.

    A single text that is longer than the budget makes a batch of its own. Texts without tokens are
    in no batch.

    Args:
        lengths: Number of tokens of each text.
        max_tokens: Largest number of tokens in a batch.
        max_texts: Largest number of texts in a batch; None is no limit.
        padded: Whether rows are filled up to the longest.
        border: Length that separates batches: texts up to it and longer ones share none (see
            `backbone.positions`). None lets all texts share batches.
        unpadded_above: Length above which texts share batches with texts of their own length alone
            (see `backbone.positions`). None is no such length.

    Returns:
        The indices of the texts, batch by batch.

    Example:
        >>> plan_batches([3, 9, 0, 4], max_tokens=10, padded=False)
        [[1], [3, 0]]
    """
    with_tokens = [index for index, length in enumerate(lengths) if length]
    longest_first = sorted(with_tokens, key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    longest = used = 0
    for index in longest_first:
        length = lengths[index]
        cost = longest if padded else length
        over_budget = used + cost > max_tokens
        crosses_border = border is not None and longest > border >= length
        pads = unpadded_above is not None and longest > max(unpadded_above, length)
        apart = crosses_border or pads
        if not batches or over_budget or apart or len(batches[-1]) == max_texts:
            batches.append([index])
            longest = used = length
        else:
            batches[-1].append(index)
            used += cost
    return batches


def model_inputs(
    documents: Sequence[Sequence[int]],
    *,
    packed: bool,
    pad_id: int,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """The keyword arguments to call a model with: one packed row, or right-padded rows.

    Args:
        documents: Token ids of each text; none of them empty.
        packed: Whether the model is packed.
        pad_id: Token id that fills the rows of a model that is not packed.
        device: Device of the tensors.
    """
    if packed:
        return packed_inputs(documents, device=device)
    return padded_inputs(documents, pad_id=pad_id, device=device)


def flatten(states_BTD: Tensor, lengths: Sequence[int]) -> Tensor:
    """States without padding, text after text: states_ND. A packed row is flat already."""
    rows, longest, _ = states_BTD.shape
    if rows == 1:
        return states_BTD[0, : sum(lengths)]
    lengths_B = torch.tensor(lengths, device=states_BTD.device)
    is_text_BT = torch.arange(longest, device=states_BTD.device) < lengths_B[:, None]
    return states_BTD[is_text_BT]


def batch_memory_checked(
    model: "PreTrainedModel", documents: Sequence[Sequence[int]]
) -> AbstractContextManager[None]:
    """Inside the block, memory that runs out is an error that says what the batch was.

    Args:
        model: A body (without LM head), bidirectional or causal.
        documents: Token ids of each text of the batch.

    Raises:
        OutOfMemory: There was not enough memory.
    """
    longest = max(map(len, documents))
    tokens = sum(map(len, documents)) if is_packed(model) else longest * len(documents)
    batch = f"{len(documents)} texts of {tokens:,} tokens in a batch, the longest of {longest:,}"
    less = "give a smaller batch_size (--batch-size) or fewer texts at once"
    if len(documents) == 1:
        batch, less = f"one text of {longest:,} tokens", "cut texts shorter (max_length)"
    dtype = str(model.dtype).removeprefix("torch.")
    return memory_checked(
        f"with {batch}, in {dtype} on {model.device}",
        advice=f"{less}, load the model in half precision (dtype), or free some memory",
    )


def token_states(
    model: "PreTrainedModel", documents: Sequence[Sequence[int]], *, pad_id: int
) -> Tensor:
    """Last hidden states of all tokens of the given documents, flat: states_ND.

    Args:
        model: A body (without LM head), bidirectional or causal.
        documents: Token ids of each text; none of them empty.
        pad_id: Token id that fills the rows of a model that is not packed.
    """
    output = forward(model, documents, pad_id=pad_id)
    return flatten(output.last_hidden_state, [len(document) for document in documents])


def layer_states(
    model: "PreTrainedModel", documents: Sequence[Sequence[int]], *, pad_id: int
) -> tuple[Tensor, ...]:
    """States after the embedding and after each layer, each flat: a tuple of states_ND.

    Args:
        model: A body (without LM head), bidirectional or causal.
        documents: Token ids of each text; none of them empty.
        pad_id: Token id that fills the rows of a model that is not packed.
    """
    output = forward(model, documents, pad_id=pad_id, output_hidden_states=True)
    lengths = [len(document) for document in documents]
    return tuple(flatten(states_BTD, lengths) for states_BTD in output.hidden_states)


def forward(
    model: "PreTrainedModel", documents: Sequence[Sequence[int]], *, pad_id: int, **options: Any
) -> Any:
    """What a model returns for a batch of documents.

    Args:
        model: A body (without LM head), bidirectional or causal.
        documents: Token ids of each text; none of them empty.
        pad_id: Token id that fills the rows of a model that is not packed.
        **options: Further keyword arguments of the model.
    """
    inputs = model_inputs(documents, packed=is_packed(model), pad_id=pad_id, device=model.device)
    with longrope_call(model, model.config, longest=max(map(len, documents))):
        return model(**inputs, **options)
