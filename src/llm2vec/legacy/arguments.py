"""Version 0.2.3's arguments, read into ours: what loads a model, and texts with their instructions."""

from collections.abc import Mapping, Sequence
from typing import Any

from llm2vec.errors import UsageError

Texts = str | Sequence[str] | Sequence[Sequence[Any]]
"""A text, texts, or `[instruction, text]` pairs."""

SEPARATOR = "!@#$%^&*()"
"""What stood between instruction and text in its strings; read in `LLM2Vec.tokenize` alone."""

_NO_EFFECT = ("low_cpu_mem_usage", "use_cache", "use_safetensors")
_HUB = ("revision", "token", "cache_dir", "trust_remote_code")
_OURS = ("dtype", "device", "attention")


def loading_arguments(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """How a model is fetched and how it is loaded, by our names, from the arguments of transformers' `from_pretrained`.

    Args:
        given: Arguments by their names.

    Returns:
        Attributes of a `Source`, and the arguments of loading.

    Raises:
        UsageError: An argument that means nothing here.

    Example:
        >>> loading_arguments({"revision": "v2", "torch_dtype": "bfloat16", "device_map": "cpu"})
        ({'revision': 'v2'}, {'dtype': 'bfloat16', 'device': 'cpu'})
    """
    hub: dict[str, Any] = {}
    loading: dict[str, Any] = {}
    for name, value in given.items():
        if name in _HUB:
            hub[name] = value
        elif name in _OURS:
            loading[name] = value
        elif name == "torch_dtype":
            loading["dtype"] = "auto" if value is None else str(value).removeprefix("torch.")
        elif name == "device_map":
            loading["device"] = _device(value)
        elif name == "attn_implementation":
            # flash attention was its way to be fast; ours is chosen and proven when the model is switched
            loading["attention"] = None if value and value.startswith("flash") else value
        elif name == "attention_dropout":
            loading["config_overrides"] = {name: value}
        elif value is not None and name not in _NO_EFFECT:
            raise UsageError(f"from_pretrained has no argument {name!r}")
    return hub, loading


def _device(value: Any) -> str | None:
    if isinstance(value, Mapping):
        places = {str(place) for place in value.values()}
        if len(places) > 1:
            raise UsageError(
                "device_map: one model on several devices is not done here; name one device"
            )
        value = places.pop()
    if str(value).isdigit():
        return f"cuda:{value}"
    return None if value in (None, "auto", "balanced", "sequential") else str(value)


def split_pairs(sentences: Any) -> tuple[list[str], list[str] | None, bool]:
    """Texts, their instructions, and whether it was one string alone.

    Args:
        sentences: A text, texts, `[instruction, text]` pairs (what follows in a pair is ignored), or one such pair with
            a number at its end; lists, arrays and columns alike.

    Raises:
        UsageError: Anything else.

    Example:
        >>> split_pairs([["Find it:", "a text", 0], ["", "another"]])
        (['a text', 'another'], ['Find it:', ''], False)
    """
    if isinstance(sentences, str):
        return [sentences], None, True
    rows = sentences.tolist() if hasattr(sentences, "tolist") else list(sentences)
    if (
        len(rows) == 3
        and all(isinstance(each, str) for each in rows[:2])
        and isinstance(rows[2], int)
    ):
        return [rows[1]], [rows[0]], False
    are_texts = not rows or isinstance(rows[0], str)
    for number, row in enumerate(rows):
        if not (isinstance(row, str) if are_texts else _is_pair(row)):
            what = f"row {number} is {type(row).__name__}: {row!r}"[:200]
            raise UsageError(f"encode takes texts or [instruction, text] pairs, and {what}")
    if are_texts:
        return rows, None, False
    return [row[1] for row in rows], [row[0] for row in rows], False


def _is_pair(row: Any) -> bool:
    if isinstance(row, str) or not isinstance(row, Sequence) or len(row) < 2:
        return False
    return all(isinstance(each, str) for each in row[:2])
