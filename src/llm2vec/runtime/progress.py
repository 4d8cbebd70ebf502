"""What long work says while it runs: a task, how far it is, and its numbers.

Library code reports to a `Progress`; the command line draws it. The default says nothing.
"""

from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """Somebody who listens to long work."""

    def start(self, task: str, *, total: int | None) -> None:
        """A task of `total` steps begins (None: unknown). Tasks follow one another; they do not nest."""

    def advance(self, done: int, **numbers: float) -> None:
        """`done` steps of the task are finished; `numbers` are worth showing (loss, tokens a second)."""

    def finish(self, **numbers: float) -> None:
        """The task is done."""

    def note(self, message: str) -> None:
        """One line that a person should read."""


class Silent:
    """Listens and says nothing."""

    def start(self, task: str, *, total: int | None) -> None: ...
    def advance(self, done: int, **numbers: float) -> None: ...
    def finish(self, **numbers: float) -> None: ...
    def note(self, message: str) -> None: ...


class Recorder(Silent):
    """Keeps what was said, for tests and for summaries."""

    def __init__(self) -> None:
        self.tasks: list[str] = []
        self.notes: list[str] = []
        self.numbers: list[Mapping[str, float]] = []

    def start(self, task: str, *, total: int | None) -> None:
        self.tasks.append(task)

    def advance(self, done: int, **numbers: float) -> None:
        self.numbers.append(numbers)

    def note(self, message: str) -> None:
        self.notes.append(message)
