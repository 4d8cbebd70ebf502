"""Kill a bulk run at random moments, go on each time, and compare its shards with an uninterrupted run's.

    python benchmarks/bulk_kills.py --kills 20

Every run is a process of its own, forked from one that has the encoder open, so that kills fall into the work and not
into the start of Python. In the end each row must be there once, with the same vector.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
from machine import heading
from own_rows import write_rows
from pyarrow import parquet

from llm2vec import Encoder
from llm2vec.bulk.run import Summary, encode_to_folder
from llm2vec.bulk.shards import shard_files

TOLERANCE = 1e-5


def rows_of(folder: Path) -> pyarrow.Table:
    """All rows of all shards."""
    return pyarrow.concat_tables(parquet.read_table(path) for path in shard_files(folder).values())


def started(work: Callable[[], object]) -> int:
    """A process that does this with the encoder that is open already; its id."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return child


def ended(child: int, within_s: float) -> bool:
    """Whether a process ends by itself in so many seconds; else it is killed."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def main() -> None:
    """Run, kill, go on, compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--shard-rows", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    print(heading())
    chance = random.Random(asked.seed)
    encoder = Encoder.from_pretrained(asked.model)
    with tempfile.TemporaryDirectory() as folder:
        source, whole, parted = (Path(folder) / name for name in ("in.parquet", "whole", "parted"))
        write_rows(source, asked.rows)

        def encode(out: Path) -> Summary:
            columns = {"column": "body", "id_column": "id"}
            return encode_to_folder(
                encoder, str(source), out, shard_rows=asked.shard_rows, **columns
            )

        begun = time.monotonic()
        os.waitpid(started(lambda: encode(whole)), 0)
        seconds = time.monotonic() - begun
        print(f"uninterrupted: {seconds:.1f} s, {len(shard_files(whole))} shards")
        for number in range(1, asked.kills + 1):
            after_s = chance.uniform(0.01, 2 / asked.kills) * seconds
            what = "had ended" if ended(started(lambda: encode(parted)), after_s) else "killed"
            done = len(shard_files(parted)) if parted.is_dir() else 0
            left = len(list(parted.glob(".part-*"))) if parted.is_dir() else 0
            print(
                f"kill {number}: {what} after {after_s:.2f} s, {done} shards finished, {left} begun"
            )
        summary = encode(parted)
        print(
            f"the last run found {summary.resumed} shards and made {summary.shards - summary.resumed}"
        )
        compare(rows_of(whole), rows_of(parted))
        left_over = [path.name for path in parted.glob(".part-*")]
        print(f"files left over: {left_over or 'none'}")


def compare(whole: pyarrow.Table, parted: pyarrow.Table) -> None:
    """Print whether both have the same rows once, and how far their vectors are apart."""
    numbers = parted.column("row").to_pylist()
    print(f"rows: {len(numbers):,}, twice: {len(numbers) - len(set(numbers))}")
    same = all(whole.column(name) == parted.column(name) for name in ("row", "id", "text"))
    vectors = (np.array(table.column("vector").to_pylist()) for table in (whole, parted))
    apart = np.abs(next(vectors) - next(vectors)).max()
    print(f"the same rows, ids and texts: {same}; largest difference of a number: {apart:.1e}")
    if not same or apart > TOLERANCE:
        sys.exit("the runs differ")


if __name__ == "__main__":
    main()
