"""The facts behind `llm2vec report`: what a conversion gained, measured, as plain data.

The causal decoder (Uni), each stage of the run and other encoders are measured on the same small
sets, which are bundled unless the user names others. `sections` turns the facts into a page.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from llm2vec.backbone.source import UNI, Source, resolved_name
from llm2vec.conversion.run_folder import stages_folder
from llm2vec.corpus.tagged import TaggedSentence, read_tagged
from llm2vec.encoder.encoder import Encoder
from llm2vec.encoder.folder import CHECKPOINTS, PROVENANCE_FILE
from llm2vec.encoder.words import Reading
from llm2vec.errors import ModelError, NotConvertible, RunError
from llm2vec.evaluation import analysis
from llm2vec.evaluation.analysis import BUNDLED_SETS
from llm2vec.evaluation.bootstrap import paired_difference
from llm2vec.evaluation.probe import ProbeResult, Split, probe_splits, read_split, with_development
from llm2vec.evaluation.sentence_tasks import Score, sts
from llm2vec.evaluation.subjects import (
    AUTO,
    ECHO,
    ONE_EXAMPLE,
    PROMPT,
    RANDOM,
    TFIDF,
    open_embedder,
    open_encoder,
)
from llm2vec.evaluation.word_metrics import Metric, floors
from llm2vec.report.task_facts import UNTRAINED
from llm2vec.runtime import fingerprint
from llm2vec.runtime.files import read_json
from llm2vec.runtime.progress import Progress, Silent

_TITLES = {
    "bi": "Bi",
    "uni": "Uni",
    "mntp": "MNTP",
    "simcse": "SimCSE",
    "supervised": "supervised",
    "distill": "distilled",
}
"""The paper's names of the stages."""

_ALIKE = 4.0
"""Least grade (of 5) of pairs that mean the same."""

_WEIGHTED = "Uni, weighted mean"
"""The causal decoder with the pooling that suits it better."""

_SHOWN = (
    "My sister sings in a choir.",
    "The coach shouted at the referee.",
    "I have had a sore throat for a week.",
)
"""Sentences whose neighbours are shown."""


@dataclass(frozen=True)
class WordTask:
    """A task of labelled words.

    Attributes:
        name: Name of the labels.
        train: Labelled sentences to train on.
        test: Labelled sentences to measure on.
        metric: Accuracy, or F1 of entities.
        data: Description of the sentences for the reader.
    """

    name: str
    train: Sequence[TaggedSentence]
    test: Sequence[TaggedSentence]
    metric: Metric
    data: str


@dataclass(frozen=True)
class SentenceTask:
    """A task of graded pairs.

    Attributes:
        name: Name of the task.
        path: File of the pairs.
        data: Description of the pairs for the reader.
    """

    name: str
    path: Path
    data: str


@dataclass(frozen=True)
class _Subject:
    """A model that is measured.

    Attributes:
        title: Name in the report: the stages behind the model, or a baseline's name.
        source: Name to open the model by.
        adapters: Adapters to merge into it.
        baseline: Whether the model is not a part of the run, but is compared with it.
    """

    title: str
    source: str
    adapters: tuple[str, ...] = ()
    baseline: bool = False


@dataclass(frozen=True)
class _Measured:
    """What is known of one task.

    Attributes:
        entry: Facts of the task for the report.
        scores: Score of each model by title, which differences are computed from.
    """

    entry: dict[str, Any]
    scores: dict[str, ProbeResult | Score] = field(default_factory=dict)

    def add(self, title: str, score: ProbeResult | Score, *, baseline: bool) -> None:
        """Add the score of a model."""
        self.scores[title] = score
        row = {"model": title, "value": score.value, "low": score.low, "high": score.high}
        if isinstance(score, ProbeResult):
            row |= {"reading": score.reading, "seeds": score.seeds}
        self.entry["rows"].append({**row, "baseline": baseline})

    def with_changes(self, of_run: Sequence[str]) -> dict[str, Any]:
        """The facts with the changes between the models of the run, by their titles in order."""
        return {**self.entry, "changes": list(_changes(self.scores, of_run))}


def bundled_words() -> list[WordTask]:
    """The bundled word tasks: parts of speech, chunks and entities of the project's sentences."""
    kinds: dict[str, tuple[str, Metric]] = {
        "part-of-speech": ("pos", "accuracy"),
        "chunks": ("chunks", "accuracy"),
        "entities": ("entities", "entity-f1"),
    }
    tasks = []
    for name, (column, metric) in kinds.items():
        train = read_tagged(BUNDLED_SETS / "words.train.jsonl", column=column)
        test = read_tagged(BUNDLED_SETS / "words.test.jsonl", column=column)
        about = f"bundled, small: {len(train)} sentences to train on, {len(test)} to test on"
        tasks.append(WordTask(name, train, test, metric, about))
    return tasks


def bundled_sentences() -> list[SentenceTask]:
    """The bundled sentence task: the project's graded pairs."""
    about = f"bundled, small: {len(analysis.bundled_pairs())} pairs"
    return [SentenceTask("similarity", BUNDLED_SETS / "pairs.jsonl", about)]


def measure(
    run: Path,
    *,
    decoder: str | None = None,
    baselines: Sequence[str] = (),
    words: Sequence[WordTask] | None = None,
    sentences: Sequence[SentenceTask] | None = None,
    progress: Progress | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Measure everything that the report shows.

    Args:
        run: Encoder folder that `convert` made; its stages are measured where they were kept.
        decoder: Name of the decoder that was converted; None takes the one that the run names.
        baselines: Names of other encoders (`auto:NAME`, or a folder), shown as dashed lines.
        words: Word tasks; None takes the bundled ones.
        sentences: Sentence tasks; None takes the bundled one.
        progress: Listener to the models as they are measured.
        trust_remote_code: Whether to run model code that comes with the models.

    Returns:
        Plain data for JSON, which `docs/evaluate.md` describes.

    Raises:
        RunError: The folder is no finished run.
        ModelError: The decoder is gone, or is another one now.
    """
    provenance = _provenance(run)
    decoder = _decoder(run, provenance, decoder)
    words = bundled_words() if words is None else words
    sentences = bundled_sentences() if sentences is None else sentences
    subjects = _subjects(run, decoder)
    subjects += [_Subject(_short(each), each, baseline=True) for each in baselines]
    opening: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    tables = _measure_subjects(subjects, words, sentences, decoder, progress or Silent(), opening)
    similarity = analysis.layer_similarity(
        Source(decoder, **opening), partial=_is_partial(provenance)
    )
    return {
        "encoder": run.name,
        "decoder": str(decoder),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        **tables,
        "efficiency": list(_efficiency(run, words[:1], sentences[:1], opening)),
        "layers": {"cosine_LT": similarity.cosine_LT, "by_layer": similarity.by_layer},
        "training": _training(provenance),
        "proofs": list(_proofs(provenance)),
        "run": {key: provenance[key] for key in ("recipe", "versions", "machine", "corpora")},
    }


def _measure_subjects(
    subjects: Sequence[_Subject],
    words: Sequence[WordTask],
    sentences: Sequence[SentenceTask],
    decoder: str,
    progress: Progress,
    opening: Mapping[str, Any],
) -> dict[str, list[Any]]:
    """The report's facts of each task and of each model's vectors.

    `opening` holds further arguments of `open_encoder`.
    """
    tables = [_Measured(_word_entry(task)) for task in words]
    tables += [_with_floors(task, decoder, opening) for task in sentences]
    of_run = [each.title for each in subjects if not each.baseline]
    analyses: dict[str, list[Any]] = {"future": [], "geometry": [], "neighbours": []}
    progress.start("measuring", total=len(subjects))
    for subject in subjects:
        encoder = open_encoder(subject.source, adapters=subject.adapters, **opening)
        scores = _scores(encoder, words, sentences)
        for table, score in zip(tables, scores, strict=True):
            table.add(subject.title, score, baseline=subject.baseline)
        if not subject.baseline:
            _analyse(encoder, subject.title, analyses, of_run=of_run)
        progress.advance(1)
    progress.finish()
    entries = [table.with_changes(of_run) for table in tables]
    return {"words": entries[: len(words)], "sentences": entries[len(words) :], **analyses}


def _scores(
    encoder: Encoder, words: Sequence[WordTask], sentences: Sequence[SentenceTask]
) -> list[ProbeResult | Score]:
    return [*_probed(words, encoder), *_similarities(sentences, encoder)]


def _efficiency(
    run: Path,
    words: Sequence[WordTask],
    sentences: Sequence[SentenceTask],
    opening: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """Scores of the encoders kept during training, by stage and step (paper, section 5)."""
    for stage, step, folder in _kept_checkpoints(run):
        encoder = open_encoder(str(folder), **opening)
        scores: dict[str, float] = {}
        for task in words:
            parts = (*with_development(task.train, ()), task.test)
            splits = [read_split(encoder, part, readings=("own",)) for part in parts]
            scores[task.name] = probe_splits(*splits, metric=task.metric).value
        for pairs, score in zip(sentences, _similarities(sentences, encoder), strict=True):
            scores[pairs.name] = score.value
        yield {"stage": stage, "step": step, "scores": scores}


def _kept_checkpoints(run: Path) -> list[tuple[str, int, Path]]:
    """Stage, step and folder of each encoder that was kept during training, in order."""
    found = []
    for folder in (stages_folder(run) / CHECKPOINTS).glob("[0-9]-*-*"):
        stage, _, step = folder.name.rpartition("-")
        found.append((stage, int(step), folder))
    return sorted(found)


def _provenance(run: Path) -> Mapping[str, Any]:
    if not (run / PROVENANCE_FILE).is_file():
        raise RunError(
            f"{run} is no finished conversion: there is no {PROVENANCE_FILE} in it; run "
            "`llm2vec convert`"
        )
    provenance: Mapping[str, Any] = read_json(run / PROVENANCE_FILE)
    if "recipe" not in provenance:
        raise RunError(
            f"{run} was made by `llm2vec import`, `merge` or `save`; a report is of a conversion"
        )
    return provenance


def _is_partial(provenance: Mapping[str, Any]) -> bool:
    """Whether a hybrid was converted by its attention layers alone."""
    return bool(provenance["recipe"].get("partial"))


def _training(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of each stage that was trained."""
    stages = provenance["stages"]
    return {stage["stage"]: stage["metrics"] for stage in stages if stage["metrics"]}


def _decoder(run: Path, provenance: Mapping[str, Any], named: str | None) -> str:
    """The name of the decoder that was converted, after a check that it is still the same one."""
    given = provenance["recipe"]["decoder"]
    relative = provenance.get("places", {}).get("decoder", given)
    name = named or _current_name(run, relative, given)
    try:
        found = Source.of(name).path
    except ModelError as error:
        raise ModelError(
            f"{error}; {run} was made from it, and the report compares with it: say --decoder "
            "where it is now"
        ) from error
    then = provenance["decoder"]
    if found is None:
        changed = not fingerprint.comparable(then) and then != name
    else:
        changed = fingerprint.comparable(then) and then != fingerprint.of_path(found)
    if changed:
        raise ModelError(
            f"{name} is not the decoder that {run} was made from, or its files have changed since: "
            "say --decoder where that one is"
        )
    return name


def _current_name(run: Path, relative: str, given: str) -> str:
    """The current name of a model that a run names.

    Args:
        run: Folder of the run.
        relative: Path of the model from that folder, which holds if both were moved together.
        given: Name that was given to the conversion, which holds if only the run was moved.
    """
    moved = resolved_name(run, relative)
    if Path(given).exists() and not Path(moved).exists():
        return given
    return moved


def _subjects(run: Path, decoder: str) -> list[_Subject]:
    """The causal decoder, each stage that was kept, and the encoder itself."""
    provenance = _provenance(run)
    stages = [stage["stage"] for stage in provenance["stages"]]
    adapters = _adapters(run, provenance)
    folders = {**_kept_stages(run), stages[-1]: run}
    subjects = [_Subject("Uni", f"{UNI}{decoder}")]
    for count, stage in enumerate(stages, start=1):
        title = _title(stages[:count], adapted=bool(adapters))
        if stage in folders:
            subjects.append(_Subject(title, str(folders[stage])))
        elif stage == "bi" and not _is_partial(provenance):
            subjects.append(_Subject(title, decoder, adapters))
    return subjects


def _adapters(run: Path, provenance: Mapping[str, Any]) -> tuple[str, ...]:
    """The current names of the adapters that were merged into the decoder."""
    given = provenance["recipe"].get("adapters", ())
    relative = provenance.get("places", {}).get("adapters", given)
    return tuple(_current_name(run, *names) for names in zip(relative, given, strict=True))


def _kept_stages(run: Path) -> dict[str, Path]:
    """The folder of each stage that was kept."""
    folders = [each for each in stages_folder(run).glob("[0-9]-*") if each.is_dir()]
    return {folder.name.partition("-")[2]: folder for folder in folders}


def _title(stages: Sequence[str], *, adapted: bool) -> str:
    """The paper's names of the stages behind a model, in order.

    Example:
        >>> _title(["bi", "simcse"], adapted=False)
        'Bi+SimCSE'
    """
    first, *others = (_TITLES[stage] for stage in stages)
    return "+".join([f"{first} with adapters" if adapted else first, *others])


def _short(baseline: str) -> str:
    return Path(baseline.removeprefix(AUTO)).name


def _word_entry(task: WordTask) -> dict[str, Any]:
    return {
        "task": task.name,
        "metric": task.metric,
        "data": task.data,
        "floors": floors(task.train, task.test, task.metric),
        "rows": [],
    }


def _sentence_entry(task: SentenceTask) -> dict[str, Any]:
    return {"task": task.name, "metric": "spearman", "data": task.data, "rows": []}


def _probed(tasks: Sequence[WordTask], encoder: Encoder) -> list[ProbeResult | Score]:
    """Probe an encoder on each task.

    Tasks over the same sentences share the states, and the reading that suits the first of them.
    """
    known: dict[int, Split] = {}
    results: list[ProbeResult | Score] = []
    for task in tasks:
        splits = []
        for part in (*with_development(task.train, ()), task.test):
            key = hash(tuple(sentence.words for sentence in part))
            if key not in known:
                known[key] = read_split(encoder, part)
            splits.append(replace(known[key], sentences=part))
        result = probe_splits(*splits, metric=task.metric)
        known = {key: _with_one_reading(split, result.reading) for key, split in known.items()}
        results.append(result)
    return results


def _with_one_reading(split: Split, reading: Reading) -> Split:
    return replace(split, vectors={reading: split.vectors[reading]})


def _similarities(tasks: Sequence[SentenceTask], encoder: Encoder) -> list[Score]:
    def embed(texts: Sequence[str], *, prompt: str | None = None) -> np.ndarray:
        return encoder.encode(list(texts), prompt=prompt, convert_to_numpy=True)

    return [sts(embed, task.path) for task in tasks]


def _with_floors(task: SentenceTask, decoder: str, opening: Mapping[str, Any]) -> _Measured:
    """A sentence task with its floors, and with untrained readings of the causal decoder."""
    table = _Measured(_sentence_entry(task))
    models: dict[str, tuple[str, str | None]] = {
        "tf-idf": (TFIDF, None),
        "random weights": (f"{RANDOM}{decoder}", None),
        "Uni, last token": (f"{UNI}{decoder}", "last"),
        _WEIGHTED: (f"{UNI}{decoder}", "weighted_mean"),
    }
    for title, prefix in zip(UNTRAINED, (PROMPT, ONE_EXAMPLE, ECHO), strict=True):
        models[title] = (f"{prefix}{decoder}", None)
    for title, (source, pooling) in models.items():
        try:
            embed = open_embedder(source, pooling=pooling, **opening)
        except NotConvertible:  # a hybrid's random weights are no floor of its converted half
            continue
        table.add(title, sts(embed, task.path), baseline=True)
    return table


def _changes(
    scores: Mapping[str, ProbeResult | Score], of_run: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Differences of each stage from Uni and from the stage before it, on the same resamples.

    The last stage is also compared with untrained readings of the causal decoder, if they were
    measured.
    """
    uni, *stages = of_run
    steps = [(uni, stage) for stage in stages] + list(pairwise(stages))
    steps += [(each, stages[-1]) for each in (_WEIGHTED, *UNTRAINED) if each in scores]
    for before, after in steps:
        difference = paired_difference(scores[after], scores[before])
        if difference is not None:
            yield {"before": before, "after": after, **difference.to_dict()}


def _analyse(
    encoder: Encoder, title: str, analyses: Mapping[str, list[Any]], *, of_run: Sequence[str]
) -> None:
    """Add a model's future tokens and geometry, and, of the first and last, its neighbours."""
    future = analysis.future_tokens(encoder, analysis.bundled_triples())
    summary = {"gap": future.gap, "right": future.right}
    analyses["future"].append({"model": title, **asdict(future), **summary})
    pairs = analysis.bundled_pairs()
    alike = [(first, second) for grade, first, second in pairs if grade >= _ALIKE]
    others = sorted({first for _, first, _ in pairs})
    geometry = analysis.geometry(encoder, alike, others)
    analyses["geometry"].append({"model": title, **asdict(geometry)})
    if title in (of_run[0], of_run[-1]):
        analyses["neighbours"].append({"model": title, "rows": _neighbours(encoder)})


def _neighbours(encoder: Encoder) -> list[dict[str, Any]]:
    """The nearest neighbours of the sentences that are shown."""
    texts = analysis.bundled_sentences()
    shown = [texts.index(text) for text in _SHOWN]
    rows = []
    for text, nearest in zip(_SHOWN, analysis.neighbours(encoder, texts, of=shown), strict=True):
        rows.append({"text": text, "near": [asdict(each) for each in nearest]})
    return rows


def _proofs(provenance: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The last proof of each kind, and the proof that the folder was read back."""
    found = {}
    for stage in provenance["stages"]:
        for proof in stage["switch"]["proofs"]:
            found[proof["name"]] = {"stage": stage["stage"], **proof}
    yield from found.values()
    yield {"stage": "encoder", **provenance["read_back"]}
