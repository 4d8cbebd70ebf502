"""Progress of long computations: tasks, how many of their items are done, numbers worth showing.

Library code reports to a `Progress`, and the command line draws it. The default is to report to
nobody. Every count in this package means the same: how many items were finished *since the last
report*.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

OnProgress = Callable[[int], object]
"""A function that is called with the number of items that were finished since its last call."""


class Progress(Protocol):
    """A listener to long computations. Tasks follow one another; they do not nest."""

    def start(self, task: str, *, total: int | None) -> None:
        """Begin a task.

        Args:
            task: The task's name.
            total: Number of its items; None if it is unknown.
        """

    def advance(self, count: int, /, **numbers: float) -> None:
        """Report items of the current task.

        Args:
            count: Number of items that were finished since the last report.
            **numbers: Numbers that are worth showing, by name (loss, tokens per second).
        """

    def resize(self, total: int) -> None:
        """Change the number of the current task's items."""

    def finish(self, **numbers: float) -> None:
        """End the current task."""

    def note(self, message: str) -> None:
        """Show a person one line."""


class Silent:
    """A listener that shows nothing."""

    def start(self, task: str, *, total: int | None) -> None: ...
    def advance(self, count: int, /, **numbers: float) -> None: ...
    def resize(self, total: int) -> None: ...
    def finish(self, **numbers: float) -> None: ...
    def note(self, message: str) -> None: ...


class Recorder(Silent):
    """A listener that keeps what was reported, for tests and summaries.

    Attributes:
        tasks: The names of the tasks that began.
        done: Number of finished items of the current task.
        notes: The lines for a person.
        numbers: The numbers of each report.
    """

    def __init__(self) -> None:
        self.tasks: list[str] = []
        self.done = 0
        self.notes: list[str] = []
        self.numbers: list[Mapping[str, float]] = []

    def start(self, task: str, *, total: int | None) -> None:
        self.tasks.append(task)
        self.done = 0

    def advance(self, count: int, /, **numbers: float) -> None:
        self.done += count
        self.numbers.append(numbers)

    def note(self, message: str) -> None:
        self.notes.append(message)


def silent(count: int, /) -> None:
    """Report to nobody: the default of functions that take an `OnProgress`."""
