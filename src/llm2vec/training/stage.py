"""What a training stage is, and the one function that runs any stage.

A stage is a value: its rows, its task, and what it changes while it trains. Only `run_stage` loads,
proves, trains and merges. It uses a stage's folder for tokens and checkpoints alone; `conversion`
writes the encoders.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from accelerate import PartialState
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm2vec.backbone.loading import (
    embedding_rows,
    load_config,
    load_decoder,
    load_tokenizer,
)
from llm2vec.backbone.lora import PROJECTION, add_adapters, merge, weights_dtype
from llm2vec.backbone.proofs import Proof
from llm2vec.backbone.source import Source
from llm2vec.backbone.switch import make_bidirectional
from llm2vec.encoder.settings import Settings
from llm2vec.recipe.knobs import Recipe, StageRecipe
from llm2vec.runtime.hardware import default_device
from llm2vec.runtime.progress import Progress
from llm2vec.training.early_stopping import EarlyStopping
from llm2vec.training.pace import Pace
from llm2vec.training.trainer import Task, train

CAUSAL: Mapping[str, Any] = {"proofs": [], "notes": ["the model stays causal"]}
"""What the provenance says of the switch of a model that stays causal."""

ADAPTER = "adapter"
"""Name of the folder, in that of a stage, with the adapter that was merged in the end."""

Rows = TypeVar("Rows")
"""What a stage's task draws its samples from: a token store, a text store, or triples."""


@dataclass(frozen=True)
class StageRun:
    """What a stage is run with.

    Attributes:
        recipe: The whole recipe.
        source: The folder of the stage before.
        settings: The encoder's settings, which say how it turns texts into vectors.
        scratch: A folder for tokens and checkpoints, which a killed run finds again.
        own_texts: The file of texts that the decoder wrote, for the corpus `self`.
        processes: The processes that share each step.
        progress: Listener that every step is reported to.
        pace: How many steps fit into the stage's time; None trains the recipe's steps.
    """

    recipe: Recipe
    source: Source
    settings: Settings
    scratch: Path
    own_texts: Path
    processes: PartialState
    progress: Progress
    pace: Pace | None = None


@dataclass(frozen=True)
class Stage(Generic[Rows]):
    """One training stage.

    Attributes:
        name: Name in recipes, folders and provenance.
        title: Name in progress and messages.
        has_head: Whether the stage trains a language model. Otherwise it trains the body alone.
        open_rows: Function that reads and tokenises the stage's rows, or opens those of an earlier
            try.
        task: Function that makes the task: batches, loss and evaluation.
        row_facts: Function from the rows to what the provenance says of them.
        overrides: Function that gives the values of the model's configuration that hold while the
            stage trains; None changes no value.
        prove: A proof that only this stage needs; None proves nothing more.
    """

    name: str
    title: str
    has_head: bool
    open_rows: Callable[[StageRun, PreTrainedTokenizerBase], Rows]
    task: Callable[[StageRun, PreTrainedModel, PreTrainedTokenizerBase, Rows], Task]
    row_facts: Callable[[Rows], Mapping[str, Any]]
    overrides: Callable[[StageRun], Mapping[str, float]] | None = None
    prove: Callable[[PreTrainedModel], Proof] | None = None

    def knobs(self, recipe: Recipe) -> StageRecipe:
        """The knobs of the stage in a recipe."""
        knobs: StageRecipe = getattr(recipe, self.name)
        return knobs


@dataclass(frozen=True)
class Trained:
    """The result of a stage.

    Attributes:
        model: The model, merged, in evaluation mode.
        tokenizer: The model's tokenizer.
        facts: The content of `stage.json`.
        configuration: Values of the model's configuration that the stage changed, as they were
            before.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    facts: Mapping[str, Any]
    configuration: Mapping[str, Any]


def run_stage(stage: Stage[Any], run: StageRun) -> Trained:
    """Load the model of the stage before, prove it, train it and merge it.

    Args:
        stage: The stage.
        run: What the stage is run with.

    Raises:
        LLM2VecError: Something is wrong with the rows, the model or the training.
    """
    knobs = stage.knobs(run.recipe)
    tokenizer = load_tokenizer(run.source)
    with run.processes.main_process_first():
        rows = stage.open_rows(run, tokenizer)
    overrides = {} if stage.overrides is None else stage.overrides(run)
    before = load_config(run.source).to_dict()
    configuration = {name: before[name] for name in overrides}
    model = load_decoder(
        run.source,
        head=stage.has_head,
        dtype=weights_dtype(knobs, default_device()),
        config_overrides=overrides,
    )
    switch = _switch_facts(stage, run, model)
    task = stage.task(run, model, tokenizer, rows)
    model, log = train_and_merge(
        model,
        task,
        knobs,
        folder=run.scratch,
        seed=run.recipe.seed,
        progress=run.progress,
        pace=run.pace,
    )
    for name, value in configuration.items():
        setattr(model.config, name, value)
    facts = {
        "stage": stage.name,
        "switch": switch,
        "corpus": stage.row_facts(rows),
        "metrics": log,
        **_pace_facts(run),
    }
    return Trained(model, tokenizer, facts, configuration)


def _pace_facts(run: StageRun) -> Mapping[str, Any]:
    """The numbers of steps that a stage's time allowed; empty for a stage that has no such time."""
    return {} if run.pace is None else {"pace": run.pace.to_list()}


def _switch_facts(stage: Stage[Any], run: StageRun, model: PreTrainedModel) -> Mapping[str, Any]:
    """Make a model bidirectional unless it stays causal, and give the provenance's facts of it."""
    if not run.settings.bidirectional:
        return CAUSAL
    facts = make_bidirectional(model).to_dict()
    if stage.prove is not None:
        facts["proofs"].append(stage.prove(model).to_dict())
    return facts


def train_and_merge(
    model: PreTrainedModel,
    task: Task,
    knobs: StageRecipe,
    *,
    folder: Path,
    seed: int,
    progress: Progress,
    pace: Pace | None = None,
) -> tuple[PreTrainedModel, list[dict[str, Any]]]:
    """Train adapters or all weights, and merge them into plain weights.

    Args:
        model: The model, bidirectional and proven.
        task: What the stage trains.
        knobs: The stage's knobs.
        folder: Folder of checkpoints; a killed run resumes from them.
        seed: Seed of order, adapters and dropout.
        progress: Listener that every step is reported to.
        pace: How many steps fit into the stage's time; None trains the recipe's steps.

    Returns:
        The merged model in evaluation mode, and the log: one mapping for each log line and
        evaluation.

    Raises:
        RunError: Training failed; see `train`.
        UsageError: The knobs do not fit the model; see `train` and `add_adapters`.
    """
    dtype = weights_dtype(knobs, model.device)
    torch.manual_seed(seed)
    model = model.to(dtype)  # type: ignore[arg-type]  # transformers narrows `to`
    if task.projection is not None:
        model.add_module(PROJECTION, task.projection.to(model.device))
    trained = add_adapters(model, knobs, train_head=task.trains_head, adapter=task.adapter)
    stopping = [] if task.patience is None else [EarlyStopping(folder, patience=task.patience)]
    log = train(
        trained,
        task,
        knobs,
        folder=folder,
        seed=seed,
        progress=progress,
        pace=pace,
        callbacks=stopping,
    )
    for each in stopping:
        PartialState().wait_for_everyone()  # the first process writes the best weights
        each.restore(trained)
    _keep_adapter(trained, task, folder)
    merged = merge(trained, dtype=dtype)
    if task.embedding_rows is not None and embedding_rows(merged) != task.embedding_rows:
        merged.resize_token_embeddings(task.embedding_rows)
    return merged.eval(), log


def _keep_adapter(trained: PreTrainedModel | PeftModel, task: Task, folder: Path) -> None:
    """Write a body's adapter, with which another stage may go on, before it is merged."""
    is_plain = task.projection is None and task.embedding_rows is None and not task.trains_head
    if isinstance(trained, PeftModel) and is_plain and PartialState().is_main_process:
        trained.save_pretrained(str(folder / ADAPTER), save_embedding_layers=False)
