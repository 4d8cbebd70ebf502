"""What a conversion gained, measured in one go: the facts behind `llm2vec report`, as plain data.

The decoder read causally (Uni), each stage of the run, and other encoders go through the same small sets, which are the
project's own unless the user names others. `page` turns the facts into something to look at.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from llm2vec.backbone.source import Source, resolved_name
from llm2vec.conversion.run_folder import stages_folder
from llm2vec.corpus.tagged import TaggedSentence, read_tagged
from llm2vec.encoder.encoder import Encoder
from llm2vec.encoder.folder import CHECKPOINTS, PROVENANCE_FILE
from llm2vec.errors import ModelError, RunError
from llm2vec.evaluation import analysis
from llm2vec.evaluation.analysis import BUNDLED_SETS
from llm2vec.evaluation.bootstrap import paired_difference
from llm2vec.evaluation.probe import ProbeResult, Split, probe_splits, read_split, with_development
from llm2vec.evaluation.sentence_tasks import Score, sts
from llm2vec.evaluation.subjects import (
    AUTO,
    RANDOM,
    TFIDF,
    UNI,
    Embedder,
    open_embedder,
    open_encoder,
)
from llm2vec.evaluation.word_metrics import Metric, floors
from llm2vec.runtime import fingerprint
from llm2vec.runtime.files import read_json
from llm2vec.runtime.progress import Progress, Silent

_TITLES = {"bi": "Bi", "mntp": "MNTP", "simcse": "SimCSE", "supervised": "supervised"}
"""Stages and what the paper calls them."""

_ALIKE = 4.0
"""Pairs graded so or higher (of 5) mean the same."""

_WEIGHTED = "Uni, weighted mean"
"""The causal decoder's better pooling."""

_SHOWN = (
    "My sister sings in a choir.",
    "The coach shouted at the referee.",
    "I have had a sore throat for a week.",
)
"""Sentences whose neighbours are shown."""


@dataclass(frozen=True)
class WordTask:
    """A word-level measurement.

    Attributes:
        name: What is labelled.
        train, test: Sentences with labels.
        metric: Accuracy, or F1 of entities.
        data: What the sentences are, for the reader.
    """

    name: str
    train: Sequence[TaggedSentence]
    test: Sequence[TaggedSentence]
    metric: Metric
    data: str


@dataclass(frozen=True)
class SentenceTask:
    """Graded pairs: a name, the file, and what it is."""

    name: str
    path: Path
    data: str


@dataclass(frozen=True)
class _Subject:
    """A model that is measured.

    Attributes:
        title: What was done to the decoder.
        source: What opens it.
        adapters: Merged into it then.
    """

    title: str
    source: str
    adapters: tuple[str, ...] = ()


def bundled_words() -> list[WordTask]:
    """Part-of-speech, chunks and entities of the project's own sentences."""
    kinds: dict[str, tuple[str, Metric]] = {
        "part-of-speech": ("pos", "accuracy"),
        "chunks": ("chunks", "accuracy"),
        "entities": ("entities", "entity-f1"),
    }
    tasks = []
    for name, (column, metric) in kinds.items():
        train, test = (
            read_tagged(BUNDLED_SETS / f"words.{part}.jsonl", column=column)
            for part in ("train", "test")
        )
        about = f"bundled, small: {len(train)} sentences to train on, {len(test)} to test on"
        tasks.append(WordTask(name, train, test, metric, about))
    return tasks


def bundled_sentences() -> list[SentenceTask]:
    """The project's own graded pairs."""
    path = BUNDLED_SETS / "pairs.jsonl"
    return [
        SentenceTask("similarity", path, f"bundled, small: {len(analysis.bundled_pairs())} pairs")
    ]


def measure(
    run: Path,
    *,
    decoder: str | None = None,
    baselines: Sequence[str] = (),
    words: Sequence[WordTask] | None = None,
    sentences: Sequence[SentenceTask] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure everything the report shows.

    Args:
        run: An encoder folder that `convert` made; its stages are measured where they were kept.
        decoder: The decoder it was made from, where it is not where the run's folder says; None: it is.
        baselines: Other encoders by name (`auto:NAME`, or a folder), shown as dashed lines.
        words: Word-level tasks; None: the bundled ones.
        sentences: Graded pairs; None: the bundled ones.
        progress: Told of each model.

    Returns:
        Plain data for JSON; `docs/evaluate.md` says what is in it.

    Raises:
        RunError: The folder is no finished run.
        ModelError: The decoder it was made from is gone, or is another one now.
    """
    provenance = _provenance(run)
    decoder = _decoder(run, provenance, decoder)
    words = bundled_words() if words is None else words
    sentences = bundled_sentences() if sentences is None else sentences
    report = _empty_report(words, sentences)
    subjects = _subjects(run, decoder)
    others = [_Subject(_short(each), each) for each in baselines]
    _measure_all(report, words, sentences, subjects, others, decoder, progress or Silent())
    similarity = analysis.layer_similarity(decoder)
    trained = [stage for stage in provenance["stages"] if stage["metrics"]]
    return {
        "encoder": run.name,
        "decoder": str(decoder),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        **report,
        "efficiency": list(_efficiency(run, words[:1], sentences[:1])),
        "layers": {"cosine_LT": similarity.cosine_LT, "by_layer": similarity.by_layer},
        "training": {stage["stage"]: stage["metrics"] for stage in trained},
        "proofs": list(_proofs(provenance)),
        "run": {key: provenance[key] for key in ("recipe", "versions", "machine", "corpora")},
    }


def _empty_report(words: Sequence[WordTask], sentences: Sequence[SentenceTask]) -> dict[str, Any]:
    return {
        "words": list(map(_head, words)),
        "sentences": list(map(_sentence_head, sentences)),
        "future": [],
        "geometry": [],
        "neighbours": [],
    }


def _measure_all(
    report: dict[str, Any],
    words: Sequence[WordTask],
    sentences: Sequence[SentenceTask],
    subjects: Sequence[_Subject],
    others: Sequence[_Subject],
    decoder: str,
    progress: Progress,
) -> None:
    """Measure each subject on each task into the report's entries, then the changes between them."""
    entries = [*report["words"], *report["sentences"]]
    measured: list[dict[str, ProbeResult | Score]] = [{} for _ in entries]
    _measure_floors(report["sentences"], measured[len(words) :], sentences, decoder)
    names = [each.title for each in subjects]
    ends = (names[0], names[-1])
    everybody = [*subjects, *others]
    progress.start("measuring", total=len(everybody))
    for subject in everybody:
        title, is_baseline = subject.title, subject in others
        encoder = open_encoder(subject.source, adapters=subject.adapters)
        values = _values(encoder, words, sentences)
        for entry, known, value in zip(entries, measured, values, strict=True):
            known[title] = value
            entry["rows"].append({**_row(title, value), "baseline": is_baseline})
        if not is_baseline:
            _analyse(report, encoder, title, near=title in ends)
        progress.advance(1)
    progress.finish()
    for entry, known in zip(entries, measured, strict=True):
        entry["changes"] = list(_changes(known, names))


def _values(
    encoder: Encoder, words: Sequence[WordTask], sentences: Sequence[SentenceTask]
) -> list[ProbeResult | Score]:
    scores = [sts(_embedder(encoder), task.path) for task in sentences]
    return [*_probed(words, encoder), *scores]


def _efficiency(
    run: Path, words: Sequence[WordTask], sentences: Sequence[SentenceTask]
) -> Iterator[dict[str, Any]]:
    """Scores of the encoders kept along the way, by stage and step (paper, section 5); the first task of each kind."""
    folders = stages_folder(run) / CHECKPOINTS
    kept = [(each.name.rpartition("-"), each) for each in folders.glob("[0-9]-*-*")]
    for (stage, _, step), folder in sorted(kept, key=lambda each: (each[0][0], int(each[0][2]))):
        encoder = open_encoder(str(folder))
        found: dict[str, float] = {}
        for task in words:
            train, dev = with_development(task.train, ())
            splits = [
                read_split(encoder, part, readings=("own",)) for part in (train, dev, task.test)
            ]
            found[task.name] = probe_splits(*splits, metric=task.metric).value
        found |= {task.name: sts(_embedder(encoder), task.path).value for task in sentences}
        yield {"stage": stage, "step": int(step), "scores": found}


def _provenance(run: Path) -> Mapping[str, Any]:
    if not (run / PROVENANCE_FILE).is_file():
        raise RunError(
            f"{run} is no finished conversion: there is no {PROVENANCE_FILE} in it; run `llm2vec convert`"
        )
    provenance: Mapping[str, Any] = read_json(run / PROVENANCE_FILE)
    if "recipe" not in provenance:
        raise RunError(f"{run} was made by `llm2vec import` or `save`; a report is of a conversion")
    return provenance


def _decoder(run: Path, provenance: Mapping[str, Any], named: str | None) -> str:
    """The name of the decoder that a run was made from, after a look whether it is still that one."""
    given = provenance["recipe"]["decoder"]
    seen = provenance.get("places", {}).get("decoder", given)
    name = named or _where_now(run, seen, given)
    try:
        found = Source.of(name).path
    except ModelError as error:
        raise ModelError(
            f"{error}; {run} was made from it, and the report compares with it: say --decoder where it is now"
        ) from error
    was = provenance["decoder"]
    if found is None:
        changed = not fingerprint.comparable(was) and was != name
    else:
        changed = fingerprint.comparable(was) and was != fingerprint.of_path(found)
    if changed:
        raise ModelError(
            f"{name} is not the decoder that {run} was made from, or its files have changed since: say --decoder "
            "where that one is"
        )
    return name


def _where_now(run: Path, seen: str, given: str) -> str:
    """Where a model is that a run names: as seen from the run, or as it was given if the run was moved alone."""
    told = resolved_name(run, seen)
    return given if Path(given).exists() and not Path(told).exists() else told


def _subjects(run: Path, decoder: str) -> list[_Subject]:
    """Uni, Bi, each stage that is there, and the encoder itself, called what was done."""
    provenance = _provenance(run)
    made = [stage["stage"] for stage in provenance["stages"]]
    given = provenance["recipe"].get("adapters", ())
    seen = provenance.get("places", {}).get("adapters", given)
    adapters = tuple(_where_now(run, *each) for each in zip(seen, given, strict=True))
    folders = {"bi": (decoder, adapters), **_kept_stages(run)}
    folders[made[-1]] = (str(run), ())
    subjects = [_Subject("Uni", f"{UNI}{decoder}")]
    for place_of, stage in enumerate(made):
        if stage in folders:
            title = _title(made[: place_of + 1], adapted=bool(adapters))
            subjects.append(_Subject(title, *folders[stage]))
    return subjects


def _kept_stages(run: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    """The folder of each stage that was kept; no adapter is to be merged into them."""
    return {
        folder.name.partition("-")[2]: (str(folder), ())
        for folder in stages_folder(run).glob("[0-9]-*")
        if folder.is_dir()
    }


def _title(stages: Sequence[str], *, adapted: bool) -> str:
    """What was done, in order.

    Example:
        >>> _title(["bi", "simcse"], adapted=False)
        'Bi+SimCSE'
    """
    first, *others = (_TITLES[stage] for stage in stages)
    return "+".join([f"{first} with adapters" if adapted else first, *others])


def _short(baseline: str) -> str:
    return Path(baseline.removeprefix(AUTO)).name


def _head(task: WordTask) -> dict[str, Any]:
    least = floors(task.train, task.test, task.metric)
    return {
        "task": task.name,
        "metric": task.metric,
        "data": task.data,
        "floors": least,
        "rows": [],
    }


def _sentence_head(task: SentenceTask) -> dict[str, Any]:
    return {"task": task.name, "metric": "spearman", "data": task.data, "rows": []}


def _probed(tasks: Sequence[WordTask], encoder: Encoder) -> list[ProbeResult]:
    """Probe an encoder on each task; tasks over the same sentences share the states, and the reading of the first."""
    read: dict[int, Split] = {}
    found = []
    for task in tasks:
        splits = []
        train, dev = with_development(task.train, ())
        for part in (train, dev, task.test):
            key = hash(tuple(sentence.words for sentence in part))
            read[key] = replace(
                read[key] if key in read else read_split(encoder, part), sentences=part
            )
            splits.append(read[key])
        found.append(probe_splits(*splits, metric=task.metric))
        read = {key: _only(split, found[-1].reading) for key, split in read.items()}
    return found


def _only(split: Split, reading: Any) -> Split:
    return replace(split, vectors={reading: split.vectors[reading]})


def _measure_floors(
    entries: Sequence[dict[str, Any]],
    measured: Sequence[dict[str, ProbeResult | Score]],
    tasks: Sequence[SentenceTask],
    decoder: str,
) -> None:
    """Each sentence task with what knows nothing, and the causal decoder's better pooling."""
    known: dict[str, tuple[str, str | None]] = {
        "tf-idf": (TFIDF, None),
        "random weights": (f"{RANDOM}{decoder}", None),
        _WEIGHTED: (f"{UNI}{decoder}", "weighted_mean"),
    }
    for entry, values, task in zip(entries, measured, tasks, strict=True):
        for name, (source, pooling) in known.items():
            values[name] = sts(open_embedder(source, pooling=pooling), task.path)
            entry["rows"].append({**_row(name, values[name]), "baseline": True})


def _changes(
    measured: Mapping[str, ProbeResult | Score], names: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Each stage against Uni and against the stage before it, on the same draws of the test items.

    The last is also compared with the causal decoder's better pooling, where that was measured.
    """
    uni, *stages = names
    steps = [(uni, stage) for stage in stages] + list(pairwise(stages))
    if _WEIGHTED in measured:
        steps.append((_WEIGHTED, stages[-1]))
    for before, after in steps:
        found = paired_difference(measured[after], measured[before])
        if found is not None:
            yield {"before": before, "after": after, **found.to_dict()}


def _row(name: str, found: ProbeResult | Score) -> dict[str, Any]:
    reading = (
        {"reading": found.reading, "seeds": found.seeds} if isinstance(found, ProbeResult) else {}
    )
    return {"model": name, "value": found.value, "low": found.low, "high": found.high, **reading}


def _embedder(encoder: Encoder) -> Embedder:
    return lambda texts, prompt=None: encoder.encode(
        list(texts), prompt=prompt, convert_to_numpy=True
    )


def _analyse(report: dict[str, Any], encoder: Encoder, name: str, *, near: bool) -> None:
    """Future tokens, geometry and, for the first and the last model, neighbours."""
    future = analysis.future_tokens(encoder, analysis.bundled_triples())
    report["future"].append(
        {"model": name, **asdict(future), "gap": future.gap, "right": future.right}
    )
    pairs = analysis.bundled_pairs()
    alike = [(first, second) for score, first, second in pairs if score >= _ALIKE]
    spread = analysis.geometry(encoder, alike, sorted({first for _, first, _ in pairs}))
    report["geometry"].append({"model": name, **asdict(spread)})
    if near:
        texts = analysis.bundled_sentences()
        found = analysis.neighbours(encoder, texts, of=[texts.index(text) for text in _SHOWN])
        rows = [
            {"text": text, "near": [asdict(each) for each in nearest]}
            for text, nearest in zip(_SHOWN, found, strict=True)
        ]
        report["neighbours"].append({"model": name, "rows": rows})


def _proofs(provenance: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The last stage's proofs of each kind, and the read-back."""
    found = {}
    for stage in provenance["stages"]:
        for proof in stage["switch"]["proofs"]:
            found[proof["name"]] = {"stage": stage["stage"], **proof}
    yield from found.values()
    yield {"stage": "encoder", **provenance["read_back"]}
