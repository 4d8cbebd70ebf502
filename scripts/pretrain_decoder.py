"""Train the project's own small decoder from a folder of text: tokenizer, model, model card.

    python scripts/pretrain_decoder.py --text ../shared/data/text --out src/llm2vec/assets/decoder --minutes 75

The same script makes the bundled decoder (`--config cpu` or `gpu`) and the tiny ones of other architectures that tests
run on (`--config tiny --arch qwen3|gpt2|gemma3 --tokenizer DECODER`). Killed at any moment, the same command goes on.
"""

import argparse
import json
import lzma
import math
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

END, PAD = "<|endoftext|>", "<|pad|>"

SHARES = {
    "openstax": 0.40,
    "books-1": 0.25,
    "books-2": 0.15,
    "tinystories_sample": 0.12,
    "peps": 0.08,
}
"""How often a sequence is drawn from each file. Textbooks, and stories for everyday words, make the sentence vectors (8
points of STS-B over books alone), books the word vectors (a point over none): docs/results.md, "Which texts it reads".
Files that are not named here get the share `OTHER`."""
OTHER = 0.25

LICENCES = {
    "openstax": "OpenStax textbooks, CC BY 4.0: © OpenStax, Rice University; access for free at openstax.org",
    "books-1": "English books in the public domain",
    "books-2": "English books in the public domain",
    "tinystories_sample": "TinyStories (Eldan and Li 2023), CDLA-Sharing-1.0",
    "peps": "Python enhancement proposals, public domain or CC0",
}


@dataclass(frozen=True)
class Size:
    """What one configuration trains.

    Attributes:
        hidden, layers, heads, inner: Shape of the model.
        vocabulary: Tokens, learned from the text.
        length: Tokens in a sequence.
        batch: Sequences in a step.
        tokens: Tokens to train on when no time budget is given.
        matrix_learning_rate: Peak of Muon, which trains the matrices of the layers: linear warm-up, constant, then
            linear to zero over the last `decay` of the run.
        learning_rate: Peak of AdamW, which trains embeddings, norms and biases; same schedule.
        decay: Share of the run in which the learning rate falls.
    """

    hidden: int = 192
    layers: int = 5
    heads: int = 3
    inner: int = 512
    vocabulary: int = 6144
    length: int = 256
    batch: int = 16
    tokens: int = 32_000_000
    matrix_learning_rate: float = 0.03
    learning_rate: float = 4e-3
    decay: float = 0.4


SIZES = {
    "cpu": Size(),
    "tiny": Size(hidden=64, layers=3, heads=4, inner=160, length=128, batch=32, tokens=1_500_000),
    "gpu": Size(
        hidden=512,
        layers=8,
        heads=8,
        inner=1376,
        length=512,
        batch=128,
        tokens=400_000_000,
        matrix_learning_rate=0.02,
        learning_rate=2e-3,
    ),
}


def paragraphs(path: Path) -> Iterator[str]:
    """The lines of a text file that hold text."""
    opener: Any = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf8") as file:
        for line in file:
            if text := line.strip():
                yield text


def name_of(path: Path) -> str:
    """A file's name without its endings."""
    return path.name.split(".")[0]


def make_tokenizer(files: list[Path], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, trained on every file in proportion to its share; no start token is added."""

    def sample() -> Iterator[str]:
        for path in files:
            wanted = int(24_000_000 * SHARES.get(name_of(path), OTHER))
            for text in paragraphs(path):
                wanted -= len(text)
                if wanted < 0:
                    break
                yield text

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        sample(),
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[END, PAD],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        model_max_length=512,
        padding_side="right",
    )


class Source:
    """One file as token ids on disk; every hundredth stretch of 20,000 tokens is held out."""

    STRETCH = 20_000

    def __init__(self, path: Path, tokenizer: PreTrainedTokenizerFast, cache: Path) -> None:
        self.name = name_of(path)
        ids_path = cache / f"{self.name}.ids"
        if not ids_path.exists():
            self._tokenise(path, tokenizer, ids_path)
        self.ids = np.memmap(ids_path, dtype=np.uint16, mode="r")
        facts = json.loads(ids_path.with_suffix(".json").read_text())
        self.bytes_per_token = facts["bytes"] / len(self.ids)

    def _tokenise(self, path: Path, tokenizer: PreTrainedTokenizerFast, ids_path: Path) -> None:
        size, chunk = 0, []
        partial = ids_path.with_suffix(".partial")
        with partial.open("wb") as file:
            for text in [*paragraphs(path), None]:
                if text is not None:
                    chunk.append(text)
                    size += len(text.encode()) + 1
                if chunk and (text is None or len(chunk) == 2000):
                    for row in tokenizer(chunk)["input_ids"]:
                        file.write(
                            np.asarray([*row, tokenizer.eos_token_id], dtype=np.uint16).tobytes()
                        )
                    chunk = []
        ids_path.with_suffix(".json").write_text(json.dumps({"bytes": size}))
        partial.replace(ids_path)

    def draw(self, random: np.random.Generator, length: int) -> np.ndarray:
        """A sequence from the part that is trained on."""
        while True:
            start = int(random.integers(max(1, len(self.ids) - length)))
            if not (self._held(start) or self._held(start + length)):
                return self.ids[start : start + length].astype(np.int64)

    def _held(self, place: int) -> bool:
        return (place // self.STRETCH) % 100 == 50 or (
            len(self.ids) < 2_000_000 and place >= 0.98 * len(self.ids)
        )

    def held_out(self, length: int, most: int) -> np.ndarray:
        """Sequences from the held-out part."""
        starts = [
            start
            for start in range(0, len(self.ids) - length, length)
            if self._held(start) and self._held(start + length)
        ]
        picked = starts[:: max(1, len(starts) // most)][:most]
        return np.stack([self.ids[start : start + length].astype(np.int64) for start in picked])


HYBRIDS = {"lfm2": ("conv", 2), "qwen3_5_text": ("linear_attention", 4)}
"""Hybrids of attention with short convolutions or gated DeltaNet: their other layers' kind, and which layer of so many
has attention."""


def hybrid_shape(arch: str, size: Size) -> dict[str, Any]:
    """The part of a hybrid's configuration that says what mixes tokens."""
    other, period = HYBRIDS[arch]
    kinds = [
        "full_attention" if index % period == period - 1 else other for index in range(size.layers)
    ]
    shape: dict[str, Any] = {"layer_types": kinds}
    if arch == "lfm2":
        shape["block_auto_adjust_ff_dim"] = False
    else:
        for part in ("key", "value"):
            shape[f"linear_num_{part}_heads"] = size.heads
            shape[f"linear_{part}_head_dim"] = size.hidden // size.heads
    return shape


def new_model(arch: str, size: Size, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A decoder of random weights with tied embeddings."""
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if arch == "gpt2":
        shape |= {
            "n_embd": size.hidden,
            "n_layer": size.layers,
            "n_head": size.heads,
            "n_inner": size.inner,
            "n_positions": 512,
        }
    else:
        shape |= {
            "hidden_size": size.hidden,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.heads,
            "head_dim": size.hidden // size.heads,
            "intermediate_size": size.inner,
            "max_position_embeddings": 512,
        }
    if arch == "gemma3_text":
        types = [
            "full_attention" if index % 3 == 2 else "sliding_attention"
            for index in range(size.layers)
        ]
        shape |= {
            "layer_types": types,
            "sliding_window": 32,
            "query_pre_attn_scalar": size.hidden // size.heads,
        }
    if arch in HYBRIDS:
        shape |= hybrid_shape(arch, size)
    config = AutoConfig.for_model(arch, **shape)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


@torch.no_grad()
def held_out_report(
    model: PreTrainedModel, sources: list[Source], length: int, most: int
) -> dict[str, dict[str, float]]:
    """Loss in nats a token, perplexity and bits a byte on the held-out part of each source."""
    model.eval()
    report = {}
    for source in sources:
        ids_NT = torch.from_numpy(source.held_out(length, most)).to(model.device)
        losses = [
            float(model(input_ids=part, labels=part, use_cache=False).loss)
            for part in ids_NT.split(16)
        ]
        loss = sum(losses) / len(losses)
        bits = loss / math.log(2) / source.bytes_per_token
        report[source.name] = {"loss": loss, "perplexity": math.exp(loss), "bits_per_byte": bits}
    model.train()
    return report


class Run:
    """A training run with whole checkpoints: weights, optimiser, step, seconds spent."""

    def __init__(
        self, model: PreTrainedModel, size: Size, folder: Path, budget_s: float | None
    ) -> None:
        self.model, self.size, self.folder, self.budget_s = model, size, folder, budget_s
        embeddings = {
            id(module.weight)
            for module in model.modules()
            if isinstance(module, torch.nn.Embedding)
        }
        inner = [
            each for each in model.parameters() if each.ndim == 2 and id(each) not in embeddings
        ]
        others = [each for each in model.parameters() if each.ndim != 2 or id(each) in embeddings]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(inner, lr=size.matrix_learning_rate, weight_decay=0.05, momentum=0.95),
            torch.optim.AdamW(
                others, lr=size.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
            ),
        ]
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["peak"] = group["lr"]
        self.step, self.spent_s = 0, 0.0
        if (folder / "state.json").exists():
            self._resume()

    def done(self) -> float:
        """Share of the run that is behind."""
        if self.budget_s is not None:
            return self.spent_s / self.budget_s
        return self.step * self.size.batch * self.size.length / self.size.tokens

    def set_learning_rate(self) -> None:
        """Linear warm-up over 200 steps, constant, linear to zero."""
        falling = min(1.0, (1 - self.done()) / self.size.decay)
        share = min(1.0, (self.step + 1) / 100) * max(falling, 0.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share

    def save(self) -> None:
        """Write a checkpoint beside the old one, then point to it."""
        name = f"step-{self.step}"
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        save_file(
            {key: value.contiguous() for key, value in _untied(self.model).items()},
            self.folder / name / "model.safetensors",
        )
        torch.save(
            [each.state_dict() for each in self.optimizers], self.folder / name / "optimizer.pt"
        )
        partial = self.folder / "state.json.partial"
        partial.write_text(json.dumps({"step": self.step, "spent_s": self.spent_s, "at": name}))
        partial.replace(self.folder / "state.json")
        for old in self.folder.glob("step-*"):
            if old.name != name:
                for file in old.iterdir():
                    file.unlink()
                old.rmdir()

    def _resume(self) -> None:
        state = json.loads((self.folder / "state.json").read_text())
        self.step, self.spent_s = state["step"], state["spent_s"]
        self.model.load_state_dict(
            load_file(self.folder / state["at"] / "model.safetensors"), strict=False
        )
        states = torch.load(self.folder / state["at"] / "optimizer.pt", weights_only=True)
        for optimizer, kept in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(kept)


def _untied(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {
        key: value for key, value in model.state_dict().items() if not key.startswith("lm_head")
    }


def train(
    run: Run,
    sources: list[Source],
    shares: dict[str, float],
    *,
    seed: int,
    marks: dict[float, Path],
    fast: bool,
) -> None:
    """Train to the end of the budget.

    Args:
        run: What is trained, as far as it is.
        sources: What it reads.
        shares: How often a sequence is drawn from each.
        seed: Of the sequences drawn.
        marks: Shares of the run at which the model is also kept, and where.
        fast: In bfloat16, and compiled.
    """
    size, device = run.size, run.model.device
    weights = np.array([shares.get(source.name, OTHER) for source in sources])
    weights /= weights.sum()
    forward: Any = torch.compile(run.model) if fast else run.model
    shown, shown_at = run.step, time.perf_counter()
    while run.done() < 1:
        started = time.perf_counter()
        random = np.random.default_rng([seed, run.step])
        chosen = random.choice(len(sources), size=size.batch, p=weights)
        ids_BT = torch.from_numpy(
            np.stack([sources[index].draw(random, size.length) for index in chosen])
        ).to(device)
        run.set_learning_rate()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast):
            loss = forward(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        for optimizer in run.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        run.step += 1
        run.spent_s += time.perf_counter() - started
        if run.step % 50 == 0:
            now = time.perf_counter()
            rate = (run.step - shown) * size.batch * size.length / (now - shown_at)
            left = run.spent_s / max(run.done(), 1e-9) * (1 - run.done()) / 60
            print(
                f"step {run.step}  loss {loss.item():.3f}  {rate:,.0f} tokens/s  {left:.1f} min left",
                flush=True,
            )
            shown, shown_at = run.step, now
        if run.step % 500 == 0:
            run.save()
        for share in [share for share in marks if run.done() >= share]:
            run.model.save_pretrained(marks.pop(share))
    run.save()


def samples(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Three texts the model writes."""
    torch.manual_seed(0)
    model.eval()
    start_BT = torch.full((3, 1), tokenizer.eos_token_id, device=model.device)
    written = model.generate(
        start_BT,
        attention_mask=torch.ones_like(start_BT),
        do_sample=True,
        top_p=0.9,
        max_new_tokens=60,
    )
    return [
        " ".join(text.split()) for text in tokenizer.batch_decode(written, skip_special_tokens=True)
    ]


def card(facts: dict[str, Any]) -> str:
    """The model card."""
    rows = "\n".join(
        f"| {name} | {line['loss']:.3f} | {line['perplexity']:.1f} | {line['bits_per_byte']:.3f} |"
        for name, line in facts["held_out"].items()
    )
    sources = "\n".join(
        f"- {name}: {LICENCES.get(name, 'see its own licence')}" for name in facts["held_out"]
    )
    written = "\n".join(f"> {text}\n" for text in facts["samples"])
    return f"""---
license: mit
language: en
---

# A small {facts["arch"]} decoder of the llm2vec project

{facts["parameters"]:,} parameters, vocabulary {facts["size"]["vocabulary"]:,}, {facts["size"]["layers"]} layers of
{facts["size"]["hidden"]}. Made to be converted to an encoder and to test on; it knows very little.

Trained from random weights on {facts["tokens"]:,} tokens in {facts["minutes"]:.0f} minutes on {facts["hardware"]},
seed {facts["seed"]}, sequences of {facts["size"]["length"]} tokens, Muon for the matrices of the layers and AdamW for
the rest. Command: `{facts["command"]}`

| held-out text | nats a token | perplexity | bits a byte |
| --- | --- | --- | --- |
{rows}

Text it was trained on:

{sources}

What it writes:

{written}"""


def main() -> None:
    """Parse, train, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--text",
        type=Path,
        default=Path("../shared/data/text"),
        help="folder of .txt or .txt.xz files",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished decoder")
    parser.add_argument(
        "--work", type=Path, help="folder for token ids and checkpoints; default: OUT.work"
    )
    parser.add_argument("--config", choices=SIZES, default="cpu")
    parser.add_argument(
        "--arch", choices=("llama", "qwen3", "gpt2", "gemma3_text", *HYBRIDS), default="llama"
    )
    parser.add_argument(
        "--tokenizer", help="use the tokenizer of this decoder instead of training one"
    )
    parser.add_argument(
        "--minutes", type=float, help="end after so much training time; default: by tokens"
    )
    parser.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="NAME=VALUE",
        help="change a number of the configuration",
    )
    parser.add_argument(
        "--keep",
        nargs="*",
        type=float,
        default=[],
        help="shares of the run at which to keep the model",
    )
    parser.add_argument(
        "--shares", nargs="*", default=[], metavar="FILE=SHARE", help="change the mix of texts"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--fast",
        action="store_true",
        help="bfloat16 and compiled, as always on a GPU; on a CPU it pays where lscpu shows avx512_bf16 or amx_bf16",
    )
    arguments = parser.parse_args()
    changes = {
        key: type(getattr(Size(), key))(value)
        for key, value in (text.split("=") for text in arguments.set)
    }
    size = Size(**{**asdict(SIZES[arguments.config]), **changes})
    work = arguments.work or arguments.out.with_name(arguments.out.name + ".work")
    work.mkdir(parents=True, exist_ok=True)
    files = sorted(path for path in arguments.text.iterdir() if ".txt" in path.suffixes)

    if not (work / "tokenizer").exists():
        made = arguments.tokenizer and PreTrainedTokenizerFast.from_pretrained(arguments.tokenizer)
        (made or make_tokenizer(files, size.vocabulary)).save_pretrained(work / "tokenizer")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    sources = [Source(path, tokenizer, work) for path in files]
    print({source.name: f"{len(source.ids):,} tokens" for source in sources}, flush=True)

    torch.manual_seed(arguments.seed)
    model = new_model(arguments.arch, size, tokenizer).to(
        "cuda" if torch.cuda.is_available() else "cpu"
    )
    budget_s = arguments.minutes * 60 if arguments.minutes else None
    run = Run(model, size, work / "checkpoints", budget_s)
    places = {share: work / f"kept-{share}" for share in arguments.keep}
    marks = {share: folder for share, folder in places.items() if not folder.exists()}
    shares = SHARES | {
        name: float(value) for name, value in (text.split("=") for text in arguments.shares)
    }
    train(
        run,
        sources,
        shares,
        seed=arguments.seed,
        marks=marks,
        fast=arguments.fast or model.device.type == "cuda",
    )

    model.generation_config.pad_token_id = tokenizer.pad_token_id
    facts = {
        "arch": arguments.arch,
        "size": asdict(size),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "tokens": run.step * size.batch * size.length,
        "minutes": run.spent_s / 60,
        "hardware": f"{torch.get_num_threads()} of {os.cpu_count()} cores ({platform.machine()})"
        if model.device.type == "cpu"
        else torch.cuda.get_device_name(),
        "seed": arguments.seed,
        "command": f"python scripts/pretrain_decoder.py --config {arguments.config} --arch {arguments.arch}"
        + (f" --minutes {arguments.minutes:g}" if arguments.minutes else "")
        + (f" --set {' '.join(arguments.set)}" if arguments.set else "")
        + (f" --shares {' '.join(arguments.shares)}" if arguments.shares else "")
        + (" --fast" if arguments.fast else ""),
        "held_out": held_out_report(model, sources, size.length, 200),
        "samples": samples(model, tokenizer),
    }
    model.to(torch.bfloat16).save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    (arguments.out / "README.md").write_text(card(facts), encoding="utf8")
    print(card(facts))


if __name__ == "__main__":
    main()
