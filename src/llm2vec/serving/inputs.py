"""The inputs of a request: a text, texts, the token ids of a text, or several lists of token ids.

They are checked in one pass, and an error names the first wrong item by its index.
"""

from typing import Annotated, Any

from pydantic import AfterValidator, PlainValidator, StrictStr

from llm2vec.serving.refusals import Refusal

Input = str | list[int]
"""One text, or the token ids of one text."""


def read_inputs(value: Any) -> list[Input]:
    """Read inputs as a list, in whichever of these forms they were sent.

    A list of numbers is one text; a list of texts and of lists of numbers is several texts.

    Raises:
        Refusal: The inputs have another form, or a text cannot be written in UTF-8.

    Example:
        >>> read_inputs("one text"), read_inputs([5, 6]), read_inputs(["a", [7]])
        (['one text'], [[5, 6]], ['a', [7]])
    """
    if isinstance(value, str):
        return [_checked(value, 0)]
    if not isinstance(value, list):
        message = "the input is neither a text, nor a list of texts, nor token ids"
        raise Refusal("invalid", message, param="input")
    if not value:
        raise Refusal("empty", "the input is an empty list; there is nothing to encode")
    if _is_number(value[0]):
        return [_checked(value, 0)]
    return [_checked(each, index) for index, each in enumerate(value)]


def _checked(value: Any, index: int) -> Input:
    if isinstance(value, str):
        if not is_text(value):
            message = f"text {index} holds half of a surrogate pair, which is not a character"
            raise Refusal("invalid", message, index)
        return value
    if not isinstance(value, list):
        message = f"item {index} is neither a text nor a list of token ids"
        raise Refusal("invalid", message, index)
    for each in value:
        if type(each) is not int:
            message = f"text {index} holds something that is not a token id"
            raise Refusal("invalid", message, index)
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _checked_text(value: str) -> str:
    if not is_text(value):
        raise ValueError("half of a surrogate pair is not a character")
    return value


def is_text(value: str) -> bool:
    """Whether a string can be written in UTF-8; JSON can also escape surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


Text = Annotated[StrictStr, AfterValidator(_checked_text)]
"""A field of a request that is a text."""

Inputs = Annotated[
    list[Input],
    PlainValidator(
        read_inputs, json_schema_input_type=str | list[str] | list[int] | list[list[int]]
    ),
]
"""A field of a request that takes inputs in any of their forms."""
