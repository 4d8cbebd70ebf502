"""MTEB's tasks for an encoder, with the instructions of the paper's evaluation.

mteb loads the data, scores, and writes results in its own format; this module says what stands before which text. It
knows no task by itself: names, types, splits and metrics are asked of the installed mteb.
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
    *("SciFact", "ArguAna", "NFCorpus", "StackOverflowDupQuestions", "SciDocsRR"),
    *(
        "BiorxivClusteringS2S",
        "MedrxivClusteringS2S",
        "TwentyNewsgroupsClustering",
        "SprintDuplicateQuestions",
    ),
    *("Banking77Classification", "EmotionClassification", "MassiveIntentClassification"),
    *("STS17", "SICK-R", "STSBenchmark"),
)
"""The paper's subset of MTEB, by mteb's names."""

_INSTRUCTIONS = Path(__file__).parents[1] / "assets" / "evaluation" / "instructions.json"
_PAPER_BENCHMARK = (
    "MTEB(eng, v1)"  # the 56 English tasks of the paper, each with the split that counts
)
_QUERIES_ONLY = ("Retrieval", "Reranking", "InstructionRetrieval", "InstructionReranking")
_TEXTS = (
    1024  # handed over at once where no batch size is asked for; the encoder cuts them by tokens
)
_REVISED = re.compile(r"(HardNegatives)?(\.v\d+)?$")


@dataclass(frozen=True)
class TaskScore:
    """What mteb found for one task.

    Attributes:
        task: mteb's name for it.
        type: mteb's type, such as "STS".
        metric: What `value` is: the task's main metric.
        value: Mean over the task's splits and subsets.
    """

    task: str
    type: str
    metric: str
    value: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@cache
def shipped_instructions() -> Mapping[str, str]:
    """The method's instructions by task name, without the colon that ends them."""
    found: dict[str, str] = json.loads(_INSTRUCTIONS.read_text(encoding="utf8"))
    return found


def instruction_for(task_name: str, *, instructions: Mapping[str, str] | None = None) -> str | None:
    """The instruction for a task, or for the task of which it is a revision; None: it has none.

    Args:
        task_name: mteb's name.
        instructions: By task name; None: the method's own.

    Example:
        >>> instruction_for("FEVERHardNegatives.v2")
        'Given a claim, retrieve documents that support or refute the claim'
    """
    known = shipped_instructions() if instructions is None else instructions
    return known.get(task_name, known.get(_REVISED.sub("", task_name)))


def as_mteb(
    encoder: "Encoder", *, name: str, instructions: Mapping[str, str] | None = None
) -> "EncoderProtocol":
    """The encoder as a model that any of mteb's text tasks runs against; vectors are compared by cosine.

    Queries get their task's instruction and documents none; in tasks without queries every text gets it.

    Args:
        encoder: What encodes; its own prompts are not used.
        name: What mteb files results under, `organization/model`; a name without a slash is put under `llm2vec/`.
        instructions: By task name, without the colon; None: the method's own, an empty mapping: none at all.

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
    """Tasks of mteb by name; of a multilingual one the English subset, of one in the paper the split that counts there.

    Args:
        names: "paper15"; a benchmark, taken as mteb defines it; or task names with commas between.

    Raises:
        UsageError: mteb is not installed, or there is no such task, in English, on texts.
    """
    benchmarks = {benchmark.name: benchmark for benchmark in _mteb().get_benchmarks()}
    name = names.strip()
    if name in benchmarks:
        found = list(benchmarks[name].tasks)
    else:
        wanted = PAPER15 if name == "paper15" else [each.strip() for each in names.split(",")]
        paper_tasks = benchmarks[_PAPER_BENCHMARK].tasks
        splits = {task.metadata.name: task.eval_splits for task in paper_tasks}
        found = [
            _task_named(each, splits.get(each), others=list(benchmarks))
            for each in dict.fromkeys(wanted)
            if each
        ]
    if not found:
        raise UsageError(
            "no task is named; name paper15, a benchmark such as MTEB(eng, v2), or tasks of mteb"
        )
    if other := [task.metadata.name for task in found if task.modalities != ["text"]]:
        raise UsageError(f"mteb's {other[0]} is not about texts alone")
    return found


def _task_named(name: str, splits: Any, *, others: Sequence[str]) -> "AbsTask":
    """A task in English; `others` are names that a misspelt one is compared with too."""
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
    """Run tasks one by one; what a killed run finished is read back, not run again.

    Args:
        encoder: What is scored.
        tasks: As from `chosen_tasks`.
        out: Folder for `results/NAME/FINGERPRINT/TASK.json`, in mteb's format. The fingerprint is of weights, settings
            and instructions, so a changed encoder never answers with old results.
        name: As for `as_mteb`.
        instructions: As for `as_mteb`.
        batch_size: At most so many texts at a time; None: as many as a token budget allows.
        show_progress_bar: Draw mteb's and the encoder's.
        on_score: Called with each score as soon as it is known.

    Raises:
        UsageError: mteb is not installed.
        CorpusError: Some task's data could not be loaded; raised after all others have run.
    """
    mteb = _mteb()
    model, results = (
        as_mteb(encoder, name=name, instructions=instructions),
        mteb.ResultCache(cache_path=out),
    )
    options = {"batch_size": batch_size or _TEXTS, "show_progress_bar": show_progress_bar}
    scores, missing = [], []
    for task in tasks:
        try:
            found = _evaluated(model, task, results=results, options=options)
        except CorpusError as error:
            missing.append(error)
            continue
        value = float(found.validate_and_filter_scores(task).get_score())
        scores.append(
            TaskScore(task.metadata.name, task.metadata.type, task.metadata.main_score, value)
        )
        on_score(scores[-1])
    if missing:
        done = f"scores of other tasks: {len(scores)}, kept in {out}, where the next run takes them from"
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
    """Says whether results are of this encoder, in this precision, with these settings and instructions."""
    weights = fingerprint.of_weights(encoder.model)
    settings = [asdict(encoder.settings), dict(instructions), str(encoder.model.dtype)]
    return fingerprint.short(fingerprint.of_values(weights, settings), 16)


def _evaluated(
    model: "EncoderProtocol", task: "AbsTask", *, results: Any, options: Mapping[str, Any]
) -> "TaskResult":
    """Run a task, or read its result; data are loaded apart, since only loading may fail without being a bug."""
    from datasets.exceptions import DatasetsError

    for part in task.metadata.tasks if task.is_aggregate else ():
        _evaluated(model, part, results=results, options=options)
    known = results.load_task_result(task.metadata.name, model.mteb_model_meta)
    needed = (
        not task.is_aggregate
        and not task.data_loaded
        and (known is None or known.get_missing_evaluations(task))
    )
    if needed:
        try:
            task.load_data()
        except (OSError, ValueError, RuntimeError, DatasetsError) as error:
            told = f"the data of mteb's {task.metadata.name} cannot be loaded: {first_line(error)}"
            raise CorpusError(
                f"{told}; check the network, or fill the hub's cache first"
            ) from error
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*is superseded by"
            )  # the paper's tasks are wanted as they were
            kwargs = dict(options)  # mteb writes into it
            found = _mteb().evaluate(
                model, task, cache=results, co2_tracker=False, encode_kwargs=kwargs
            )
    finally:
        if needed:
            task.unload_data()
    result: TaskResult = found.task_results[0]
    return result
