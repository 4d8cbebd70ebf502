"""Write down what the first implementation computes: tests/assets/reference023, which tests compare with.

It runs in an environment of its own, where version 0.2.3 is installed and this package is not:

    python3.11 -m venv reference
    reference/bin/pip install llm2vec==0.2.3 transformers==4.44.2 peft==0.13.2
    reference/bin/python scripts/make_reference.py

The decoders are tiny, of the four types that 0.2.3 knows, with random weights and tokenizers learned from the bundled
pairs; two adapters on one of them are random too. Every vector is computed by 0.2.3's own `LLM2Vec`. The texts leave
its defects out (docs/migrating.md): texts that are empty, are cut, or have other pieces alone than behind a prompt.
"""

import argparse
import json
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from llm2vec.models import LlamaBiModel
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from llm2vec import LLM2Vec

ROOT = Path(__file__).parents[1]
OUT = ROOT / "tests" / "assets" / "reference023"
PAIRS = ROOT / "src" / "llm2vec" / "assets" / "evaluation" / "pairs.jsonl"

VERSIONS = ("llm2vec", "transformers", "peft", "tokenizers", "torch")
VOCABULARY = 300
SEED = 23

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # so that attention is not even
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}

TYPES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "mistral": {"tie_word_embeddings": False, "sliding_window": None},
    "gemma": {"head_dim": 8, "hidden_activation": "gelu_pytorch_tanh"},
    "qwen2": {"tie_word_embeddings": True},
}

PROMPT = "Find the same sentence:"

TEXTS = [
    "The old miller opened the green door before the rain came.",
    "The tired nurse",
    "The boats",
    "cats",
    "Where is my brother, and who painted the box that the tired nurse carried home in the evening?",
]

COUNTED = ["5 apples", "7", "\u6771\u4eac", "(aside) and then", "!", "Nobody sold it"]
"""Texts whose first piece does not join the blank after a prompt, which then is a piece of its own. Version 0.2.3
counts the pieces that a text has alone, and so, where a tokenizer puts a blank before every text, that one too."""

POOLINGS = ("mean", "weighted_mean", "last_token", "eos_token", "bos_token")


def main() -> None:
    """Make decoders, adapters and vectors."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=OUT)
    out = parser.parse_args().out
    if version("llm2vec") != "0.2.3":
        sys.exit(
            f"this is llm2vec {version('llm2vec')}; the environment of llm2vec 0.2.3 is needed"
        )
    if out.is_dir() and any(out.iterdir()) and not (out / "inputs.json").is_file():
        sys.exit(f"{out} holds something that this script did not write; choose another --out")
    for name in TYPES:
        make_decoder(name, out / name)
    for seed, name in enumerate(("adapter-mntp", "adapter-simcse")):
        make_adapter(out / "llama", out / name, seed=seed)
    vectors = dict(plain_cases(out)) | dict(chain_cases(out))
    save_file(vectors, out / "vectors.safetensors")
    inputs = {
        "made_with": {name: version(name) for name in VERSIONS},
        "python": platform.python_version(),
        "script": "scripts/make_reference.py",
        "prompt": PROMPT,
        "texts": TEXTS,
        "counted": COUNTED,
    }
    (out / "inputs.json").write_text(json.dumps(inputs, indent=1, ensure_ascii=False) + "\n")


def make_decoder(name: str, folder: Path) -> None:
    """A random decoder of a type, with a tokenizer as its family has one."""
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(SEED)
    config = AutoConfig.for_model(name, **SHAPE, **TYPES[name])
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    make_tokenizer(name).save_pretrained(folder)


def make_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Pieces learned from the bundled pairs.

    Llama's and Mistral's put a blank before every text, Gemma's makes blanks visible, Qwen2's works on bytes and
    has no start token.
    """
    start, end = ("<bos>", "<eos>") if name == "gemma" else ("<s>", "</s>")
    special = ["<unk>", start, "<|endoftext|>" if name == "qwen2" else end]
    backend = Tokenizer(BPE(unk_token=None if name == "qwen2" else "<unk>"))
    alphabet = list("\u25810123456789()!?.,:\u6771\u4eac")
    if name == "qwen2":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        blank = [normalizers.Prepend("\u2581")] if name != "gemma" else []
        backend.normalizer = normalizers.Sequence([*blank, normalizers.Replace(" ", "\u2581")])
        backend.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
        backend.decoder = decoders.Replace("\u2581", " ")
        backend.post_processor = TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, 1)]
        )
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=alphabet,
        max_token_length=8,
        show_progress=False,
    )
    backend.train_from_iterator(sentences(), trainer)
    names = {"unk_token": special[0], "bos_token": special[1], "eos_token": special[2]}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=special[2],
        model_input_names=["input_ids", "attention_mask"],
        **names,
    )


def sentences() -> Iterator[str]:
    """The bundled pairs' sentences."""
    for line in PAIRS.read_text(encoding="utf8").splitlines():
        for value in json.loads(line).values():
            if isinstance(value, str):
                yield value


def make_adapter(base: Path, folder: Path, *, seed: int) -> None:
    """A random adapter, in the form in which 0.2.3's training scripts save one."""
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(SEED + seed)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False)
    encoder = LLM2Vec.from_pretrained(str(base), pooling_mode="mean", max_length=128)
    encoder.model = get_peft_model(encoder.model, lora)
    encoder.save(str(folder))
    # target_modules is a set, which is written in another order each time
    edit(
        folder / "adapter_config.json",
        {"base_model_name_or_path": "base", "target_modules": targets},
    )
    (folder / "README.md").unlink(missing_ok=True)


def edit(file: Path, changes: dict[str, Any]) -> None:
    """Write other values into a JSON file: no path of this machine, and the same bytes each time."""
    written = json.loads(file.read_text()) | changes
    file.write_text(json.dumps(written, indent=2) + "\n")


def plain_cases(out: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every type under every pooling: texts alone, behind a prompt, and pooled with it."""
    for name in TYPES:
        for pooling in POOLINGS:
            if pooling == "bos_token" and name == "qwen2":
                continue  # it has none
            for mode in ("bi", "uni"):
                encoder = LLM2Vec.from_pretrained(
                    str(out / name), enable_bidirectional=mode == "bi", pooling_mode=pooling
                )
                yield from three_ways(encoder, f"{name}/{mode}/{pooling}")


def three_ways(encoder: LLM2Vec, key: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Vectors of the texts alone, behind the prompt, and pooled with the prompt."""
    texts = TEXTS + COUNTED
    for text in texts:
        check_count(encoder.tokenizer, text)
    pairs = [[PROMPT, text] for text in texts]
    yield f"{key}/plain", vectors_of(encoder, texts)
    yield f"{key}/instruction", vectors_of(encoder, pairs)
    encoder.skip_instruction = False
    yield f"{key}/instruction_pooled", vectors_of(encoder, pairs)


def check_count(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    """Stop at a text that 0.2.3 finds by a wrong count: what it pools then begins elsewhere."""
    offsets = tokenizer(f"{PROMPT} {text}", return_offsets_mapping=True)["offset_mapping"]
    count = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    if offsets[-count][0] not in (len(PROMPT), len(PROMPT) + 1):
        sys.exit(f"{text!r} has other pieces alone than behind the prompt; take another text")


def chain_cases(out: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """One adapter, and one upon the other, merged as the published model cards do it."""
    base, mntp, simcse = (out / name for name in ("llama", "adapter-mntp", "adapter-simcse"))
    one = LLM2Vec.from_pretrained(str(base), str(mntp), merge_peft=True)
    yield from three_ways(one, "chain/mntp")
    merged = LlamaBiModel.from_pretrained(base)
    merged = PeftModel.from_pretrained(merged, mntp).merge_and_unload()
    model = PeftModel.from_pretrained(merged, simcse)
    two = LLM2Vec(model, one.tokenizer, pooling_mode="mean", max_length=128)
    yield from three_ways(two, "chain/mntp+simcse")
    two.skip_instruction = True
    shutil.rmtree(out / "merged", ignore_errors=True)
    two.save(str(out / "merged"), merge_before_save=True)
    edit(out / "merged" / "config.json", {"_name_or_path": "base"})


def vectors_of(encoder: LLM2Vec, texts: list[Any]) -> torch.Tensor:
    """What 0.2.3 computes: embedding_BD."""
    return encoder.encode(texts, show_progress_bar=False, device="cpu").contiguous()


if __name__ == "__main__":
    main()
