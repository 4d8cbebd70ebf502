"""The LM head on chosen positions only, through the model's own code.

With a vocabulary of 100,000 the head is most of a training step's cost, and masked next-token
prediction needs the logits of one position in five. Scales, caps and biases stay right, because the
family's own forward applies them after the head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def masked_rows(model: "PreTrainedModel", rows: Tensor | tuple[Tensor, Tensor]) -> Iterator[None]:
    """Compute only the logits of the given positions inside the block: logits_1MV.

    Args:
        model: A language model, with or without adapters.
        rows: The M positions, as indices into `hidden_BTD.flatten(0, 1)`, where padding counts; or
            as a pair of text indices and position indices.

    Raises:
        ValueError: The model has no LM head.

    Example:
        >>> with masked_rows(model, rows):  # doctest: +SKIP
        ...     logits_MV = model(**inputs).logits[0]
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Module):
        raise ValueError(f"{type(model).__name__} has no LM head")

    def gather(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden_BTD: Tensor = args[0]
        if isinstance(rows, tuple):
            picked_MD = hidden_BTD[rows]
        else:
            picked_MD = hidden_BTD.flatten(0, 1)[rows]
        return (picked_MD[None], *args[1:])

    hook = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        hook.remove()
