"""What bulk encoding costs as the work grows: seconds for each text and the peak of memory, which should stay flat.

    python benchmarks/bulk_growth.py --rows 1000 10000 100000

Each size runs in a process of its own. Loading the model is not counted in seconds, but in memory. Processor time does
not depend on what else the machine does; that of loading is measured by the same command once more, which finds all
finished, and is taken off.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import heading
from own_rows import write_rows


def measured(line: list[str]) -> tuple[dict, float, float]:
    """What a command says, its processor time in seconds, and the peak of its memory in MB."""
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(line)} failed")
    return json.loads(said), usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


def main() -> None:
    """Run each size and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("options", nargs="*", help="more options of `llm2vec encode`, after --")
    asked = parser.parse_args()
    print(heading())
    print("| rows | seconds | tokens/s | processor ms/text | peak memory, MB |")
    print("| --- | --- | --- | --- | --- |")
    for rows in asked.rows:
        with tempfile.TemporaryDirectory() as folder:
            source, out = Path(folder) / "in.parquet", Path(folder) / "out"
            write_rows(source, rows)
            line = [sys.executable, "-m", "llm2vec", "encode", asked.model, "--file", str(source)]
            line += ["--text-column", "body", "--id-column", "id", "--out", str(out), "--json"]
            told, busy, peak = measured([*line, *asked.options])
            _, loading, _ = measured([*line, *asked.options])
        each = 1000 * (busy - loading) / rows
        speed = told["tokens"] / told["seconds"]
        cells = f"{told['seconds']:.1f} | {speed:,.0f} | {each:.3f} | {peak:,.0f}"
        print(f"| {rows:,} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
