"""Conversion within a budget: measure, plan, report the plan, and keep to it.

The plan is kept in the run folder, and later in the encoder's provenance. A killed run that goes on
follows the same plan. If the machine turns out slower or faster than it was measured, hours are
kept, and the number of steps changes (`timetable`).
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from llm2vec.backbone.source import Source
from llm2vec.conversion.budget import (
    Budget,
    Plan,
    Speeds,
    cannot_be_planned,
    check_stages,
    draft,
    plan,
    trains,
)
from llm2vec.conversion.convert import Conversion, convert
from llm2vec.conversion.estimate import Estimate
from llm2vec.conversion.info import estimates
from llm2vec.conversion.rehearsal import rehearse
from llm2vec.conversion.run_folder import RunFolder
from llm2vec.conversion.timetable import Timetable, kept_seconds
from llm2vec.errors import RunError
from llm2vec.recipe.knobs import Recipe
from llm2vec.runtime.files import PARTIAL
from llm2vec.runtime.hardware import default_device
from llm2vec.runtime.progress import Progress, Silent

_START_S = 20.0
"""Approximate seconds of loading, proofs and writing; a budget of hours measures them."""

OFFERS = (0.5, 1.0, 10.0)
"""Hours that `llm2vec info` plans for: half an hour, an hour, a night."""

Measure = Callable[[Recipe, Plan, Path], Speeds]
"""`(recipe, draft, folder to work in) -> speeds`."""


def convert_within(
    recipe: Recipe,
    budget: Budget,
    out: str | Path,
    *,
    keep_stages: bool = False,
    start_over: bool = False,
    progress: Progress | None = None,
    measure: Measure = rehearse,
) -> Conversion:
    """Convert as `convert` does, with as many steps as a budget holds.

    Args:
        recipe: What to do. Steps, batches, evaluations and the number of own texts are planned.
        budget: Time or tokens that the conversion may take.
        out: The encoder folder to make.
        keep_stages: Whether to keep the stage folders after the end.
        start_over: Whether to remove an earlier run of the same `out`, with its plan.
        progress: Listener that the plan and everything long are reported to.
        measure: Function that measures the speed of this machine.

    Raises:
        UsageError: The budget is too short for any training.
        RunError: The earlier run of the same `out` was planned for another budget, or not planned.
        LLM2VecError: Something is wrong with the decoder, the corpus or the recipe.
    """
    progress = progress or Silent()
    check_stages(recipe)
    run_folder = RunFolder(recipe, Source.of(recipe.decoder), Path(out), progress)
    kept = None if start_over else run_folder.kept_plan()
    earlier_s = 0.0
    if kept is None:
        found = _measured(recipe, budget, run_folder, progress, measure, start_over=start_over)
    else:
        found = Plan.read(kept)
        _check_budget(found, budget, run_folder)
        earlier_s = kept_seconds(found, run_folder.clock_file)
    planned = found.applied(recipe)
    progress.note(f"plan for {found.budget}: {found.described(planned)}")
    return convert(
        planned,
        out,
        keep_stages=keep_stages,
        start_over=start_over,
        progress=progress,
        plan=found.to_dict(),
        timetable=Timetable(found, spent_s=earlier_s + budget.spent_s, file=run_folder.clock_file),
    )


def offered(recipe: Recipe) -> list[tuple[Plan, Recipe]]:
    """Plans for half an hour, an hour and a night on this machine, by estimated speeds.

    Args:
        recipe: The recipe that would be planned.

    Returns:
        The plans, each with its recipe. Hours that are too short for any training are left out; the
        list is empty for a recipe that cannot be planned.
    """
    if cannot_be_planned(recipe) is not None:
        return []
    speeds = estimated_speeds(recipe, estimates(recipe))
    plans = [draft(recipe, Budget(hours=hours), speeds) for hours in OFFERS]
    return [(each, each.applied(recipe)) for each in plans if trains(recipe, each)]


def estimated_speeds(recipe: Recipe, found: Sequence[Estimate]) -> Speeds:
    """Speeds that follow from the estimates of a recipe's stages.

    Args:
        recipe: The recipe.
        found: The estimates.
    """
    steps_per_s = {each.stage: each.steps / max(each.seconds, 1e-9) for each in found}
    blocks_per_s = recipe.mntp.batch_size * steps_per_s.get("MNTP", 1.0)
    tokens_per_s = blocks_per_s * recipe.mntp.max_length
    return Speeds(
        fixed_s=_START_S,
        evaluation_s=recipe.mntp.eval_blocks / 3 / blocks_per_s,
        mntp_blocks_per_s=blocks_per_s,
        simcse_texts_per_s=recipe.simcse.batch_size * steps_per_s.get("SimCSE", 1.0),
        written_texts_per_s=tokens_per_s / recipe.corpus.self_tokens,
        measured=False,
    )


def _measured(
    recipe: Recipe,
    budget: Budget,
    run_folder: RunFolder,
    progress: Progress,
    measure: Measure,
    *,
    start_over: bool,
) -> Plan:
    """A plan by measured speeds for a budget of hours, by estimated speeds for one of tokens."""
    if not start_over:
        _check_unplanned(run_folder)
    processes = PartialState(cpu=default_device().type == "cpu")
    speeds, spent_s = estimated_speeds(recipe, estimates(recipe)), 0.0
    if budget.hours is not None:
        progress.note("measuring this machine: a conversion in miniature, which is thrown away")
        with run_folder.locked() if processes.is_main_process else nullcontext():
            processes.wait_for_everyone()
            drafted = draft(recipe, budget, speeds)
            speeds = measure(recipe, drafted, run_folder.folder / f"rehearsal{PARTIAL}")
        spent_s = budget.spent_s
    speeds, spent_s = broadcast_object_list([speeds, spent_s])
    return plan(recipe, budget, speeds, spent_s=spent_s, processes=processes.num_processes)


def _check_unplanned(run_folder: RunFolder) -> None:
    if run_folder.has_begun():
        raise RunError(
            f"{run_folder.folder} or {run_folder.out} was made without --hours or --tokens: say "
            "--start-over to throw it away, "
            "leave the option out to go on, or choose another --out"
        )


def _check_budget(found: Plan, budget: Budget, run_folder: RunFolder) -> None:
    if found.budget != budget:
        raise RunError(
            f"{run_folder.folder} was planned for {found.budget}, not {budget}: say --start-over "
            "to throw it away, or "
            "choose another --out"
        )
