"""The main job: a recipe's stages in order, each a folder in and a folder out, proven at the end.

A killed run is started again by the same call: finished stages are folders that exist (`run_folder`).
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
from llm2vec.conversion.run_folder import Work, read_stage_facts, scratch_beside
from llm2vec.conversion.stage_folder import write_stage
from llm2vec.encoder.encoder import Encoder
from llm2vec.encoder.folder import PROVENANCE_FILE, about_template, model_card, read_settings
from llm2vec.errors import RunError
from llm2vec.recipe.knobs import Recipe
from llm2vec.runtime.files import PARTIAL, atomic_file, files_in, read_json, write_json
from llm2vec.runtime.hardware import default_device, idle_gpus, versions
from llm2vec.runtime.progress import Progress, Silent
from llm2vec.training.stage import Stage, StageRun, run_stage
from llm2vec.training.stages import STAGES


@dataclass(frozen=True)
class Conversion:
    """What came of a recipe.

    Attributes:
        folder: The encoder folder.
        stages: The stage folders that were kept, by name, `0-bi` first.
        provenance: The content of `provenance.json` in the folder.
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
) -> Conversion:
    """Turn a decoder into an encoder folder, going on where a killed run stopped.

    Args:
        recipe: What to do.
        out: The encoder folder to make; work in progress lies beside it in `OUT.stages`.
        keep_stages: Whether to keep the stage folders after the end.
        start_over: Whether to throw away an unfinished or finished run under the same `out`.
        progress: Hears of everything long.
        plan: How the recipe was planned within a budget, for the run folder and the provenance.

    Raises:
        LLM2VecError: Whatever is wrong with decoder, corpus or recipe; finished stages are kept.
    """
    progress = progress or Silent()
    work = Work(recipe, Source.of(recipe.decoder), Path(out), progress, plan=plan)
    processes = PartialState(cpu=default_device().type == "cpu")
    if not start_over and work.finished():
        progress.note(f"{work.out} is finished already; --start-over makes it again")
        return _result(work)
    with _held(work, processes):
        if start_over:
            _on_main(processes, work.forget)
        if not work.finished():  # another process may have finished it in the meantime
            _make(recipe, work, processes, progress)
        if not keep_stages:
            _on_main(processes, work.remove)
        return _result(work)


@contextmanager
def _held(work: Work, processes: PartialState) -> Iterator[None]:
    """Hold the run folder against other runs; of the processes of this one, the main one does."""
    with work.held() if processes.is_main_process else nullcontext():
        processes.wait_for_everyone()
        yield


def _make(recipe: Recipe, work: Work, processes: PartialState, progress: Progress) -> None:
    """Make the stages that are not there yet, in order, and the encoder of the last one."""
    _on_main(processes, work.begin)
    if (note := idle_gpus(processes.num_processes, torch.cuda.device_count())) is not None:
        progress.note(note)
    work.stage("0-bi", partial(_stage_zero, recipe, processes, progress))
    _on_main(processes, partial(write_own_texts, recipe, work.own_texts, progress=progress))
    for name, stage in stages_of(recipe).items():
        work.stage(name, partial(_train, stage, recipe, work, processes, progress))
    _on_main(processes, partial(_finish, recipe, work, progress))


def stages_of(recipe: Recipe) -> dict[str, Stage[Any]]:
    """The stages that a recipe trains, by the names of their folders, in order."""
    numbered = enumerate(STAGES, start=1)
    return {
        f"{number}-{stage.name}": stage for number, stage in numbered if stage.knobs(recipe).steps
    }


def _on_main(processes: PartialState, job: Callable[[], None]) -> None:
    """Do what only one of several processes should do, while the others wait."""
    if processes.is_main_process:
        job()
    processes.wait_for_everyone()


def _stage_zero(recipe: Recipe, processes: PartialState, progress: Progress, folder: Path) -> None:
    def job() -> None:
        check(recipe, processes=processes.num_processes, progress=progress)
        make_bidirectional_folder(recipe, folder, progress=progress)

    _on_main(processes, job)


def _train(
    stage: Stage[Any],
    recipe: Recipe,
    work: Work,
    processes: PartialState,
    progress: Progress,
    folder: Path,
) -> None:
    source = _newest(recipe, work)
    settings = read_settings(source)
    if settings is None:
        raise RunError(f"{source} has lost its settings; say --start-over to make it again")
    with scratch_beside(folder) as scratch:
        run = StageRun(recipe, source, settings, scratch, work.own_texts, processes, progress)
        trained = run_stage(stage, run)
        write = partial(write_stage, trust_remote_code=recipe.trust_remote_code)
        _on_main(processes, partial(write, folder, trained, settings, scratch))


def _newest(recipe: Recipe, work: Work) -> Source:
    """The newest stage's folder; the decoder's own code, which lies in it, runs where it ran before."""
    return Source.of(work.made[-1], trust_remote_code=recipe.trust_remote_code)


def _finish(recipe: Recipe, work: Work, progress: Progress) -> None:
    """Write the encoder from the last stage, open it as others would, compare, and publish it."""
    built = work.folder / ("encoder" + PARTIAL)
    shutil.rmtree(built, ignore_errors=True)
    encoder = Encoder.from_pretrained(_newest(recipe, work))
    built.mkdir(parents=True)
    encoder.write(built)
    if (note := about_template(encoder.settings)) is not None:
        progress.note(note)
    proof = prove_read_back(encoder, built, trust_remote_code=recipe.trust_remote_code)
    stages = [read_stage_facts(stage) for stage in work.made]
    provenance = {
        **work.identity,
        **work.plan,
        "places": work.places(),
        "versions": versions(),
        "machine": {"platform": platform.platform(), "device": str(encoder.device)},
        "stages": stages,
        "read_back": proof.to_dict(),
    }
    card = model_card(work.out.name, provenance)
    (built / "README.md").write_text(card, encoding="utf8")
    _write_metrics(built / "metrics.jsonl", stages)
    write_json(built / PROVENANCE_FILE, {**provenance, "files": files_in(built)})
    work.publish(built)


def _write_metrics(path: Path, stages: Sequence[Mapping[str, Any]]) -> None:
    with atomic_file(path) as partial_path, partial_path.open("w", encoding="utf8") as file:
        for stage in stages:
            for line in stage["metrics"]:
                file.write(json.dumps({"stage": stage["stage"], **line}) + "\n")


def _result(work: Work) -> Conversion:
    return Conversion(work.out, work.kept(), read_json(work.out / PROVENANCE_FILE))
