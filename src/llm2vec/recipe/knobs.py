"""A recipe: everything a conversion is told to do, as plain frozen data.

Each knob carries its default, its unit and where the default comes from; `to_yaml` prints them all. The paper is
BehnamGhader et al. 2024 (LLM2Vec, arXiv 2404.05961). This module reads no models and no texts.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from llm2vec.errors import UsageError

Pooling = Literal["mean", "weighted_mean", "last", "first"]

POOLING_ALIASES = {
    "eos": "last",
    "eos_token": "last",
    "last_token": "last",
    "bos": "first",
    "bos_token": "first",
}
"""Other names of the poolings, the first implementation's among them."""


def knob(default: Any, what: str, *, unit: str = "", source: str = "", **limits: Any) -> Any:
    """A field of a recipe with what a reader needs to know of it."""
    return Field(
        default, description=what, json_schema_extra={"unit": unit, "source": source}, **limits
    )


class Part(BaseModel):
    """What all parts of a recipe share: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class CorpusRecipe(Part):
    """Where the texts come from."""

    source: str = knob(
        "self", "a file, folder, glob, `hub:NAME`, or `self`: the decoder writes it itself"
    )
    column: str | None = knob(
        None, "column of jsonl, csv, parquet or hub data; none: `text`, or the only text column"
    )
    format: Literal["txt", "jsonl", "csv", "tsv", "parquet"] | None = knob(
        None, "what the files hold; none: told by their names"
    )
    delimiter: str | None = knob(
        None, "character between the cells of csv files; none: told by their first lines"
    )
    config: str | None = knob(None, "configuration of a hub data set")
    split: str = knob("train", "split of a hub data set")
    unit: Literal["line", "document"] = knob(
        "line", "what one text is in a .txt file: a line, or the whole file"
    )
    max_texts: int | None = knob(None, "stop after so many texts", unit="texts", ge=1)
    self_texts: int = knob(4000, "texts the decoder writes (source: self)", unit="texts", ge=1)
    self_tokens: int = knob(96, "longest text it writes", unit="tokens", ge=8)
    temperature: float = knob(1.0, "sampling temperature of `self`", gt=0)
    top_p: float = knob(
        1.0, "nucleus of `self`: the smallest set of next tokens with this probability", gt=0, le=1
    )


class LoraRecipe(Part):
    """Low-rank adapters: what is trained when `method` is `lora`."""

    r: int = knob(16, "rank", source="paper, appendix D", ge=1)
    alpha: float = knob(32, "scale of the adapter; 2 r", source="first implementation", gt=0)
    dropout: float = knob(
        0.05, "dropout before the adapter", source="first implementation", ge=0, lt=1
    )
    targets: tuple[str, ...] | None = knob(
        None, "names of the layers; none: every linear layer but the LM head"
    )


class StageRecipe(Part):
    """What the training stages share. Batches are counted over all processes' shares: size x processes."""

    steps: int = knob(
        1000,
        "optimiser steps; 0 leaves the stage out",
        unit="steps",
        source="paper, section 3.1",
        ge=0,
    )
    batch_size: int = knob(32, "texts or blocks in a step, per process", unit="texts", ge=1)
    accumulation: int = knob(
        1, "parts a step is computed in; contrastive stages compare within a part", ge=1
    )
    max_length: int = knob(512, "longest text or block", unit="tokens", ge=4)
    method: Literal["lora", "full"] = knob(
        "lora", "train adapters, or every weight", source="paper"
    )
    lora: LoraRecipe = LoraRecipe()
    learning_rate: float = knob(
        5e-5, "peak learning rate (AdamW)", source="library default, as the paper's runs", gt=0
    )
    schedule: Literal["linear", "cosine", "constant"] = knob(
        "linear", "how the learning rate falls after warm-up"
    )
    schedule_epochs: float | None = knob(
        None,
        "length of the schedule in passes over the corpus; none: it ends at `steps`",
        unit="epochs",
        gt=0,
    )
    warmup_steps: int = knob(0, "steps of rising learning rate", unit="steps", ge=0)
    weight_decay: float = knob(0.0, "AdamW weight decay", ge=0)
    max_grad_norm: float = knob(1.0, "gradient clipping", source="library default", gt=0)
    precision: Literal["auto", "float32", "bfloat16", "float16"] = knob(
        "auto", "auto: bfloat16 where the GPU or CPU has it"
    )
    gradient_checkpointing: bool = knob(False, "recompute states to save memory")
    log_every: int = knob(10, "steps between log lines", unit="steps", ge=1)
    save_every: int = knob(100, "steps between checkpoints to resume from", unit="steps", ge=1)
    keep_every: int = knob(
        0, "steps between encoders kept along the way, for the report; 0: none", unit="steps", ge=0
    )
    report_to: tuple[str, ...] = knob((), "trainer integrations: tensorboard, wandb, trackio")


class MntpRecipe(StageRecipe):
    """Masked next-token prediction (paper, section 2.2)."""

    mask_probability: float = knob(
        0.2, "share of tokens masked", source="paper, section 3.1", gt=0, lt=1
    )
    masking: Literal["bert", "all"] = knob(
        "bert", "of the chosen: 80% mask, 10% random, 10% kept; or all mask"
    )
    mask_token: str = knob(
        "blank", "blank (`_`), eos, mask (the tokenizer's own), or any token of the vocabulary"
    )
    layout: Literal["packed", "concatenated", "lines"] = knob(
        "packed",
        "blocks whose texts do not see each other; blocks without that border (the paper's); or a text a row",
    )
    train_head: bool = knob(
        False, "train the LM head too, and keep it (the first implementation threw it away)"
    )
    held_out: float = knob(0.02, "share of the texts kept for evaluation", gt=0, lt=0.5)
    eval_blocks: int = knob(64, "blocks or texts in an evaluation", unit="blocks", ge=1)
    eval_every: int = knob(100, "steps between evaluations", unit="steps", ge=1)


class SimcseRecipe(StageRecipe):
    """Unsupervised contrastive learning: one text, two dropouts (paper, section 2.3)."""

    batch_size: int = knob(
        128, "texts in a step, per process", unit="texts", source="first implementation", ge=2
    )
    max_length: int = knob(128, "longest text", unit="tokens", source="first implementation", ge=4)
    learning_rate: float = knob(
        3e-5, "peak learning rate (AdamW)", source="first implementation", gt=0
    )
    dropout: float = knob(
        0.3, "attention dropout, the noise between two views", source="paper, app. D", gt=0, lt=1
    )
    scale: float = knob(
        20.0, "what cosines are multiplied by; 1 / temperature 0.05", source="SimCSE", gt=0
    )
    corpus: CorpusRecipe | None = knob(None, "texts of this stage; none: those of the recipe")
    min_tokens: int = knob(4, "texts shorter than this are left out", unit="tokens", ge=1)
    sentences: bool = knob(False, "cut texts into sentences at . ! ? first")


class PairsRecipe(Part):
    """Where anchors, their positives and their negatives come from; each file is a data set of its own."""

    source: str | None = knob(
        None,
        "a jsonl file, folder or glob; rows hold `anchor` (or `query`), `positive` and, where there is, `negative`",
    )
    negatives: int = knob(
        1, "negatives of a row that are used; 0: only other rows' texts", unit="texts", ge=0
    )
    prompts: dict[str, tuple[str, ...]] = knob(
        {},
        "by file name without ending: the anchors' prompt, or several that alternate row by row",
        source="paper, table 8",
    )
    both_sides: tuple[str, ...] = knob(
        (), "file names whose positives and negatives get the prompt too: symmetric tasks"
    )

    @field_validator("prompts", mode="before")
    @classmethod
    def _one_prompt_is_a_list_of_one(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {
            name: (given,) if isinstance(given, str) else given for name, given in value.items()
        }


class SupervisedRecipe(StageRecipe):
    """Supervised contrastive learning: an anchor, what belongs to it and what does not (paper, section 5)."""

    steps: int = knob(
        0,
        "optimiser steps; 0 leaves the stage out",
        unit="steps",
        source="first implementation: 1000",
        ge=0,
    )
    batch_size: int = knob(
        64,
        "rows in a step, per process; all of one file",
        unit="rows",
        source="first implementation",
        ge=2,
    )
    max_length: int = knob(
        512, "longest text, prompt included", unit="tokens", source="first implementation", ge=4
    )
    learning_rate: float = knob(
        2e-4, "peak learning rate (AdamW)", source="first implementation", gt=0
    )
    warmup_steps: int = knob(
        300, "steps of rising learning rate", unit="steps", source="first implementation", ge=0
    )
    scale: float = knob(
        50.0,
        "what cosines are multiplied by; 1 / temperature 0.02",
        source="first implementation",
        gt=0,
    )
    corpus: PairsRecipe = PairsRecipe()

    @model_validator(mode="after")
    def _has_something_to_learn_from(self) -> Self:
        if self.steps and self.corpus.source is None:
            raise ValueError(
                f"{self.steps} steps need rows to learn from: set supervised.corpus.source"
            )
        return self


class EncoderRecipe(Part):
    """How the finished encoder turns states into vectors."""

    pooling: Pooling = knob("mean", "states of a text to one vector", source="paper, section 3.2")
    max_length: int = knob(
        512, "longest text, prompt included; cut to the model's positions", unit="tokens", ge=4
    )
    normalize: bool = knob(False, "scale vectors to length 1")
    prompts: dict[str, str] = knob({}, "prompts by name; put before the text, never pooled")
    template: str | None = knob(
        None,
        "what pairs and encoded texts are wrapped in: a format string with {text}, or `chat`, the tokenizer's own",
    )
    separator: str | None = knob(
        None,
        "between prompt and text; none: a space, or a line break where a space would join the text's first token",
    )


class Recipe(Part):
    """A whole conversion."""

    decoder: str = knob("bundled", "a folder, a GGUF file, a hub id, or `bundled`")
    adapters: tuple[str, ...] = knob(
        (),
        "folders or hub ids of adapters, merged into the decoder first, in the order they were trained in",
    )
    seed: int = knob(42, "seed of everything random", source="first implementation", ge=0)
    trust_remote_code: bool = knob(False, "run model code that comes with the decoder")
    corpus: CorpusRecipe = CorpusRecipe()
    mntp: MntpRecipe = MntpRecipe()
    simcse: SimcseRecipe = SimcseRecipe()
    supervised: SupervisedRecipe = SupervisedRecipe()
    encoder: EncoderRecipe = EncoderRecipe()

    @model_validator(mode="before")
    @classmethod
    def _names_every_unknown_key(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            _check_keys(cls, value, ())
        return value

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> Self:
        """A recipe from nested mappings.

        Raises:
            UsageError: A key that does not exist (with the nearest that does), or a value out of range.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            of_a_part = first["type"] == "value_error" and isinstance(first["input"], Mapping)
            shown = "" if first["type"] == "missing" or of_a_part else f", not {first['input']!r}"
            raise UsageError(
                f"recipe: {place}: {first['msg'].removeprefix('Value error, ')}{shown}"
            ) from error

    @property
    def trains_on_own_texts(self) -> bool:
        """Whether a stage that has steps trains on texts that the decoder writes."""
        read = [self.corpus] if self.mntp.steps else []
        read += [self.simcse.corpus or self.corpus] if self.simcse.steps else []
        return any(corpus.source == "self" for corpus in read)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain data; `Recipe.read` of it gives an equal recipe."""
        return self.model_dump(mode="json")


def _check_keys(model: type[BaseModel], value: Mapping[str, Any], path: tuple[str, ...]) -> None:
    for key, inner in value.items():
        if key not in model.model_fields:
            raise UsageError(_unknown_key(".".join((*path, str(key))), model, path))
        part = _part_of(model, key)
        if part is not None and isinstance(inner, Mapping):
            _check_keys(part, inner, (*path, key))


def _part_of(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    annotation = model.model_fields[key].annotation
    for choice in (annotation, *get_args(annotation)):
        if isinstance(choice, type) and issubclass(choice, BaseModel):
            return choice
    return None


def _unknown_key(key: str, model: type[BaseModel], path: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(key.rsplit(".", 1)[-1], model.model_fields, n=1, cutoff=0.5)
    here = ".".join((*path, near[0])) if near else ""
    hint = f"did you mean {here!r}?" if near else f"keys here: {', '.join(model.model_fields)}"
    return f"recipe: there is no {key!r}; {hint} `llm2vec recipe` prints all"


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings laid over one another; later ones win, key by key."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = result.get(key)
            nested = isinstance(value, Mapping) and isinstance(old, Mapping)
            result[key] = merged(old, value) if nested and isinstance(old, Mapping) else value
    return result


def read_yaml(path: Path) -> dict[str, Any]:
    """A recipe file as nested mappings.

    Raises:
        UsageError: No such file, or not a YAML mapping.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UsageError(f"recipe file {path} does not exist") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe file {path} is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(value, dict):
        raise UsageError(
            f"recipe file {path} holds no keys; `llm2vec recipe` prints one to start from"
        )
    return value


def read_settings(settings: Sequence[str]) -> dict[str, Any]:
    """`key.inner=value` settings as nested mappings; values are read as YAML.

    Example:
        >>> read_settings(["mntp.steps=500", "simcse.lora.r=8"])
        {'mntp': {'steps': 500}, 'simcse': {'lora': {'r': 8}}}

    Raises:
        UsageError: A setting without `=` or with a value that is not YAML.
    """
    result: dict[str, Any] = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or not key:
            raise UsageError(
                f"--set {setting!r}: write KEY=VALUE, for instance --set mntp.steps=500"
            )
        try:
            value = _number(yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise UsageError(f"--set {setting!r}: {text!r} is not a value: {error}") from error
        for part in reversed(key.split(".")):
            value = {part: value}
        result = merged(result, value)
    return result


def _number(value: Any) -> Any:
    """YAML reads 5e-5 as text; read it as the number a person means."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """`key: old -> new` for each value in which two nested mappings differ."""
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from differences(before, after, f"{path}{key}.")
        elif before != after:
            yield f"{path}{key}: {before!r} -> {after!r}"


def to_yaml(recipe: Recipe) -> str:
    """A recipe as YAML with what each knob means, its unit and the source of its default."""
    return "".join(_yaml_lines(recipe, indent=""))


def _yaml_lines(part: BaseModel, indent: str) -> Iterator[str]:
    for name, field in type(part).model_fields.items():
        value = getattr(part, name)
        extra = field.json_schema_extra
        about = extra if isinstance(extra, dict) else {}
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:\n"
            yield from _yaml_lines(value, indent + "  ")
            continue
        plain = list(value) if isinstance(value, tuple) else value
        text = (
            yaml.safe_dump(plain, default_flow_style=True, width=10_000)
            .removesuffix("\n")
            .removesuffix("\n...")
        )
        notes = [
            field.description or "",
            *(str(about[key]) for key in ("unit", "source") if about.get(key)),
        ]
        yield f"{indent}{name}: {text}  # {' | '.join(notes)}\n"
