"""One MNTP step: only the masked rows through the LM head, against every row. Time and peak memory.

    python benchmarks/mntp_step.py [--vocabulary 32000 128000] [--tokens 2048]

A Llama of 4 layers of 256, random weights, texts of lognormal lengths packed in one row, p = 0.2. Both ways compute the
same loss (checked) and its gradients. Memory is that of a process that does nothing else, so each measurement is one.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
from machine import heading
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, LlamaConfig

from llm2vec.backbone.lm_head import masked_rows
from llm2vec.backbone.packed_attention import packed_inputs
from llm2vec.backbone.switch import make_bidirectional
from llm2vec.runtime.allocator import keep_freed_memory

PROBABILITY = 0.2


def measured(way: str, vocabulary: int, tokens: int, repeats: int) -> dict[str, float]:
    """Median seconds of a step and the process's peak memory."""
    torch.manual_seed(0)
    shape = {
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    config = LlamaConfig(
        vocab_size=vocabulary, tie_word_embeddings=True, max_position_embeddings=512, **shape
    )
    model = AutoModelForCausalLM.from_config(config)
    make_bidirectional(model)
    random = np.random.default_rng(0)
    documents: list[list[int]] = []
    while (left := tokens - sum(map(len, documents))) > 0:
        length = min(left, int(np.clip(random.lognormal(4, 0.7), 8, 256)))
        documents.append(random.integers(vocabulary, size=length).tolist())
    inputs = packed_inputs(documents)
    rows = torch.from_numpy(np.flatnonzero(random.random(tokens) < PROBABILITY))
    labels = torch.from_numpy(random.integers(vocabulary, size=len(rows)))
    before_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    keep_freed_memory()
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        if way == "masked rows":
            with masked_rows(model, rows):
                logits_MV = model(**inputs).logits[0]
        else:
            logits_MV = model(**inputs).logits[0][rows]
        loss = cross_entropy(logits_MV.float(), labels)
        loss.backward()
        model.zero_grad()
        seconds.append(time.perf_counter() - started)
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {
        "seconds": statistics.median(seconds[1:]),
        "gb": peak_gb - before_gb,
        "loss": float(loss),
    }


def main() -> None:
    """Measure each vocabulary both ways, each in its own process, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[32_000, 128_000])
    parser.add_argument("--tokens", type=int, default=2048, help="in a step")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(
            json.dumps(
                measured(
                    arguments.way, arguments.vocabulary[0], arguments.tokens, arguments.repeats
                )
            )
        )
        return
    print(heading())
    print("| vocabulary | head | seconds a step | faster | memory of the step, GB | less |")
    print("| --- | --- | --- | --- | --- | --- |")
    for vocabulary in arguments.vocabulary:
        found = {}
        for way in ("all rows", "masked rows"):
            sizes = [
                "--vocabulary",
                vocabulary,
                "--tokens",
                arguments.tokens,
                "--repeats",
                arguments.repeats,
            ]
            command = [sys.executable, __file__, "--way", way, *map(str, sizes)]
            found[way] = json.loads(
                subprocess.run(command, capture_output=True, text=True, check=True).stdout
            )
        slow, fast = found["all rows"], found["masked rows"]
        if abs(slow["loss"] - fast["loss"]) > 1e-3:
            sys.exit(
                f"the two ways do not compute the same loss: {slow['loss']} and {fast['loss']}"
            )
        print(f"| {vocabulary:,} | all rows | {slow['seconds']:.3f} | | {slow['gb']:.2f} | |")
        times, less = slow["seconds"] / fast["seconds"], slow["gb"] / fast["gb"]
        print(
            f"| | masked rows | {fast['seconds']:.3f} | {times:.2f}x | {fast['gb']:.2f} | {less:.2f}x |",
            flush=True,
        )


if __name__ == "__main__":
    main()
