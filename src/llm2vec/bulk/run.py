"""A bulk run: rows in, shards out, in constant memory; killed at any moment, the same call goes on.

Reads and tokenises ahead of the model and writes behind it. What becomes of a window is a task's
business.
"""

import time
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from filelock import FileLock

from llm2vec.bulk.manifest import Manifest, agree, model_fingerprint, refuse_strangers
from llm2vec.bulk.memory import TokenBudget
from llm2vec.bulk.rows import IdType, Input, Window, id_type_of, read_windows
from llm2vec.bulk.shards import (
    Facts,
    Made,
    ShardWriter,
    all_facts,
    join_rejected,
)
from llm2vec.bulk.threads import Behind, ahead
from llm2vec.bulk.vectors import VectorOptions, VectorTask
from llm2vec.errors import CorpusError, RunError, UsageError
from llm2vec.runtime.files import resolved_folder
from llm2vec.runtime.hardware import versions
from llm2vec.runtime.lock import locked
from llm2vec.runtime.progress import Progress, Silent

if TYPE_CHECKING:
    from llm2vec.bulk.workers import Workers
    from llm2vec.encoder.encoder import Encoder

SHARD_ROWS = 16_384
"""Rows of the input in a shard: what is lost at most when a run is killed."""

_JOBS = ".jobs"
_BUDGET_FILE = "tokens.json"
_WINDOWS_AHEAD = 1
_WINDOWS_BEHIND = 1


@dataclass(frozen=True)
class Part:
    """A part of a run, for a cluster's array jobs: each part makes every n-th shard.

    Attributes:
        number: Its number, from 1.
        of: Number of parts.
    """

    number: int = 1
    of: int = 1

    @property
    def name(self) -> str:
        """The name of the part in the names of its files."""
        return f"{self.number}-of-{self.of}"

    def has(self, shard: int) -> bool:
        """Whether a shard is this part's."""
        return shard % self.of == self.number - 1

    def others_than(self, done: Collection[int]) -> Callable[[int], bool]:
        """Whether a shard is this part's, and not done."""
        return lambda shard: self.has(shard) and shard not in done


WHOLE = Part()


@dataclass(frozen=True)
class Summary:
    """What a run did, and what its folder holds.

    Attributes:
        out: The folder.
        rows: Rows of the input that finished shards are made from.
        vectors: Rows of the finished shards.
        rejected: Rows that could not be encoded.
        empty: Rows without a token, whose vector is zero.
        tokens: Tokens that went through the model.
        shards: Number of finished shards.
        finished: Whether all shards are finished, those of other parts included.
        seconds: How long this run took.
        resumed: Number of shards that were finished before.
    """

    out: str
    rows: int
    vectors: int
    rejected: int
    empty: int
    tokens: int
    shards: int
    finished: bool
    seconds: float
    resumed: int


class Task(Protocol):
    """What becomes of a window.

    Attributes:
        budget: Tokens of a batch.
    """

    budget: TokenBudget

    @property
    def made(self) -> str:
        """What a row of a shard is: `vectors`, `words` or `tokens`."""

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that the rows depend on beside model and text."""

    @property
    def window_characters(self) -> int:
        """Characters after which a window ends."""

    def prepare(self, window: Window) -> Any:
        """What can be done before the model is free; called in another thread."""

    def finish(self, prepared: Any, *, id_type: IdType | None) -> Made:
        """What the model makes of it."""


def run(
    task: Task,
    encoder: "Encoder",
    given: Input,
    out: Path,
    *,
    name: str = "",
    shard_rows: int = SHARD_ROWS,
    part: Part = WHOLE,
    progress: Progress | None = None,
    workers: "Workers | None" = None,
) -> Summary:
    """Make the shards of an input that are not there yet.

    Args:
        task: What becomes of each window.
        encoder: The encoder that the task uses.
        given: The input.
        out: The folder to make or to go on with.
        name: The encoder's name, for the manifest.
        shard_rows: Rows of the input in a shard.
        part: Which shards; all of them where there is one part.
        progress: Hears rows, tokens a second and rejected rows.
        workers: Processes on other devices, which do the same task there; None: this process does
            it.

    Raises:
        RunError: The folder's shards were made from another model, input or other settings; another
            process is at work on the same part; or no space is left.
        CorpusError: The input cannot be read, or holds no row. Shards that are finished stay.
    """
    started = time.monotonic()
    folder = resolved_folder(out, option="--out")
    _check(shard_rows, part)
    refuse_strangers(folder)
    folder.mkdir(parents=True, exist_ok=True)
    id_type, rows = id_type_of(given.rows(), given)
    manifest = _manifest(task, encoder, given, name=name, shard_rows=shard_rows)
    with _held(folder, part):
        _begin(task, manifest, folder, part)
        done = all_facts(folder)
        windows = read_windows(
            rows,
            given,
            shard_rows=shard_rows,
            id_type=id_type,
            wanted=part.others_than(done),
            window_characters=task.window_characters,
        )
        writer = ShardWriter(folder, shard_rows=shard_rows, job=part.name)
        heard = _Heard(progress or Silent(), total=given.count())
        shards = _write_all(_made(task, windows, id_type, workers), writer, done, heard)
        if not shards:
            raise CorpusError(f"{given.name} holds no row")
        return _finish(folder, manifest, shards, len(done), time.monotonic() - started)


def _begin(task: Task, manifest: Manifest, folder: Path, part: Part) -> None:
    """Write or compare what the folder is made from, and take what an earlier run has found."""
    with FileLock(folder / _JOBS / "manifest.lock"):
        agree(manifest, folder)
    task.budget.keep_in(folder / _JOBS / part.name / _BUDGET_FILE)


def encode_to_folder(
    encoder: "Encoder",
    source: str,
    out: str | Path,
    *,
    column: str | None = None,
    id_column: str | None = None,
    prompt_column: str | None = None,
    shard_rows: int = SHARD_ROWS,
    progress: Progress | None = None,
    **options: Any,
) -> Summary:
    """Encode a file of any size into a folder of Parquet shards.

    The same call goes on where it was killed.

    Args:
        encoder: The encoder.
        source: A path, folder, glob, address or `hub:NAME`.
        out: The folder.
        column: The column of texts; None: `text`, or the only one that holds texts.
        id_column: The column of ids; None: rows are known by their numbers alone.
        prompt_column: The column of each text's prompt; None: all texts have the same.
        shard_rows: Rows of the input in a shard.
        progress: Hears rows, tokens a second and rejected rows.
        **options: Attributes of `VectorOptions`, such as `normalize`, `dimensions` or `store`.

    Raises:
        RunError: The folder was begun with another model, input or other settings; or no space is
            left.
        CorpusError: The input cannot be read, or holds no row.

    Example:
        >>> encode_to_folder(encoder, "big.parquet", "vectors", id_column="id")  # doctest: +SKIP
    """
    task = VectorTask(encoder, VectorOptions(**options), on_note=(progress or Silent()).note)
    given = Input(source, column, id_column, prompt_column)
    name = str(getattr(encoder.model.config, "_name_or_path", ""))
    return run(task, encoder, given, Path(out), name=name, shard_rows=shard_rows, progress=progress)


def _check(shard_rows: int, part: Part) -> None:
    if shard_rows < 1:
        raise UsageError(f"--shard-rows {shard_rows}: a shard has one row at least")
    if not 1 <= part.number <= part.of:
        raise UsageError(f"--shard {part.number}/{part.of}: write 1/4 to 4/4 for four parts")


@contextmanager
def _held(folder: Path, part: Part) -> Iterator[None]:
    """Hold a part of the run for this process alone."""
    job_folder = folder / _JOBS / part.name
    job_folder.mkdir(parents=True, exist_ok=True)
    with locked(job_folder):
        yield


def _manifest(
    task: Task, encoder: "Encoder", given: Input, *, name: str, shard_rows: int
) -> Manifest:
    columns = {
        "column": given.column,
        "id_column": given.id_column,
        "prompt_column": given.prompt_column,
        "format": given.as_format,
        "delimiter": given.delimiter,
    }
    return Manifest(
        made=task.made,
        model={"name": name, "fingerprint": model_fingerprint(encoder)},
        settings={**task.settings, "shard_rows": shard_rows},
        input={"name": given.name, **columns, "fingerprint": given.fingerprint()},
        versions=versions(),
    )


def _made(
    task: Task, windows: Iterator[Window], id_type: IdType | None, workers: "Workers | None"
) -> Generator[Made]:
    """What becomes of all windows, in order."""
    if workers is not None:
        yield from workers.made(windows, id_type)
        return
    with closing(ahead(map(task.prepare, windows), most=_WINDOWS_AHEAD)) as prepared:
        for each in prepared:
            yield task.finish(each, id_type=id_type)


def _write_all(
    made: Generator[Made], writer: ShardWriter, done: dict[int, Facts], heard: "_Heard"
) -> int:
    """Write everything; the number of the input's shards."""
    shards = 0
    writer.remove_unfinished()
    try:
        with closing(made), Behind(most=_WINDOWS_BEHIND) as behind:
            for each in made:
                if each.window.left_out:
                    _check_digest(each.window, done)
                else:
                    behind.do(writer.add, each)
                heard.window(each)
                shards = each.window.shard + 1
    finally:
        writer.close()
    heard.finish()
    return shards


def _check_digest(window: Window, done: dict[int, Facts]) -> None:
    """Refuse an input that is not what a finished shard was made from.

    Streams have no other fingerprint.
    """
    facts = done.get(window.shard)
    if facts is not None and facts.digest != window.digest:
        raise RunError(
            f"the input has changed: its rows {facts.first_row:,} to "
            f"{facts.first_row + facts.read - 1:,} are not those of the finished shard. Choose "
            "another --out, or give the same input again"
        )


def _finish(folder: Path, manifest: Manifest, shards: int, resumed: int, seconds: float) -> Summary:
    """Join what was rejected, and write down that all is finished where it is."""
    facts = list(all_facts(folder).values())
    finished = len(facts) == shards
    join_rejected(folder)
    summary = Summary(
        out=str(folder),
        rows=sum(each.read for each in facts),
        vectors=sum(each.rows for each in facts),
        rejected=sum(each.rejected for each in facts),
        empty=sum(each.empty for each in facts),
        tokens=sum(each.tokens for each in facts),
        shards=len(facts),
        finished=finished,
        seconds=round(seconds, 3),
        resumed=resumed,
    )
    if finished:
        numbers = {
            k: v for k, v in asdict(summary).items() if k not in ("out", "seconds", "resumed")
        }
        replace(manifest, finished=numbers).write(folder)
    return summary


class _Heard:
    """Reports how far a run is."""

    def __init__(self, progress: Progress, *, total: int | None) -> None:
        self._progress, self._started = progress, time.monotonic()
        self._read = self._tokens = self._rejected = 0
        progress.start("encode", total=total)

    def window(self, made: Made) -> None:
        """Report a window that is done."""
        window = made.window
        self._tokens += made.tokens
        self._rejected += len(window.rejected)
        count = window.read - self._read
        self._read = 0 if window.last else window.read
        self._progress.advance(count, **self._numbers())

    def finish(self) -> None:
        """Report that all is done."""
        self._progress.finish(**self._numbers())

    def _numbers(self) -> dict[str, float]:
        seconds = max(time.monotonic() - self._started, 1e-6)
        return {"tokens/s": self._tokens / seconds, "rejected": self._rejected}
