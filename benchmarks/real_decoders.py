"""Real decoders on real data, one score at a time: the first tables of docs/results.md.

    python benchmarks/real_decoders.py models.yaml --out scores [--data ../shared/data] [--tasks STS-B "EWT POS"]

The file names models by the titles that the table shows, in its order; the first is the one that the others are set
against. A model is what `llm2vec evaluate` takes, or a mapping with `model` and `pooling`. A score is kept as soon as
it is there, with its value on every draw of the test items, so a run that was stopped goes on and several may share a
folder; `--table` prints what is there.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import yaml
from machine import heading

from llm2vec.corpus.tagged import read_tagged
from llm2vec.evaluation.bootstrap import paired_difference
from llm2vec.evaluation.probe import probe
from llm2vec.evaluation.sentence_tasks import classification, sts
from llm2vec.evaluation.subjects import TFIDF, open_embedder, open_encoder
from llm2vec.runtime.files import read_json, write_json

SENTENCES = 2500
"""Training sentences of a probe."""

WORDS = {
    "EWT POS": (
        "ud_ewt/en_ewt-ud-train.conllu",
        "ud_ewt/en_ewt-ud-test.conllu",
        "upos",
        "accuracy",
    ),
    "CoNLL-2000 chunks": ("conll2000/train.txt", "conll2000/test.txt", "-1", "accuracy"),
    "WNUT entities": (
        "wnut17/wnut17train.conll",
        "wnut17/emerging.test.annotated",
        "-1",
        "entity-f1",
    ),
}
CLASSES = {"Banking77": ("banking77", 20), "TREC": ("trec6", 100)}
"""Files, and how many training texts of each label are encoded, to draw from."""


def words(task: str, model: Mapping[str, Any], arguments: argparse.Namespace) -> Any:
    """A linear probe on the first training sentences and all test sentences."""
    train, test, column, metric = WORDS[task]
    folder = arguments.data / "word"
    sentences = read_tagged(folder / train, column=column)[:SENTENCES]
    others = read_tagged(folder / test, column=column)
    return probe(open_encoder(model["model"]), sentences, others, metric=metric)


def similarity(_: str, model: Mapping[str, Any], arguments: argparse.Namespace) -> Any:
    """Spearman correlation on the test set."""
    embed = open_embedder(model["model"], pooling=model.get("pooling"))
    return sts(embed, arguments.data / "sent" / "sts" / "stsb.test.tsv")


def classes(task: str, model: Mapping[str, Any], arguments: argparse.Namespace) -> Any:
    """Logistic regression on eight texts a label, ten draws."""
    name, texts = CLASSES[task]
    folder = arguments.data / "sent" / "classification"
    embed = open_embedder(model["model"], pooling=model.get("pooling"))
    train = first_of_each_label(folder / f"{name}.train.jsonl", texts, arguments.out)
    return classification(embed, folder / f"{name}.test.jsonl", train=train)


TASKS: dict[str, Callable[[str, Mapping[str, Any], argparse.Namespace], Any]] = {
    "STS-B": similarity,
    "EWT POS": words,
    "TREC": classes,
    "CoNLL-2000 chunks": words,
    "Banking77": classes,
    "WNUT entities": words,
}


def first_of_each_label(file: Path, count: int, out: Path) -> Path:
    """The first texts of each label, in a file of their own."""
    place = out / f"{count} of {file.name}"
    if not place.exists():
        seen: Counter[str] = Counter()
        kept = []
        for line in file.read_text(encoding="utf8").splitlines():
            label = str(json.loads(line)["label"])
            seen[label] += 1
            if seen[label] <= count:
                kept.append(line + "\n")
        place.write_text("".join(kept), encoding="utf8")
    return place


def place_of(title: str, task: str, out: Path) -> Path:
    """Where a score is kept."""
    return out / f"{title} - {task}.json"


def measure(title: str, model: Mapping[str, Any], task: str, arguments: argparse.Namespace) -> None:
    """Measure a model on a task, unless that was done before or makes no sense."""
    file = place_of(title, task, arguments.out)
    reads_words = TASKS[task] is words
    if file.exists() or (reads_words and (model["model"] == TFIDF or "pooling" in model)):
        return
    found = TASKS[task](task, model, arguments)
    kept = {**found.to_dict(), "resampled": found.resampled.tolist(), "model": model}
    write_json(file, kept)
    print(f"{title}, {task}: {100 * found.value:.1f}", flush=True)


def table(models: Mapping[str, Mapping[str, Any]], arguments: argparse.Namespace) -> None:
    """Values with their intervals, and differences from the first model on the same draws."""
    print(heading())
    tasks = [task for task in TASKS if task in arguments.tasks]
    print(f"| x 100 | {' | '.join(tasks)} |\n|{' --- |' * (len(tasks) + 1)}")
    first = next(iter(models))
    for title in models:
        cells = [cell(title, first, task, arguments.out) for task in tasks]
        print(f"| {title} | {' | '.join(cells)} |")


def cell(title: str, first: str, task: str, out: Path) -> str:
    """A value, its reading or interval, and how far it is from the first model's."""
    files = [place_of(name, task, out) for name in (title, first)]
    if not files[0].exists():
        return ""
    one, *other = [_measured(read_json(file)) for file in files if file.exists()]
    shown = f"{100 * one.value:.1f} ({100 * one.low:.1f} to {100 * one.high:.1f})"
    if getattr(one, "reading", "own") != "own":
        shown += f", read {one.reading}"
    if title == first or not other or (found := paired_difference(one, other[0])) is None:
        return shown
    return f"{shown}; {100 * found.value:+.1f} ({100 * found.low:.1f} to {100 * found.high:.1f})"


def _measured(kept: Mapping[str, Any]) -> Any:
    return SimpleNamespace(**{**kept, "resampled": np.array(kept["resampled"])})


def main() -> None:
    """Measure what is missing, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--only", nargs="+", help="titles of the models to measure now")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    given = yaml.safe_load(arguments.models.read_text(encoding="utf8"))
    models = {
        title: model if isinstance(model, Mapping) else {"model": model}
        for title, model in given.items()
    }
    for task in () if arguments.table else arguments.tasks:
        for title in arguments.only or models:
            measure(title, models[title], task, arguments)
    table(models, arguments)


if __name__ == "__main__":
    main()
