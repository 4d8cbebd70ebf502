"""Speed and loss of each export of an encoder, on the CPU, against the encoder itself.

    python benchmarks/exports.py ENCODER --pairs stsb.test.tsv --test banking.test.jsonl --train banking.train.jsonl

ENCODER is exported in every form and precision that can be written and opened here. Each encodes the first texts of the
test file in turns; then come the Spearman correlation with the pairs and the accuracy of a classifier (as in MTEB).
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from machine import heading

from llm2vec.encoder.encoder import Encoder
from llm2vec.errors import LLM2VecError
from llm2vec.evaluation.sentence_tasks import classification, sts
from llm2vec.serving.export.export import FORMS, export
from llm2vec.serving.export.form import Written

SOURCE = "source (PyTorch, float32)"


def opened(encoder: Encoder, source: str, forms: list[str], folder: Path) -> tuple[dict, dict]:
    """Ways to encode by name, with vectors of length 1, and the size of each in MB."""

    def embed(texts: list[str], *, prompt: str | None = None) -> np.ndarray:
        return encoder.encode(list(texts), prompt=prompt, normalize=True, convert_to_numpy=True)

    ways = {SOURCE: embed}
    sizes = {SOURCE: sum(weight.nbytes for weight in encoder.model.parameters()) / 1e6}
    for form in FORMS:
        for precision in form.precisions:
            name, place = f"{form.name}-{precision}", folder / f"{form.name}-{precision}"
            if forms and name not in forms:
                continue
            try:
                made = export(source, form.name, precision=precision, out=place)
            except LLM2VecError as error:
                print(f"{name}: {error}")
                continue
            way = form.open(place, Written(made.weights, facts=made.facts), encoder)
            ways[name] = of_length_one(way)
            sizes[name] = made.weights_bytes / 1e6
    return ways, sizes


def of_length_one(way: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """The same vectors, scaled: a classifier is regularised by their lengths."""

    def embed(texts: list[str], *, prompt: str | None = None) -> np.ndarray:
        vectors_BD = way(texts, prompt=prompt)
        lengths_B1 = np.linalg.norm(vectors_BD, axis=1, keepdims=True)
        return vectors_BD / np.maximum(lengths_B1, 1e-12)

    return embed


def seconds(ways: dict, texts: list[str], *, repeats: int) -> dict[str, tuple[float, float]]:
    """Least seconds of each way, by the clock and by the processor; they take turns."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            clock, processor = time.perf_counter(), time.process_time()
            way(texts)
            found[name].append((time.perf_counter() - clock, time.process_time() - processor))
    return {name: tuple(map(min, zip(*times, strict=True))) for name, times in found.items()}


def main() -> None:
    """Export, time, score, and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("encoder")
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--forms", nargs="*", default=[], help="such as onnx-int8; none: all")
    parser.add_argument("--texts", type=int, default=256)
    options = parser.parse_args()
    lines = options.test.read_text(encoding="utf8").splitlines()[: options.texts]
    texts = [json.loads(line)["text"] for line in lines]
    encoder = Encoder.from_pretrained(options.encoder, device="cpu", dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        ways, sizes = opened(encoder, options.encoder, options.forms, Path(folder))
        times = seconds(ways, texts, repeats=3)
        print(heading(), f"load {os.getloadavg()[0]:.1f}; {len(texts)} texts; best of 3 in turns")
        print("| form | MB | texts/s | processor ms/text | faster by it | STS-B | Banking77 |")
        for name, way in ways.items():
            clock, processor = times[name]
            similarity = sts(way, options.pairs).value
            accuracy = classification(way, options.test, train=options.train).value
            faster = times[SOURCE][1] / processor
            a_text_ms = 1000 * processor / len(texts)
            numbers = f"{sizes[name]:.1f} | {len(texts) / clock:,.0f} | {a_text_ms:.3g}"
            scores = f"{100 * similarity:.2f} | {100 * accuracy:.2f}"
            print(f"| {name} | {numbers} | {faster:.1f}x | {scores} |", flush=True)


if __name__ == "__main__":
    main()
