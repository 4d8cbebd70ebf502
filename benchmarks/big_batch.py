"""The memory of one supervised step with a big batch, read at once or part by part.

    python benchmarks/big_batch.py --data triples.jsonl [--batch-size 4096] [--part-tokens 4096]

`--part-tokens 0` reads the whole step at once. The memory is the largest of the whole process, Python and its libraries
included.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import heading


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--part-tokens", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=2)
    asked = parser.parse_args()
    knobs = {
        "steps": asked.steps,
        "batch_size": asked.batch_size,
        "part_tokens": asked.part_tokens or "null",
        "max_length": 128,
        "method": "full",
        "learning_rate": 1e-4,
        "log_every": 1,
        "corpus.source": asked.data,
        "corpus.negatives": 0,
    }
    sets = ["mntp.steps=0", "simcse.steps=0", "encoder.max_length=256"]
    sets += [f"supervised.{name}={value}" for name, value in knobs.items()]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "encoder"
        command = [sys.executable, "-m", "llm2vec", "convert", asked.model, "--out", str(out)]
        for each in sets:
            command += ["--set", each]
        subprocess.run(command, check=True, capture_output=True)
        stages = json.loads((out / "provenance.json").read_text(encoding="utf8"))["stages"]
    steps = [line for line in stages[-1]["metrics"] if "texts/s" in line]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print(heading())
    print(f"{asked.batch_size} pairs a step, {asked.part_tokens or 'all'} tokens at a time")
    print(f"largest memory {peak:.2f} GB; seconds a step:", end=" ")
    print(", ".join(f"{asked.batch_size / line['texts/s']:.0f}" for line in steps))


if __name__ == "__main__":
    main()
