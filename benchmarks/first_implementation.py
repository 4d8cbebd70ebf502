"""Against the first implementation (llm2vec 0.2.3) in its own environment: encoding, and one step of MNTP.

    python benchmarks/first_implementation.py --their-python /path/to/env/bin/python [--texts 2000] [--threads 2]

That environment: llm2vec==0.2.3 with transformers==4.44.2, peft==0.13.2, accelerate==0.34.2, numpy<2 and this torch.

A Llama of 6 layers of 288 with random weights, the bundled tokenizer, texts of lognormal lengths, 8 to 256 tokens. The
two take turns, each time in a fresh process, each called as it is by default; the fastest of `--repeats` counts.
Vectors are compared. The step: 4 blocks of 512 tokens, p = 0.2, vocabulary of 32,000, LoRA of rank 16 with AdamW, the
same masks. The first implementation also trains an LM head that is not tied to the embeddings; with a tied one both
train the same weights.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from encode import operations, peak, realistic_texts
from machine import heading
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from llm2vec import LLM2Vec
from llm2vec.backbone.loading import quiet
from llm2vec.backbone.source import BUNDLED_FOLDER
from llm2vec.training.mntp import Masking, collate

WORKER = Path(__file__).with_name("first_worker.py")
INSTRUCTION = "Given a question, retrieve passages that answer the question:"
SHAPE = {
    "hidden_size": 288,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
}
LENGTH, BLOCKS, VOCABULARY = 512, 4, 32_000

Found = dict[str, dict[str, list[dict[str, float]]]]
"""What is measured, by whom, each time."""


def save_decoder(folder: Path, *, vocabulary: int, tied: bool) -> None:
    """Random weights in float32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, tie_word_embeddings=tied, max_position_embeddings=LENGTH, **SHAPE
    )
    config.bos_token_id = config.eos_token_id = 0
    with quiet():
        AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)


def save_tokenizer(folder: Path) -> None:
    """The bundled tokenizer as older libraries read it: merges as one string, the class by its old name."""
    AutoTokenizer.from_pretrained(BUNDLED_FOLDER).save_pretrained(folder)
    whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf8"))
    whole["model"]["merges"] = [" ".join(pair) for pair in whole["model"]["merges"]]
    (folder / "tokenizer.json").write_text(json.dumps(whole, ensure_ascii=False), encoding="utf8")
    facts = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf8"))
    facts.update(
        tokenizer_class="PreTrainedTokenizerFast", model_input_names=["input_ids", "attention_mask"]
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(facts), encoding="utf8")


def save_blocks(file: Path) -> None:
    """Masked ids, the places read and their targets, as our stage makes them."""
    random = np.random.default_rng(0)
    masking = Masking(probability=0.2, whole=False, mask_id=1, vocabulary=VOCABULARY, special=(0,))
    rows = [[random.integers(2, VOCABULARY, size=LENGTH)] for _ in range(BLOCKS)]
    batch = collate(
        rows, [(0, 1, number) for number in range(BLOCKS)], masking, packed=False, pad_id=0
    )
    np.savez(file, ids=batch["input_ids"], places=batch["rows"], labels=batch["labels"])


def measured(python: str, *options: object, threads: int) -> dict[str, float]:
    """What a worker prints; it does not see this project's files unless it is ours."""
    command = [python, str(WORKER), *map(str, options), "--threads", str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=tempfile.gettempdir()
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def best(found: list[dict[str, float]], name: str) -> float:
    return min(each[name] for each in found)


def ratios(found: dict[str, list[dict[str, float]]], name: str = "seconds") -> str:
    """Theirs over ours: of the best, and the range over turns."""
    turns = [
        theirs[name] / ours[name]
        for ours, theirs in zip(found["ours"], found["first"], strict=True)
    ]
    whole = best(found["first"], name) / best(found["ours"], name)
    return f"{whole:.2f}x ({min(turns):.2f} to {max(turns):.2f})"


def compare_encoding(folder: Path, pythons: dict[str, str], arguments: argparse.Namespace) -> None:
    """Texts and pairs, in turns, and their table."""
    (folder / "model").mkdir()
    save_tokenizer(folder / "model")
    vocabulary = len(AutoTokenizer.from_pretrained(folder / "model"))
    save_decoder(folder / "model", vocabulary=vocabulary, tied=True)
    encoder = LLM2Vec.from_pretrained(folder / "model")
    # a text that begins with a space has the same tokens alone and after an instruction, whose end the first
    # implementation finds by counting the tokens of the text alone
    texts = [f" {text.strip()}" for text in realistic_texts(encoder, arguments.texts)]
    (folder / "texts.json").write_text(
        json.dumps({"instruction": INSTRUCTION, "texts": texts}), encoding="utf8"
    )
    own = sum(len(each.ids) for each in encoder.tokens(texts))
    joined = sum(
        len(each.ids) for each in encoder.tokens(texts, prompts=[f"{INSTRUCTION} "] * len(texts))
    )
    print(f"{len(texts):,} texts, {own:,} tokens; as pairs {joined:,} tokens\n")
    print(
        "| what | whose | seconds | tokens/s | faster | CPU seconds | less CPU | peak, GB | vectors differ by |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for what, tokens in (("texts", own), ("pairs", joined)):
        found: dict[str, list[dict[str, float]]] = {name: [] for name in pythons}
        for _ in range(arguments.repeats):
            for name, python in pythons.items():
                more = ("--vectors", folder / f"{name}.npy")
                found[name].append(measured(python, folder, what, *more, threads=arguments.threads))
        apart = np.abs(np.load(folder / "ours.npy") - np.load(folder / "first.npy")).max()
        limit = operations(encoder, tokens) / peak()
        rows = {
            "first": ("", "", ""),
            "ours": (ratios(found), ratios(found, "cpu"), f"{apart:.1e}"),
        }
        for name, (faster, less, differ) in rows.items():
            seconds, cpu, gb = (best(found[name], each) for each in ("seconds", "cpu", "gb"))
            cells = [
                f"{seconds:.2f}",
                f"{tokens / seconds:,.0f}",
                faster,
                f"{cpu:.2f}",
                less,
                f"{gb:.2f}",
                differ,
            ]
            print(f"| {what} | {name} | {' | '.join(cells)} |", flush=True)
        times = best(found["first"], "seconds") / limit
        print(
            f"| {what} | matrix products alone | {limit:.2f} | {tokens / limit:,.0f} | {times:.2f}x | | | | |"
        )
        if apart > 1e-4:
            sys.exit("the two do not give the same vectors")


def compare_steps(folder: Path, pythons: dict[str, str], arguments: argparse.Namespace) -> None:
    """A step of MNTP with a tied head, which neither trains, and with one of its own, and their table."""
    save_blocks(folder / "blocks.npz")
    print(f"\nAn MNTP step, {BLOCKS} blocks of {LENGTH} tokens, vocabulary {VOCABULARY:,}\n")
    print(
        "| LM head | whose | seconds a step | faster | CPU seconds | less CPU | trained | more memory, GB | less |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for tied in (True, False):
        save_decoder(folder / "mntp", vocabulary=VOCABULARY, tied=tied)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in pythons}
        for _ in range(arguments.repeats):
            for name, python in pythons.items():
                found[name].append(measured(python, folder, "step", threads=arguments.threads))
        ours, theirs = found["ours"][0]["loss"], found["first"][0]["loss"]
        less_gb = f"{best(found['first'], 'more_gb') / best(found['ours'], 'more_gb'):.2f}x"
        rows = {"first": ("", "", ""), "ours": (ratios(found), ratios(found, "cpu"), less_gb)}
        for name, (faster, less, memory) in rows.items():
            seconds, cpu, gb = (best(found[name], each) for each in ("seconds", "cpu", "more_gb"))
            trained = f"{found[name][0]['trained'] / 1e6:.1f}M"
            cells = [f"{seconds:.3f}", faster, f"{cpu:.2f}", less, trained, f"{gb:.2f}", memory]
            print(f"| {'tied' if tied else 'its own'} | {name} | {' | '.join(cells)} |", flush=True)
        if abs(ours - theirs) > 1e-3:
            sys.exit(f"the two do not compute the same loss: {ours} and {theirs}")


def main() -> None:
    """Both parts, in turns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--their-python", required=True, help="of the environment of the first implementation"
    )
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--part", choices=("encoding", "step"), help="one part alone")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pythons = {"ours": sys.executable, "first": arguments.their_python}
    print(heading())
    with tempfile.TemporaryDirectory() as place_:
        if arguments.part != "step":
            compare_encoding(Path(place_), pythons, arguments)
        if arguments.part != "encoding":
            compare_steps(Path(place_), pythons, arguments)


if __name__ == "__main__":
    main()
