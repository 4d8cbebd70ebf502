"""What the training stages share: the trainer, resuming, progress, and stopping at NaN.

What a step sees is a pure function of (seed, sample number): batches are drawn by number, not from a shared random
state, so that a resumed run sees exactly what an uninterrupted one would have.
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
from llm2vec.runtime.hardware import memory_checked
from llm2vec.runtime.progress import Progress

Batch = dict[str, Any]
Loss = Callable[[nn.Module, Batch, Tensor | None], Tensor]
"""`(model as wrapped for several processes, batch, items in the whole step) -> loss`."""

_COMPLETE, _LOSSES = "complete", "losses.json"

KEPT = "kept-"
"""What the folders of models kept along the way begin with; the step follows."""


@dataclass(frozen=True)
class Task:
    """One stage's work, as `train` needs it.

    Attributes:
        name: For people: `MNTP`, `SimCSE`.
        samples: Rows of the corpus that can be drawn.
        collate: Sample numbers to a batch; must depend on nothing else.
        loss: The stage's loss.
        counts_items: The loss is a sum divided by the items of the whole step (`labels` of the batches).
        evaluate: Held-out metrics of the model, or None.
        evaluate_every: Steps between evaluations.
        trains_head: Whether the LM head is trained too.
        embedding_rows: Rows of the embeddings when the stage is over; None leaves them as they are.
    """

    name: str
    samples: int
    collate: Callable[[Sequence[int]], Batch]
    loss: Loss
    counts_items: bool
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None
    evaluate_every: int = 0
    trains_head: bool = False
    embedding_rows: int | None = None


def unwrapped(model: nn.Module) -> Any:
    """The model inside what several processes wrap it in."""
    return extract_model_from_parallel(model)


class EpochSampler:
    """Which row sample `k` is: one seeded permutation of all rows after another."""

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


class _Numbers(Dataset[int]):
    """The sample numbers 0, 1, 2 ... as a data set."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> int:
        return number


class _OneDevice(TrainingArguments):
    """The library's arguments for a process that uses one device, however many GPUs it sees.

    The library would copy the model to all of them and give each a part of every batch, on top of
    what the recipe says a process does. Several GPUs are for several processes.
    """

    @property
    def n_gpu(self) -> int:
        """Number of GPUs that this process uses."""
        seen: int = super().n_gpu
        return min(seen, 1)


@dataclass
class Losses:
    """The sums behind the logged losses, which a checkpoint keeps.

    Attributes:
        total: The sum over all steps that were logged.
        since_log: The sum over the steps since the last log line.
        logged_step: The step of the last log line.
    """

    total: float = 0.0
    since_log: float = 0.0
    logged_step: int = 0

    def add(self, loss: float) -> None:
        """Count the loss of a step, or of its part where gradients are accumulated."""
        self.since_log += loss

    def mean_since_log(self, step: int, over_processes: Callable[[float], float]) -> float:
        """The mean loss of the steps since the last log line, which ends here."""
        found = over_processes(self.since_log)
        mean = found / (step - self.logged_step)
        self.total, self.since_log, self.logged_step = self.total + found, 0.0, step
        return mean

    def mean(self, step: int, over_processes: Callable[[float], float]) -> float:
        """The mean loss of all steps."""
        return (self.total + over_processes(self.since_log)) / max(step, 1)

    def to_dict(self, over_processes: Callable[[float], float]) -> dict[str, Any]:
        """For a checkpoint: the same numbers in each process."""
        return {**asdict(self), "since_log": over_processes(self.since_log)}


class _StageTrainer(Trainer):
    """The library's trainer with a stage's loss, numbered samples, whole checkpoints, and a stop at NaN."""

    def __init__(self, *, task: Task, horizon: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._task = task
        self._horizon = horizon
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
                f"{self._task.name}: the loss is {loss.item()} at step {self.state.global_step + 1}; the last good "
                "checkpoint is kept. Lower the learning rate (--set KEY.learning_rate=...) and start over, or use "
                "precision=float32"
            )
        return loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **kwargs)
        self.losses.add(float(loss))
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log with mean losses that a kill in between does not change."""
        if "loss" in logs:
            logs["loss"] = self.losses.mean_since_log(self.state.global_step, self._over_processes)
        if "train_loss" in logs:
            logs["train_loss"] = self.losses.mean(self.state.global_step, self._over_processes)
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
                optimizer=optimizer or self.optimizer,  # type: ignore[arg-type]  # there is one by now
                num_warmup_steps=int(self.args.warmup_steps),
                num_training_steps=max(self._horizon, num_training_steps),
            )
        scheduler: LambdaLR = self.lr_scheduler
        return scheduler

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]  # it is `_Numbers`

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        trained = (weight for weight in model.parameters() if weight.requires_grad)
        if not all(bool(torch.isfinite(weight).all()) for weight in trained):
            raise RunError(
                f"{self._task.name}: weights are not finite at step {self.state.global_step}; lower the learning rate"
            )
        folder = Path(str(self.args.output_dir))
        with disk_space_checked(folder), warnings.catch_warnings(), quiet():
            # peft sees that a mask token's row was added to the embeddings; a resumed run adds the same one
            warnings.filterwarnings("ignore", message="Setting `save_embedding_layers`")
            super()._save_checkpoint(model, trial)
            losses = self.losses.to_dict(self._over_processes)
            self.accelerator.wait_for_everyone()  # each process writes a part
            if self.args.should_save:
                checkpoint = folder / f"checkpoint-{self.state.global_step}"
                write_json(checkpoint / _LOSSES, losses)
                (checkpoint / _COMPLETE).touch()


class _Reporting(TrainerCallback):
    """Progress for people, metrics for machines, evaluation on time."""

    def __init__(
        self,
        task: Task,
        trainer: _StageTrainer,
        recipe: StageRecipe,
        folder: Path,
        progress: Progress,
    ) -> None:
        self._task, self._trainer, self._recipe = task, trainer, recipe
        self._folder, self._progress = folder, progress
        self._since = (time.perf_counter(), 0, 0)
        self._shown: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._progress.start(self._task.name, total=state.max_steps)
        if state.global_step == 0:
            self._evaluate(state, control)
        else:
            self._progress.advance(state.global_step)
        self._since = (time.perf_counter(), self._trainer.tokens_seen, state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        every = self._task.evaluate_every
        if every and (state.global_step % every == 0 or state.global_step == state.max_steps):
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
        now, tokens, step = time.perf_counter(), self._trainer.tokens_seen, state.global_step
        then, tokens_then, step_then = self._since
        if logs and "loss" in logs and step > step_then:
            rate = max(now - then, 1e-9)
            self._shown["loss"] = logs["loss"]
            self._shown["tokens/s"] = (tokens - tokens_then) / rate
            self._shown["texts/s"] = (step - step_then) * self._recipe.batch_size / rate
            state.log_history[-1].update(
                {key: round(self._shown[key], 1) for key in ("tokens/s", "texts/s")}
            )
            self._since = (now, tokens, step)
        if state.is_world_process_zero:
            write_json(self._folder / "metrics.json", state.log_history)

    def _evaluate(self, state: TrainerState, control: TrainerControl) -> None:
        if self._task.evaluate is None:
            return
        started, losses_are_due = time.perf_counter(), control.should_log
        metrics = dict(self._task.evaluate(self._trainer.model))  # type: ignore[arg-type]  # it has one
        self._trainer.log({f"eval_{name}": value for name, value in metrics.items()})
        control.should_log = losses_are_due  # any line that is logged takes the step as logged
        self._shown.update({name: value for name, value in metrics.items() if name == "accuracy"})
        then, tokens, step = self._since
        self._since = (then + time.perf_counter() - started, tokens, step)


class Keeping(TrainerCallback):
    """Copies of the model along the way, merged, in `kept-STEP` folders; the model itself goes on as it was.

    Attributes:
        every: Steps from one copy to the next.
    """

    def __init__(self, every: int, folder: Path) -> None:
        self.every, self._folder = every, folder

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **_: Any,
    ) -> None:
        place = self._folder / f"{KEPT}{state.global_step:06d}"
        if state.global_step % self.every or not state.is_world_process_zero or place.exists():
            return
        plain = unwrapped(model)
        copied = merge(copy.deepcopy(plain), dtype=plain.dtype)
        with disk_space_checked(self._folder), quiet(), atomic_folder(place) as partial:
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
) -> list[dict[str, Any]]:
    """Train in place, resuming from the newest whole checkpoint in `folder`.

    Args:
        model: With its trainable weights marked.
        task: What the stage does.
        recipe: The stage's knobs.
        folder: For checkpoints and `metrics.json`; reused when the same stage is started again.
        seed: Of everything random.
        progress: Told of every step.
        callbacks: Callbacks of the library's trainer, beside those of every stage.

    Returns:
        The log: one mapping for each log line and evaluation, with its step.

    Raises:
        RunError: The loss became NaN or infinite; no space or no memory left.
        UsageError: As `open_trainer` says.
    """
    trainer = open_trainer(model, task, recipe, folder=folder, seed=seed, progress=progress)
    for callback in callbacks:
        trainer.add_callback(callback)
    checkpoint = _to_resume_from(trainer, folder)
    advice = "raise accumulation, lower batch_size or max_length, or set gradient_checkpointing"
    with disk_space_checked(folder), memory_checked(f"in {task.name}", advice=advice):
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
) -> _StageTrainer:
    """The library's trainer, set to do a stage; arguments as of `train`.

    Raises:
        UsageError: `accumulation` does not divide `batch_size`, or `report_to` names what is not installed.
    """
    if recipe.batch_size % recipe.accumulation:
        raise UsageError(
            f"batch_size {recipe.batch_size} is not a multiple of accumulation {recipe.accumulation}"
        )
    if recipe.gradient_checkpointing and not model.supports_gradient_checkpointing:
        progress.note(
            f"{model.config.model_type} has no gradient checkpointing: every layer's states are kept"
        )
        recipe = recipe.model_copy(update={"gradient_checkpointing": False})
    arguments = _arguments(recipe, folder, seed=seed, device=next(model.parameters()).device)
    per_step = recipe.batch_size * arguments.world_size
    epochs = recipe.schedule_epochs
    _check_report_to(recipe)
    trainer = _StageTrainer(
        task=task,
        horizon=recipe.steps if epochs is None else int(epochs * task.samples / per_step),
        model=model,
        args=arguments,
        train_dataset=_Numbers(recipe.steps * per_step),
        data_collator=task.collate,
    )
    _without(trainer, ("PrinterCallback", "ProgressCallback"))
    if recipe.keep_every:
        trainer.add_callback(Keeping(recipe.keep_every, folder))
    trainer.add_callback(_Reporting(task, trainer, recipe, folder, progress))
    return trainer


def _check_report_to(recipe: StageRecipe) -> None:
    """Open what the training is to be reported to, which needs packages of its own."""
    try:
        for callback in get_reporting_integration_callbacks(list(recipe.report_to)):
            callback()
    except (RuntimeError, ValueError, ImportError) as error:
        raise UsageError(f"report_to {', '.join(recipe.report_to)}: {first_line(error)}") from error


def _without(trainer: Trainer, names: Iterable[str]) -> None:
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ in names:
            trainer.remove_callback(callback)


def _arguments(
    recipe: StageRecipe, folder: Path, *, seed: int, device: torch.device
) -> TrainingArguments:
    computes_in = precision(recipe, device)
    return _OneDevice(
        output_dir=str(folder),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch_size // recipe.accumulation,
        gradient_accumulation_steps=recipe.accumulation,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(
            recipe.schedule, recipe.schedule
        ),
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        bf16=computes_in is torch.bfloat16,
        fp16=computes_in is torch.float16,
        gradient_checkpointing=recipe.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False}
        if recipe.gradient_checkpointing
        else None,
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
    """The newest whole checkpoint, whose losses the trainer takes over; one process clears what a kill left."""
    checkpoint = _newest_checkpoint(folder)
    if trainer.accelerator.is_main_process:
        _clear_halves(folder)
    trainer.accelerator.wait_for_everyone()
    if checkpoint is None:
        return None
    trainer.losses = Losses(**read_json(checkpoint / _LOSSES))
    return str(checkpoint)


def _newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end."""
    whole = [path for path in folder.glob("checkpoint-*") if (path / _COMPLETE).exists()]
    return max(whole, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


def _clear_halves(folder: Path) -> None:
    """Remove the checkpoints that a kill left unfinished; one process alone does this."""
    for path in folder.glob("checkpoint-*"):
        if not (path / _COMPLETE).exists():
            shutil.rmtree(path)
