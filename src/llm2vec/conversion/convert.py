"""The main job: a recipe's stages in order, each a folder in and a folder out, proven at the end.

The same call goes on with a killed run: a stage is finished if its folder exists (see
`run_folder`).
"""

import json
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from llm2vec.backbone.source import Source
from llm2vec.conversion.bidirectional import make_bidirectional_folder, write_own_texts
from llm2vec.conversion.preflight import check
from llm2vec.conversion.read_back import prove_read_back
from llm2vec.conversion.run_folder import RunFolder, read_stage_facts, scratch_beside
from llm2vec.conversion.stage_folder import write_stage
from llm2vec.conversion.start import lineage
from llm2vec.conversion.timetable import Timetable
from llm2vec.encoder.encoder import Encoder
from llm2vec.encoder.folder import PROVENANCE_FILE, about_template, model_card, read_settings
from llm2vec.encoder.half_precision import exact_dtype
from llm2vec.errors import RunError
from llm2vec.recipe.knobs import OF_SIMCSE, Recipe
from llm2vec.runtime.files import PARTIAL, atomic_file, files_in, read_json, write_json
from llm2vec.runtime.hardware import default_device, idle_gpus, versions
from llm2vec.runtime.progress import Progress, Silent
from llm2vec.training.stage import ADAPTER, Stage, StageRun, run_stage
from llm2vec.training.stages import STAGES


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion.

    Attributes:
        folder: The encoder folder.
        stages: The stage folders that were kept, by name, `0-bi` first.
        provenance: The content of `provenance.json` in the encoder folder.
    """

    folder: Path
    stages: Mapping[str, Path]
    provenance: Mapping[str, Any]


def convert(
    recipe: Recipe,
    out: str | Path,
    *,
    keep_stages: bool = False,
    start_over: bool = False,
    progress: Progress | None = None,
    plan: Mapping[str, Any] | None = None,
    timetable: Timetable | None = None,
) -> Conversion:
    """Turn a decoder into an encoder folder; a killed run goes on where it stopped.

    Args:
        recipe: What to do.
        out: The encoder folder to make. Unfinished work is kept beside it, in `OUT.stages`.
        keep_stages: Whether to keep the stage folders after the end.
        start_over: Whether to remove an earlier run of the same `out`, finished or not, and begin
            again.
        progress: Listener that everything long is reported to. None reports to nobody.
        plan: How the recipe was planned within a budget, for the run folder and the provenance.
            None for a recipe that was not planned.
        timetable: The clock that decides how many steps there are; None trains the recipe's steps.

    Raises:
        LLM2VecError: Something is wrong with the decoder, the corpus or the recipe. Finished stages
            are kept.
    """
    run = _Run(recipe, Path(out), progress or Silent(), plan=plan, timetable=timetable)
    if not start_over and run.folder.finished():
        run.progress.note(f"{run.folder.out} is finished already; --start-over makes it again")
        return run.result()
    with run.locked():
        if start_over:
            run.on_main_process(run.folder.start_over)
        # Another process may have finished the encoder before this one got the lock.
        if not run.folder.finished():
            run.make_stages()
            run.on_main_process(run.make_encoder)
        if not keep_stages:
            run.on_main_process(run.folder.remove)
        return run.result()


def stages_of(recipe: Recipe) -> dict[str, Stage[Any]]:
    """The stages that a recipe trains, by the names of their folders, in order."""
    numbered = enumerate(STAGES, start=1)
    return {
        f"{number}-{stage.name}": stage for number, stage in numbered if stage.knobs(recipe).steps
    }


class _Run:
    """One conversion: the order of its steps, and which of them one process does alone.

    Args:
        recipe: What to do.
        out: The encoder folder to make.
        progress: Listener that everything long is reported to.
        plan: How the recipe was planned within a budget; None for a recipe that was not planned.
        timetable: The clock that decides how many steps there are; None trains the recipe's steps.

    Attributes:
        recipe: What to do.
        folder: The run folder.
        processes: The processes that run the conversion together.
        progress: Listener that everything long is reported to.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        progress: Progress,
        *,
        plan: Mapping[str, Any] | None,
        timetable: Timetable | None,
    ) -> None:
        self.recipe = recipe
        self.timetable = timetable
        self.folder = RunFolder(recipe, Source.of(recipe.decoder), out, progress, plan=plan)
        self.processes = PartialState(cpu=default_device().type == "cpu")
        self.progress = progress

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out of the run folder inside the block."""
        with self.folder.locked() if self.processes.is_main_process else nullcontext():
            self.processes.wait_for_everyone()
            yield

    def on_main_process(self, job: Callable[[], None]) -> None:
        """Do a job in the main process alone, while the other processes wait."""
        if self.processes.is_main_process:
            job()
        self.processes.wait_for_everyone()

    def make_stages(self) -> None:
        """Make the folders of the stages that are not finished yet, in order."""
        self.on_main_process(self.folder.begin)
        idle = idle_gpus(self.processes.num_processes, torch.cuda.device_count())
        if idle is not None:
            self.progress.note(idle)
        self.folder.stage("0-bi", self._make_first_stage)
        self.on_main_process(self._write_own_texts)
        for name, stage in stages_of(self.recipe).items():
            self.folder.stage(name, partial(self._train_stage, stage))

    def _make_first_stage(self, folder: Path) -> None:
        def job() -> None:
            check(self.recipe, processes=self.processes.num_processes, progress=self.progress)
            make_bidirectional_folder(self.recipe, folder, progress=self.progress)

        self.on_main_process(job)

    def _write_own_texts(self) -> None:
        write_own_texts(self.recipe, self.folder.own_texts, progress=self.progress)

    def _train_stage(self, stage: Stage[Any], folder: Path) -> None:
        source, recipe = self._start(stage)
        settings = read_settings(source)
        if settings is None:
            raise RunError(
                f"{source} has lost its settings file; say --start-over to make the stage again"
            )
        pace = None
        if self.timetable is not None:
            pace = self.timetable.pace(stage.title, stage.knobs(self.recipe).steps)
        with scratch_beside(folder) as scratch:
            run = StageRun(
                recipe,
                source,
                settings,
                scratch,
                self.folder.own_texts,
                self.processes,
                self.progress,
                pace,
            )
            trained = run_stage(stage, run)
            trust_remote_code = self.recipe.trust_remote_code

            def job() -> None:
                write_stage(folder, trained, settings, scratch, trust_remote_code=trust_remote_code)

            self.on_main_process(job)

    def _start(self, stage: Stage[Any]) -> tuple[Source, Recipe]:
        """The folder that a stage starts from, and its recipe.

        To go on with SimCSE's adapter is to start from the folder before SimCSE.
        """
        knobs = self.recipe.supervised
        if stage.name != "supervised" or knobs.adapter != OF_SIMCSE:
            return self._last_stage(), self.recipe
        before, simcse = self.folder.finished_stages[-2:]
        changed = knobs.model_copy(update={"adapter": str(simcse / ADAPTER)})
        recipe = self.recipe.model_copy(update={"supervised": changed})
        return Source.of(before, trust_remote_code=self.recipe.trust_remote_code), recipe

    def _last_stage(self) -> Source:
        """The folder of the last finished stage, whose own code may run if the decoder's may."""
        folder = self.folder.finished_stages[-1]
        return Source.of(folder, trust_remote_code=self.recipe.trust_remote_code)

    def make_encoder(self) -> None:
        """Write the last stage's encoder, compare it with what others open, and publish it."""
        built = self.folder.folder / ("encoder" + PARTIAL)
        shutil.rmtree(built, ignore_errors=True)
        encoder = Encoder.from_pretrained(self._last_stage(), dtype=exact_dtype())
        built.mkdir(parents=True)
        encoder.write(built)
        if (note := about_template(encoder.settings)) is not None:
            self.progress.note(note)
        trust_remote_code = self.recipe.trust_remote_code
        proof = prove_read_back(encoder, built, trust_remote_code=trust_remote_code)
        stages = [read_stage_facts(folder) for folder in self.folder.finished_stages]
        provenance = {
            **self.folder.identity,
            **self.folder.plan,
            **lineage(Source.of(self.recipe.decoder)),
            "places": self.folder.source_paths(),
            "versions": versions(),
            "machine": _machine(encoder),
            "stages": stages,
            "read_back": proof.to_dict(),
        }
        card = model_card(self.folder.out.name, provenance)
        (built / "README.md").write_text(card, encoding="utf8")
        _write_metrics(built / "metrics.jsonl", stages)
        write_json(built / PROVENANCE_FILE, {**provenance, "files": files_in(built)})
        self.folder.publish(built)

    def result(self) -> Conversion:
        """The finished conversion."""
        provenance = read_json(self.folder.out / PROVENANCE_FILE)
        return Conversion(self.folder.out, self.folder.stage_folders(), provenance)


def _machine(encoder: Encoder) -> dict[str, str]:
    """What a conversion ran on."""
    return {"platform": platform.platform(), "device": str(encoder.device)}


def _write_metrics(path: Path, stages: Sequence[Mapping[str, Any]]) -> None:
    """Write the log lines of all stages, one to a line."""
    with atomic_file(path) as partial_path, partial_path.open("w", encoding="utf8") as file:
        for stage in stages:
            for line in stage["metrics"]:
                file.write(json.dumps({"stage": stage["stage"], **line}) + "\n")
