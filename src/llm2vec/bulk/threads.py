"""Work before and after the model in threads with short queues, so that memory is bounded."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Full, Queue
from threading import Event, Thread
from types import TracebackType
from typing import Any, Self, TypeVar

Item = TypeVar("Item")

_LOOK_EVERY_S = 0.1
"""How often a thread that waits looks whether it should end."""


def ahead(items: Iterable[Item], *, most: int) -> Generator[Item]:
    """Make items in another thread, in the same order, while the caller works on earlier ones.

    Args:
        items: Iterated in the other thread, and nowhere else.
        most: The most items that wait.

    Raises:
        Exception: Whatever the iteration raises, where its next item would have come.
    """
    queue: Queue[tuple[str, Any]] = Queue(most)
    ended = Event()
    # a daemon, as a thread that waits for a slow pipe cannot be interrupted at the end
    Thread(target=_fill, args=(items, queue, ended), daemon=True, name="ahead").start()
    try:
        while True:
            kind, value = queue.get()
            if kind == "item":
                yield value
            elif kind == "error":
                raise value
            else:
                return
    finally:
        ended.set()


def _fill(items: Iterable[Any], queue: "Queue[tuple[str, Any]]", ended: Event) -> None:
    try:
        for item in items:
            if not _put(queue, ("item", item), ended):
                return
        last: tuple[str, Any] = ("end", None)
    except BaseException as error:  # noqa: BLE001  # it is raised where the items are taken
        last = ("error", error)
    _put(queue, last, ended)


def _put(queue: "Queue[tuple[str, Any]]", value: tuple[str, Any], ended: Event) -> bool:
    """Wait for room; False where nobody will take the value."""
    while not ended.is_set():
        try:
            queue.put(value, timeout=_LOOK_EVERY_S)
        except Full:
            continue
        return True
    return False


class Behind:
    """One thread that does what it is given, in order, while the caller goes on.

    An error is raised at one of the next calls, or at the end of the block. Nothing is done after
    an error of the thread; what was given before an error of the caller is.
    """

    def __init__(self, *, most: int) -> None:
        self._most = most
        self._failed = False
        self._waiting: deque[Future[Any]] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="behind")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True)
        while self._waiting and error is None:
            self._waiting.popleft().result()

    def do(self, work: Callable[..., object], *arguments: Any) -> None:
        """Do this after what was given before; waits while too much is waiting."""
        self._waiting.append(self._pool.submit(self._done, work, *arguments))
        while len(self._waiting) > self._most:
            self._waiting.popleft().result()

    def _done(self, work: Callable[..., object], *arguments: Any) -> None:
        if self._failed:
            return
        self._failed = True
        work(*arguments)
        self._failed = False
