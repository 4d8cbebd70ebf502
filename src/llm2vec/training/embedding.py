"""The vectors of a training batch, with gradients, in the memory of one part of the batch.

A contrastive loss compares all texts of a step, so that a step cannot be cut into smaller ones. But
the model can read the texts part by part, keep nothing but their vectors, and read each part again
when its gradients are due (GradCache, arXiv 2101.06983). The second reading draws the same dropout
as the first. This module does not know what the vectors are compared with.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llm2vec.encoder.batching import flatten, model_inputs, plan_batches
from llm2vec.encoder.pooling import pool, ranges_of
from llm2vec.encoder.tokenization import Tokens
from llm2vec.recipe.knobs import Pooling
from llm2vec.training.trainer import Batch, unwrapped


def text_batch(
    texts: Sequence[Tokens], *, packed: bool, pad_id: int, part_tokens: int | None = None
) -> Batch:
    """The inputs of the calls that read a batch's texts.

    Args:
        texts: Tokenised texts, none of them empty.
        packed: Whether the model is packed.
        pad_id: Token id that fills the rows of a model that is not packed.
        part_tokens: Largest number of tokens in a call, padding counted; None reads all texts in
            one call.
    """
    parts = [list(range(len(texts)))]
    if part_tokens is not None:
        lengths = [len(text.ids) for text in texts]
        parts = plan_batches(lengths, max_tokens=part_tokens, padded=not packed)
    return {
        "parts": [
            _part([texts[index] for index in part], packed=packed, pad_id=pad_id) for part in parts
        ],
        "order": torch.tensor([index for part in parts for index in part]).argsort(),
        "tokens": sum(len(text.ids) for text in texts),
    }


def _part(texts: Sequence[Tokens], *, packed: bool, pad_id: int) -> dict[str, Any]:
    documents = [text.ids for text in texts]
    inputs = model_inputs(documents, packed=packed, pad_id=pad_id)
    return {"inputs": inputs, "ranges": ranges_of(texts)}


def embed(model: nn.Module, batch: Batch, *, pooling: Pooling) -> Tensor:
    """The vectors of a `text_batch`, in the order of its texts: embedding_BD in float32.

    Args:
        model: The model, as wrapped for several processes.
        batch: The batch, on the model's device.
        pooling: The encoder's pooling.
    """
    parts = batch["parts"]
    if len(parts) == 1:
        return _vectors(model, parts[0], pooling=pooling)
    return _inside_wrapper(model, partial(_embed_parts, parts=parts, pooling=pooling))[
        batch["order"]
    ]


def _vectors(model: nn.Module, part: dict[str, Any], *, pooling: Pooling) -> Tensor:
    ranges_B3 = part["ranges"]
    lengths = ranges_B3[:, 0].tolist()
    states_ND = flatten(model(**part["inputs"]).last_hidden_state, lengths)
    return pool(states_ND, ranges_B3, pooling=pooling)


def _embed_parts(model: nn.Module, *, parts: Sequence[dict[str, Any]], pooling: Pooling) -> Tensor:
    """The vectors of all parts, one behind the other, with the states of none of them kept."""
    read = partial(_vectors, model, pooling=pooling)
    # The second reading of a part restores the random state of the first: its dropout is the same.
    embeddings = [
        checkpoint(read, part, use_reentrant=False, preserve_rng_state=True) for part in parts
    ]
    return torch.cat(embeddings)


def _inside_wrapper(model: nn.Module, job: Callable[[nn.Module], Tensor]) -> Tensor:
    """Do a job with the bare model as if it were one forward of the wrapped one.

    The wrapper of several processes prepares for one backward pass with each forward; the job's
    many readings, some of them within the backward pass, must go past it.
    """
    bare: nn.Module = unwrapped(model)
    if bare is model:
        return job(bare)
    forward = bare.forward

    def redirected() -> Tensor:
        bare.forward = forward  # type: ignore[method-assign]
        return job(bare)

    bare.forward = redirected  # type: ignore[method-assign]
    try:
        embedding_BD: Tensor = model()
    finally:
        bare.forward = forward  # type: ignore[method-assign]
    return embedding_BD
