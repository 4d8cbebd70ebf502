"""The LM head on chosen positions only, through the model's own code.

With a vocabulary of 100,000 the head is most of what a step costs, and masked next-token prediction needs the logits of
one position in five. Scales, caps and biases stay right because the family's own forward applies them afterwards.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def masked_rows(model: "PreTrainedModel", rows: Tensor | tuple[Tensor, Tensor]) -> Iterator[None]:
    """Inside the block the model's logits are those of the given positions only: logits_1MV.

    Args:
        model: A language model, with or without adapters.
        rows: The M positions: counted text after text, padding included (as in `hidden_BTD.flatten(0, 1)`); or a pair
            of row and position numbers.

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
        picked_MD = hidden_BTD[rows] if isinstance(rows, tuple) else hidden_BTD.flatten(0, 1)[rows]
        return (picked_MD[None], *args[1:])

    hook = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        hook.remove()
