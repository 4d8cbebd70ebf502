"""Arguments of version 0.2.3, read as ours: of loading a model, texts, and padded features."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchEncoding

from llm2vec.backbone.packed_attention import padded_inputs
from llm2vec.encoder.tokenization import Tokens
from llm2vec.errors import UsageError

Texts = str | Sequence[str] | Sequence[Sequence[Any]]
"""A text, texts, or `[instruction, text]` pairs."""

SEPARATOR = "!@#$%^&*()"
"""Marker between instruction and text in the strings of version 0.2.3; only `LLM2Vec.tokenize`
reads it."""

_NO_EFFECT = ("low_cpu_mem_usage", "use_cache", "use_safetensors")
_HUB = ("revision", "token", "cache_dir", "trust_remote_code")
_OURS = ("dtype", "device", "attention")


def loading_arguments(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Our arguments of fetching and of loading a model, from those of transformers.

    Args:
        given: Arguments of transformers' `from_pretrained` by name.

    Returns:
        Attributes of a `Source`, and arguments of loading.

    Raises:
        UsageError: An argument has no meaning here.

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
            # Flash attention was its way to be fast; ours is chosen and proven by the switch.
            loading["attention"] = None if value and value.startswith("flash") else value
        elif name == "attention_dropout":
            loading["config_overrides"] = {name: value}
        elif value is not None and name not in _NO_EFFECT:
            raise UsageError(f"from_pretrained has no argument {name!r}")
    return hub, loading


def _device(value: Any) -> str | None:
    if isinstance(value, Mapping):
        devices = {str(device) for device in value.values()}
        if len(devices) > 1:
            raise UsageError(
                "device_map: one model on several devices is not done here; name one device"
            )
        value = devices.pop()
    if str(value).isdigit():
        return f"cuda:{value}"
    return None if value in (None, "auto", "balanced", "sequential") else str(value)


def split_pairs(sentences: Any) -> tuple[list[str], list[str] | None, bool]:
    """Texts, their instructions, and whether the argument was a single string.

    Args:
        sentences: A text; texts; `[instruction, text]` pairs, in which further items are ignored;
            or one such pair with a number at its end. Lists, arrays and columns are alike.

    Raises:
        UsageError: The argument is something else.

    Example:
        >>> split_pairs([["Find it:", "a text", 0], ["", "another"]])
        (['a text', 'another'], ['Find it:', ''], False)
    """
    if isinstance(sentences, str):
        return [sentences], None, True
    if not isinstance(sentences, Iterable):
        raise UsageError(f"encode takes texts or [instruction, text] pairs, not {sentences!r}")
    rows = sentences.tolist() if hasattr(sentences, "tolist") else list(sentences)
    if _is_numbered_pair(rows):
        return [rows[1]], [rows[0]], False
    are_texts = not rows or isinstance(rows[0], str)
    for number, row in enumerate(rows):
        is_sound = isinstance(row, str) if are_texts else _is_pair(row)
        if not is_sound:
            found = f"row {number} is {type(row).__name__}: {row!r}"[:200]
            raise UsageError(f"encode takes texts or [instruction, text] pairs, and {found}")
    if are_texts:
        return rows, None, False
    return [row[1] for row in rows], [row[0] for row in rows], False


def _is_numbered_pair(rows: Sequence[Any]) -> bool:
    """Whether this is one `[instruction, text, number]`."""
    return len(rows) == 3 and _is_pair(rows) and isinstance(rows[2], int)


def _is_pair(row: Any) -> bool:
    if isinstance(row, str) or not isinstance(row, Sequence) or len(row) < 2:
        return False
    return all(isinstance(each, str) for each in row[:2])


def to_features(tokens: Sequence[Tokens], *, pad_id: int) -> BatchEncoding:
    """Tokenised texts as version 0.2.3's features, padded on the right.

    Args:
        tokens: Tokens of each text.
        pad_id: Token id that fills the rows.

    Returns:
        `input_ids`, `attention_mask` and `embed_mask`, each ids_BT; `embed_mask` marks the tokens
        that are pooled.
    """
    if not tokens:
        nothing = torch.zeros(0, 0, dtype=torch.long)
        return BatchEncoding(
            {"input_ids": nothing, "attention_mask": nothing, "embed_mask": nothing}
        )
    inputs = padded_inputs([each.ids for each in tokens], pad_id=pad_id)
    ids_BT, mask_BT = inputs["input_ids"], inputs["attention_mask"]
    first_B, end_B = torch.tensor([(each.first, each.end) for each in tokens]).unbind(1)
    position_T = torch.arange(ids_BT.shape[1])
    is_own_BT = (position_T >= first_B[:, None]) & (position_T < end_B[:, None])
    embed_BT = is_own_BT.long()
    return BatchEncoding({"input_ids": ids_BT, "attention_mask": mask_BT, "embed_mask": embed_BT})


def from_features(features: Mapping[str, Tensor], *, whole: bool = False) -> list[Tokens]:
    """The tokens of each row of version 0.2.3's features, without padding.

    Args:
        features: `input_ids`, each ids_BT, padded on either side; `attention_mask`, without which
            nothing is padding; and `embed_mask`, without which every token is pooled.
        whole: Whether every token is pooled, whatever `embed_mask` says.

    Raises:
        UsageError: There are no `input_ids`, or the pooled tokens do not follow each other.
    """
    if "input_ids" not in features:
        raise UsageError(f"features need input_ids; there are {', '.join(features) or 'none'}")
    ids_BT = features["input_ids"].cpu()
    mask_BT = features.get("attention_mask", torch.ones_like(ids_BT)).cpu().bool()
    embed_BT = mask_BT if whole else features.get("embed_mask", mask_BT).cpu().bool() & mask_BT
    found = []
    for ids_T, mask_T, embed_T in zip(ids_BT, mask_BT, embed_BT, strict=True):
        pooled_P = embed_T[mask_T].nonzero().flatten()
        first, end = 0, 0
        if len(pooled_P):
            first, end = int(pooled_P[0]), int(pooled_P[-1]) + 1
        if end - first != len(pooled_P):
            raise UsageError("embed_mask: the tokens that are pooled must follow each other")
        found.append(Tokens(ids_T[mask_T].tolist(), first, end))
    return found
