"""Processes that do the same work on several devices: spawned once, results in the jobs' order.

A process that dies is started again, and its job is done once more; a job that kills its process
again is an error that names it. Processes end with the one that started them. Knows nothing of
models.
"""

import signal
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from llm2vec.errors import LLM2VecError, RunError, first_line

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

Job = TypeVar("Job")
Result = TypeVar("Result")

_DEATHS = 2
"""A job that has ended so many processes is not tried again."""

_JOBS_EACH = 2
"""Jobs for each process that may be finished and wait for one before them."""


class Opening(Protocol):
    """How each process gets ready for its jobs; it travels to the process by pickle."""

    def open(
        self, device: str, *, threads: int, on_note: Callable[[str], object]
    ) -> Callable[[Any], Any]:
        """The work on one job.

        Args:
            device: The process's device.
            threads: Threads that a CPU computes with.
            on_note: Hears what a person should know.
        """


class Processes(Generic[Job, Result]):
    """Processes on devices, each of which is spawned when it first has something to do.

    Args:
        opening: How each gets ready for its jobs.
        devices: A device for each process; several processes may have the same.
        describe: What a job is, in an error about it.
        on_note: Hears what a person should know.

    Attributes:
        restarted: How often a process had died.
    """

    def __init__(
        self,
        opening: Opening,
        devices: Sequence[str],
        *,
        describe: Callable[[Job], str],
        on_note: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.restarted = 0
        self._opening, self._describe, self._on_note = opening, describe, on_note
        self._given = 0
        self._threads = _threads_each(len(devices))
        self._workers = [_Worker(device) for device in devices]
        self._end = weakref.finalize(self, _end_all, self._workers)

    def results(
        self,
        jobs: Iterator[Job],
        *,
        without_work: Callable[[Job], Result | None] = lambda _: None,
    ) -> Generator[Result]:
        """The results of all jobs, in their order.

        Processes that have no job at the end stay for the next call.

        Args:
            jobs: Taken a few ahead of the results.
            without_work: The result of a job that no process is needed for; None for all others.

        Raises:
            RunError: A job has ended its process twice.
        """
        self._given = 0
        finished: dict[int, Result] = {}
        most_ahead = _JOBS_EACH * len(self._workers)
        numbered = enumerate(jobs)
        try:
            for next_one in count():
                while next_one not in finished:
                    most = next_one + most_ahead
                    given = self._give(numbered, finished, without_work, most=most)
                    if not given and not self._busy():
                        return
                    self._take(finished)
                yield finished.pop(next_one)
        finally:
            for worker in self._busy():
                worker.end()

    def close(self) -> None:
        """End all processes."""
        _end_all(self._workers)

    def _give(
        self,
        jobs: Iterator[tuple[int, Job]],
        finished: dict[int, Result],
        without_work: Callable[[Job], Result | None],
        *,
        most: int,
    ) -> bool:
        """Give jobs to processes that have none; whether there was one."""
        any_given = False
        for worker in self._workers:
            while worker.job is None and self._given < most:
                number, job = next(jobs, (-1, None))
                if job is None:
                    return any_given
                any_given = True
                self._given = number + 1
                result = without_work(job)
                if result is not None:
                    finished[number] = result
                else:
                    self._start(worker)
                    worker.give(number, job)
        return any_given

    def _busy(self) -> list["_Worker"]:
        return [worker for worker in self._workers if worker.job is not None]

    def _take(self, finished: dict[int, Result]) -> None:
        """Take what processes have to say, waiting for the first of them."""
        busy = {worker.pipe: worker for worker in self._busy()}
        for pipe in wait([each for each in busy if each is not None]) if busy else []:
            worker = busy[pipe]  # type: ignore[index]
            try:
                kind, value = worker.pipe.recv()  # type: ignore[union-attr]  # it has a job
            except (EOFError, OSError):
                self._again(worker)
                continue
            if kind == "note":
                self._on_note(value)
            elif kind == "error":
                worker.job = None
                raise value
            else:
                finished[worker.number] = value
                worker.job = None

    def _again(self, worker: "_Worker") -> None:
        """Start a process again in the place of one that died, and give it the same job."""
        job, deaths = worker.job, worker.deaths + 1
        worker.end()
        if deaths == _DEATHS:
            raise RunError(
                f"the process on {worker.device} ended {deaths} times at {self._describe(job)}: "
                "see what the system says of it, or leave these rows out. In a script, what "
                'starts processes stands under `if __name__ == "__main__":`'
            )
        self.restarted += 1
        self._start(worker)
        worker.give(worker.number, job)
        worker.deaths = deaths

    def _start(self, worker: "_Worker") -> None:
        """Spawn a worker's process where it has none, or none that lives."""
        if worker.process is not None:
            if worker.process.is_alive():
                return
            worker.end()
            self.restarted += 1
        context = get_context("spawn")
        worker.pipe, theirs = context.Pipe()
        worker.process = context.Process(
            target=_work, args=(theirs, self._opening, worker.device, self._threads), daemon=True
        )
        worker.process.start()
        theirs.close()


@dataclass
class _Worker:
    """A process, and the job that it has.

    Attributes:
        device: Its device.
        process: The process; None: it is not started.
        pipe: What is given to it, and what it gives.
        number: The number of its job.
        job: Its job; None: it waits.
        deaths: How often a process died with this job.
    """

    device: str
    process: "SpawnProcess | None" = None
    pipe: "Connection[Any, Any] | None" = None
    number: int = -1
    job: Any = None
    deaths: int = 0

    def give(self, number: int, job: Any) -> None:
        """Give it a job; that it may have died is seen where its answer is waited for."""
        self.number, self.job, self.deaths = number, job, 0
        with suppress(OSError):
            self.pipe.send(job)  # type: ignore[union-attr]  # its process is started

    def end(self) -> None:
        """End its process."""
        self.job = None
        if self.process is None or self.pipe is None:
            return
        self.pipe.close()
        self.process.kill()
        self.process.join()
        self.process = self.pipe = None


def _end_all(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.end()


def _threads_each(processes: int) -> int:
    import torch

    return max(torch.get_num_threads() // processes, 1)


def _work(pipe: "Connection[Any, Any]", opening: Opening, device: str, threads: int) -> None:
    """What each process does until nobody gives it anything."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started it decides
    work = None
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            if work is None:
                work = opening.open(
                    device, threads=threads, on_note=lambda note: pipe.send(("note", note))
                )
            answer: tuple[str, Any] = ("made", work(job))
        except LLM2VecError as error:
            answer = ("error", error)
        except Exception as error:  # noqa: BLE001  # it is raised by the process that is waiting
            answer = ("error", RuntimeError(f"on {device}: {first_line(error)}"))
        pipe.send(answer)
