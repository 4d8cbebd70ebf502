"""What each stage of a conversion gains on real data: the table of docs/results.md.

    python benchmarks/gains.py --data ../shared/data --decoder bundled --stages demo/encoder.stages [--quick]

Word level: a linear probe, three seeds, 95% intervals over test sentences. Sentence level: as `llm2vec evaluate`.
"""

import argparse
import time
from pathlib import Path

from machine import heading

from llm2vec.corpus.tagged import read_tagged
from llm2vec.evaluation.probe import probe
from llm2vec.evaluation.sentence_tasks import classification, clustering, retrieval, sts
from llm2vec.evaluation.subjects import open_embedder, open_encoder
from llm2vec.evaluation.word_metrics import floors

WORDS = {
    "EWT POS": (
        "word/ud_ewt/en_ewt-ud-train.conllu",
        "word/ud_ewt/en_ewt-ud-test.conllu",
        "upos",
        "accuracy",
    ),
    "CoNLL-2000 chunks": ("word/conll2000/train.txt", "word/conll2000/test.txt", "-1", "accuracy"),
    "WNUT entities (F1)": (
        "word/wnut17/wnut17train.conll",
        "word/wnut17/emerging.test.annotated",
        "-1",
        "entity-f1",
    ),
}
STS = ("stsb", "sts12", "sts13", "sts14", "sts15", "sts16")
CLASSES = ("trec6", "sst2", "banking77")


NAMES = {"0-bi": "Bi", "1-mntp": "Bi+MNTP", "2-simcse": "Bi+MNTP+SimCSE"}


def main() -> None:
    """Measure every model on every set and print two tables; of several conversions, the mean and the extremes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--decoder", default="bundled")
    parser.add_argument(
        "--stages",
        type=Path,
        nargs="+",
        default=[Path("demo/encoder.stages")],
        help="one for each seed",
    )
    parser.add_argument(
        "--without",
        type=Path,
        nargs="+",
        default=[],
        help="stages of conversions without MNTP, one for each seed",
    )
    parser.add_argument("--quick", action="store_true", help="word level and STS alone")
    parser.add_argument("--only", choices=("words", "sentences"), help="one of the two tables")
    parser.add_argument(
        "--rows", nargs="+", help="these rows alone, to share the work among processes"
    )
    arguments = parser.parse_args()
    models = {"Uni": [f"uni:{arguments.decoder}"]}
    for name, title in NAMES.items():
        places = [place / name for place in arguments.stages if (place / name).is_dir()]
        if places:
            models[title] = [str(place) for place in (places[:1] if name == "0-bi" else places)]
    if without := [str(place / "2-simcse") for place in arguments.without]:
        models["Bi+SimCSE"] = without
    if arguments.rows:
        models = {name: places for name, places in models.items() if name in arguments.rows}
    print(heading())
    if arguments.only != "sentences":
        words(models, arguments.data)
    if arguments.only != "words":
        sentences(models, arguments)


def words(models: dict[str, list[str]], data: Path) -> None:
    """The word-level table, with floors."""
    sets = {
        name: [read_tagged(data / path, column=column) for path in paths]
        for name, (*paths, column, _) in WORDS.items()
    }
    print("| word level | " + " | ".join(sets) + " |\n|" + " --- |" * (len(sets) + 1))
    least = [floors(*parts, WORDS[name][-1]) for name, parts in sets.items()]
    for floor in least[0]:
        print(f"| {floor} | {' | '.join(f'{each[floor]:.1%}' for each in least)} |")
    for name, places in models.items():
        cells = []
        for task, (train, test) in sets.items():
            started = time.perf_counter()
            found = [
                probe(open_encoder(place), train, test, metric=WORDS[task][-1]) for place in places
            ]
            values = [each.value for each in found]
            low, high = (
                sum(each.low for each in found) / len(found),
                sum(each.high for each in found) / len(found),
            )
            spread = f"{low:.1%} to {high:.1%}{_extremes(values)}, {found[0].reading}"
            cells.append(
                f"{sum(values) / len(values):.1%} ({spread}, {time.perf_counter() - started:.0f} s)"
            )
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _extremes(values: list[float]) -> str:
    return f"; seeds {min(values):.1%} to {max(values):.1%}" if len(values) > 1 else ""


def sentences(models: dict[str, list[str]], arguments: argparse.Namespace) -> None:
    """The sentence-level table, with floors."""
    folder = arguments.data / "sent"
    rows: dict[str, tuple[list[str], str | None]] = {
        name: (places, None) for name, places in models.items()
    }
    rows["Uni, weighted mean"] = ([f"uni:{arguments.decoder}"], "weighted_mean")
    rows |= {"random weights": ([f"random:{arguments.decoder}"], None), "tf-idf": (["tfidf"], None)}
    if arguments.rows:
        rows = {name: row for name, row in rows.items() if name in arguments.rows}
    tasks = {"STS-B": lambda embed: sts(embed, folder / "sts" / "stsb.test.tsv").value}
    tasks["STS, mean of 6"] = lambda embed: (
        sum(sts(embed, folder / "sts" / f"{n}.test.tsv").value for n in STS) / len(STS)
    )
    if not arguments.quick:
        for name in CLASSES:
            paths = [
                folder / "classification" / f"{name}.{part}.jsonl" for part in ("test", "train")
            ]
            tasks[name] = lambda embed, paths=paths: (
                classification(embed, paths[0], train=paths[1]).value
            )
        for name in ("agnews8000", "stackoverflow_titles"):
            path = folder / "clustering" / f"{name}.jsonl"
            tasks[f"{name} clusters"] = lambda embed, path=path: clustering(embed, path).value
        for name in ("cranfield", "scifact"):
            path = folder / "retrieval" / name
            tasks[f"{name} nDCG@10"] = lambda embed, path=path: retrieval(embed, path).value
    print("\n| sentence level | " + " | ".join(tasks) + " |\n|" + " --- |" * (len(tasks) + 1))
    for name, (places, pooling) in rows.items():
        embedders = [open_embedder(place, pooling=pooling) for place in places]
        found = [[100 * task(embed) for embed in embedders] for task in tasks.values()]
        cells = [
            f"{sum(each) / len(each):.1f}"
            + (f" ({min(each):.1f} to {max(each):.1f})" * (len(each) > 1))
            for each in found
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
