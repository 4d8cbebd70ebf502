"""Templates that prompt and text are wrapped in before they are tokenised: `[INST] {text} [/INST]`.

A template is a format string that holds `{text}` once. Published encoders do not store theirs: it
is looked up once by the name of their base model, and kept in the encoder's settings from then on.
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
"""The name that means the tokenizer's own chat template."""


def read_template(template: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """A template in the form that settings keep: a format string without a start token.

    Args:
        template: A format string; or `chat`, for one message of a user in the tokenizer's own chat
            template.
        tokenizer: The tokenizer that the template is used with.

    Raises:
        UsageError: The template does not hold `{text}` once, or the tokenizer has no chat template.
    """
    if template == CHAT:
        template = _chat_template(tokenizer)
    if template.count("{text}") != 1:
        raise UsageError(
            "a template must hold {text} once, where the text belongs; "
            f"{template!r} holds it {template.count('{text}')} times"
        )
    return template


def _chat_template(tokenizer: "PreTrainedTokenizerBase") -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            "this tokenizer has no chat template; give a format string with {text} where the text "
            "belongs"
        )
    message = [{"role": "user", "content": "{text}"}]
    template = str(tokenizer.apply_chat_template(message, tokenize=False))
    before = added_tokens(tokenizer)[: borders(tokenizer).before]
    if tokenizer.bos_token and tokenizer.bos_token_id in before:
        template = template.removeprefix(str(tokenizer.bos_token))
    return template


def published_template(
    names: Sequence[str],
    model_type: str,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    with_end_token: bool,
) -> str | None:
    """The template that published encoders of a base model were trained with; None is no template.

    Args:
        names: Known names of the base model.
        model_type: Model type of the base model's configuration.
        tokenizer: Tokenizer of the base model.
        with_end_token: Whether the end token is written after every text, because its state is
            pooled.
    """
    known = known_templates()
    template = _first_known(known["wrapped"], names)
    if not with_end_token:
        return template
    end_token = _first_known(known["ended"], (*names, model_type))
    if end_token is None:
        end_token = str(tokenizer.eos_token or "")
    return (template or "{text}") + end_token


def _first_known(values: Mapping[str, str], names: Sequence[str]) -> str | None:
    return next((values[name] for name in names if name in values), None)


@cache
def known_templates() -> Mapping[str, Mapping[str, str]]:
    """What published encoders put around a text, by the name of their base model.

    Returns:
        `wrapped`: Templates, by name. `ended`: End tokens, for encoders that pool their state, by
        name or model type.
    """
    path = files("llm2vec") / "assets" / "templates.json"
    found: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf8"))
    return found
