"""Several devices at once: a process for each, spawned once, that encodes one window after another.

Windows come back in their order. A process that dies is started again, and its window is encoded
once more; one that kills its process again is an error that names its rows. Processes end with the
one that started them.
"""

import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from llm2vec.backbone.source import Source
from llm2vec.bulk.rows import IdType, Window
from llm2vec.bulk.shards import Made
from llm2vec.bulk.threads import ahead
from llm2vec.bulk.vectors import VectorOptions, VectorTask
from llm2vec.errors import LLM2VecError, RunError, UsageError, first_line

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

_DEATHS = 2
"""A window that has ended so many processes is not tried again."""

_WINDOWS_EACH = 2
"""Windows for each process that may be finished and wait for one before them."""


@dataclass(frozen=True)
class Opening:
    """How each process opens its encoder.

    Attributes:
        model: The encoder, by whatever opens it.
        options: What a vector is.
        dtype: Data type of the weights, the same on all devices.
    """

    model: str | Source
    options: VectorOptions
    dtype: str

    def task(self, device: str, *, threads: int, on_note: Callable[[str], object]) -> VectorTask:
        """The task on a device.

        Args:
            device: The device.
            threads: Threads that a CPU computes with.
            on_note: Hears what a person should know.
        """
        import torch

        from llm2vec.encoder.encoder import Encoder

        if device == "cpu":
            torch.set_num_threads(threads)
        encoder = Encoder.from_pretrained(self.model, device=device, dtype=self.dtype)
        return VectorTask(encoder, self.options, on_note=on_note)


def devices_named(names: str) -> list[str]:
    """Devices by their names, with commas between; `all` is every GPU.

    Raises:
        UsageError: There is no GPU, or no such device.
    """
    import torch

    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if names == "all":
        if not gpus:
            raise UsageError(
                "--devices all: there is no GPU here; several processes: --devices cpu,cpu"
            )
        return gpus
    found = [name.strip() for name in names.split(",")]
    for name in found:
        if name not in ("cpu", "cuda", *gpus):
            known = ", ".join(["cpu", *gpus])
            raise UsageError(f"--devices {names}: there is no {name!r} here; there is {known}")
    return found


class Workers:
    """Processes that encode windows.

    Args:
        opening: How each opens its encoder.
        devices: A device for each process; several processes may have the same.
        on_note: Hears what a person should know.

    Attributes:
        restarted: How often a process had died.
    """

    def __init__(
        self,
        opening: Opening,
        devices: Sequence[str],
        *,
        on_note: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.restarted = 0
        self._opening, self._on_note = opening, on_note
        self._given = 0
        self._threads = _threads_each(len(devices))
        self._workers = [self._start(device) for device in devices]

    def made(self, windows: Iterator[Window], id_type: IdType | None) -> Generator[Made]:
        """What becomes of all windows, in their order.

        Args:
            windows: Read in another thread, a few ahead of what is taken.
            id_type: How ids are kept.

        Raises:
            RunError: A window has ended its process twice.
        """
        self._given = 0
        try:
            with closing(ahead(windows, most=_WINDOWS_EACH)) as read:
                yield from self._in_order(enumerate(read), id_type)
        finally:
            self.close()

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers:
            worker.end()

    def _in_order(
        self, windows: Iterator[tuple[int, Window]], id_type: IdType | None
    ) -> Generator[Made]:
        finished: dict[int, Made] = {}
        most_ahead = _WINDOWS_EACH * len(self._workers)
        for next_one in count():
            while next_one not in finished:
                given = self._give(windows, finished, id_type, most=next_one + most_ahead)
                if not given and not self._busy():
                    return
                self._take(finished, id_type)
            yield finished.pop(next_one)

    def _give(
        self,
        windows: Iterator[tuple[int, Window]],
        finished: dict[int, Made],
        id_type: IdType | None,
        *,
        most: int,
    ) -> bool:
        """Give windows to processes that have none; whether there was one."""
        any_given = False
        for worker in self._workers:
            while worker.window is None and self._given < most:
                number, window = next(windows, (-1, None))
                if window is None:
                    return any_given
                any_given = True
                self._given = number + 1
                if window.left_out:
                    finished[number] = Made(window)
                else:
                    worker.give(number, window, id_type)
        return any_given

    def _busy(self) -> list["_Worker"]:
        return [worker for worker in self._workers if worker.window is not None]

    def _take(self, finished: dict[int, Made], id_type: IdType | None) -> None:
        """Take what processes have to say, waiting for the first of them."""
        busy = {worker.pipe: worker for worker in self._busy()}
        for pipe in wait(list(busy)) if busy else []:
            worker = busy[pipe]  # type: ignore[index]
            try:
                kind, value = worker.pipe.recv()
            except (EOFError, OSError):
                self._again(worker, id_type)
                continue
            if kind == "note":
                self._on_note(value)
            elif kind == "error":
                raise value
            else:
                finished[worker.number] = value
                worker.window = None

    def _again(self, worker: "_Worker", id_type: IdType | None) -> None:
        """Start a process again in the place of one that died, and give it the same window."""
        window, deaths = worker.window, worker.deaths + 1
        worker.end()
        if window is not None and deaths == _DEATHS:
            raise RunError(
                f"the process on {worker.device} ended {deaths} times at the {len(window.rows):,} "
                f"rows from row {window.rows[0].number:,} on: see what the system says of it, or "
                "leave these rows out"
            )
        self.restarted += 1
        fresh = self._start(worker.device)
        worker.process, worker.pipe = fresh.process, fresh.pipe
        if window is not None:
            worker.give(worker.number, window, id_type)
            worker.deaths = deaths

    def _start(self, device: str) -> "_Worker":
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_work, args=(theirs, self._opening, device, self._threads), daemon=True
        )
        process.start()
        theirs.close()
        return _Worker(device, process, ours)


@dataclass
class _Worker:
    """A process, and the window that it has.

    Attributes:
        device: Its device.
        process: The process.
        pipe: What is given to it, and what it gives.
        number: The number of its window.
        window: Its window; None: it waits.
        deaths: How often a process died with this window.
    """

    device: str
    process: "SpawnProcess"
    pipe: "Connection[Any, Any]"
    number: int = -1
    window: Window | None = None
    deaths: int = 0

    def give(self, number: int, window: Window, id_type: IdType | None) -> None:
        """Give it a window; that it may have died is seen where its answer is waited for."""
        self.number, self.window, self.deaths = number, window, 0
        try:
            self.pipe.send((window, id_type))
        except OSError:
            self.process.join()

    def end(self) -> None:
        """End it."""
        self.pipe.close()
        self.process.kill()
        self.process.join()


def _threads_each(processes: int) -> int:
    import torch

    return max(torch.get_num_threads() // processes, 1)


def _work(pipe: "Connection[Any, Any]", opening: Opening, device: str, threads: int) -> None:
    """What each process does until nobody gives it anything."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started it decides
    task = None
    while True:
        try:
            window, id_type = pipe.recv()
        except EOFError:
            return
        try:
            if task is None:
                task = opening.task(
                    device, threads=threads, on_note=lambda note: pipe.send(("note", note))
                )
            answer: tuple[str, Any] = ("made", task.finish(task.prepare(window), id_type=id_type))
        except LLM2VecError as error:
            answer = ("error", error)
        except Exception as error:  # noqa: BLE001  # it is raised by the process that is waiting
            answer = ("error", RuntimeError(f"on {device}: {first_line(error)}"))
        pipe.send(answer)
