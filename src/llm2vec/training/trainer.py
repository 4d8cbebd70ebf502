"""The trainer of all stages: resuming, progress, and stopping at NaN.

The batch of a step is a pure function of seed and sample numbers: it is drawn by number, not from a
shared random state, so that a resumed run sees exactly what an uninterrupted run would have seen.
"""

import copy
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset, SequentialSampler
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    get_scheduler,
)
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from llm2vec.backbone.loading import quiet
from llm2vec.backbone.lora import merge, precision
from llm2vec.errors import RunError, UsageError, first_line
from llm2vec.recipe.knobs import StageRecipe
from llm2vec.runtime.files import atomic_folder, disk_space_checked, read_json, write_json
from llm2vec.runtime.memory import memory_checked
from llm2vec.runtime.progress import Progress
from llm2vec.training.pace import Pace

Batch = dict[str, Any]
Loss = Callable[[nn.Module, Batch, Tensor | None], Tensor]
"""`(model as wrapped for several processes, batch, number of items in the whole step) -> loss`."""

_COMPLETE = "complete"
"""Name of the empty file that marks a checkpoint as whole."""

_LOSSES = "losses.json"
"""Name of a checkpoint's file of `Losses`."""

_PACE = "pace.json"
"""Name of the file of a `Pace`'s decisions, in the folder of checkpoints."""

_MOST_TIMES_PLANNED = 100
"""Largest number of steps of a stage that follows the clock, in terms of those planned."""

KEPT = "kept-"
"""Beginning of the names of folders with models kept during training; the step follows."""


@dataclass(frozen=True)
class Task:
    """What a stage trains, as `train` needs it.

    Attributes:
        name: Name for people: `MNTP`, `SimCSE`.
        samples: Number of samples in an epoch.
        collate: Function from sample numbers to their batch, which depends on nothing else.
        loss: The stage's loss.
        counts_items: Whether the loss is a sum that is divided by the number of items (`labels`) in
            the whole step.
        evaluate: Function from the model to its held-out metrics; None evaluates nothing.
        evaluate_every: Number of steps between evaluations; 0 evaluates only before training.
        patience: Number of evaluations without a better `score` after which training stops; 0 never
            stops it. Either way the weights of the best one are kept. None keeps the last weights.
        trains_head: Whether the LM head is trained too.
        adapter: Folder of an adapter that training goes on with; None makes a fresh one.
        embedding_rows: Number of rows of the embeddings when the stage is over; None leaves them as
            they are.
        projection: Linear layer that is trained with the model and left out of what is saved; None
            trains the model alone.
    """

    name: str
    samples: int
    collate: Callable[[Sequence[int]], Batch]
    loss: Loss
    counts_items: bool
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None
    evaluate_every: int = 0
    patience: int | None = None
    trains_head: bool = False
    adapter: Path | None = None
    embedding_rows: int | None = None
    projection: nn.Linear | None = None


def unwrapped(model: nn.Module) -> Any:
    """The model without the wrapper that several processes put around it."""
    return extract_model_from_parallel(model)


class EpochSampler:
    """The row of each sample: every epoch is a seeded permutation of all rows.

    Args:
        rows: Number of rows.
        seed: Seed of the permutations.
    """

    def __init__(self, rows: int, *, seed: int) -> None:
        self.rows = rows
        self._seed = seed
        self._epoch = -1
        self._order = np.zeros(0, dtype=np.int64)

    def __call__(self, sample: int) -> int:
        epoch, position = divmod(sample, self.rows)
        if epoch != self._epoch:
            self._order = np.random.default_rng([self._seed, epoch]).permutation(self.rows)
            self._epoch = epoch
        return int(self._order[position])


class _SampleNumbers(Dataset[int]):
    """The sample numbers 0, 1, 2 ... as a data set, which `Task.collate` turns into batches."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> int:
        return number


class _OneDevice(TrainingArguments):
    """The library's arguments for a process that uses one device, however many GPUs it sees.

    The library would copy the model to all of them and split every batch between them, so that a
    step had more rows than the recipe says. Several GPUs are for several processes.
    """

    @property
    def n_gpu(self) -> int:
        """Number of GPUs that this process uses."""
        visible: int = super().n_gpu
        return min(visible, 1)


@dataclass
class Losses:
    """The sums behind the logged losses, which a checkpoint keeps.

    Attributes:
        total: Sum over all steps up to the last log line.
        since_log: Sum over the steps since the last log line.
        logged_step: Step of the last log line.
    """

    total: float = 0.0
    since_log: float = 0.0
    logged_step: int = 0

    def add(self, loss: float) -> None:
        """Add the loss of a step, or of a part of it where gradients are accumulated."""
        self.since_log += loss

    def mean_since_log(self, step: int, over_processes: Callable[[float], float]) -> float:
        """The mean loss since the last log line, which is at this step from now on.

        Args:
            step: The current step.
            over_processes: Function from a number of this process to the mean over all processes.
        """
        since_log = over_processes(self.since_log)
        mean = since_log / (step - self.logged_step)
        self.total += since_log
        self.since_log = 0.0
        self.logged_step = step
        return mean

    def mean(self, step: int, over_processes: Callable[[float], float]) -> float:
        """The mean loss of all steps; arguments as of `mean_since_log`."""
        return (self.total + over_processes(self.since_log)) / max(step, 1)

    def to_dict(self, over_processes: Callable[[float], float]) -> dict[str, Any]:
        """The content of a checkpoint's file, which is the same in each process."""
        return {**asdict(self), "since_log": over_processes(self.since_log)}


class _StageTrainer(Trainer):
    """The library's trainer with a stage's loss, numbered samples, whole checkpoints, and no NaN.

    Args:
        task: What the stage trains.
        horizon: Number of steps over which the learning rate is scheduled, if that is more than are
            trained.
        pace: How many steps fit into the stage's time; None trains the recipe's steps.
        **kwargs: Arguments of the library's trainer.
    """

    def __init__(self, *, task: Task, horizon: int, pace: Pace | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._task = task
        self._horizon = horizon
        self._pace = pace
        self.tokens_seen = 0
        self.losses = Losses()
        self.model_accepts_loss_kwargs = task.counts_items
        self.loss_is_scaled_for_ga = task.counts_items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        self.tokens_seen += inputs.pop("tokens")
        inputs.pop("shift_labels", None)
        loss = self._task.loss(model, inputs, num_items_in_batch)
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        if not bool(torch.isfinite(loss)):
            raise RunError(
                f"{self._task.name}: the loss is {loss.item()} at step "
                f"{self.state.global_step + 1}; the last "
                "checkpoint before it is kept. Lower the learning rate (--set "
                "STAGE.learning_rate=...) and start "
                "over, or set precision=float32"
            )
        return loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **kwargs)
        self.losses.add(float(loss))
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log mean losses that are the same with and without an interruption."""
        step = self.state.global_step
        if "loss" in logs:
            logs["loss"] = self.losses.mean_since_log(step, self._over_processes)
        if "train_loss" in logs:
            logs["train_loss"] = self.losses.mean(step, self._over_processes)
        super().log(logs, *args, **kwargs)

    def _over_processes(self, value: float) -> float:
        """The mean of a number over the processes."""
        numbers = torch.tensor([value], dtype=torch.float64, device=self.accelerator.device)
        return float(self.accelerator.gather(numbers).mean())

    def create_scheduler(
        self, num_training_steps: int, optimizer: Optimizer | None = None
    ) -> LambdaLR:
        if self.lr_scheduler is None:
            self.lr_scheduler = get_scheduler(
                self.args.lr_scheduler_type,
                optimizer=optimizer or self.optimizer,  # type: ignore[arg-type]  # made before
                num_warmup_steps=int(self.args.warmup_steps),
                num_training_steps=max(self._horizon, num_training_steps),
            )
            if self._pace is not None:
                _stretch(self.lr_scheduler, self._pace, steps=num_training_steps)
        scheduler: LambdaLR = self.lr_scheduler
        return scheduler

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]  # it is sized

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        trained = (weight for weight in model.parameters() if weight.requires_grad)
        if not all(bool(torch.isfinite(weight).all()) for weight in trained):
            raise RunError(
                f"{self._task.name}: weights are not finite at step {self.state.global_step}; "
                "lower the learning rate (--set STAGE.learning_rate=...) and start over"
            )
        folder = Path(str(self.args.output_dir))
        with disk_space_checked(folder), warnings.catch_warnings(), quiet():
            # peft warns of a mask token's row in the embeddings; a resumed run adds the same row.
            warnings.filterwarnings("ignore", message="Setting `save_embedding_layers`")
            super()._save_checkpoint(model, trial)
            losses = self.losses.to_dict(self._over_processes)
            self.accelerator.wait_for_everyone()  # each process writes a part of the checkpoint
            if self.args.should_save:
                checkpoint = folder / f"checkpoint-{self.state.global_step}"
                write_json(checkpoint / _LOSSES, losses)
                (checkpoint / _COMPLETE).touch()


def _stretch(scheduler: LambdaLR, pace: Pace, *, steps: int) -> None:
    """Let a schedule end with the last step of a pace.

    Args:
        scheduler: Schedule over the planned steps.
        pace: How many steps there are.
        steps: Planned number of steps.
    """

    def stretched(rate_at: Callable[[Any], float]) -> Callable[[int], float]:
        return lambda step: rate_at(steps * pace.share_done(step))

    scheduler.lr_lambdas = [stretched(rate_at) for rate_at in scheduler.lr_lambdas]


class _Pacing(TrainerCallback):
    """Sets the number of steps by a pace.

    Args:
        pace: How many steps fit into the stage's time.
        progress: Listener that a new number of steps is reported to.
    """

    def __init__(self, pace: Pace, progress: Progress) -> None:
        self._pace = pace
        self._progress = progress

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._pace.begin(state.global_step)
        self._set(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._pace.look(state.global_step)
        self._set(state)

    def _set(self, state: TrainerState) -> None:
        steps = self._pace.steps_at(state.global_step)
        if steps != state.max_steps:
            state.max_steps = steps
            self._progress.resize(steps)


@dataclass
class _Stopwatch:
    """Measures the speed since the last log line.

    Attributes:
        started: Time at the last log line, in seconds.
        tokens: Number of tokens read up to the last log line.
        step: Step of the last log line.
    """

    started: float = 0.0
    tokens: int = 0
    step: int = 0

    def restart(self, tokens: int, step: int) -> None:
        """Begin a new measurement."""
        self.started = time.perf_counter()
        self.tokens = tokens
        self.step = step

    def leave_out(self, seconds: float) -> None:
        """Leave some seconds that were no training out of the measurement."""
        self.started += seconds

    def rates(self, tokens: int, step: int, *, batch_size: int) -> dict[str, float]:
        """Tokens and texts per second since the measurement began.

        Args:
            tokens: Number of tokens read up to now.
            step: The current step.
            batch_size: Number of texts in a step.
        """
        seconds = max(time.perf_counter() - self.started, 1e-9)
        texts = (step - self.step) * batch_size
        return {"tokens/s": (tokens - self.tokens) / seconds, "texts/s": texts / seconds}


class _Reporting(TrainerCallback):
    """Progress for people, metrics for machines, and evaluation when it is due."""

    def __init__(
        self,
        task: Task,
        trainer: _StageTrainer,
        recipe: StageRecipe,
        folder: Path,
        progress: Progress,
    ) -> None:
        self._task = task
        self._trainer = trainer
        self._recipe = recipe
        self._folder = folder
        self._progress = progress
        self._stopwatch = _Stopwatch()
        self._shown: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._progress.start(self._task.name, total=state.max_steps)
        if state.global_step == 0:
            self._evaluate(state, control)
        else:
            self._progress.advance(state.global_step)
        self._stopwatch.restart(self._trainer.tokens_seen, state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        every = self._task.evaluate_every
        is_last = state.global_step == state.max_steps
        if every and (state.global_step % every == 0 or is_last):
            self._evaluate(state, control)
        self._progress.advance(1, **self._shown)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Any = None,
        **_: Any,
    ) -> None:
        tokens, step = self._trainer.tokens_seen, state.global_step
        if logs and "loss" in logs and step > self._stopwatch.step:
            rates = self._stopwatch.rates(tokens, step, batch_size=self._recipe.batch_size)
            self._shown["loss"] = logs["loss"]
            self._shown.update(rates)
            rounded = {name: round(rate, 1) for name, rate in rates.items()}
            state.log_history[-1].update(rounded)
            self._stopwatch.restart(tokens, step)
        if state.is_world_process_zero:
            write_json(self._folder / "metrics.json", state.log_history)

    def _evaluate(self, state: TrainerState, control: TrainerControl) -> None:
        if self._task.evaluate is None:
            return
        started = time.perf_counter()
        losses_are_due = control.should_log
        model: Any = self._trainer.model
        metrics = dict(self._task.evaluate(model))
        self._trainer.log({f"eval_{name}": value for name, value in metrics.items()})
        # The library takes this line for the losses' line of the step, which is still to come.
        control.should_log = losses_are_due
        if "accuracy" in metrics:
            self._shown["accuracy"] = metrics["accuracy"]
        self._stopwatch.leave_out(time.perf_counter() - started)


class Keeping(TrainerCallback):
    """Saves merged copies of the model during training, in `kept-STEP` folders.

    Args:
        every: Number of steps from one copy to the next.
        folder: The folder to make the copies' folders in.
    """

    def __init__(self, every: int, folder: Path) -> None:
        self.every = every
        self._folder = folder

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **_: Any,
    ) -> None:
        copy_folder = self._folder / f"{KEPT}{state.global_step:06d}"
        is_due = state.global_step % self.every == 0
        if not is_due or not state.is_world_process_zero or copy_folder.exists():
            return
        plain = unwrapped(model)
        copied = merge(copy.deepcopy(plain), dtype=plain.dtype)
        with disk_space_checked(self._folder), quiet(), atomic_folder(copy_folder) as partial:
            copied.save_pretrained(partial)


def train(
    model: PreTrainedModel | PeftModel,
    task: Task,
    recipe: StageRecipe,
    *,
    folder: Path,
    seed: int,
    progress: Progress,
    callbacks: Sequence[TrainerCallback] = (),
    pace: Pace | None = None,
) -> list[dict[str, Any]]:
    """Train a model in place, resuming from the newest whole checkpoint in `folder`.

    Args:
        model: The model, with its trainable weights marked.
        task: What the stage trains.
        recipe: The stage's knobs.
        folder: Folder of checkpoints and `metrics.json`; the same stage resumes from them when it
            is started again.
        seed: Seed of all random numbers.
        progress: Listener that every step is reported to.
        callbacks: Callbacks of the library's trainer, beside those of every stage.
        pace: How many steps fit into the stage's time; None trains the recipe's steps.

    Returns:
        The log: one mapping for each log line and evaluation, with its step.

    Raises:
        OutOfMemory: A step does not fit into memory.
        RunError: The loss became NaN or infinite, or there is no disk space left.
        UsageError: `accumulation` does not divide `batch_size`, or `report_to` names what is not
            installed.
    """
    if pace is not None:
        pace.keep_in(folder / _PACE)
    trainer = open_trainer(
        model, task, recipe, folder=folder, seed=seed, progress=progress, pace=pace
    )
    for callback in callbacks:
        trainer.add_callback(callback)
    checkpoint = _to_resume_from(trainer, folder)
    advice = "raise accumulation, lower batch_size or max_length, or set gradient_checkpointing"
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    when = (
        f"in {task.name}, with {recipe.batch_size // recipe.accumulation} texts of up to "
        f"{recipe.max_length} tokens at once and weights in {dtype}"
    )
    with disk_space_checked(folder), memory_checked(when, advice=advice):
        trainer.train(resume_from_checkpoint=checkpoint)
    progress.finish()
    log: list[dict[str, Any]] = trainer.state.log_history
    return log


def open_trainer(
    model: PreTrainedModel | PeftModel,
    task: Task,
    recipe: StageRecipe,
    *,
    folder: Path,
    seed: int,
    progress: Progress,
    pace: Pace | None = None,
) -> _StageTrainer:
    """The library's trainer, set up for a stage; arguments as of `train`.

    Raises:
        UsageError: `accumulation` does not divide `batch_size`, or `report_to` names what is not
            installed.
    """
    if recipe.batch_size % recipe.accumulation:
        raise UsageError(
            f"batch_size {recipe.batch_size} is not a multiple of accumulation "
            f"{recipe.accumulation}; "
            "change one of them"
        )
    recipe = _with_checkpointing_if_possible(recipe, model, progress)
    arguments = _arguments(recipe, folder, seed=seed, device=next(model.parameters()).device)
    per_step = recipe.batch_size * arguments.world_size
    horizon = recipe.steps
    if recipe.schedule_epochs is not None:
        horizon = int(recipe.schedule_epochs * task.samples / per_step)
    _check_report_to(recipe)
    most_steps = recipe.steps * (1 if pace is None else _MOST_TIMES_PLANNED)
    trainer = _StageTrainer(
        task=task,
        horizon=horizon,
        pace=pace,
        model=model,
        args=arguments,
        train_dataset=_SampleNumbers(most_steps * per_step),
        data_collator=task.collate,
    )
    _remove_callbacks(trainer, ("PrinterCallback", "ProgressCallback"))
    if recipe.keep_every:
        trainer.add_callback(Keeping(recipe.keep_every, folder))
    trainer.add_callback(_Reporting(task, trainer, recipe, folder, progress))
    if pace is not None:
        trainer.add_callback(_Pacing(pace, progress))
    return trainer


def _with_checkpointing_if_possible(
    recipe: StageRecipe, model: PreTrainedModel | PeftModel, progress: Progress
) -> StageRecipe:
    """The recipe, without gradient checkpointing if the model has none."""
    if not recipe.gradient_checkpointing or model.supports_gradient_checkpointing:
        return recipe
    progress.note(
        f"{model.config.model_type} has no gradient checkpointing, so the states of every "
        "layer are kept"
    )
    return recipe.model_copy(update={"gradient_checkpointing": False})


def _check_report_to(recipe: StageRecipe) -> None:
    """Check that the packages of `report_to` are installed, by opening their callbacks."""
    try:
        for callback in get_reporting_integration_callbacks(list(recipe.report_to)):
            callback()
    except (RuntimeError, ValueError, ImportError) as error:
        names = ", ".join(recipe.report_to)
        raise UsageError(
            f"report_to {names}: {first_line(error)}; install the package, or leave the name out"
        ) from error


def _remove_callbacks(trainer: Trainer, names: Iterable[str]) -> None:
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ in names:
            trainer.remove_callback(callback)


def _arguments(
    recipe: StageRecipe, folder: Path, *, seed: int, device: torch.device
) -> TrainingArguments:
    """The library's arguments for a stage's knobs."""
    computes_in = precision(recipe, device)
    schedule = "constant_with_warmup" if recipe.schedule == "constant" else recipe.schedule
    checkpointing_options = {"use_reentrant": False} if recipe.gradient_checkpointing else None
    return _OneDevice(
        output_dir=str(folder),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch_size // recipe.accumulation,
        gradient_accumulation_steps=recipe.accumulation,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=schedule,
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        bf16=computes_in is torch.bfloat16,
        fp16=computes_in is torch.float16,
        gradient_checkpointing=recipe.gradient_checkpointing,
        gradient_checkpointing_kwargs=checkpointing_options,
        logging_steps=recipe.log_every,
        save_steps=recipe.save_every,
        save_total_limit=2,
        report_to=list(recipe.report_to) or "none",
        use_cpu=device.type == "cpu",
        seed=seed,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        log_level="error",
    )


def _to_resume_from(trainer: _StageTrainer, folder: Path) -> str | None:
    """Find the newest whole checkpoint, if there is one, and give its losses to the trainer.

    One of the processes removes the checkpoints that a killed run left unfinished.
    """
    checkpoint = _newest_checkpoint(folder)
    if trainer.accelerator.is_main_process:
        _remove_unfinished(folder)
    trainer.accelerator.wait_for_everyone()
    if checkpoint is None:
        return None
    trainer.losses = Losses(**read_json(checkpoint / _LOSSES))
    return str(checkpoint)


def _newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end, if there is one."""
    whole = [path for path in folder.glob("checkpoint-*") if (path / _COMPLETE).exists()]
    return max(whole, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


def _remove_unfinished(folder: Path) -> None:
    """Remove the checkpoints that were not written to their end. Only one process may do this."""
    for path in folder.glob("checkpoint-*"):
        if not (path / _COMPLETE).exists():
            shutil.rmtree(path)
