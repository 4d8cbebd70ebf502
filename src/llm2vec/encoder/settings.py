"""What an encoder knows about itself beside its weights. This module reads and writes no files."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from llm2vec.errors import UsageError
from llm2vec.recipe.knobs import POOLING_ALIASES, Pooling

Boundary = Literal["offsets", "prompt", "text"]
"""The way in which the border between a prompt and its text is found.

- `offsets`: by the characters of the joined string.
- `prompt`: after as many tokens as the prompt has when it is tokenised alone. Sentence-transformers
  counts so.
- `text`: before as many tokens as the text has when it is tokenised alone. Version 0.2.3 counts so.
  Where the text has other tokens alone than in the joined string, the border is found by offsets.
"""

_OLDER_NAMES = {"pooling_mode": "pooling", "skip_instruction": "skip_prompt"}
"""Keys of settings files that older versions wrote."""

_FIRST_KEYS = {"pooling_mode", "max_length", "doc_max_length", "skip_instruction"}
"""The keys of version 0.2.3's settings files; all others were written by this program."""


@dataclass(frozen=True)
class Settings:
    """What an encoder knows about itself.

    Attributes:
        pooling: The way from token states to one vector.
        max_length: Length of the longest sequence, in tokens, prompt included.
        doc_max_length: Length of the longest text without its prompt, in tokens; None is no limit
            of its own.
        skip_prompt: Whether prompts are left out of pooling. They take part in attention either
            way.
        pool_special: Whether the special tokens around a text are pooled with it; None pools them
            only where prompts are pooled too.
        normalize: Whether vectors are scaled to length 1.
        prompts: Prompts by their names; an empty prompt is the same as none.
        default_prompt_name: The name of the prompt for calls that name none; None is no prompt.
        separator: The characters between a prompt, stripped, and its text. With an empty separator,
            prompts are used exactly as they are written.
        boundary: The way in which the border between a prompt and its text is found.
        template: A format string that prompt and text are wrapped in, with `{text}` in the place of
            both; None wraps them in nothing.
        bidirectional: Whether tokens attend to those after them; False for a causal model.
    """

    pooling: Pooling = "mean"
    max_length: int = 512
    doc_max_length: int | None = None
    skip_prompt: bool = True
    pool_special: bool | None = None
    normalize: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    separator: str = " "
    boundary: Boundary = "offsets"
    template: str | None = None
    bidirectional: bool = True

    @property
    def pools_special(self) -> bool:
        """Whether the special tokens around a text are pooled with it."""
        if self.pool_special is None:
            return not self.skip_prompt
        return self.pool_special

    @property
    def around(self) -> tuple[str, str]:
        """What the template puts before prompt and text, and what it puts after them.

        Example:
            >>> Settings(template="[INST] {text} [/INST]").around
            ('[INST] ', ' [/INST]')
        """
        before, _, after = (self.template or "{text}").partition("{text}")
        return before, after

    def changed(self, **changes: Any) -> "Settings":
        """The same settings but for `changes`; a change of None leaves the setting as it is."""
        given = {name: value for name, value in changes.items() if value is not None}
        return replace(self, **given)

    def within(self, positions: int) -> "Settings":
        """The same settings, with a `max_length` of at most a model's number of positions."""
        return self.changed(max_length=min(self.max_length, positions))

    def before_text(self, prompt: str | None) -> str:
        """A prompt with its separator, as it comes before a text; None is no prompt.

        Example:
            >>> Settings(separator=" ").before_text("Find it: ")
            'Find it: '
            >>> Settings(separator="").before_text("query:")
            'query:'
        """
        return before_text(prompt or "", separator=self.separator)


def before_text(prompt: str, *, separator: str) -> str:
    """A prompt with its separator, as it comes before a text.

    Args:
        prompt: The prompt; the empty string is no prompt.
        separator: The characters between prompt and text; an empty separator leaves the prompt as
            it is.
    """
    if not separator:
        return prompt
    bare = prompt.strip()
    return bare + separator if bare else ""


def pooling_named(name: str) -> Pooling:
    """The pooling of a name or an alias: `eos_token` is `last`, `bos_token` is `first`.

    Raises:
        UsageError: There is no such pooling.
    """
    name = POOLING_ALIASES.get(name, name)
    poolings: tuple[Pooling, ...] = get_args(Pooling)
    for pooling in poolings:
        if pooling == name:
            return pooling
    raise UsageError(
        f"there is no pooling {name!r}; choose one of mean, weighted_mean, last (eos), first (bos)"
    )


def settings_from(values: Mapping[str, Any]) -> Settings:
    """Settings from the values of a settings file, written by this version or by an older one.

    Raises:
        UsageError: A key is not the name of a setting, or there is no such pooling.
    """
    changes = {_OLDER_NAMES.get(key, key): value for key, value in values.items()}
    known = {each.name for each in fields(Settings)}
    if unknown := [key for key in changes if key not in known]:
        raise UsageError(
            f"there is no setting {unknown[0]!r}; the settings are {', '.join(sorted(known))}"
        )
    if "pooling" in changes:
        changes["pooling"] = pooling_named(changes["pooling"])
    if _FIRST_KEYS.issuperset(values):
        changes["boundary"] = "text"
    return Settings(**changes)
