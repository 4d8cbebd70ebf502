"""What bulk encoding costs as the work grows: processor time for each text and the peak of memory should stay flat.

    python benchmarks/bulk_growth.py --rows 1000 10000 100000

Each size runs in a process of its own, after a warm-up, on a file that another process wrote. Processor time is that
of the run without loading; memory is that of the whole process. Processor time depends less than seconds on what else
runs.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from machine import heading
from own_rows import write_rows

from llm2vec import Encoder
from llm2vec.bulk.run import encode_to_folder


def usage() -> tuple[float, float]:
    """Processor seconds of this process, and the peak of its memory in MB."""
    found = resource.getrusage(resource.RUSAGE_SELF)
    return found.ru_utime + found.ru_stime, found.ru_maxrss / 1000


def run(model: str, source: Path) -> None:
    """Encode a file, and print what it cost as JSON."""
    encoder = Encoder.from_pretrained(model)
    columns = {"column": "body", "id_column": "id"}
    with tempfile.TemporaryDirectory() as folder:
        warm = Path(folder) / "warm.parquet"
        write_rows(warm, 200)
        encode_to_folder(encoder, str(warm), Path(folder) / "warm", **columns)
        before, _ = usage()
        told = encode_to_folder(encoder, str(source), Path(folder) / "out", **columns)
        after, peak = usage()
    print(json.dumps({**asdict(told), "busy": after - before, "peak": peak}))


def main() -> None:
    """Run each size and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--source", type=Path, help="encode this file in this process; JSON")
    asked = parser.parse_args()
    if asked.source is not None:
        run(asked.model, asked.source)
        return
    print(heading())
    print("| rows | tokens | seconds | processor ms/text | peak memory, MB |")
    print("| --- | --- | --- | --- | --- |")
    for rows in asked.rows:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "in.parquet"
            write_rows(source, rows)
            line = [sys.executable, __file__, "--model", asked.model, "--source", source]
            done = subprocess.run(line, capture_output=True, text=True, check=True)
        told = json.loads(done.stdout)
        each = 1000 * told["busy"] / rows
        cells = f"{told['tokens']:,} | {told['seconds']:.1f} | {each:.3f} | {told['peak']:,.0f}"
        print(f"| {rows:,} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
