"""What an encoder knows about itself beside its weights. Reads and writes nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from llm2vec.errors import UsageError
from llm2vec.recipe.knobs import POOLING_ALIASES, Pooling

Boundary = Literal["offsets", "prompt", "text"]
"""How the border between a prompt and its text is found.

`offsets`: by the characters of the joined string. `prompt`: after as many tokens as the prompt has alone, which is how
sentence-transformers counts. `text`: before as many tokens as the text has alone, which is how version 0.2.3 counts;
where the text has other tokens alone than in the joined string, by offsets.
"""

_OLDER_NAMES = {"pooling_mode": "pooling", "skip_instruction": "skip_prompt"}
"""Keys of settings files that older versions wrote."""

_FIRST_KEYS = {"pooling_mode", "max_length", "doc_max_length", "skip_instruction"}
"""The keys of version 0.2.3's settings files; all others were written by this program."""


@dataclass(frozen=True)
class Settings:
    """What an encoder knows about itself.

    Attributes:
        pooling: How states become a vector.
        max_length: Longest sequence, in tokens, prompt included.
        doc_max_length: Longest text without its prompt, in tokens; None is no limit of its own.
        skip_prompt: Prompts take part in attention but are not pooled.
        pool_special: Special tokens around a text are pooled with it; None: only where prompts are pooled too.
        normalize: Vectors are scaled to length 1.
        prompts: Prompts by name; an empty one is no prompt.
        default_prompt_name: The name of the prompt for calls that name none; None is no prompt.
        separator: What comes between a prompt, stripped, and its text. Empty: prompts are taken to the letter.
        boundary: How the border between a prompt and its text is found.
        template: What prompt and text are wrapped in, with `{text}` for both; None is nothing.
        bidirectional: False for a causal model.
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
        """Whether special tokens around a text are pooled with it."""
        return not self.skip_prompt if self.pool_special is None else self.pool_special

    def changed(self, **changes: Any) -> "Settings":
        """The same settings but for `changes`; values of None leave a setting as it is."""
        given = {name: value for name, value in changes.items() if value is not None}
        return replace(self, **given)

    def within(self, positions: int) -> "Settings":
        """The same settings, for a model that has so many positions."""
        return self.changed(max_length=min(self.max_length, positions))

    def before_text(self, prompt: str | None) -> str:
        """What comes before a text: the prompt with its separator, or nothing.

        Example:
            >>> Settings(separator=" ").before_text("Find it: ")
            'Find it: '
            >>> Settings(separator="").before_text("query:")
            'query:'
        """
        return before_text(prompt or "", separator=self.separator)


def before_text(prompt: str, *, separator: str) -> str:
    """A prompt as it comes before a text; an empty separator leaves it as it is."""
    if not separator:
        return prompt
    bare = prompt.strip()
    return bare + separator if bare else ""


def pooling_named(name: str) -> Pooling:
    """A pooling by any of its names (`eos_token` is `last`, `bos_token` is `first`).

    Raises:
        UsageError: There is no such pooling.
    """
    name = POOLING_ALIASES.get(name, name)
    for known in get_args(Pooling):
        if name == known:
            pooling: Pooling = known
            return pooling
    raise UsageError(
        f"there is no pooling {name!r}; there are mean, weighted_mean, last (eos), first (bos)"
    )


def settings_from(values: Mapping[str, Any]) -> Settings:
    """Settings from the values of a settings file, of this version or an older one.

    Raises:
        UsageError: A key is not the name of a setting, or there is no such pooling.
    """
    changes = {_OLDER_NAMES.get(key, key): value for key, value in values.items()}
    known = {each.name for each in fields(Settings)}
    if unknown := [key for key in changes if key not in known]:
        raise UsageError(
            f"there is no setting {unknown[0]!r}; there are {', '.join(sorted(known))}"
        )
    if "pooling" in changes:
        changes["pooling"] = pooling_named(changes["pooling"])
    if _FIRST_KEYS.issuperset(values):
        changes["boundary"] = "text"
    return Settings(**changes)
