"""What was measured of one task, read from the facts of a report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llm2vec.report.section import Facts, hundredths, interval, signed_hundredths

UNI = "Uni"
"""Name of the causal decoder."""

UNTRAINED = ("prompt, no example", "prompt, one example", "echo")
"""Names of untrained ways to read the causal decoder, which a conversion should beat."""


@dataclass(frozen=True)
class ModelScore:
    """The score of a model.

    Attributes:
        model: Name of the model.
        value: Value of the task's metric.
        low: Lower end of its interval.
        high: Upper end of its interval.
        baseline: Whether the model is no part of the run, but is compared with it.
        reading: Reading of its words; empty for sentences.
    """

    model: str
    value: float
    low: float
    high: float
    baseline: bool
    reading: str = ""

    @property
    def interval(self) -> str:
        """The interval times 100."""
        return interval(self.low, self.high)


@dataclass(frozen=True)
class Change:
    """The paired difference of two models of a run.

    Attributes:
        before: Name of the model that is compared with.
        after: Name of the model that is compared.
        value: Value of the latter minus that of the former.
        low: Lower end of the difference's interval.
        high: Upper end of the difference's interval.
        clear: Whether the interval leaves out 0.
    """

    before: str
    after: str
    value: float
    low: float
    high: float
    clear: bool

    @property
    def kind(self) -> str:
        """A gain or a loss if the change is clear."""
        if not self.clear:
            return "change"
        return "gain" if self.value > 0 else "loss"

    @property
    def verdict(self) -> str:
        """The change in words: a clear gain, a clear loss, or no clear change."""
        return f"{'a' if self.clear else 'no'} clear {self.kind}"

    @property
    def signed(self) -> str:
        """The value times 100, with its sign."""
        return signed_hundredths(self.value)

    @property
    def interval(self) -> str:
        """The interval times 100."""
        return interval(self.low, self.high)


@dataclass(frozen=True)
class TaskFacts:
    """What was measured of one task.

    Attributes:
        task: Name of the task.
        metric: Name of its metric.
        data: Description of its data.
        scores: Scores of all models.
        changes: Changes between models of the run.
        floors: Values that need no model, by name.
    """

    task: str
    metric: str
    data: str
    scores: Sequence[ModelScore]
    changes: Sequence[Change]
    floors: Mapping[str, float] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The task with its metric, as a figure's title."""
        return f"{self.task}, {self.metric} x 100"

    @property
    def of_run(self) -> list[ModelScore]:
        """The scores of the causal decoder and of the stages, in order."""
        return [score for score in self.scores if not score.baseline]

    @property
    def baselines(self) -> list[ModelScore]:
        """The scores of what the run is compared with."""
        return [score for score in self.scores if score.baseline]

    @property
    def stages(self) -> list[str]:
        """The names of the stages that were measured, in order."""
        return [score.model for score in self.of_run[1:]]

    def score_of(self, model: str) -> ModelScore:
        """The score of a model by its name."""
        return next(score for score in self.scores if score.model == model)

    def change(self, before: str, after: str) -> Change | None:
        """The change between two models; None if it was not measured."""
        for each in self.changes:
            if (each.before, each.after) == (before, after):
                return each
        return None

    def sentence(self, change: Change) -> str:
        """A change in a sentence, with the two values."""
        before, after = self.score_of(change.before), self.score_of(change.after)
        apart = after.low > before.high or after.high < before.low
        overlap = "do not overlap" if apart else "overlap"
        return (
            f"{self.task.capitalize()} ({self.metric}), {change.before} to {change.after}: "
            f"{hundredths(before.value)} to {hundredths(after.value)} ({change.signed}, 95% of the "
            f"paired difference {change.interval}): {change.verdict}; their intervals {overlap}."
        )


def read_tasks(entries: Sequence[Facts]) -> list[TaskFacts]:
    """The tasks of a report."""
    return [_read_task(entry) for entry in entries]


def _read_task(entry: Facts) -> TaskFacts:
    scores = [
        ModelScore(
            row["model"],
            row["value"],
            row["low"],
            row["high"],
            row["baseline"],
            row.get("reading", ""),
        )
        for row in entry["rows"]
    ]
    return TaskFacts(
        entry["task"],
        entry["metric"],
        entry["data"],
        scores,
        changes=[Change(**change) for change in entry["changes"]],
        floors=entry.get("floors", {}),
    )
