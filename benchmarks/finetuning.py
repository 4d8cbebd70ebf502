"""Does the conversion save labels? Fine-tuning from a causal decoder and from each stage, with few and more labels.

    python benchmarks/finetuning.py --starts uni:bundled bundled encoder.stages/1-mntp encoder.stages/2-simcse \
        --train en_ewt-ud-train.conllu --test en_ewt-ud-test.conllu --sizes 100 1000 --seeds 42 43 --out scores

Every start sees the same sentences in a seed; a tenth of them stops the training. Scores are of the
test file, with the paired interval of the difference from the first start over the same resamples of
test sentences and all seeds. A run that was measured is not run again.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import get_args

import numpy as np

from llm2vec.corpus.tagged import TaggedSentence, has_scheme, read_tagged
from llm2vec.evaluation.bootstrap import interval
from llm2vec.evaluation.word_metrics import resampled_values, sentence_counts, value
from llm2vec.finetuning.finetune import train_tagger
from llm2vec.finetuning.folder import open_tagger
from llm2vec.finetuning.recipe import LEARNING_RATES, FinetuneRecipe, ReadAt


def main() -> None:
    """Train and measure what is asked for, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--starts", nargs="+", required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--column")
    parser.add_argument("--sizes", nargs="+", type=int, default=[100, 1000])
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 43])
    parser.add_argument("--test-sentences", type=int)
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--method", choices=tuple(LEARNING_RATES), default="lora")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--read-at", choices=get_args(ReadAt), default="auto")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    train = read_tagged(options.train, column=options.column)
    test = read_tagged(options.test, column=options.column)[: options.test_sentences]
    for size in options.sizes:
        for start in options.starts:
            for seed in options.seeds:
                measure(start, train, test, size, seed, options)
        show(size, options)


def measure(start, train, test, size, seed, options) -> None:
    """Train on a draw of sentences and keep the counts of the test sentences."""
    name = f"{start.replace('/', '_')}-{size}-{seed}"
    file = options.out / f"{name}.npz"
    if file.exists():
        return
    chosen = drawn(train, size, seed)
    development = chosen[::10]
    rest = [each for index, each in enumerate(chosen) if index % 10]
    folder = options.out / name
    recipe = FinetuneRecipe(
        epochs=options.epochs,
        method=options.method,
        learning_rate=options.learning_rate or LEARNING_RATES[options.method],
        read_at=options.read_at,
    )
    trained = train_tagger(start, rest, development, out=folder, recipe=recipe, seed=seed)
    tags = [each.tags for each in tagged(folder, test)]
    metric = "entity-f1" if has_scheme({tag for each in test for tag in each.tags}) else "accuracy"
    counts = sentence_counts(test, tags, metric)
    shutil.rmtree(folder)
    np.savez(file, counts=counts, steps=trained.steps)
    print(json.dumps({"run": name, "metric": metric, "value": value(counts)}), flush=True)


def drawn(train, size, seed) -> list[TaggedSentence]:
    """The sentences of a seed; a smaller draw is the beginning of a larger one."""
    order = np.random.default_rng(seed).permutation(len(train))
    return [train[index] for index in order[:size]]


def tagged(folder, test) -> list[TaggedSentence]:
    """The test sentences with the labels that the tagger gives; `O` where it gives none."""
    read = open_tagger(folder).read([each.words for each in test])
    return [TaggedSentence(each.words, tuple(tag or "O" for tag in each.tags)) for each in read]


def show(size, options) -> None:
    """A line for each start: the mean over seeds, and the paired difference from the first start."""
    first = None
    for start in options.starts:
        name = start.replace("/", "_")
        files = [options.out / f"{name}-{size}-{seed}.npz" for seed in options.seeds]
        counts_KS3 = np.stack([np.load(file)["counts"] for file in files])
        values = [value(counts) for counts in counts_KS3]
        over_draws = resampled_values(counts_KS3)
        first = over_draws if first is None else first
        low, high = interval(over_draws)
        less, more = interval(over_draws - first)
        mean = np.mean(values)
        print(
            f"{size} {start}: {100 * mean:.1f} ({100 * low:.1f} to {100 * high:.1f}; seeds "
            f"{100 * min(values):.1f} to {100 * max(values):.1f}), from the first "
            f"{100 * (mean - np.mean(first)):+.1f} ({100 * less:.1f} to {100 * more:.1f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
