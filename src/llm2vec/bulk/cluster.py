"""A bulk run on a Ray cluster: actors of Ray Data hold the encoder and make parts of the run.

A part reads the input, encodes its own shards and writes them, as `--shard i/n` does. An actor that
dies is started again and goes on with the first shard that its part lacks. All machines see the
encoder, the input and the folder under the same names.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from llm2vec.backbone.source import Source
from llm2vec.bulk.manifest import refuse_strangers
from llm2vec.bulk.rows import Input
from llm2vec.bulk.run import SHARD_ROWS, Part, Summary, run
from llm2vec.bulk.shards import shard_files
from llm2vec.bulk.vectors import VectorOptions, VectorTask
from llm2vec.corpus.data_files import DataFile
from llm2vec.errors import LLM2VecError, RunError, UsageError, first_line
from llm2vec.runtime.files import resolved_folder
from llm2vec.runtime.optional import optional
from llm2vec.runtime.progress import Progress, Silent

if TYPE_CHECKING:
    import numpy as np

_PARTS_EACH = 4
"""Parts for each actor, so that none waits long for the slowest. Each part reads the input."""


@dataclass(frozen=True)
class ClusterJob:
    """What every actor does; it travels to the actors by pickle.

    Attributes:
        model: The encoder, by what opens it on every machine.
        options: What a vector is; actors normalise too where the encoder's settings say so.
        dtype: Data type of the weights.
        given: The input.
        out: The folder.
        name: The encoder's name, for the manifest.
        shard_rows: Rows of the input in a shard.
        parts: Number of parts.
        prompt_name: Name of the prompt in the encoder's settings, instead of that of the options;
            None with no prompt there is the default prompt.
        has_prompt: Whether the options have the prompt.
    """

    model: Source
    options: VectorOptions
    dtype: str
    given: Input
    out: Path
    name: str
    shard_rows: int = SHARD_ROWS
    parts: int = 1
    prompt_name: str | None = None
    has_prompt: bool = False


class PartActor:
    """An actor: it holds the encoder, and makes one part after another."""

    def __init__(self, job: ClusterJob) -> None:
        from llm2vec.encoder.encoder import Encoder

        self._job = job
        self._encoder = Encoder.from_pretrained(job.model, dtype=job.dtype)
        self._options = replace(
            job.options,
            normalize=job.options.normalize or self._encoder.settings.normalize,
        )
        if not job.has_prompt:
            prompt = self._encoder.prompt_named(job.prompt_name)
            self._options = replace(self._options, prompt=prompt)

    def __call__(self, batch: "dict[str, np.ndarray]") -> dict[str, list[Any]]:
        """The summaries of the parts of a batch, or why one could not be made."""
        rows = [self._made(int(number)) for number in batch["number"]]
        return {key: [row[key] for row in rows] for key in rows[0]}

    def _made(self, number: int) -> dict[str, Any]:
        job = self._job
        try:
            summary = run(
                VectorTask(self._encoder, self._options),
                self._encoder,
                job.given,
                job.out,
                name=job.name,
                shard_rows=job.shard_rows,
                part=Part(number, job.parts),
            )
        except LLM2VecError as error:
            # by its message: Ray would wrap the error in two others
            return {"error": str(error), **asdict(_NOTHING)}
        return {"error": "", **asdict(summary)}


_NOTHING = Summary("", 0, 0, 0, 0, 0, 0, finished=False, seconds=0.0, resumed=0)


def run_on_ray(job: ClusterJob, *, actors: int | None, progress: Progress | None = None) -> Summary:
    """Make the shards of an input that are not there yet, on the Ray cluster that is at hand.

    That is the one of `RAY_ADDRESS`, or else this machine.

    Args:
        job: What every actor does; its number of parts is chosen here.
        actors: Number of actors; None is one for each GPU of the cluster, or for each machine.
        progress: Hears of the parts.

    Raises:
        UsageError: The input cannot be read twice, ray is not installed, or there is no actor.
        RunError: A part could not be made. Shards that are finished stay.
    """
    _check(job, actors)
    ray, data = optional("ray", extra="ray"), optional("ray.data", extra="ray")
    out = resolved_folder(job.out, option="--out")
    refuse_strangers(out)
    if not ray.is_initialized():
        ray.init(logging_level="error", log_to_driver=False)
    actors = actors or _actors_that_fit(ray)
    parts = _PARTS_EACH * actors
    resumed = len(shard_files(out)) if out.is_dir() else 0
    heard = progress or Silent()
    heard.start("encode", total=parts)
    started = time.monotonic()
    rows = _parts_made(ray, data, replace(job, out=out.absolute(), parts=parts), actors=actors)
    last = _NOTHING
    for summary in rows:
        last = max(last, summary, key=lambda each: (each.finished, each.shards))
        heard.advance(1, rejected=last.rejected)
    heard.finish()
    return replace(last, seconds=round(time.monotonic() - started, 3), resumed=resumed)


def _check(job: ClusterJob, actors: int | None) -> None:
    if isinstance(job.given.source, DataFile):
        raise UsageError("--engine ray: actors read the input themselves; give a file, not a pipe")
    if actors is not None and actors < 1:
        raise UsageError(f"--actors {actors}: there is one at least")


def _parts_made(
    ray: ModuleType, data: ModuleType, job: ClusterJob, *, actors: int
) -> Iterator[Summary]:
    """The summary of each part, as parts are finished."""
    data.DataContext.get_current().enable_progress_bars = False
    has_gpu = ray.cluster_resources().get("GPU", 0) > 0
    numbers = [{"number": number} for number in range(1, job.parts + 1)]
    made = data.from_items(numbers, override_num_blocks=job.parts).map_batches(
        PartActor,
        fn_constructor_args=(job,),
        batch_size=1,
        compute=data.ActorPoolStrategy(size=actors),
        num_cpus=1,
        num_gpus=1 if has_gpu else 0,
    )
    try:
        for row in made.iter_rows():
            if row["error"]:
                raise RunError(row["error"])
            yield Summary(**{key: value for key, value in row.items() if key != "error"})
    except ray.exceptions.RayError as error:
        raise RunError(f"ray: {first_line(error)}") from error


def _actors_that_fit(ray: ModuleType) -> int:
    gpus = math.floor(ray.cluster_resources().get("GPU", 0))
    return gpus or len(ray.nodes())
