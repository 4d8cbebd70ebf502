"""Conversions that differ in one thing each, measured alike: what a knob, a corpus or a decoder is worth.

    python benchmarks/sweep.py benchmarks/knobs.yaml --out sweep [--data ../shared/data] [--seeds 42 43]

The file names what all share (`always`, a recipe laid over the preset `small`) and each variant's changes; the corpora
`openstax` and `mix` are real text: 20,000 paragraphs of 80 to 600 characters of textbooks, or of all that the bundled
decoder was trained on, in the same shares. Word level:
a linear probe on the first 3,000 training sentences, all test sentences, words read from their own tokens; sentence
level as `llm2vec evaluate`. Each
conversion's scores are kept in OUT, so a sweep that was stopped goes on; `--table` prints what is there.
"""

import argparse
import json
import random
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from gains import WORDS
from machine import heading

import llm2vec
from llm2vec.corpus.tagged import read_tagged
from llm2vec.evaluation.probe import probe
from llm2vec.evaluation.sentence_tasks import sts
from llm2vec.evaluation.subjects import open_embedder, open_encoder
from llm2vec.recipe.files import merged
from llm2vec.runtime.files import read_json, write_json

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from pretrain_decoder import SHARES, name_of, paragraphs

REAL = {"openstax": {"openstax": 1.0}, "mix": SHARES}
SENTENCES = 3000
TASKS = ("EWT POS", "CoNLL-2000 chunks")
STAGES = ("1-mntp", "2-simcse")


def scores(model: str, data: Path) -> dict[str, float]:
    """Of one model, each times 100."""
    found = {}
    for task in TASKS:
        train, test, column, metric = WORDS[task]
        sentences = read_tagged(data / train, column=column)[:SENTENCES]
        others = read_tagged(data / test, column=column)
        probed = probe(open_encoder(model), sentences, others, metric=metric, reading="own")
        found[task] = 100 * probed.value
    similar = sts(open_embedder(model), data / "sent" / "sts" / "stsb.test.tsv")
    return {**found, "STS-B": 100 * similar.value}


def real_text(name: str, arguments: argparse.Namespace) -> Path:
    """Paragraphs in a random order, in a file of OUT."""
    file: Path = arguments.out / f"{name}.txt"
    if not file.exists():
        kept: list[str] = []
        for path in sorted((arguments.data / "text").glob("*.txt*")):
            wanted = round(20_000 * REAL[name].get(name_of(path), 0))
            found = [text for text in paragraphs(path) if 80 < len(text) < 600] if wanted else []
            kept += random.Random(0).sample(found, min(wanted, len(found)))
        random.Random(0).shuffle(kept)
        file.write_text("\n".join(kept) + "\n", encoding="utf8")
    return file


def measure(name: str, recipe: Mapping[str, Any], seed: int, arguments: argparse.Namespace) -> None:
    """Convert and measure the decoder read causally, Bi, and each stage, unless that was done before."""
    decoder = recipe.get("decoder", "bundled")
    for plain in (f"uni:{decoder}", decoder):
        file = arguments.out / f"{plain.replace('/', '_')}.json"
        if not file.exists():
            write_json(file, scores(plain, arguments.data))
    file = arguments.out / f"{name} {seed}.json"
    if file.exists():
        return
    run = arguments.out / "run"
    if (source := recipe["corpus"].get("source")) in REAL:
        recipe = merged(recipe, {"corpus": {"source": str(real_text(source, arguments))}})
    chosen = llm2vec.Recipe.read({**recipe, "seed": seed})
    llm2vec.convert(chosen, run, keep_stages=True, start_over=True)
    stages = [run.with_name("run.stages") / stage for stage in STAGES]
    found: dict[str, Any] = {
        stage.name: scores(str(stage), arguments.data) for stage in stages if stage.is_dir()
    }
    training = {
        stage["stage"]: stage["metrics"] for stage in read_json(run / "provenance.json")["stages"]
    }
    held = [line["eval_accuracy"] for line in training.get("mntp", []) if "eval_accuracy" in line]
    write_json(file, {"scores": found, "masked accuracy": [100 * value for value in held]})
    print(name, seed, json.dumps(found), flush=True)


def table(sweep: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    """Means over the seeds that are there, and their extremes."""
    names = (*TASKS, "STS-B")
    print(heading())
    print(
        "| variant | stage | seeds | masked accuracy | "
        + " | ".join(names)
        + " |\n|"
        + " --- |" * (len(names) + 4)
    )
    for decoder in dict.fromkeys(
        {**sweep["always"], **each}.get("decoder", "bundled") for each in sweep["variants"].values()
    ):
        for title, plain in (("Uni", f"uni:{decoder}"), ("Bi", decoder)):
            file = arguments.out / f"{plain.replace('/', '_')}.json"
            if file.exists():
                cells = [f"{read_json(file)[each]:.1f}" for each in names]
                print(f"| {Path(decoder).name} | {title} | | | {' | '.join(cells)} |")
    for name in sweep["variants"]:
        found = [
            read_json(file)
            for seed in arguments.seeds
            if (file := arguments.out / f"{name} {seed}.json").exists()
        ]
        for stage in STAGES:
            rows = [each["scores"][stage] for each in found if stage in each["scores"]]
            if rows:
                held = (
                    statistics.mean(each["masked accuracy"][-1] for each in found)
                    if stage == STAGES[0]
                    else None
                )
                cells = [_spread([row[each] for row in rows]) for each in names]
                shown = "" if held is None else f"{held:.1f}"
                print(f"| {name} | {stage} | {len(rows)} | {shown} | {' | '.join(cells)} |")


def _spread(values: list[float]) -> str:
    extremes = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{extremes}"


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--table", action="store_true", help="only print what is there")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    sweep = yaml.safe_load(arguments.sweep.read_text(encoding="utf8"))
    for seed in arguments.seeds if not arguments.table else ():
        for name, changes in sweep["variants"].items():
            recipe = merged(llm2vec.preset("small"), sweep["always"], changes)
            measure(name, recipe, seed, arguments)
    table(sweep, arguments)


if __name__ == "__main__":
    main()
