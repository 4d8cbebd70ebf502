"""Training stops when the score no longer rises, and the best weights are kept."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llm2vec.errors import RunError
from llm2vec.runtime.files import atomic_file, disk_space_checked, read_json, write_json
from llm2vec.training.trainer import unwrapped

_WEIGHTS, _FACTS = "best.safetensors", "best.json"
BEST_FILES = (_WEIGHTS, _FACTS)
"""The files that keep the best evaluation in a run's folder."""


@dataclass
class Best:
    """The best evaluation so far.

    Attributes:
        score: Its score.
        step: Its step; -1 before the first evaluation.
        worse_since: Number of evaluations since then.
        judged: The last step that was judged, which a resumed run does not judge again.
    """

    score: float = float("-inf")
    step: int = -1
    worse_since: int = 0
    judged: int = -1


class EarlyStopping(TrainerCallback):
    """Keep the weights of the best evaluation, and stop the training after `patience` worse ones.

    Args:
        folder: The folder for the weights; a killed run finds them again.
        patience: Number of evaluations without a better score after which training stops; 0 never
            stops it.
    """

    def __init__(self, folder: Path, *, patience: int) -> None:
        self._folder, self._patience = folder, patience
        self.best = Best()
        if (folder / _FACTS).is_file():
            self.best = Best(**read_json(folder / _FACTS))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Any = None,
        model: Any = None,
        **_: Any,
    ) -> None:
        """Judge an evaluation."""
        if not logs or "eval_score" not in logs:
            return
        if state.global_step > self.best.judged:
            self._judge(float(logs["eval_score"]), state, model)
        # A resumed run may come to the evaluation that stopped it once more.
        is_last = state.global_step == self.best.judged
        if self._patience and is_last and self.best.worse_since >= self._patience:
            control.should_training_stop = True

    def _judge(self, score: float, state: TrainerState, model: nn.Module) -> None:
        better = score > self.best.score
        if better:
            self.best = Best(score, state.global_step)
        else:
            self.best.worse_since += 1
        self.best.judged = state.global_step
        if not state.is_world_process_zero:
            return
        with disk_space_checked(self._folder):
            if better:
                with atomic_file(self._folder / _WEIGHTS) as partial:
                    save_file(trained_weights(model), partial)
            write_json(self._folder / _FACTS, asdict(self.best))

    def restore(self, model: nn.Module) -> None:
        """Give a model the weights of the best evaluation.

        Raises:
            RunError: There was no evaluation.
        """
        if self.best.step < 0:
            raise RunError(f"{self._folder} holds no evaluation; remove it and start over")
        model.load_state_dict(load_file(self._folder / _WEIGHTS), strict=False)


def trained_weights(model: nn.Module) -> dict[str, Any]:
    """The weights that are trained, by name."""
    plain = unwrapped(model)
    return {
        name: weight.detach().contiguous()
        for name, weight in plain.named_parameters()
        if weight.requires_grad
    }
