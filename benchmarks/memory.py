"""The memory that `llm2vec info` estimates for a stage, against the peak of a process that runs it.

    python benchmarks/memory.py [--decoders tests/assets/decoders/qwen3 bundled FOLDER]

Each stage runs two steps in a process of its own, in blocks and texts that are as long as the
recipe allows. The memory is the peak of the whole process, libraries included.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from accelerate import PartialState
from machine import heading

from llm2vec.backbone.source import Source
from llm2vec.conversion.info import describe
from llm2vec.encoder.settings import Settings
from llm2vec.evaluation.analysis import BUNDLED_SETS
from llm2vec.recipe.knobs import Recipe
from llm2vec.runtime.allocator import keep_freed_memory
from llm2vec.runtime.progress import Silent
from llm2vec.training.stage import StageRun, run_stage
from llm2vec.training.stages import STAGES

STEP = {"steps": 2, "max_length": 256, "log_every": 1}
WAYS = {
    "MNTP, adapters": {"mntp": {**STEP, "eval_blocks": 1, "method": "lora"}},
    "MNTP, all weights": {"mntp": {**STEP, "eval_blocks": 1, "method": "full"}},
    "SimCSE, adapters": {"simcse": {**STEP, "method": "lora"}},
}


def recipe_of(decoder: str, way: str, batch_size: int, corpus: str = "self") -> Recipe:
    """A recipe with one stage."""
    values: dict[str, Any] = {"mntp": {"steps": 0}, "simcse": {"steps": 0}}
    for stage, knobs in WAYS[way].items():
        values[stage] = {**knobs, "batch_size": batch_size}
    values |= {"decoder": decoder, "corpus": {"source": corpus}, "encoder": {"max_length": 256}}
    return Recipe.read(values)


def write_long_texts(path: Path) -> None:
    """Texts of more than 256 tokens, from the project's own sentences."""
    rows = (BUNDLED_SETS / "words.train.jsonl").read_text(encoding="utf8").splitlines()
    sentences = [" ".join(json.loads(row)["tokens"]) for row in rows]
    texts = [" ".join(sentences[start : start + 40]) for start in range(0, 800, 40)]
    path.write_text("\n".join(texts), encoding="utf8")


def measure(decoder: str, way: str, batch_size: int) -> None:
    """Run the stage in this process, as the command line does, and print the peak in bytes."""
    keep_freed_memory()
    [stage] = [each for each in STAGES if each.name in WAYS[way]]
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "texts.txt"
        write_long_texts(corpus)
        recipe = recipe_of(decoder, way, batch_size, str(corpus))
        processes = PartialState(cpu=True)
        run = StageRun(
            recipe, Source.of(decoder), Settings(), Path(folder), corpus, processes, Silent()
        )
        run_stage(stage, run)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def main() -> None:
    """Measure every way on every decoder, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--decoders", nargs="+", default=["tests/assets/decoders/qwen3", "bundled"])
    parser.add_argument("--batch-size", type=int, default=4, help="blocks or texts in a step")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = arguments.batch_size
    if arguments.measure:
        measure(arguments.decoders[0], arguments.ways[0], size)
        return
    print(heading())
    print("| decoder | stage | estimated, MB | measured, MB | estimated / measured |")
    print("| --- | --- | --- | --- | --- |")
    for decoder in arguments.decoders:
        for way in arguments.ways:
            [estimated] = describe(recipe_of(decoder, way, size)).estimates
            command = [sys.executable, __file__, "--measure", "--batch-size", str(size)]
            command += ["--decoders", decoder, "--ways", way]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            measured = int(done.stdout.splitlines()[-1])
            ratio = estimated.memory_bytes / measured
            sizes = f"{estimated.memory_bytes / 1e6:,.0f} | {measured / 1e6:,.0f}"
            name = Path(decoder).name
            print(f"| {name} | {way} | {sizes} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
