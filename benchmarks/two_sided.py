"""Does a recurrent layer that also reads backwards learn under MNTP? An experiment on tiny hybrids.

    python scripts/pretrain_decoder.py --arch lfm2 --config tiny --tokenizer src/llm2vec/assets/decoder \\
        --set hidden=128 layers=4 tokens=1500000 --out lfm2
    python scripts/pretrain_decoder.py --arch qwen3_5_text ... --out deltanet
    python benchmarks/two_sided.py lfm2 deltanet --out scores [--data ../shared/data] [--seeds 42 43] [--steps 300]

Each decoder is trained by MNTP on the same tokens in up to four ways: as it is (causal), with its attention switched
(attention), with each recurrent or convolution mixer also run over the reversed row and averaged (reversed mean), and
with centred convolutions (centred, LFM2 alone). Before training, padding is seen to change nothing. Scores are kept as
soon as they are there, so that a run that was stopped goes on; `--table` prints what is there.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gains import WORDS
from machine import heading
from sweep import real_text
from torch import Tensor, nn
from transformers import PreTrainedModel

from llm2vec.backbone.loading import load_decoder, load_tokenizer
from llm2vec.backbone.proofs import relative
from llm2vec.backbone.switch import allow_partly, body, make_bidirectional
from llm2vec.corpus.tagged import read_tagged
from llm2vec.corpus.token_store import TokenStore, store_tokens
from llm2vec.encoder.encoder import Encoder
from llm2vec.evaluation.probe import probe
from llm2vec.recipe.knobs import MntpRecipe
from llm2vec.runtime.files import read_json, write_json
from llm2vec.runtime.progress import Silent
from llm2vec.training.mntp import mntp_task
from llm2vec.training.stage import train_and_merge

TASKS = ("EWT POS", "CoNLL-2000 chunks")
TRAIN, TEST = 2000, 1000
"""Sentences of a probe."""

MIXERS = ("ShortConv", "GatedDeltaNet", "Mamba2Mixer", "MambaMixer")
"""Ends of the names of the classes that mix tokens from left to right."""


def mixers(model: nn.Module) -> list[Any]:
    """The modules of a hybrid that read from left to right."""
    return [each for each in model.modules() if type(each).__name__.endswith(MIXERS)]


def reversal(states_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Indices that reverse each row within its own length, and leave padding where it is."""
    rows, tokens, width = states_BTD.shape
    positions_T = torch.arange(tokens)
    lengths_B = torch.full((rows,), tokens) if mask_BT is None else mask_BT.sum(1).long()
    reversed_BT = lengths_B[:, None] - 1 - positions_T
    index_BT = torch.where(reversed_BT >= 0, reversed_BT, positions_T)
    return index_BT[:, :, None].expand(-1, -1, width)


def mean_of_both_directions(
    forward: Callable[..., Tensor],
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """A mixer's output, averaged with its output for the reversed row, reversed back."""
    index = reversal(hidden_states, attention_mask)
    ahead = forward(hidden_states=hidden_states, attention_mask=attention_mask, **kwargs)
    turned = hidden_states.gather(1, index)
    back = forward(hidden_states=turned, attention_mask=attention_mask, **kwargs)
    return (ahead + back.gather(1, index)) / 2


def centred(
    mixer: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any
) -> Tensor:
    """A short convolution with the same weights, whose window lies around each token."""
    if attention_mask is not None:
        hidden_states = hidden_states * attention_mask[..., None].to(hidden_states.dtype)
    first, second, inner = mixer.in_proj(hidden_states).transpose(-1, -2).chunk(3, dim=-2)
    size = mixer.conv_kernel_size
    padded = nn.functional.pad(first * inner, (size // 2, (size - 1) // 2))
    weight, bias = mixer.conv.weight, mixer.conv.bias
    mixed = nn.functional.conv1d(padded, weight, bias, groups=weight.shape[0])
    output: Tensor = mixer.out_proj((second * mixed).transpose(-1, -2).contiguous())
    return output


def causal_as_it_is(model: PreTrainedModel) -> None:
    """Leave the model as it is."""
    model.config.use_cache = False


def attention_switched(model: PreTrainedModel) -> None:
    """Switch the attention layers and prove it, as `--partial` does."""
    allow_partly(model)
    make_bidirectional(model)


def mixers_averaged(model: PreTrainedModel) -> None:
    """Switch the attention, and run each mixer in both directions."""
    attention_switched(model)
    for mixer in mixers(model):
        mixer.forward = partial(mean_of_both_directions, mixer.forward)


def convolutions_centred(model: PreTrainedModel) -> None:
    """Switch the attention, and centre each convolution."""
    attention_switched(model)
    for mixer in mixers(model):
        mixer.forward = partial(centred, mixer)


WAYS: dict[str, Callable[[PreTrainedModel], None]] = {
    "causal": causal_as_it_is,
    "attention": attention_switched,
    "reversed mean": mixers_averaged,
    "centred convolution": convolutions_centred,
}


def ways_of(decoder: Path) -> list[str]:
    """The ways that make sense for a decoder."""
    names = {type(mixer).__name__ for mixer in mixers(load_decoder(decoder, head=True))}
    has_short = all(name.endswith("ShortConv") for name in names)
    return [way for way in WAYS if has_short or way != "centred convolution"]


@torch.no_grad()
def check_padding(model: PreTrainedModel, way: str) -> float:
    """How far the states of a text move beside a longer one; an error if that is more than rounding."""
    ids_BT = torch.randint(10, 100, (1, 9), generator=torch.Generator().manual_seed(0))
    mask_BT = torch.tensor([[1] * 6 + [0] * 3])
    base = body(model).eval()
    alone = base(input_ids=ids_BT[:, :6]).last_hidden_state
    beside = base(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state[:, :6]
    moved = relative(beside, alone)
    if not moved < 1e-4:
        raise SystemExit(f"{way}: padding moves states by {moved:.1e}")
    return moved


def tokens_of(decoder: Path, arguments: argparse.Namespace) -> TokenStore:
    """The tokens of the mix, as this decoder reads them."""
    folder = arguments.out / f"{decoder.name} tokens"
    if not folder.is_dir():
        texts = real_text("mix", arguments).read_text(encoding="utf8").splitlines()
        tokenizer = load_tokenizer(decoder)
        store_tokens(tokenizer, texts, folder, max_length=None, min_tokens=2)
    return TokenStore(folder)


def measure(decoder: Path, way: str, seed: int, arguments: argparse.Namespace) -> None:
    """Convert a decoder in one way with one seed, unless that was done before."""
    file = arguments.out / f"{decoder.name} - {way} - {seed}.json"
    if file.exists():
        return
    model, tokenizer = load_decoder(decoder, head=True), load_tokenizer(decoder)
    WAYS[way](model)
    moved = check_padding(model, way)
    knobs = MntpRecipe(
        steps=arguments.steps,
        batch_size=16,
        max_length=128,
        method="full",
        learning_rate=5e-4,
        schedule="cosine",
        warmup_steps=min(20, arguments.steps // 10),
        layout="concatenated",
        eval_every=arguments.steps,
        save_every=10**9,
        precision="float32",
    )
    task = mntp_task(model, tokenizer, tokens_of(decoder, arguments), knobs, seed=seed)
    folder = arguments.out / f"{decoder.name} - {way} - {seed}.run"
    trained, log = train_and_merge(model, task, knobs, folder=folder, seed=seed, progress=Silent())
    accuracies = [line["eval_accuracy"] for line in log if "eval_accuracy" in line]
    found = {"masked accuracy": [accuracies[0], accuracies[-1]], "padding": moved}
    encoder = Encoder(body(trained), tokenizer)
    write_json(file, {**found, **words(encoder, arguments.data)})
    print(file.stem, read_json(file), flush=True)


def words(encoder: Encoder, data: Path) -> dict[str, float]:
    """Probes on the first sentences, words read from their own tokens."""
    found = {}
    for task in TASKS:
        train, test, column, metric = WORDS[task]
        sentences = read_tagged(data / train, column=column)[:TRAIN]
        others = read_tagged(data / test, column=column)[:TEST]
        found[task] = probe(encoder, sentences, others, metric=metric, reading="own").value
    return found


def table(decoders: Sequence[Path], arguments: argparse.Namespace) -> None:
    """Means over the seeds that are there, with the single values."""
    print(heading())
    print("| decoder | way | masked accuracy before | after | " + " | ".join(TASKS) + " |")
    print("|" + " --- |" * (4 + len(TASKS)))
    for decoder in decoders:
        for way in WAYS:
            files = [
                arguments.out / f"{decoder.name} - {way} - {seed}.json" for seed in arguments.seeds
            ]
            kept = [read_json(file) for file in files if file.exists()]
            if kept:
                columns = [[each["masked accuracy"][at] for each in kept] for at in (0, 1)]
                columns += [[each[task] for each in kept] for task in TASKS]
                print(f"| {decoder.name} | {way} | {' | '.join(map(_cell, columns))} |")


def _cell(values: Sequence[float]) -> str:
    each = ", ".join(f"{100 * value:.1f}" for value in values)
    return f"{100 * statistics.mean(values):.1f} ({each})"


def main() -> None:
    """Measure what is missing, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("decoders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 43])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--table", action="store_true", help="only print what is there")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for seed in () if arguments.table else arguments.seeds:
        for decoder in arguments.decoders:
            for way in ways_of(decoder):
                measure(decoder, way, seed, arguments)
    table(arguments.decoders, arguments)


if __name__ == "__main__":
    main()
