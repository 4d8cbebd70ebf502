"""Kill a bulk run at random moments, go on each time, and compare its shards with an uninterrupted run's.

    python benchmarks/bulk_kills.py --kills 20

The same command is started again after every `kill -9`. In the end each row must be there once, with the same vector.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow
from machine import heading
from own_rows import write_rows
from pyarrow import parquet

from llm2vec.bulk.shards import shard_files

TOLERANCE = 1e-5


def command(source: Path, out: Path, model: str, shard_rows: int) -> list[str]:
    """The command that is killed and started again."""
    program = [sys.executable, "-m", "llm2vec", "encode", model, "--out", str(out)]
    columns = ["--file", str(source), "--text-column", "body", "--id-column", "id"]
    return [*program, *columns, "--shard-rows", str(shard_rows), "--json"]


def rows_of(folder: Path) -> pyarrow.Table:
    """All rows of all shards."""
    return pyarrow.concat_tables(parquet.read_table(path) for path in shard_files(folder).values())


def killed(line: list[str], after_s: float) -> bool:
    """Whether a run was killed so many seconds after its start, and had not ended before."""
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
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
    with tempfile.TemporaryDirectory() as folder:
        source, whole, parted = (Path(folder) / name for name in ("in.parquet", "whole", "parted"))
        write_rows(source, asked.rows)
        started = time.monotonic()
        subprocess.run(
            command(source, whole, asked.model, asked.shard_rows),
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        seconds = time.monotonic() - started
        line = command(source, parted, asked.model, asked.shard_rows)
        print(f"uninterrupted: {seconds:.1f} s, {len(shard_files(whole))} shards")
        for number in range(1, asked.kills + 1):
            after_s = chance.uniform(0.05, 0.3) * seconds
            what = "killed" if killed(line, after_s) else "had ended"
            done = len(shard_files(parted)) if parted.is_dir() else 0
            print(
                f"kill {number}: {what} after {after_s:.1f} s, {done} shards finished", flush=True
            )
        subprocess.run(line, check=True, stderr=subprocess.DEVNULL)
        compare(rows_of(whole), rows_of(parted))
        left = [path.name for path in parted.glob(".part-*")]
        print(f"files left over: {left or 'no'}")


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
