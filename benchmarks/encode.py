"""Encoding: texts a second of `LLM2Vec.encode` against plain sentence-transformers on the same folder, and the limit.

    python benchmarks/encode.py [--model FOLDER] [--texts 2000]

Texts are the project's own sentences joined to lognormal lengths of 8 to 256 tokens. Both give the same vectors
(checked). The limit is what the machine's matrix products alone would take.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from machine import heading, in_turns
from sentence_transformers import SentenceTransformer

from llm2vec import LLM2Vec
from llm2vec.evaluation.analysis import BUNDLED_SETS


def realistic_texts(encoder: LLM2Vec, count: int) -> list[str]:
    """Sentences in a random order, cut where the drawn length is reached."""
    rows = map(
        json.loads, (BUNDLED_SETS / "words.train.jsonl").read_text(encoding="utf8").splitlines()
    )
    words = [word for row in rows for word in row["tokens"]]
    random = np.random.default_rng(0)
    texts = []
    for length in np.clip(random.lognormal(4, 0.8, size=count), 8, 256):
        start = int(random.integers(len(words)))
        chosen = [words[(start + place) % len(words)] for place in range(int(length))]
        ids = encoder.tokenizer(" ".join(chosen))["input_ids"][: int(length)]
        texts.append(encoder.tokenizer.decode(ids))
    return texts


def operations(encoder: LLM2Vec, tokens: int) -> float:
    """Floating-point operations of the matrix products."""
    matrices = sum(weight.numel() for weight in encoder.model.parameters() if weight.ndim == 2)
    embeddings = encoder.model.get_input_embeddings().weight.numel()
    return 2.0 * (matrices - embeddings) * tokens


def peak() -> float:
    """Operations a second of a large matrix product."""
    square = torch.ones(1024, 1024)
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        square @ square
        best = min(best, time.perf_counter() - started)
    return 2 * 1024**3 / best


def main() -> None:
    """Take turns, three times each, and print the best of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--texts", type=int, default=2000)
    arguments = parser.parse_args()
    ours = LLM2Vec.from_pretrained(arguments.model)
    with tempfile.TemporaryDirectory() as place:
        ours.save(Path(place) / "folder")
        theirs = SentenceTransformer(str(Path(place) / "folder"))
    texts = realistic_texts(ours, arguments.texts)
    tokens = sum(len(each.ids) for each in ours.tokens(texts))
    ways = {
        "llm2vec": lambda: ours.encode(texts, convert_to_numpy=True),
        "sentence-transformers": lambda: theirs.encode(
            texts, batch_size=32, show_progress_bar=False
        ),
    }
    seconds, vectors = in_turns(ways)
    if np.abs(vectors["llm2vec"] - vectors["sentence-transformers"]).max() > 1e-3:
        sys.exit("the two do not give the same vectors")
    print(heading())
    limit = operations(ours, tokens) / peak()
    print(f"{len(texts):,} texts, {tokens:,} tokens, {arguments.model}\n")
    print(
        "| way | seconds | texts/s | tokens/s | against sentence-transformers |\n| --- | --- | --- | --- | --- |"
    )
    for name, taken in [
        *((name, min(all_taken)) for name, all_taken in seconds.items()),
        ("matrix products alone", limit),
    ]:
        ratio = min(seconds["sentence-transformers"]) / taken
        print(
            f"| {name} | {taken:.2f} | {len(texts) / taken:,.0f} | {tokens / taken:,.0f} | {ratio:.2f}x |"
        )


if __name__ == "__main__":
    main()
