"""How the command line looks: progress with the time left, notes, tables and JSON.

Notes and progress go to standard error, and only results to standard output.
"""

import io
import json
import shlex
import sys
import time
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from llm2vec.errors import UsageError

_LINE_EVERY_S = 15.0
"""Seconds between two lines of progress where there is no terminal."""

_FILE_WIDTH = 1000
"""Width of a table in a file or pipe, in characters: nothing needs to be cut."""

_UNFOLDED = 32
"""Cells up to so many characters stay on one line; the names in the first column may fold."""

people = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
results = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


class ProgressDisplay:
    """Draws the progress of tasks: a bar on a terminal, and elsewhere a line now and then."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._bar_task: Any = None
        self._task, self._total, self._done = "", 0, 0
        self._numbers: dict[str, float] = {}
        self._started_s = self._last_line_s = 0.0

    def start(self, task: str, *, total: int | None) -> None:
        self.close()
        self._task, self._total, self._done = task, total or 0, 0
        self._numbers = {}
        self._started_s = self._last_line_s = time.monotonic()
        if people.is_terminal:
            self._bar = _new_bar()
            self._bar_task = self._bar.add_task(task, total=total, numbers="")
            self._bar.start()

    def advance(self, count: int, /, **numbers: float) -> None:
        self._done += count
        self._numbers.update(numbers)
        if self._bar is not None:
            self._bar.update(self._bar_task, advance=count, numbers=_shown(self._numbers))
        elif time.monotonic() - self._last_line_s > _LINE_EVERY_S:
            self._last_line_s = time.monotonic()
            people.print(f"{self._task}: {self._position()}  {_shown(self._numbers)}")

    def resize(self, total: int) -> None:
        self._total = total
        if self._bar is not None:
            self._bar.update(self._bar_task, total=total)

    def finish(self, **numbers: float) -> None:
        self._numbers.update(numbers)
        self.close()
        elapsed_s = time.monotonic() - self._started_s
        line = f"{self._task}: {self._done:,} in {elapsed_s:.0f} s  {_shown(self._numbers)}"
        people.print(line.rstrip())

    def note(self, message: str) -> None:
        people.print(message)

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _position(self) -> str:
        """How many items are done, of how many, and the time that the others need."""
        if not self._total or not self._done:
            return f"{self._done:,}"
        elapsed_s = time.monotonic() - self._started_s
        left_s = elapsed_s * (self._total - self._done) / self._done
        return f"{self._done:,} of {self._total:,}, {left_s:.0f} s left"


def _new_bar() -> Progress:
    return Progress(
        TextColumn("{task.description:<14}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}"),
        console=people,
        transient=True,
    )


def _shown(numbers: dict[str, float]) -> str:
    """Numbers with their names; large ones without decimals."""
    parts = []
    for name, value in numbers.items():
        decimals = 0 if value >= 100 else 3
        parts.append(f"{name} {value:,.{decimals}f}")
    return "  ".join(parts)


def answer(value: Any) -> None:
    """Print one JSON document on standard output."""
    sys.stdout.write(_as_json(value, sys.stdout, indent=2) + "\n")


def one_line(value: Any, file: IO[str]) -> str:
    """A value as JSON on one line, in characters that the file can write."""
    return _as_json(value, file, indent=None)


def _as_json(value: Any, file: IO[str], *, indent: int | None) -> str:
    """JSON that escapes the characters which the file's encoding lacks."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    try:
        text.encode(getattr(file, "encoding", None) or "utf8")
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text


def pasted(path: Path) -> str:
    """A path as a shell reads it, for lines that people paste."""
    return shlex.quote(str(path))


def as_python(path: Path) -> str:
    """A path as a string of Python, in double quotes."""
    return json.dumps(str(path), ensure_ascii=False)


def escape_unknown_characters() -> None:
    """Let standard output escape characters that the terminal lacks, as standard error does."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def print_ready(folder: Path, *, console: Console) -> None:
    """Say that an encoder folder is finished, with lines to paste that use it."""
    console.print(
        f"{folder} is ready: SentenceTransformer({as_python(folder)}), or llm2vec encode "
        f'{pasted(folder)} "some text"'
    )


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a small table on standard output: names in the first column, numbers in the others."""
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    first, *others = columns
    drawn.add_column(first, justify="left", overflow="fold")
    for index, column in enumerate(others, start=1):
        cells = [row[index] for row in rows if index < len(row)]
        short = all(len(cell) <= _UNFOLDED for cell in cells)
        drawn.add_column(column, justify="right", overflow="fold", no_wrap=short)
    for row in rows:
        drawn.add_row(*row)
    wide = Console(highlight=False, width=_FILE_WIDTH, markup=False, emoji=False)
    console = results if results.is_terminal else wide
    if title:
        console.print(title)
    console.print(drawn, no_wrap=False)


def one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse a value that an option does not have.

    Raises:
        UsageError: The value is not among the known ones.
    """
    if value not in known:
        raise UsageError(f"{option} {value}: there is {', '.join(known)}")
