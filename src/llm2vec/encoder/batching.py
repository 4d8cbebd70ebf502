"""Texts to batches and batches to states: by token budget, longest first, without padding where the model can.

A model whose live attention implementation is the packed one (proved for it when it was loaded) reads many texts in
one row; any other gets right-padded rows. Either way states come back flat, text after text.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from threading import Event, Lock, Semaphore
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor

from llm2vec.backbone.packed_attention import PACKED, packed_inputs, padded_inputs
from llm2vec.backbone.positions import one_side
from llm2vec.backbone.receptive_field import decoder_layers
from llm2vec.errors import UsageError
from llm2vec.runtime.onednn import fast_products

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Result = TypeVar("Result")

Layer = int | Literal["all"]
"""Whose states are read: 0 is the embedding, -1 the last layer, numbers between count from either end; or all."""

MAX_TOKENS = 1024
"""Tokens in a batch on a CPU; 512 to 4,096 are as fast as each other, and more would only take more memory."""

MAX_TOKENS_GPU = 32_768

_starting_threads = Lock()

_reading: ContextVar[object] = ContextVar("reading", default=None)
"""Whose forward runs in this thread, where it ends before the last layer."""


def is_packed(model: "PreTrainedModel") -> bool:
    """Whether texts go through this model in one row, each seeing only itself."""
    return bool(model.config._attn_implementation == PACKED)


def on_each_core(
    work: Callable[[list[int]], Result], batches: Sequence[list[int]], *, device: torch.device
) -> Iterator[Result]:
    """What `work` makes of each batch, in order; on a CPU a batch for each core, so none waits after every product.

    Every batch runs without gradients and without autocast, whatever holds where this is called: what a thread is in
    does not reach other threads.

    Args:
        work: What to do with a batch; called from several threads at once, and the last batches may be done before the
            first are taken.
        batches: Batches as from `plan_batches`.
        device: Device of the model.
    """

    def done(batch: list[int]) -> Result:
        without_autocast = torch.autocast(device.type, enabled=False)
        with torch.inference_mode(), without_autocast, fast_products(device):
            return work(batch)

    cores = torch.get_num_threads() if device.type == "cpu" else 1
    threads = min(cores, len(batches))
    if threads < 2:
        yield from map(done, batches)
        return
    begun, may_work = Semaphore(0), Event()

    def begin() -> None:
        torch.get_num_threads()  # a thread reads the process's count once, and its own from then on
        torch.set_num_threads(1)
        begun.release()
        may_work.wait()

    with ThreadPoolExecutor(threads, initializer=begin) as pool:
        try:
            with _starting_threads:
                results = pool.map(done, batches)
                for _ in range(threads):
                    begun.acquire()
                # a thread's count is also what new threads of the whole process begin with
                torch.set_num_threads(cores)
        finally:
            may_work.set()
        yield from results


def plan_batches(
    lengths: Sequence[int],
    *,
    max_tokens: int,
    max_texts: int | None = None,
    padded: bool,
    border: int | None = None,
) -> list[list[int]]:
    """Indices of texts in batches, longest first, each batch at most `max_tokens` tokens (padding counted).

    A single text longer than the budget makes a batch of its own. Texts without tokens are in no batch.

    Args:
        lengths: Tokens of each text.
        max_tokens: The most tokens in a batch.
        max_texts: The most texts in a batch; None is no limit.
        padded: Whether rows are filled up to the longest.
        border: Texts up to this length and longer ones share no batch; None: all may (see `backbone.positions`).

    Example:
        >>> plan_batches([3, 9, 0, 4], max_tokens=10, padded=False)
        [[1], [3, 0]]
    """
    order = sorted(
        (index for index in range(len(lengths)) if lengths[index]), key=lambda i: (-lengths[i], i)
    )
    batches: list[list[int]] = []
    used = 0
    for index in order:
        longest = lengths[batches[-1][0]] if batches else 0
        cost = longest if padded else lengths[index]
        crossed = border is not None and longest > border >= lengths[index]
        full = not batches or used + cost > max_tokens or len(batches[-1]) == max_texts or crossed
        if full:
            batches.append([index])
            used = lengths[index]
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
    """What to call a model with: one packed row, or right-padded rows."""
    if packed:
        return packed_inputs(documents, device=device)
    return padded_inputs(documents, pad_id=pad_id, device=device)


def flatten(states_BTD: Tensor, lengths: Sequence[int]) -> Tensor:
    """States without padding: states_ND, text after text. A packed row is flat already."""
    if states_BTD.shape[0] == 1:
        return states_BTD[0, : sum(lengths)]
    real_BT = torch.arange(states_BTD.shape[1], device=states_BTD.device) < torch.tensor(
        lengths, device=states_BTD.device
    ).unsqueeze(1)
    return states_BTD[real_BT]


def token_states(
    model: "PreTrainedModel", documents: Sequence[Sequence[int]], *, pad_id: int
) -> Tensor:
    """Last hidden states of all tokens of the given documents, flat: states_ND.

    Args:
        model: A body (no LM head), bidirectional or causal.
        documents: Token ids; none of them empty.
        pad_id: Token id that fills the rows of a model that is not packed.
    """
    output = _forward(model, documents, pad_id=pad_id)
    return flatten(output.last_hidden_state, [len(document) for document in documents])


def layer_states(
    model: "PreTrainedModel", documents: Sequence[Sequence[int]], *, pad_id: int
) -> tuple[Tensor, ...]:
    """States after the embedding and after each layer, each flat: a tuple of states_ND."""
    output = _forward(model, documents, pad_id=pad_id, output_hidden_states=True)
    lengths = [len(document) for document in documents]
    return tuple(flatten(states_BTD, lengths) for states_BTD in output.hidden_states)


def _forward(
    model: "PreTrainedModel", documents: Sequence[Sequence[int]], *, pad_id: int, **options: Any
) -> Any:
    inputs = model_inputs(documents, packed=is_packed(model), pad_id=pad_id, device=model.device)
    with one_side(model, model.config, longest=max(map(len, documents))):
        return model(**inputs, **options)


class _ReachedError(Exception):
    """Carries the states out of a forward that goes no further."""

    def __init__(self, states_BTD: Tensor) -> None:
        super().__init__("the layer is reached")
        self.states_BTD = states_BTD


@contextmanager
def reading_layer(
    model: "PreTrainedModel", *, layer: Layer, pad_id: int
) -> Iterator[Callable[[Sequence[Sequence[int]]], Tensor]]:
    """Inside the block, a function from documents to their tokens' states: states_LND, L = 1 or every layer.

    Layers above the one that is read are not computed. The function may be called from several threads at once.

    Args:
        model: As of `token_states`.
        layer: Which one.
        pad_id: As of `token_states`.

    Raises:
        UsageError: The model has no such layer.
    """
    layers = decoder_layers(model)
    count = (
        len(layers) if layers is not None else int(model.config.get_text_config().num_hidden_layers)
    )
    if layer != "all" and not -count - 1 <= layer <= count:
        known = f"0 (the embedding) to {count}, or -{count + 1} to -1 from the end"
        raise UsageError(f"there is no layer {layer}: this model has {known}")
    if layer == "all":
        yield lambda documents: torch.stack(layer_states(model, documents, pad_id=pad_id))
    elif layer in (-1, count):
        yield lambda documents: token_states(model, documents, pad_id=pad_id)[None]
    elif layers is None:
        yield lambda documents: layer_states(model, documents, pad_id=pad_id)[layer][None]
    else:
        # what goes into a layer is what the one before it gave
        reader = object()
        stop = partial(_stop_for, reader)
        hook = layers[layer % (count + 1)].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            yield lambda documents: _states_before(model, documents, reader, pad_id=pad_id)[None]
        finally:
            hook.remove()


def _stop_for(reader: object, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """End the forward of this reader; others that run on the same model at the same time go on."""
    if _reading.get() is reader:
        raise _ReachedError(args[0] if args else kwargs["hidden_states"])


def _states_before(
    model: "PreTrainedModel", documents: Sequence[Sequence[int]], reader: object, *, pad_id: int
) -> Tensor:
    """States that go into the layer whose hook ends the reader's forward: states_ND."""
    before = _reading.set(reader)
    try:
        _forward(model, documents, pad_id=pad_id)
    except _ReachedError as reached:
        if reached.states_BTD.ndim == 3:
            return flatten(reached.states_BTD, [len(document) for document in documents])
    finally:
        _reading.reset(before)
    raise UsageError("this model's layers do not hand on one state a token; read the last layer")
