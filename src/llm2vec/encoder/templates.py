"""Templates: what a prompt and its text are wrapped in before they are tokenised, `[INST] {text} [/INST]`.

A template is a format string with `{text}` in it once. Published encoders do not store theirs: it goes by the name of
their base model, is looked up once, and is kept in the encoder's settings from then on.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from llm2vec.encoder.tokenization import added_tokens, borders
from llm2vec.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAT = "chat"
"""A template's name for the tokenizer's own chat template."""


def read_template(template: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """A template as it is kept: with `{text}` once, and without the start token, which the tokenizer adds itself.

    Args:
        template: A format string, or `chat` for the tokenizer's own chat template, as one message of a user.
        tokenizer: The tokenizer whose chat template and start token are meant.

    Raises:
        UsageError: There is no `{text}` in it, or the tokenizer has no chat template.
    """
    if template == CHAT:
        template = _chat_template(tokenizer)
    if template.count("{text}") != 1:
        raise UsageError(f"a template holds {{text}} once, and {template!r} does not")
    return template


def _chat_template(tokenizer: "PreTrainedTokenizerBase") -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            "this tokenizer has no chat template; give a format string with {text} in it"
        )
    message = [{"role": "user", "content": "{text}"}]
    template = str(tokenizer.apply_chat_template(message, tokenize=False))
    before = added_tokens(tokenizer)[: borders(tokenizer).before]
    if tokenizer.bos_token and tokenizer.bos_token_id in before:
        template = template.removeprefix(str(tokenizer.bos_token))
    return template


def split_template(template: str | None) -> tuple[str, str]:
    """What comes before prompt and text, and what comes after them.

    Example:
        >>> split_template("[INST] {text} [/INST]")
        ('[INST] ', ' [/INST]')
    """
    before, _, after = (template or "{text}").partition("{text}")
    return before, after


def published_template(
    names: Sequence[str],
    model_type: str,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    with_end_token: bool,
) -> str | None:
    """The template that published encoders of a base model were trained with; None for no template.

    Args:
        names: Names of the base model, as far as they are known.
        model_type: Model type of its configuration.
        tokenizer: Its tokenizer.
        with_end_token: Write the end token after every text, since its state is what is pooled.
    """
    known = known_templates()
    template = next((known["wrapped"][name] for name in names if name in known["wrapped"]), None)
    if not with_end_token:
        return template
    own_end = str(tokenizer.eos_token or "")
    ends = (known["ended"][name] for name in (*names, model_type) if name in known["ended"])
    return (template or "{text}") + next(ends, own_end)


@cache
def known_templates() -> Mapping[str, Mapping[str, str]]:
    """Published templates: `wrapped` by a model's name; `ended`, where the end token is pooled, by name or type."""
    path = files("llm2vec") / "assets" / "templates.json"
    found: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf8"))
    return found
