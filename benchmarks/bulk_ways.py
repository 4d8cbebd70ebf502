"""What a vector loses and costs: other batches, bfloat16, one text at a time, int8; on the texts of a file of pairs.

    python benchmarks/bulk_ways.py --pairs stsb.test.tsv [--model bundled]

The file has a score, a text and a text in each row, with tabs between. Processor time does not depend on what else the
machine does.
"""

import argparse
import resource
from collections.abc import Callable
from pathlib import Path

import torch
from machine import heading
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import normalize

from llm2vec import Encoder
from llm2vec.bulk.rows import BulkRow, Window
from llm2vec.bulk.vectors import VectorOptions, VectorTask


def busy() -> float:
    """Processor seconds of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def timed(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Processor seconds, and what came of them."""
    begun = busy()
    found = work()
    return busy() - begun, found


def vectors(encoder: Encoder, texts: list[str], **options: bool) -> Tensor:
    """Vectors of length 1 as a bulk run makes them."""
    task = VectorTask(encoder, VectorOptions(normalize=True, **options))
    rows = [BulkRow(number, "", text) for number, text in enumerate(texts)]
    made = task.finish(task.prepare(Window(0, rows)), id_type=None)
    return torch.tensor(made.table.column("vector").to_pylist())


def in_batches(encoder: Encoder, texts: list[str], most: int) -> Tensor:
    """Vectors of length 1, with so many tokens in a batch."""
    return normalize(encoder.encode_tokens(encoder.tokens(texts), max_tokens=most), dim=-1)


def main() -> None:
    """Print a table of ways."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--pairs", type=Path, required=True)
    asked = parser.parse_args()
    rows = [line.split("\t") for line in asked.pairs.read_text(encoding="utf8").splitlines()]
    scores = [float(row[0]) for row in rows]
    different = list(dict.fromkeys(text for row in rows for text in row[1:3]))
    place = {text: number for number, text in enumerate(different)}
    encoder = Encoder.from_pretrained(asked.model)
    print(heading())
    in_batches(encoder, different[:64], 1024)
    wanted = vectors(encoder, different)

    def told(name: str, seconds: float, found: Tensor) -> None:
        first, second = (found[[place[row[side]] for row in rows]] for side in (1, 2))
        rank = spearmanr((first * second).sum(-1).numpy(), scores).statistic
        cosine = (found * wanted).sum(-1).clamp(max=1)
        each = 1000 * seconds / len(different)
        apart = float((found - wanted).abs().max())
        cells = f"{each:.3f} | {100 * rank:.2f} | {apart:.1e} | {cosine.min():.5f}"
        print(f"| {name} | {cells} |", flush=True)

    print(f"{len(rows):,} pairs, {len(different):,} different texts\n")
    print("| way | processor ms/text | Spearman x 100 | largest difference | least cosine |")
    print("| --- | --- | --- | --- | --- |")
    for most in (1024, 64, 8192):
        told(f"{most:,} tokens a batch", *timed(lambda: in_batches(encoder, different, most)))  # noqa: B023
    told("deterministic", *timed(lambda: vectors(encoder, different, deterministic=True)))
    task = "int8 (with its making)"
    told(task, *timed(lambda: vectors(encoder, different, int8=True)))
    half = Encoder.from_pretrained(asked.model, dtype="bfloat16")
    told("bfloat16, 1,024 tokens", *timed(lambda: in_batches(half, different, 1024)))
    one, other = (in_batches(half, different, most) for most in (64, 8192))
    print(
        f"\nbfloat16 in batches of 64 and of 8,192 tokens: {float((one - other).abs().max()):.1e}"
    )


if __name__ == "__main__":
    main()
