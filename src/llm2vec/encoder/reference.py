"""What the first implementation (llm2vec 0.2.3) took for granted, read into ours: arguments, pairs, templates.

Its templates were chosen at run time by a model's exact name. Here they are looked up once, when one of its checkpoints
is opened, and kept in the encoder's settings from then on.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from llm2vec.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Texts = str | Sequence[str] | Sequence[Sequence[Any]]
"""A text, texts, or `[instruction, text]` pairs."""

SEPARATOR = "!@#$%^&*()"
"""What stood between instruction and text in its strings; read in `LLM2Vec.tokenize` alone."""

CHAT = "chat"
"""A template's name for the tokenizer's own chat template."""

EOS_TOKEN = "eos_token"  # noqa: S105  # a pooling: the last state, with the end token written after every text

_NO_EFFECT = ("low_cpu_mem_usage", "use_cache", "use_safetensors")
_HUB = ("revision", "token", "cache_dir", "trust_remote_code")


def loading_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for loading, by our names, from those that transformers' `from_pretrained` takes.

    Example:
        >>> loading_arguments({"torch_dtype": "bfloat16", "device_map": "cpu", "attn_implementation": "sdpa"})
        {'dtype': 'bfloat16', 'device': 'cpu', 'attention': 'sdpa'}

    Raises:
        UsageError: An argument that means nothing here.
    """
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name == "torch_dtype":
            found["dtype"] = str(value).removeprefix("torch.") if value is not None else "auto"
        elif name == "device_map":
            found["device"] = _device(value)
        elif name == "attn_implementation":
            # flash attention was its way to be fast; ours is chosen and proven when the model is switched
            found["attention"] = None if value and value.startswith("flash") else value
        elif name in _HUB:
            found[name] = value
        elif name == "attention_dropout":
            found["config_overrides"] = {name: value}
        elif value is not None and name not in _NO_EFFECT:
            raise UsageError(f"from_pretrained has no argument {name!r}")
    return found


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
    if all(isinstance(row, str) for row in rows):
        return rows, None, False
    for row in rows:
        pair = not isinstance(row, str) and isinstance(row, Sequence) and len(row) >= 2
        if not pair or not all(isinstance(each, str) for each in row[:2]):
            raise UsageError(
                f"encode takes texts or [instruction, text] pairs, not {type(row).__name__}: {row!r}"[
                    :300
                ]
            )
    return [row[1] for row in rows], [row[0] for row in rows], False


def template_of(
    names: Sequence[str], model_type: str, tokenizer: "PreTrainedTokenizerBase", *, ended: bool
) -> str | None:
    """What the first implementation wrapped texts in; None: nothing.

    Args:
        names: What the base model is called, as far as known.
        model_type: Of its configuration.
        tokenizer: Its tokenizer.
        ended: Pooling is `eos_token`: the end token is written after every text.
    """
    known = known_templates()
    template = next((known["wrapped"][name] for name in names if name in known["wrapped"]), None)
    if not ended:
        return template
    its_own = str(tokenizer.eos_token or "")
    end = next(
        (known["ended"][name] for name in (*names, model_type) if name in known["ended"]), its_own
    )
    return (template or "{text}") + end


def read_template(template: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """A template as it is kept: with `{text}` once, and without the start token, which the tokenizer adds itself.

    Args:
        template: A format string, or `chat`: the tokenizer's own chat template, as one message of a user.
        tokenizer: Whose template.

    Raises:
        UsageError: There is no `{text}` in it, or the tokenizer has no chat template.
    """
    if template == CHAT:
        if not getattr(tokenizer, "chat_template", None):
            raise UsageError(
                "this tokenizer has no chat template; give a format string with {text} in it"
            )
        message = [{"role": "user", "content": "{text}"}]
        template = str(tokenizer.apply_chat_template(message, tokenize=False))
        if tokenizer.bos_token and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id:
            template = template.removeprefix(str(tokenizer.bos_token))
    if template.count("{text}") != 1:
        raise UsageError(f"a template holds {{text}} once, and {template!r} does not")
    return template


@cache
def known_templates() -> Mapping[str, Mapping[str, str]]:
    """What texts were `wrapped` in, by a model's name; how they `ended`, by name or type, when the end was pooled."""
    found: dict[str, dict[str, str]] = json.loads(
        (files("llm2vec") / "assets" / "templates.json").read_text(encoding="utf8")
    )
    return found
