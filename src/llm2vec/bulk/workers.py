"""Several devices at once: a process for each, spawned once, that encodes one window after another.

Windows come back in their order, and nothing is lost where a process dies (`runtime.processes`).
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from llm2vec.backbone.source import Source
from llm2vec.bulk.rows import IdType, Window
from llm2vec.bulk.shards import Made
from llm2vec.bulk.threads import ahead
from llm2vec.bulk.vectors import VectorOptions, VectorTask
from llm2vec.runtime.processes import Processes

_WINDOWS_AHEAD = 2


@dataclass(frozen=True)
class BulkOpening:
    """How each process opens its encoder.

    Attributes:
        model: The encoder, by whatever opens it.
        options: What a vector is.
        dtype: Data type of the weights, the same on all devices.
    """

    model: str | Source
    options: VectorOptions
    dtype: str

    def open(
        self, device: str, *, threads: int, on_note: Callable[[str], object]
    ) -> Callable[[tuple[Window, IdType | None]], Made]:
        """The work on a window, as `runtime.processes.Opening` says."""
        import torch

        from llm2vec.encoder.encoder import Encoder

        if device == "cpu":
            torch.set_num_threads(threads)
        encoder = Encoder.from_pretrained(self.model, device=device, dtype=self.dtype)
        task = VectorTask(encoder, self.options, on_note=on_note)

        def made(job: tuple[Window, IdType | None]) -> Made:
            window, id_type = job
            return task.finish(task.prepare(window), id_type=id_type)

        return made


class Workers:
    """Processes that encode windows.

    Args:
        opening: How each opens its encoder.
        devices: A device for each process; several processes may have the same.
        on_note: Hears what a person should know.
    """

    def __init__(
        self,
        opening: BulkOpening,
        devices: Sequence[str],
        *,
        on_note: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.processes: Processes[tuple[Window, IdType | None], Made] = Processes(
            opening, devices, describe=_described, on_note=on_note
        )

    def made(self, windows: Iterator[Window], id_type: IdType | None) -> Generator[Made]:
        """What becomes of all windows, in their order; the processes end with the last of them.

        Args:
            windows: Read in another thread, a few ahead of what is taken.
            id_type: How ids are kept.

        Raises:
            RunError: A window has ended its process twice.
        """
        try:
            with closing(ahead(windows, most=_WINDOWS_AHEAD)) as read:
                jobs = ((window, id_type) for window in read)
                yield from self.processes.results(jobs, without_work=_left_out)
        finally:
            self.close()

    def close(self) -> None:
        """End all processes."""
        self.processes.close()


def _left_out(job: tuple[Window, IdType | None]) -> Made | None:
    window, _ = job
    return Made(window) if window.left_out else None


def _described(job: tuple[Window, IdType | None]) -> str:
    rows = job[0].rows
    return f"the {len(rows):,} rows from row {rows[0].number:,} on"
