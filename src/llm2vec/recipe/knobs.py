"""The recipe of a conversion, as plain frozen data.

Each knob carries its default, its unit and the source of the default; `files` reads recipes and
prints them. The paper is BehnamGhader et al. 2024 (LLM2Vec, arXiv 2404.05961). This module reads no
models and no texts.
"""

import difflib
from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from llm2vec.errors import UsageError
from llm2vec.recipe.e5 import E5_PROMPTS

Pooling = Literal["mean", "weighted_mean", "last", "first"]

POOLING_ALIASES = {
    "eos": "last",
    "eos_token": "last",
    "last_token": "last",
    "bos": "first",
    "bos_token": "first",
}
"""Other names of the poolings, those of the first implementation among them."""

_FIRST = "first implementation"


def knob(default: Any, meaning: str, *, unit: str = "", source: str = "", **limits: Any) -> Any:
    """A field of a recipe, with what a reader needs to know about it.

    Args:
        default: Default value.
        meaning: What the knob means, as a noun phrase.
        unit: Unit of the value.
        source: Source of the default value.
        **limits: Limits of the value, as pydantic names them.
    """
    return Field(
        default,
        description=meaning,
        json_schema_extra={"unit": unit, "source": source},
        **limits,
    )


class Part(BaseModel):
    """The base of all parts of a recipe: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class CorpusRecipe(Part):
    """The texts of a corpus."""

    source: str = knob(
        "self", "a file, folder, glob or `hub:NAME`; `self`: the decoder writes the texts itself"
    )
    column: str | None = knob(
        None,
        "column of jsonl, csv, parquet or hub data; default: `text`, or the only text column",
    )
    format: Literal["txt", "jsonl", "csv", "tsv", "parquet"] | None = knob(
        None, "format of the files; default: what their names tell"
    )
    delimiter: str | None = knob(
        None, "character between the cells of csv files; default: what their first lines show"
    )
    config: str | None = knob(None, "configuration of a hub data set")
    split: str = knob("train", "split of a hub data set")
    unit: Literal["line", "document"] = knob(
        "line", "extent of one text in a .txt file: a line, or the whole file (`document`)"
    )
    max_texts: int | None = knob(
        None, "number of texts that are read at most; default: all", unit="texts", ge=1
    )
    self_texts: int = knob(
        4000, "number of texts that the decoder writes, with `source: self`", unit="texts", ge=1
    )
    self_tokens: int = knob(96, "length of the longest text that it writes", unit="tokens", ge=8)
    temperature: float = knob(1.0, "sampling temperature of the texts that it writes", gt=0)
    top_p: float = knob(
        1.0,
        "nucleus of its sampling: the smallest set of next tokens with this probability",
        gt=0,
        le=1,
    )


class LoraRecipe(Part):
    """Low-rank adapters, which are trained with `method: lora`."""

    r: int = knob(16, "rank of the adapters", source="paper, appendix D", ge=1)
    alpha: float = knob(32, "scale of the adapters, 2 r", source=_FIRST, gt=0)
    dropout: float = knob(0.05, "dropout before the adapters", source=_FIRST, ge=0, lt=1)
    targets: tuple[str, ...] | None = knob(
        None, "names of the layers with adapters; default: every linear layer but the LM head"
    )


class StageRecipe(Part):
    """What all training stages share.

    Batch sizes are those of one process: with several, a step has `batch_size` times as many texts.
    """

    steps: int = knob(
        1000,
        "number of optimiser steps; 0 skips the stage",
        unit="steps",
        source="paper, section 3.1",
        ge=0,
    )
    batch_size: int = knob(
        32, "number of texts or blocks in a step, in each process", unit="texts", ge=1
    )
    accumulation: int = knob(
        1,
        "number of parts that a step is computed in; contrastive stages compare within a part, and "
        "have `part_tokens` against that",
        ge=1,
    )
    max_length: int = knob(512, "length of the longest text or block", unit="tokens", ge=4)
    method: Literal["lora", "full"] = knob(
        "lora", "what is trained: adapters, or every weight (`full`)", source="paper"
    )
    lora: LoraRecipe = LoraRecipe()
    learning_rate: float = knob(
        5e-5, "peak learning rate of AdamW", source="library default, as the paper's runs", gt=0
    )
    schedule: Literal["linear", "cosine", "constant"] = knob(
        "linear", "shape of the learning rate after its warm-up"
    )
    schedule_epochs: float | None = knob(
        None,
        "length of the schedule in passes over the corpus; default: it ends at `steps`",
        unit="epochs",
        gt=0,
    )
    warmup_steps: int = knob(
        0, "number of steps in which the learning rate rises", unit="steps", ge=0
    )
    weight_decay: float = knob(0.0, "weight decay of AdamW", ge=0)
    max_grad_norm: float = knob(
        1.0, "norm to which gradients are clipped", source="library default", gt=0
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = knob(
        "auto", "arithmetic; `auto`: bfloat16 if the GPU or CPU has it, else float32"
    )
    gradient_checkpointing: bool = knob(False, "whether states are computed twice to save memory")
    log_every: int = knob(10, "steps between lines of the log", unit="steps", ge=1)
    save_every: int = knob(100, "steps between checkpoints to resume from", unit="steps", ge=1)
    keep_every: int = knob(
        0,
        "steps between encoders that are kept for the report; 0 keeps none",
        unit="steps",
        ge=0,
    )
    report_to: tuple[str, ...] = knob(
        (), "integrations of the trainer: tensorboard, wandb, trackio"
    )


class ContrastiveRecipe(StageRecipe):
    """What the stages share that compare the texts of a step with each other."""

    part_tokens: int | None = knob(
        None,
        "number of tokens that the model reads at once, so that memory does not grow with the "
        "batch; each text is then read twice. Default: all of a step",
        unit="tokens",
        source="GradCache, arXiv 2101.06983",
        ge=16,
    )
    spread_out: float = knob(
        0.0,
        "weight of the mean squared cosine between different texts of a step, which spreads them "
        "over all directions",
        source="EmbeddingGemma, arXiv 2509.20354",
        ge=0,
    )


class MntpRecipe(StageRecipe):
    """Masked next-token prediction (paper, section 2.2)."""

    mask_probability: float = knob(
        0.2, "share of the tokens that are masked", source="paper, section 3.1", gt=0, lt=1
    )
    masking: Literal["bert", "all"] = knob(
        "bert",
        "what replaces a chosen token: the mask for 80%, a random token for 10%, itself for 10%; "
        "`all`: the mask for all",
    )
    mask_token: str = knob(
        "blank",
        "mask token: `blank` (`_`), `eos`, `mask` (the tokenizer's own), or any vocabulary token",
    )
    layout: Literal["packed", "concatenated", "lines"] = knob(
        "packed",
        "layout of a training row: `packed`: a block of texts that do not see each other; "
        "`concatenated`: a block of texts that do (the paper's); `lines`: one text",
    )
    train_head: bool = knob(
        False,
        "whether the LM head is trained too, and kept (the first implementation discarded it)",
    )
    held_out: float = knob(0.02, "share of the texts that is kept for evaluation", gt=0, lt=0.5)
    eval_blocks: int = knob(64, "number of blocks or texts in an evaluation", unit="blocks", ge=1)
    eval_every: int = knob(100, "steps between evaluations", unit="steps", ge=1)


class SimcseRecipe(ContrastiveRecipe):
    """Unsupervised contrastive learning: one text under two dropout masks (paper, section 2.3)."""

    batch_size: int = knob(
        128, "number of texts in a step, in each process", unit="texts", source=_FIRST, ge=2
    )
    max_length: int = knob(128, "length of the longest text", unit="tokens", source=_FIRST, ge=4)
    learning_rate: float = knob(3e-5, "peak learning rate of AdamW", source=_FIRST, gt=0)
    dropout: float = knob(
        0.3,
        "attention dropout, by which two views of a text differ",
        source="paper, app. D",
        gt=0,
        lt=1,
    )
    scale: float = knob(
        20.0, "factor of the cosines, 1 / temperature (0.05)", source="SimCSE", gt=0
    )
    corpus: CorpusRecipe | None = knob(None, "texts of this stage; default: those of the recipe")
    min_tokens: int = knob(4, "length of the shortest text that is trained on", unit="tokens", ge=1)
    sentences: bool = knob(False, "whether texts are first cut into sentences at . ! ?")


class DataRecipe(Part):
    """A data set of pairs, and what its columns mean."""

    file: str = knob(..., "a file of rows, folder, glob or `hub:NAME`")
    config: str | None = knob(None, "configuration of a hub data set")
    split: str = knob("train", "split of a hub data set")
    anchor: str | None = knob(
        None, "column of the anchors; default: `anchor`, `query`, `text1`, `sentence1` or `text`"
    )
    positive: str | None = knob(
        None, "column of the texts that belong to them; default: `positive`, `text2`, `sentence2`"
    )
    negatives: tuple[str, ...] | None = knob(
        None,
        "columns of texts or lists of texts that do not belong to them; default: `negative`, "
        "`negatives`, `negative_1` ...; []: none",
    )
    score: str | None = knob(
        None, "column of the pairs' similarity; default: `score`, where there are no negatives"
    )
    score_range: tuple[float, float] | None = knob(
        None, "lowest and highest score, which become 0 and 1; default: scores as they are"
    )
    label: str | None = knob(
        None, "column of labels: of texts whose likes are positives, or of pairs (0 and 1)"
    )
    id: str | None = knob(
        None, "column of what anchors are about: rows of equal ids are no negatives of one another"
    )
    prompts: tuple[str, ...] = knob((), "prompts of the anchors, which alternate row by row")
    positive_prompts: tuple[str, ...] = knob(
        (), "prompts of positives and negatives, which alternate row by row"
    )
    weight: float = knob(1.0, "share of the rows that an epoch reads; 2 reads them twice", gt=0)

    @field_validator("prompts", "positive_prompts", "negatives", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class PairsRecipe(Part):
    """The rows of anchors, positives and negatives; each file is a data set of its own."""

    source: str | None = knob(
        None,
        "a file of rows (jsonl, csv, tsv, parquet), folder or glob; a row holds `anchor` (or "
        "`query`), `positive` and, if there are any, `negative`",
    )
    layout: Literal["plain", "e5"] = knob(
        "plain", "`e5`: prompts and sampling ratios of the public part of E5, by file names"
    )
    data: tuple[DataRecipe, ...] = knob(
        (), "data sets with columns, prompts and weights of their own, beside or without `source`"
    )
    negatives: int | None = knob(
        1,
        "number of a row's negatives that are used; 0: the texts of other rows alone; null: all",
        unit="texts",
        ge=0,
    )
    weights: dict[str, float] = knob(
        {}, "by file name without ending: share of the rows that an epoch reads; default: 1"
    )
    prompts: dict[str, tuple[str, ...]] = knob(
        {},
        "by file name without ending: the prompt of the anchors, or several that alternate row by "
        "row",
        source="paper, table 8",
    )
    both_sides: tuple[str, ...] = knob(
        (),
        "names of files whose positives and negatives get the prompt too, for symmetric tasks",
    )

    @field_validator("prompts", mode="before")
    @classmethod
    def _one_prompt_is_a_list_of_one(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {
            name: (given,) if isinstance(given, str) else given for name, given in value.items()
        }

    @property
    def all_prompts(self) -> list[str]:
        """The prompts of all data sets and sides."""
        by_set = [*self.prompts.values()]
        for data in self.data:
            by_set += [data.prompts, data.positive_prompts]
        if self.layout == "e5":
            by_set += E5_PROMPTS.values()
        return [prompt for prompts in by_set for prompt in prompts]


OF_SIMCSE = "simcse"
"""What `supervised.adapter` calls the adapter of the SimCSE stage."""


class SupervisedRecipe(ContrastiveRecipe):
    """Supervised contrastive learning with positives and hard negatives (paper, section 5)."""

    steps: int = knob(
        0,
        "number of optimiser steps; 0 skips the stage",
        unit="steps",
        source="first implementation: 1000",
        ge=0,
    )
    batch_size: int = knob(
        64,
        "number of rows in a step, in each process; all of one file",
        unit="rows",
        source=_FIRST,
        ge=2,
    )
    max_length: int = knob(
        512, "length of the longest text, prompt included", unit="tokens", source=_FIRST, ge=4
    )
    learning_rate: float = knob(2e-4, "peak learning rate of AdamW", source=_FIRST, gt=0)
    warmup_steps: int = knob(
        300,
        "number of steps in which the learning rate rises",
        unit="steps",
        source=_FIRST,
        ge=0,
    )
    scale: float = knob(50.0, "factor of the cosines, 1 / temperature (0.02)", source=_FIRST, gt=0)
    scored_loss: Literal["cosent", "angle", "cosine", "online_contrastive"] = knob(
        "cosent", "loss of pairs with scores, by its name in sentence-transformers"
    )
    scored_scale: float = knob(
        20.0, "factor of the similarities in `cosent` and `angle`", source="library default", gt=0
    )
    margin: float | None = knob(
        None,
        "a text whose cosine with an anchor exceeds that of the positive by more is no negative; "
        "default: every text is one",
        ge=-2,
        le=2,
    )
    dimensions: tuple[int, ...] = knob(
        (),
        "numbers of leading elements that are trained to be vectors too (Matryoshka)",
        source="arXiv 2205.13147",
    )
    corpus: PairsRecipe = PairsRecipe()
    adapter: str | None = knob(
        None,
        "folder or hub id of an adapter of the encoder that training goes on with; `simcse`: that "
        "of the stage before, on what was there before it; default: a fresh one",
        source="paper, section 5",
    )
    held_out: DataRecipe | None = knob(
        None, "a data set that is measured during training; the best weights are kept"
    )
    eval_every: int = knob(100, "steps between evaluations", unit="steps", ge=1)
    patience: int = knob(
        0,
        "evaluations without a better score after which training stops; 0: never",
        unit="evaluations",
        ge=0,
    )

    @model_validator(mode="after")
    def _has_something_to_learn_from(self) -> Self:
        if self.steps and self.corpus.source is None and not self.corpus.data:
            raise ValueError(
                f"{self.steps} steps need rows to learn from: set supervised.corpus.source"
            )
        if self.steps and self.adapter is not None and self.method == "full":
            raise ValueError("an adapter is trained with method=lora; leave out one of the two")
        return self


class DistillRecipe(ContrastiveRecipe):
    """Distillation: the encoder learns from the vectors of a teacher, with no labels."""

    steps: int = knob(0, "number of optimiser steps; 0 skips the stage", unit="steps", ge=0)
    batch_size: int = knob(
        128, "number of texts or pairs in a step, in each process", unit="rows", ge=2
    )
    max_length: int = knob(128, "length of the longest text", unit="tokens", ge=4)
    teacher: str | None = knob(
        None,
        "a sentence-transformers model or an encoder (folder or hub id), or its vectors: a Parquet "
        "file or a folder of them, a row for each text of the corpus, in order",
    )
    corpus: CorpusRecipe | None = knob(None, "texts of this stage; default: those of the recipe")
    pairs: str | None = knob(
        None,
        "a file, folder or glob of rows with `anchor` (or `query`) and `positive`, to learn from "
        "instead of texts",
    )
    sentences: bool = knob(False, "whether texts are first cut into sentences at . ! ?")
    min_tokens: int = knob(4, "length of the shortest text that is trained on", unit="tokens", ge=1)
    cosine: float = knob(
        1.0,
        "weight of the loss that turns each vector, through a linear layer where the widths "
        "differ, to the teacher's",
        ge=0,
    )
    mse: float = knob(
        0.0,
        "weight of the squared difference to the teacher's vectors, through the same layer",
        ge=0,
    )
    relational: float = knob(
        0.0, "weight of the squared differences of all cosines between texts of a step", ge=0
    )
    scores: float = knob(
        1.0,
        "weight of the contrastive loss in which the teacher's scores stand for the labels",
        ge=0,
    )
    scale: float = knob(20.0, "factor of the cosines in `scores`, 1 / temperature (0.05)", gt=0)

    @model_validator(mode="after")
    def _has_a_teacher_and_a_loss(self) -> Self:
        if not self.steps:
            return self
        if self.teacher is None:
            raise ValueError(f"{self.steps} steps need a teacher: set distill.teacher")
        if not any((self.cosine, self.mse, self.relational, self.scores)):
            raise ValueError(
                "one of cosine, mse, relational and scores has to have a weight above 0"
            )
        return self


class EncoderRecipe(Part):
    """How the finished encoder turns texts into vectors."""

    pooling: Pooling = knob(
        "mean", "how a text's states become one vector", source="paper, section 3.2"
    )
    max_length: int = knob(
        512,
        "length of the longest text, prompt included; at most the model's number of positions",
        unit="tokens",
        ge=4,
    )
    layers: int | None = knob(
        None,
        "number of the decoder's layers that are kept, from the first; the last ones are dropped "
        "before training. Default: all",
        source="L3Prune, arXiv 2410.14578",
        ge=1,
    )
    normalize: bool = knob(False, "whether vectors are scaled to length 1")
    bidirectional: bool = knob(
        True, "whether tokens attend to those after them; false trains a causal decoder, to compare"
    )
    prompts: dict[str, str] = knob(
        {}, "prompts by name; a prompt comes before the text and is not pooled"
    )
    template: str | None = knob(
        None,
        "template around prompt and text: a format string with {text}, or `chat`, the tokenizer's "
        "own; default: none",
    )
    separator: str | None = knob(
        None,
        "text between prompt and text; default: a space, or a line break if a space would become "
        "part of the text's first token",
    )


class Recipe(Part):
    """A whole conversion."""

    decoder: str = knob("bundled", "a folder, a GGUF file, a hub id, or `bundled`")
    adapters: tuple[str, ...] = knob(
        (),
        "folders or hub ids of adapters that are merged into the decoder first, in the order of "
        "training",
    )
    seed: int = knob(42, "seed of everything random", source=_FIRST, ge=0)
    partial: bool = knob(
        False,
        "whether a hybrid may keep layers that read left to right; its attention layers switch",
    )
    trust_remote_code: bool = knob(False, "whether model code that comes with the decoder may run")
    corpus: CorpusRecipe = CorpusRecipe()
    mntp: MntpRecipe = MntpRecipe()
    simcse: SimcseRecipe = SimcseRecipe()
    supervised: SupervisedRecipe = SupervisedRecipe()
    distill: DistillRecipe = DistillRecipe()
    encoder: EncoderRecipe = EncoderRecipe()

    @model_validator(mode="before")
    @classmethod
    def _names_every_unknown_key(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            _check_keys(cls, value, ())
        return value

    @model_validator(mode="after")
    def _mntp_is_bidirectional(self) -> Self:
        if self.mntp.steps and not self.encoder.bidirectional:
            raise ValueError("MNTP trains bidirectional models: set mntp.steps=0")
        return self

    @model_validator(mode="after")
    def _has_an_adapter_of_simcse(self) -> Self:
        asks = self.supervised.steps and self.supervised.adapter == OF_SIMCSE
        if asks and not (self.simcse.steps and self.simcse.method == "lora"):
            raise ValueError(
                "supervised.adapter=simcse needs a SimCSE stage with method=lora in the same "
                "recipe; name the folder of an adapter, or leave it out for a fresh one"
            )
        return self

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> Self:
        """Make a recipe from nested mappings.

        Raises:
            UsageError: A key does not exist (the message names the nearest one), or a value is out
                of range.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise UsageError(_first_problem(error)) from error

    @property
    def trains_on_own_texts(self) -> bool:
        """Whether a stage that has steps trains on texts that the decoder writes."""
        read = []
        if self.mntp.steps:
            read.append(self.corpus)
        if self.simcse.steps:
            read.append(self.simcse.corpus or self.corpus)
        if self.distill.steps and self.distill.pairs is None:
            read.append(self.distill.corpus or self.corpus)
        return any(corpus.source == "self" for corpus in read)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as nested plain data, from which `Recipe.read` makes an equal recipe."""
        return self.model_dump(mode="json")


def _first_problem(error: ValidationError) -> str:
    """The first problem that pydantic found, in one line with its key and value."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    is_of_a_part = first["type"] == "value_error" and isinstance(first["input"], Mapping)
    if first["type"] == "missing" or is_of_a_part:
        return f"recipe: {key}: {message}"
    return f"recipe: {key}: {message}, not {first['input']!r}"


def _check_keys(model: type[BaseModel], value: Mapping[str, Any], path: tuple[str, ...]) -> None:
    """Refuse the first key of nested mappings that a part of the recipe does not have."""
    for key, inner in value.items():
        if key not in model.model_fields:
            raise UsageError(_unknown_key(str(key), model, path))
        part = _part_of(model, key)
        if part is not None and isinstance(inner, Mapping):
            _check_keys(part, inner, (*path, key))


def _part_of(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The class of a field that is a part of the recipe itself; None for a plain value."""
    annotation = model.model_fields[key].annotation
    for choice in (annotation, *get_args(annotation)):
        if isinstance(choice, type) and issubclass(choice, BaseModel):
            return choice
    return None


def _unknown_key(key: str, model: type[BaseModel], path: tuple[str, ...]) -> str:
    whole = ".".join((*path, key))
    near = difflib.get_close_matches(key, model.model_fields, n=1, cutoff=0.5)
    if near:
        hint = f"did you mean {'.'.join((*path, near[0]))!r}?"
    else:
        hint = f"the keys are: {', '.join(model.model_fields)};"
    return f"recipe: there is no {whole!r}; {hint} `llm2vec recipe` prints all"
