"""What each stage of a conversion gains on real data: the table of docs/results.md.

    python benchmarks/gains.py --data ../shared/data --decoder bundled --stages demo/encoder.stages [--quick]

Word level: a linear probe, three seeds, 95% intervals over test sentences. Sentence level: as `llm2vec evaluate`.
"""

import argparse
import time
from pathlib import Path

from machine import heading

from llm2vec.evaluate.columns import read_tagged
from llm2vec.evaluate.models import open_embedder, open_encoder
from llm2vec.evaluate.probe import probe
from llm2vec.evaluate.sentences import classification, clustering, retrieval, sts

WORDS = {
    "EWT POS": ("word/ud_ewt/en_ewt-ud-train.conllu", "word/ud_ewt/en_ewt-ud-test.conllu", "upos", "accuracy"),
    "CoNLL-2000 chunks": ("word/conll2000/train.txt", "word/conll2000/test.txt", "-1", "accuracy"),
    "WNUT entities (F1)": ("word/wnut17/wnut17train.conll", "word/wnut17/emerging.test.annotated", "-1", "entity-f1"),
}
STS = ("stsb", "sts12", "sts13", "sts14", "sts15", "sts16")
CLASSES = ("trec6", "sst2", "banking77")


def main() -> None:
    """Measure every model on every set and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--decoder", default="bundled")
    parser.add_argument(
        "--stages", type=Path, nargs="+", default=[Path("demo/encoder.stages")], help="one for each seed"
    )
    parser.add_argument("--quick", action="store_true", help="word level and STS alone")
    arguments = parser.parse_args()
    models = {"Uni": f"uni:{arguments.decoder}"}
    for place in arguments.stages:
        mark = f" ({place.name.removesuffix('.stages')})" if len(arguments.stages) > 1 else ""
        named = {"0-bi": "Bi", "1-mntp": "Bi+MNTP", "2-simcse": "Bi+MNTP+SimCSE"}
        models |= {named[each.name] + mark: str(each) for each in sorted(place.glob("[0-9]-*"))}
    print(heading())
    words(models, arguments.data)
    sentences(models, arguments)


def words(models: dict[str, str], data: Path) -> None:
    """The word-level table."""
    sets = {
        name: [read_tagged(data / path, column=column) for path in paths] for name, (*paths, column, _) in WORDS.items()
    }
    print("| word level | " + " | ".join(sets) + " |\n|" + " --- |" * (len(sets) + 1))
    for name, model in models.items():
        encoder, cells = open_encoder(model), []
        for task, (train, test) in sets.items():
            started = time.perf_counter()
            found = probe(encoder, train, test, metric=WORDS[task][-1])
            spread = f"{found.low:.1%} to {found.high:.1%}, {found.reading}, {time.perf_counter() - started:.0f} s"
            cells.append(f"{found.value:.1%} ({spread})")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def sentences(models: dict[str, str], arguments: argparse.Namespace) -> None:
    """The sentence-level table, with floors."""
    folder = arguments.data / "sent"
    floors = {"tf-idf": "tfidf", "random weights": f"random:{arguments.decoder}"}
    rows = {name: (model, None) for name, model in {**models, **floors}.items()}
    rows["Uni, weighted mean"] = (f"uni:{arguments.decoder}", "weighted_mean")
    tasks = {"STS-B": lambda embed: sts(embed, folder / "sts" / "stsb.test.tsv").value}
    tasks["STS, mean of 6"] = lambda embed: (
        sum(sts(embed, folder / "sts" / f"{n}.test.tsv").value for n in STS) / len(STS)
    )
    if not arguments.quick:
        for name in CLASSES:
            paths = [folder / "classification" / f"{name}.{part}.jsonl" for part in ("test", "train")]
            tasks[name] = lambda embed, paths=paths: classification(embed, paths[0], train=paths[1]).value
        tasks["AG News clusters"] = lambda embed: clustering(embed, folder / "clustering" / "agnews8000.jsonl").value
        tasks["Cranfield nDCG@10"] = lambda embed: retrieval(embed, folder / "retrieval" / "cranfield").value
    print("\n| sentence level | " + " | ".join(tasks) + " |\n|" + " --- |" * (len(tasks) + 1))
    for name, (model, pooling) in rows.items():
        values = [f"{100 * task(open_embedder(model, pooling=pooling)):.1f}" for task in tasks.values()]
        print(f"| {name} | {' | '.join(values)} |", flush=True)


if __name__ == "__main__":
    main()
