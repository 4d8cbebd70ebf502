"""Everything that must hold on a device before anybody believes in it: proofs, equality, a step of each stage, speed.

    python benchmarks/gpu_check.py [--device cuda] [--model bundled] [--dtypes float32 bfloat16]

Prints a table and fails where a line does not hold. With `--device cpu` the same runs where there is no GPU.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BOUNDS = {"float32": 1e-4, "bfloat16": 1e-1, "float16": 2e-2}
"""How far vectors of length 1 may be from those of the padded computation: as the proofs allow states to be."""

WORDS = ("the", "old", "miller", "opened", "a", "green", "door", "before", "rain", "came", "twice")


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes:
        what: What was tried.
        holds: Whether it is as it must be.
        number: What was measured.
    """

    what: str
    holds: bool
    number: str


def texts(count: int) -> list[str]:
    """Texts of 3 to 60 words."""
    return [
        " ".join(WORDS[(start + 3 * place) % len(WORDS)] for place in range(3 + 7 * start % 58))
        for start in range(count)
    ]


def loading(model: str, device: str, dtype: str) -> Iterator[Line]:
    """The proofs at loading, equality with a plain padded call, and the speed of encoding."""
    from llm2vec import Encoder
    from llm2vec.backbone.packed_attention import PACKED
    from llm2vec.backbone.switch import plain_attention

    encoder = Encoder.from_pretrained(model, device=device, dtype=dtype, normalize=True)
    for proof in encoder.switch.proofs:
        yield Line(f"{dtype}: {proof.name}", proof.passed, f"margin {proof.margin:.1e}")
    yield from kernels(encoder, dtype)
    few = texts(24)
    apart = float((encoder.encode(few) - padded(encoder, few)).abs().max())
    holds = apart < BOUNDS[dtype]
    yield Line(f"{dtype}: vectors against the padded computation", holds, f"{apart:.1e}")
    yield Line(f"{dtype}: encoding", True, f"{speed(encoder):,.0f} tokens/s")
    if encoder.model.config._attn_implementation not in (PACKED, plain_attention(encoder.model)):
        encoder.model.set_attn_implementation(PACKED)
        yield Line(f"{dtype}: encoding text by text", True, f"{speed(encoder):,.0f} tokens/s")


def kernels(encoder, dtype: str) -> Iterator[Line]:  # torch is imported later
    """What each kernel for packed rows is worth here, and which attention is used."""
    from llm2vec.backbone.proofs import prove_kernel
    from llm2vec.backbone.switch import attention_windows, plain_attention
    from llm2vec.backbone.varlen import kernels_for

    model = encoder.model
    used, windows = model.config._attn_implementation, attention_windows(model)
    for kernel in kernels_for(encoder.device):
        proof = prove_kernel(model, kernel, plain=plain_attention(model), windows=windows)
        found = f"{'proven' if proof.passed else 'NOT proven'}, margin {proof.margin:.1e}"
        yield Line(f"{dtype}: {kernel.title}", True, f"{found}: {proof.detail}")
    model.set_attn_implementation(used)
    yield Line(f"{dtype}: attention", True, used)


def speed(encoder) -> float:  # torch is imported later
    """Tokens a second, of 256 texts."""
    many = texts(256)
    encoder.encode(many[:32])
    tokens = sum(len(each.ids) for each in encoder.tokens(many))
    started = time.perf_counter()
    encoder.encode(many)  # vectors are on the CPU when it returns
    return tokens / (time.perf_counter() - started)


def padded(encoder, few: list[str]):  # torch is imported later
    """Mean vectors by one plain call with right-padded rows, by the attention that packs nothing."""
    import torch

    from llm2vec.backbone.switch import plain_attention
    from llm2vec.encoder.batching import padded_inputs

    tokens = encoder.tokens(few)
    pad_id = int(encoder.tokenizer.pad_token_id)
    inputs = padded_inputs([each.ids for each in tokens], pad_id=pad_id, device=encoder.device)
    live = encoder.model.config._attn_implementation
    encoder.model.set_attn_implementation(plain_attention(encoder.model))
    try:
        with torch.inference_mode():
            states_BTD = encoder.model(**inputs).last_hidden_state.float()
    finally:
        encoder.model.set_attn_implementation(live)
    pooled = [
        states_TD[each.first : each.end].mean(0)
        for states_TD, each in zip(states_BTD, tokens, strict=True)
    ]
    return torch.nn.functional.normalize(torch.stack(pooled), dim=-1).cpu()


def training(model: str, folder: Path) -> Iterator[Line]:
    """One step of each stage, whose loss is a number."""
    from llm2vec import Recipe, convert

    rows = texts(64)
    (folder / "texts.txt").write_text("\n".join(f"{row} {n}" for n, row in enumerate(rows)) + "\n")
    triples = [
        {"query": row, "positive": f"{row} again", "negative": rows[place - 1]}
        for place, row in enumerate(rows)
    ]
    (folder / "triples.jsonl").write_text("".join(json.dumps(each) + "\n" for each in triples))
    one = {"steps": 1, "batch_size": 4, "max_length": 32, "log_every": 1}
    recipe = {
        "decoder": model,
        "corpus": {"source": str(folder / "texts.txt")},
        "encoder": {"max_length": 64},
        "mntp": {**one, "eval_blocks": 2},
        "simcse": one,
        "supervised": {**one, "corpus": {"source": str(folder / "triples.jsonl")}},
    }
    done = convert(Recipe.read(recipe), folder / "encoder")
    metrics = {stage["stage"]: stage["metrics"] for stage in done.provenance["stages"]}
    for name in ("mntp", "simcse", "supervised"):
        losses = [float(each["loss"]) for each in metrics[name] if "loss" in each]
        holds = len(losses) == 1 and math.isfinite(losses[0])
        yield Line(f"one step of {name}", holds, f"loss {losses}")


def main() -> None:
    """Print a line for each thing that was tried."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--dtypes", nargs="+", default=list(BOUNDS)[:2])
    asked = parser.parse_args()
    if asked.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # training takes a GPU wherever there is one
    import torch
    from machine import heading

    warnings.simplefilter("ignore")
    if asked.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("there is no GPU here; the same on the processor: --device cpu")
    print(heading())
    name = torch.cuda.get_device_name() if asked.device.startswith("cuda") else "cpu"
    print(f"device: {name}\n\n| what | holds | measured |\n| --- | --- | --- |")
    found = []
    for dtype in asked.dtypes:
        found += shown(loading(asked.model, asked.device, dtype))
    with tempfile.TemporaryDirectory() as folder:
        found += shown(training(asked.model, Path(folder)))
    if not all(line.holds for line in found):
        sys.exit("not everything holds on this device")


def shown(lines: Iterator[Line]) -> list[Line]:
    """Lines, printed as they come."""
    found = []
    for line in lines:
        print(f"| {line.what} | {'yes' if line.holds else 'NO'} | {line.number} |", flush=True)
        found.append(line)
    return found


if __name__ == "__main__":
    main()
