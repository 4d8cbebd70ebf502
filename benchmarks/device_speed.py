"""Encoding on a device: tokens a second and the share of the fastest matrix product, against sentence-transformers.

    python benchmarks/device_speed.py --model FOLDER --device cuda --dtype bfloat16
    python benchmarks/device_speed.py --shape llama-3-8b --device cuda --dtype bfloat16

A shape is a model of that size with random weights. sentence-transformers pads, at the best of several batch sizes,
and uses flash attention too where it is installed. The product is measured in the same run: the best of several sizes.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from encode import operations, realistic_texts
from machine import heading, in_turns
from sentence_transformers import SentenceTransformer
from torch.nn.functional import cosine_similarity, linear
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.utils import is_flash_attn_2_available

from llm2vec import Encoder
from llm2vec.backbone.loading import load_tokenizer
from llm2vec.runtime.onednn import fast_linear

SHAPES = {
    "llama-3.2-1b": (2048, 8192, 16, 32, 8, 128_256),
    "llama-3-8b": (4096, 14_336, 32, 32, 8, 128_256),
    "tiny": (64, 128, 2, 4, 2, 8192),
}
"""Width, width of the feed-forward layers, layers, heads, heads of keys and values, vocabulary."""

LEAST_COSINE = {"float32": 0.9999, "float16": 0.999, "bfloat16": 0.99}


def random_model(shape: str, folder: Path, *, dtype: str) -> None:
    """Write a decoder of a shape with random weights, and the bundled tokenizer."""
    width, inner, layers, heads, shared, vocabulary = SHAPES[shape]
    tokenizer = load_tokenizer("bundled")
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        vocab_size=max(vocabulary, len(tokenizer)),
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def fastest_product(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the fastest product of two square matrices."""
    sizes = (1024, 2048) if device.type == "cpu" else (2048, 4096, 8192)
    best = 0.0
    for size in sizes:
        square = torch.randn(size, size, device=device).to(dtype)
        for _ in range(10):
            with torch.inference_mode(), fast_linear(device):
                linear(square, square)
                wait_for(device)
                started = time.perf_counter()
                linear(square, square)
                wait_for(device)
            best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def wait_for(device: torch.device) -> None:
    """Wait until a device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def others(
    folder: Path, texts: list[str], batches: list[int], *, device: str, dtype: str
) -> Iterator[tuple[str, Callable[[], torch.Tensor]]]:
    """sentence-transformers in each way that is installed, at each batch size."""
    attentions = ["sdpa"]
    if device.startswith("cuda") and is_flash_attn_2_available():
        attentions.append("flash_attention_2")
    for attention in attentions:
        options = {"dtype": getattr(torch, dtype), "attn_implementation": attention}
        model = SentenceTransformer(str(folder), device=device, model_kwargs=options)
        for size in batches:

            def encode(model: SentenceTransformer = model, size: int = size) -> torch.Tensor:
                return model.encode(texts, batch_size=size, convert_to_tensor=True).float().cpu()

            yield f"sentence-transformers, {attention}, batch {size}", encode


def main() -> None:
    """Take turns, and print the best of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--shape", choices=SHAPES, help="random weights, instead of --model")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=LEAST_COSINE)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    if asked.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("there is no GPU here; the same on the processor: --device cpu")
    with tempfile.TemporaryDirectory() as place:
        name = asked.model
        if asked.shape is not None:
            name = str(Path(place) / "decoder")
            random_model(asked.shape, Path(name), dtype=asked.dtype)
        compare(name, Path(place) / "encoder", asked)


def compare(name: str, folder: Path, asked: argparse.Namespace) -> None:
    """Encode the same texts in all ways, and print a table."""
    ours = Encoder.from_pretrained(name, device=asked.device, dtype=asked.dtype)
    ours.save(folder)
    texts = realistic_texts(ours, asked.texts)
    tokens = sum(len(each.ids) for each in ours.tokens(texts))
    ways = {"llm2vec": lambda: ours.encode(texts, show_progress=False)}
    ways.update(others(folder, texts, asked.batches, device=asked.device, dtype=asked.dtype))
    seconds, vectors = in_turns(ways, repeats=asked.repeats)
    best = {way: min(taken) for way, taken in seconds.items()}
    least = {way: float(cosine_similarity(vectors["llm2vec"], vectors[way]).min()) for way in ways}
    product = fastest_product(ours.device, ours.model.dtype)
    device = torch.cuda.get_device_name() if ours.device.type == "cuda" else asked.device
    print(heading())
    attention = ours.model.config._attn_implementation
    print(f"{asked.shape or name} in {asked.dtype} on {device}, {attention}; {tokens:,} tokens;")
    print(f"fastest product {product / 1e9:,.0f} GFLOP/s\n")
    print("| way | seconds | spread | tokens/s | share of the product | llm2vec is faster by |")
    print("| --- | --- | --- | --- | --- | --- |")
    for way, taken in sorted(best.items(), key=lambda each: each[1]):
        share = operations(ours, tokens) / taken / product
        spread = max(seconds[way]) / taken - 1
        cells = f"{taken:.2f} | {spread:.0%} | {tokens / taken:,.0f} | {share:.0%}"
        print(f"| {way} | {cells} | {taken / best['llm2vec']:.2f}x |")
    if min(least.values()) < LEAST_COSINE[asked.dtype]:
        sys.exit(f"they do not give the same vectors: least cosines {least}")


if __name__ == "__main__":
    main()
