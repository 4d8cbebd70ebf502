"""MTEB's tasks for an encoder, with the instructions of the paper's evaluation as prompts.

mteb loads the data, computes the scores and writes results in its own format; this module decides
which prompt precedes which text. It knows no task by itself: names, types, splits and metrics come
from the installed mteb.
"""

import difflib
import json
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from llm2vec.errors import CorpusError, UsageError, first_line
from llm2vec.runtime import fingerprint

if TYPE_CHECKING:
    import numpy as np
    from mteb.abstasks import AbsTask
    from mteb.models import EncoderProtocol
    from mteb.results import TaskResult

    from llm2vec.encoder.encoder import Encoder

PAPER15 = (
    "SciFact",
    "ArguAna",
    "NFCorpus",
    "StackOverflowDupQuestions",
    "SciDocsRR",
    "BiorxivClusteringS2S",
    "MedrxivClusteringS2S",
    "TwentyNewsgroupsClustering",
    "SprintDuplicateQuestions",
    "Banking77Classification",
    "EmotionClassification",
    "MassiveIntentClassification",
    "STS17",
    "SICK-R",
    "STSBenchmark",
)
"""The paper's subset of MTEB, by mteb's names."""

_INSTRUCTIONS = Path(__file__).parents[1] / "assets" / "evaluation" / "instructions.json"
_PAPER_BENCHMARK = "MTEB(eng, v1)"
"""The 56 English tasks of the paper, each with the split that counts."""
_QUERIES_ONLY = ("Retrieval", "Reranking", "InstructionRetrieval", "InstructionReranking")
_TEXTS = 1024
"""Texts that mteb hands over at once by default; the encoder cuts them into batches by tokens."""
_REVISED = re.compile(r"(HardNegatives)?(\.v\d+)?$")


@dataclass(frozen=True)
class TaskScore:
    """The score of one task of mteb.

    Attributes:
        task: Name of the task in mteb.
        type: Type of the task in mteb, such as "STS".
        metric: Main metric of the task.
        value: Value of the main metric, mean over the task's splits and subsets.
    """

    task: str
    type: str
    metric: str
    value: float

    def to_dict(self) -> dict[str, Any]:
        """The score as data for JSON."""
        return asdict(self)


@cache
def shipped_instructions() -> Mapping[str, str]:
    """The instructions of the paper's evaluation by task name, without the colon at their end."""
    found: dict[str, str] = json.loads(_INSTRUCTIONS.read_text(encoding="utf8"))
    return found


def instruction_for(task_name: str, *, instructions: Mapping[str, str] | None = None) -> str | None:
    """The instruction for a task or for the task that it revises; None if there is no instruction.

    Args:
        task_name: Name of the task in mteb.
        instructions: Instructions by task name; None takes those of the paper's evaluation.

    Example:
        >>> instruction_for("FEVERHardNegatives.v2")
        'Given a claim, retrieve documents that support or refute the claim'
    """
    known = shipped_instructions() if instructions is None else instructions
    return known.get(task_name, known.get(_REVISED.sub("", task_name)))


def as_mteb(
    encoder: "Encoder", *, name: str, instructions: Mapping[str, str] | None = None
) -> "EncoderProtocol":
    """The encoder as a model for any text task of mteb; vectors are compared by cosine.

    The task's instruction is the prompt of queries, not of documents; in tasks without queries it
    is the prompt of every text.

    Args:
        encoder: Encoder of the texts. Its own prompts are not used.
        name: Name that mteb files results under, `organization/model`; a name without a slash is
            put under `llm2vec/`.
        instructions: Instructions by task name, without the colon. None takes those of the paper's
            evaluation, an empty mapping gives no prompt to any text.

    Raises:
        UsageError: mteb is not installed.
    """
    _mteb()
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction
    from mteb.types import PromptType

    known = shipped_instructions() if instructions is None else instructions

    class Adapted(AbsEncoder):  # type: ignore[misc]  # mteb is optional, so untyped here
        model = encoder
        mteb_model_meta = ModelMeta.create_empty(
            {
                "name": name if "/" in name else f"llm2vec/{name}",
                "revision": _fingerprint(encoder, known),
                "n_parameters": sum(weight.numel() for weight in encoder.parameters()),
                "max_tokens": encoder.settings.max_length,
                "embed_dim": encoder.dimension,
                "framework": ["PyTorch"],
                "similarity_fn_name": ScoringFunction.COSINE,
                "use_instructions": bool(known),
            }
        )

        def encode(
            self,
            inputs: Iterable[Any],
            *,
            task_metadata: Any,
            prompt_type: Any = None,
            **kwargs: Any,
        ) -> "np.ndarray":
            instruction = instruction_for(task_metadata.name, instructions=known)
            if task_metadata.type in _QUERIES_ONLY and prompt_type == PromptType.document:
                instruction = None
            return encoder.encode(
                [text for batch in inputs for text in batch["text"]],
                batch_size=kwargs.get("batch_size"),
                show_progress=kwargs.get("show_progress_bar", False),
                prompt=instruction and f"{instruction}:",
                convert_to_numpy=True,
            )

    return Adapted()


def chosen_tasks(names: str) -> "list[AbsTask]":
    """Tasks of mteb by name.

    Of a multilingual task the English subset is taken, and of a task in the paper the split that
    counts there. A benchmark is taken as mteb defines it.

    Args:
        names: "paper15", a benchmark, or task names with commas between.

    Raises:
        UsageError: mteb is not installed, or has no such task on English texts.
    """
    benchmarks = {benchmark.name: benchmark for benchmark in _mteb().get_benchmarks()}
    name = names.strip()
    if name in benchmarks:
        found = list(benchmarks[name].tasks)
    else:
        wanted = PAPER15 if name == "paper15" else [each.strip() for each in names.split(",")]
        paper_tasks = benchmarks[_PAPER_BENCHMARK].tasks
        splits = {task.metadata.name: task.eval_splits for task in paper_tasks}
        others = list(benchmarks)
        distinct = [each for each in dict.fromkeys(wanted) if each]
        found = [_task_named(each, splits.get(each), others=others) for each in distinct]
    if not found:
        raise UsageError(
            "no task is named; name paper15, a benchmark such as MTEB(eng, v2), or tasks of mteb"
        )
    if other := [task.metadata.name for task in found if task.modalities != ["text"]]:
        raise UsageError(f"mteb's {other[0]} is not about texts alone")
    return found


def _task_named(name: str, splits: Any, *, others: Sequence[str]) -> "AbsTask":
    """A task in English; an error also names what is close among the `others`."""
    try:
        task: AbsTask = _mteb().get_task(
            name, languages=["eng"], exclusive_language_filter=True, eval_splits=splits
        )
    except KeyError as error:
        known = [task.metadata.name for task in import_module("mteb.get_tasks").TASK_LIST]
        matches = difflib.get_close_matches(name, [*known, *others, "paper15"])
        close = ", ".join(matches) or "nothing"
        raise UsageError(
            f"mteb has no task or benchmark {name!r}; close to it is {close}"
        ) from error
    except ValueError as error:
        raise UsageError(f"mteb's {name} has no English subset") from error
    return task


def run_mteb(
    encoder: "Encoder",
    tasks: "Iterable[AbsTask]",
    *,
    out: Path,
    name: str,
    instructions: Mapping[str, str] | None = None,
    batch_size: int | None = None,
    show_progress_bar: bool = False,
    on_score: Callable[[TaskScore], object] = lambda _: None,
) -> list[TaskScore]:
    """Run tasks one by one; results that an earlier run finished are read, not computed again.

    Args:
        encoder: Encoder to measure.
        tasks: Tasks as `chosen_tasks` returns them.
        out: Folder for `results/NAME/FINGERPRINT/TASK.json`, in mteb's format. The fingerprint is
            of weights, settings and instructions, so that a changed encoder never has old results.
        name: Name that mteb files results under, as of `as_mteb`.
        instructions: Instructions by task name, as of `as_mteb`.
        batch_size: Most texts in a batch; None cuts batches by tokens.
        show_progress_bar: Whether mteb and the encoder draw their progress.
        on_score: Function that is called with each score as soon as it is known.

    Raises:
        UsageError: mteb is not installed.
        CorpusError: The data of a task could not be loaded; raised after all others have run.
    """
    model = as_mteb(encoder, name=name, instructions=instructions)
    results = _mteb().ResultCache(cache_path=out)
    options = {"batch_size": batch_size or _TEXTS, "show_progress_bar": show_progress_bar}
    scores, missing = [], []
    for task in tasks:
        try:
            found = _evaluated(model, task, results=results, options=options)
        except CorpusError as error:
            missing.append(error)
            continue
        facts = task.metadata
        value = float(found.validate_and_filter_scores(task).get_score())
        score = TaskScore(facts.name, facts.type, facts.main_score, value)
        scores.append(score)
        on_score(score)
    if missing:
        done = f"scores of other tasks: {len(scores)}, kept in {out}, where the next run finds them"
        raise CorpusError("\n".join([*map(str, missing), done])) from missing[0]
    return scores


def _mteb() -> ModuleType:
    try:
        return import_module("mteb")
    except ModuleNotFoundError as error:
        raise UsageError(
            f"mteb cannot be used ({error}): pip install 'llm2vec-next[mteb]'"
        ) from error


def _fingerprint(encoder: "Encoder", instructions: Mapping[str, str]) -> str:
    """The fingerprint of everything that results depend on, by which mteb files them."""
    weights = fingerprint.of_weights(encoder.model)
    settings = [asdict(encoder.settings), dict(instructions), str(encoder.model.dtype)]
    return fingerprint.short(fingerprint.of_values(weights, settings), 16)


def _evaluated(
    model: "EncoderProtocol", task: "AbsTask", *, results: Any, options: Mapping[str, Any]
) -> "TaskResult":
    """The result of a task: a kept one, or that of running it."""
    for part in task.metadata.tasks if task.is_aggregate else ():
        _evaluated(model, part, results=results, options=options)
    needs_data = _needs_data(model, task, results)
    if needs_data:
        _load_data(task)
    try:
        with warnings.catch_warnings():
            # The paper's tasks are wanted as they were, whatever supersedes them.
            warnings.filterwarnings("ignore", message=".*is superseded by")
            found = _mteb().evaluate(
                model,
                task,
                cache=results,
                co2_tracker=False,
                encode_kwargs=dict(options),  # a copy, because mteb writes into it
            )
    finally:
        if needs_data:
            task.unload_data()
    result: TaskResult = found.task_results[0]
    return result


def _needs_data(model: "EncoderProtocol", task: "AbsTask", results: Any) -> bool:
    """Whether a task will be run on data that are not loaded yet."""
    if task.is_aggregate or task.data_loaded:
        return False
    kept = results.load_task_result(task.metadata.name, model.mteb_model_meta)
    return kept is None or bool(kept.get_missing_evaluations(task))


def _load_data(task: "AbsTask") -> None:
    """Load a task's data, apart from running it: only here may an error of a library be no bug.

    Raises:
        CorpusError: The data cannot be loaded.
    """
    from datasets.exceptions import DatasetsError

    try:
        task.load_data()
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise CorpusError(
            f"the data of mteb's {task.metadata.name} cannot be loaded: {first_line(error)}; check "
            "the network, or fill the hub's cache first"
        ) from error
