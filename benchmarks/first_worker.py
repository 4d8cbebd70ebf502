"""One measurement of `first_implementation.py`, in whichever environment runs this: ours, or the first implementation.

Tells which from what is installed. Encoding uses only what both offer; a training step has one way for each.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm2vec import LLM2Vec

OURS = find_spec("llm2vec.training") is not None


def peak_gb() -> float:
    """Of this process alone; what `getrusage` tells begins at the peak of the process that started it."""
    facts = Path("/proc/self/status")
    if not facts.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    line = next(line for line in facts.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1e6


def encode(folder: Path, what: str, vectors: Path) -> dict[str, float]:
    """Seconds of `encode` as it is by default, on texts or on pairs of an instruction and a text."""
    asked = json.loads((folder / "texts.json").read_text(encoding="utf8"))
    encoder = LLM2Vec.from_pretrained(str(folder / "model"))
    sentences = (
        asked["texts"]
        if what == "texts"
        else [[asked["instruction"], text] for text in asked["texts"]]
    )
    encoder.encode(sentences[:64], show_progress_bar=False)
    before_gb = peak_gb()
    started, cpu = time.perf_counter(), time.process_time()
    found = encoder.encode(sentences, show_progress_bar=False)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    np.save(vectors, np.asarray(found))
    return {"seconds": seconds, "cpu": cpu, "gb": peak_gb(), "more_gb": peak_gb() - before_gb}


def our_step(folder: Path, blocks: Any) -> tuple[torch.nn.Module, Callable[[], torch.Tensor]]:
    """The stage's own adapters and loss; its blocks are rows of one packed row, and only masked rows are read."""
    from llm2vec.backbone.loading import load_decoder
    from llm2vec.backbone.lora import add_adapters
    from llm2vec.backbone.switch import make_bidirectional
    from llm2vec.encoder.batching import is_packed, model_inputs
    from llm2vec.recipe.knobs import MntpRecipe
    from llm2vec.runtime.allocator import keep_freed_memory
    from llm2vec.training.mntp import mntp_loss

    keep_freed_memory()
    model = load_decoder(folder / "mntp", head=True)
    make_bidirectional(model)
    packed = is_packed(model)
    trained = add_adapters(model, MntpRecipe()).train()
    inputs = model_inputs(blocks["ids"].tolist(), packed=packed, pad_id=0)
    places, labels = torch.from_numpy(blocks["places"]), torch.from_numpy(blocks["labels"])
    return trained, lambda: mntp_loss(trained, {**inputs, "rows": places, "labels": labels}, None)


def their_step(folder: Path, blocks: Any) -> tuple[torch.nn.Module, Callable[[], torch.Tensor]]:
    """As its training script: adapters on the inner model, labels of -100 where nothing is masked, every logit."""
    from llm2vec.models import LlamaBiForMNTP
    from peft import LoraConfig, get_peft_model

    model = LlamaBiForMNTP.from_pretrained(str(folder / "mntp"))
    targets = ["q_proj", "v_proj", "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapters = LoraConfig(
        r=16, lora_alpha=32, lora_dropout=0.05, bias="none", target_modules=targets
    )
    model.set_model_for_peft(get_peft_model(model.get_model_for_peft(), adapters))
    model.train()
    ids = torch.from_numpy(blocks["ids"])
    labels = torch.full((ids.numel(),), -100)
    labels[torch.from_numpy(blocks["places"]) + 1] = torch.from_numpy(blocks["labels"])
    mask = torch.ones_like(ids)
    return model, lambda: model(input_ids=ids, attention_mask=mask, labels=labels.view_as(ids)).loss


def step(folder: Path, repeats: int) -> dict[str, float]:
    """Seconds of the fastest of `repeats` steps, forward, gradients and optimiser, after a first one."""
    blocks = np.load(folder / "blocks.npz")
    torch.manual_seed(0)
    model, loss_of = (our_step if OURS else their_step)(folder, blocks)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=5e-5, weight_decay=0.0)
    before_gb = peak_gb()
    seconds, losses, cpu = [], [], time.process_time()
    for number in range(repeats + 1):
        if number == 1:
            cpu = time.process_time()
        started = time.perf_counter()
        loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss))
        seconds.append(time.perf_counter() - started)
    cpu = (time.process_time() - cpu) / repeats
    trained = sum(weight.numel() for weight in weights)
    best = min(seconds[1:])
    facts = {"loss": losses[0], "trained": trained}
    return {"seconds": best, "cpu": cpu, "gb": peak_gb(), "more_gb": peak_gb() - before_gb, **facts}


def main() -> None:
    """Measure what is asked for and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("what", choices=("texts", "pairs", "step"))
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.what == "step":
        found = step(arguments.folder, arguments.steps)
    else:
        found = encode(arguments.folder, arguments.what, arguments.vectors)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
