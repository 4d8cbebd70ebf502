"""Every knob of a recipe, none of them at its default, and what becomes of it: one table.

What is compared is read off the objects that do the work - the trainer, its learning rates, the adapters, batches,
texts, settings - so that a knob that is ignored on the way is missed here.
"""

import json
from collections import Counter
from dataclasses import replace

import datasets
import families
import numpy as np
import pyarrow
import pytest
import torch
from accelerate import PartialState
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from pyarrow import parquet
from pydantic import BaseModel
from test_custom_code import CLASSES, CONFIGURATION, MODEL

from llm2vec.backbone.loading import load_decoder, load_tokenizer
from llm2vec.backbone.lora import add_adapters, weights_dtype
from llm2vec.backbone.source import Source
from llm2vec.backbone.switch import make_bidirectional
from llm2vec.conversion.bidirectional import make_bidirectional_folder
from llm2vec.corpus.self_written import self_texts
from llm2vec.corpus.texts import read_texts, sentences
from llm2vec.encoder.encoder import Encoder
from llm2vec.errors import UsageError
from llm2vec.recipe.knobs import CorpusRecipe, DistillRecipe, Recipe, SimcseRecipe
from llm2vec.runtime.progress import Silent
from llm2vec.training.stage import StageRun, run_stage
from llm2vec.training.stages import STAGES
from llm2vec.training.trainer import Keeping, open_trainer

WORDS = ("a red door", "the old mill", "rain in may", "two boats", "no one", "green tea", "a map")


TARGETS = (
    ("down_proj", "q_proj"),
    ("k_proj", "up_proj"),
    ("o_proj", "v_proj"),
    ("gate_proj", "q_proj"),
)


def stage_knobs(number):
    """The knobs that all stages share, other ones for each."""
    return {
        "steps": 11 + number,
        "batch_size": 6 + 3 * number,
        "accumulation": 3,
        "max_length": 40 + number,
        "method": "full",
        "lora": {
            "r": 2 + number,
            "alpha": 7.0 + number,
            "dropout": 0.25 + number / 8,
            "targets": TARGETS[number],
        },
        "learning_rate": 0.005 + number / 1000,
        "schedule": "cosine",
        "schedule_epochs": 2.0 + number,
        "warmup_steps": 2 + number,
        "weight_decay": 0.125 + number / 8,
        "max_grad_norm": 0.5 + number,
        "precision": "bfloat16",
        "gradient_checkpointing": True,
        "log_every": 3 + number,
        "save_every": 4 + number,
        "keep_every": 5 + number,
        "report_to": (f"nowhere-{number}",),
    }


MNTP = {
    "mask_probability": 0.4,
    "masking": "all",
    "mask_token": "eos",
    "layout": "lines",
    "train_head": True,
    "held_out": 0.25,
    "eval_blocks": 3,
    "eval_every": 7,
}
SIMCSE = {
    "dropout": 0.125,
    "scale": 13.0,
    "min_tokens": 5,
    "sentences": True,
}
DISTILL = {
    "batch_size": 21,
    "schedule_epochs": 9.0,
    "scale": 11.0,
    "min_tokens": 6,
    "sentences": True,
    "cosine": 0.5,
    "mse": 0.25,
    "relational": 2.0,
    "scores": 3.0,
}
PAIRS = {
    "negatives": 2,
    "prompts": {"first": ("Find it,", "Look for it,"), "second": ("Ask,",)},
    "both_sides": ("second",),
}
CORPUS = {
    "column": "body",
    "format": "csv",
    "delimiter": "|",
    "config": "second",
    "split": "test",
    "unit": "document",
    "max_texts": 60,
    "self_texts": 5,
    "self_tokens": 9,
    "temperature": 0.001,
    "top_p": 0.001,
}
ENCODER = {
    "pooling": "weighted_mean",
    "max_length": 40,
    "normalize": True,
    "prompts": {"query": "Q,"},
    "template": "Say {text} now",
    "separator": " or ",
}


OWN_CORPUS = ((SimcseRecipe, "corpus"), (DistillRecipe, "corpus"))
"""Corpora of a stage's own, whose knobs are those of the recipe's corpus."""


def leaves(part):
    """The knobs of a part of a recipe by name, those of its own parts included: `lora.r` ..."""
    found = {}
    for name in type(part).model_fields:
        value = getattr(part, name)
        if isinstance(value, BaseModel) and (type(part), name) not in OWN_CORPUS:
            found |= {f"{name}.{inner}": each for inner, each in leaves(value).items()}
        else:
            found[name] = value
    return found


# --- what the recipe is made of


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """The recipe, with the decoder, adapter and data that it names."""
    folder = tmp_path_factory.mktemp("odd")
    texts = [f"{first}. Then {second}." for first in WORDS for second in WORDS]
    for config in ("first", "second"):
        for split in ("train", "test"):
            rows = [f"{config} {split} {text}" for text in texts * 2]
            columns = {"title": [f"no {row}" for row in rows], "body": rows}
            place = folder / "data" / config
            place.mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_dict(columns).to_parquet(place / f"{split}.parquet")
    (folder / "data" / "README.md").write_text(CARD)
    lines = [f"{text} {'ab' * (number % 20)}" for number, text in enumerate(texts)]
    (folder / "simcse.txt").write_text("\n".join([*lines, "a b", "abcd", "abcde"]))
    vectors = [[float(number), 1.0] for number in range(len(sentences_of(folder / "simcse.txt")))]
    parquet.write_table(pyarrow.table({"vector": vectors}), folder / "vectors.parquet")
    (folder / "pairs").mkdir()
    for number, name in enumerate(("first", "second")):
        rows = [
            {"query": text, "positive": f"p {text}", "negative": [f"{n} {text}" for n in "xyz"]}
            for text in texts[number:]
        ]
        (folder / "pairs" / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows)
        )
    decoder = own_code(folder / "decoder")
    mntp, simcse, supervised, distill = map(stage_knobs, range(4))
    return Recipe.read(
        {
            "decoder": str(decoder),
            "adapters": (str(adapter_of(decoder, folder / "adapter")),),
            "seed": 7,
            "trust_remote_code": True,
            "corpus": {"source": f"hub:{folder / 'data'}", **CORPUS},
            "mntp": {**mntp, **MNTP},
            "simcse": {**simcse, **SIMCSE, "corpus": {"source": str(folder / "simcse.txt")}},
            "supervised": {
                **supervised,
                "scale": 17.0,
                "corpus": {"source": str(folder / "pairs"), **PAIRS},
            },
            "distill": {
                **distill,
                **DISTILL,
                "corpus": {"source": str(folder / "simcse.txt")},
                "teacher": str(folder / "vectors.parquet"),
            },
            "encoder": ENCODER,
        }
    )


def sentences_of(file):
    return [each for line in file.read_text().splitlines() for each in sentences(line)]


CARD = """---
configs:
- config_name: first
  default: true
  data_files: [{split: train, path: first/train.parquet}, {split: test, path: first/test.parquet}]
- config_name: second
  data_files: [{split: train, path: second/train.parquet}, {split: test, path: second/test.parquet}]
---
"""


def own_code(folder):
    """A tiny decoder that only its own code opens."""
    families.write_decoder("llama", folder)
    config = json.loads((folder / "config.json").read_text())
    changes = {"model_type": "own_code", "architectures": ["OwnForCausalLM"], "auto_map": CLASSES}
    (folder / "config.json").write_text(json.dumps(config | changes))
    (folder / "configuration_own.py").write_text(CONFIGURATION)
    (folder / "modeling_own.py").write_text(MODEL)
    return folder


def adapter_of(decoder, folder):
    torch.manual_seed(0)
    model = load_decoder(
        Source.of(decoder, trust_remote_code=True), head=False, dtype=torch.float32
    )
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(folder)
    return folder


# --- what becomes of it


def became_bidirectional(recipe, folder):
    """Read off the folder of the first stage."""
    make_bidirectional_folder(recipe, folder, progress=Silent())
    encoder = Encoder.from_pretrained(Source.of(folder, trust_remote_code=True))
    made, settings = encoder.model, encoder.settings
    decoder = load_decoder(
        Source.of(recipe.decoder, trust_remote_code=True), head=False, dtype=torch.float32
    )
    same = {
        name: torch.allclose(weight, made.get_parameter(name), atol=1e-5)
        for name, weight in decoder.named_parameters()
    }
    changed = {name.split(".")[-2] for name, each in same.items() if not each}
    its_own = type(made).__module__.startswith("transformers_modules")
    return {
        "decoder": recipe.decoder if same["embed_tokens.weight"] else "another",
        "adapters": recipe.adapters if changed == {"q_proj"} else changed,
        "trust_remote_code": its_own,
        **{f"encoder.{name}": getattr(settings, name) for name in ENCODER},
    }


def became_texts(corpus, recipe, folder):
    """Read off the texts that are read, and off those that the decoder writes."""
    texts = list(read_texts(corpus))
    config, split, *_ = texts[0].removeprefix("no ").split()
    (folder / "whole.txt").write_text("One.\n\nTwo.\n")
    atomic_file = {"source": str(folder / "whole.txt"), "format": "txt"}
    whole = list(read_texts(corpus.model_copy(update=atomic_file)))
    (folder / "cells").write_text("n;body|body\n1;2|cell\n")  # the delimiter must be said
    cells = list(read_texts(corpus.model_copy(update={"source": str(folder / "cells")})))
    source = Source.of(recipe.decoder, trust_remote_code=True)
    writer = load_decoder(source, head=True, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(source)

    def written(progress=None, **changes):
        settings = CorpusRecipe(**{"self_texts": 32, "self_tokens": 8, **changes})
        return list(self_texts(writer, tokenizer, settings, seed=0, progress=progress))

    assert len(set(written())) > 16, "these would not show a narrow choice of tokens"
    counted = Counting()
    written(self_tokens=corpus.self_tokens, progress=counted)
    return {
        "source": corpus.source,
        "column": "title" if texts[0].startswith("no ") else "body",
        "format": "csv" if cells == ["cell"] else cells,
        "delimiter": "|" if cells == ["cell"] else cells,
        "config": config,
        "split": split,
        "unit": "document" if len(whole) == 1 else "line",
        "max_texts": len(texts),
        "self_texts": len(written(self_texts=corpus.self_texts)),
        "self_tokens": counted.tokens[0] / 32,
        "temperature": 0.001 if len(set(written(temperature=corpus.temperature))) == 1 else None,
        "top_p": 0.001 if len(set(written(top_p=corpus.top_p))) == 1 else None,
    }


class Counting(Silent):
    """Keeps how many tokens have been written, batch by batch."""

    def __init__(self):
        self.tokens = []

    def advance(self, count, /, **numbers):
        self.tokens.append(numbers["tokens"])


def opened(stage, run):
    """A stage's rows, model and task, as `run_stage` makes them."""
    tokenizer = load_tokenizer(run.source)
    rows = stage.open_rows(run, tokenizer)
    overrides = {} if stage.overrides is None else stage.overrides(run)
    model = load_decoder(
        run.source, head=stage.has_head, dtype=torch.float32, config_overrides=overrides
    )
    make_bidirectional(model)
    return tokenizer, rows, model, stage.task(run, model, tokenizer, rows)


def became_stage(knobs, model, task, folder):
    """What all stages share, read off the trainer and the adapters."""
    adapted = adapters_of(knobs.model_copy(update={"method": "lora"}), model)
    trained = add_adapters(model, knobs, train_head=task.trains_head)
    run = {"folder": folder, "seed": 7, "progress": Silent()}
    with pytest.raises(UsageError) as refused:
        open_trainer(trained, task, knobs, **run)
    trainer = open_trainer(trained, task, knobs.model_copy(update={"report_to": ()}), **run)
    arguments = trainer.args
    trainer.create_optimizer_and_scheduler(knobs.steps)
    per_step = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    weights = weights_dtype(knobs.model_copy(update={"method": "lora"}), torch.device("cpu"))
    batches = [task.collate([number]) for number in range(task.samples)]
    return {
        "steps": arguments.max_steps,
        "batch_size": per_step,
        "accumulation": arguments.gradient_accumulation_steps,
        "max_length": max(max(lengths_of(batch)) for batch in batches),
        "method": "full" if not isinstance(trained, PeftModel) else "lora",
        **adapted,
        **became_schedule(trainer, per_step / task.samples),
        "weight_decay": max(group["weight_decay"] for group in trainer.optimizer.param_groups),
        "max_grad_norm": arguments.max_grad_norm,
        "precision": "bfloat16" if arguments.bf16 and weights is torch.bfloat16 else None,
        "gradient_checkpointing": arguments.gradient_checkpointing,
        "log_every": arguments.logging_steps,
        "save_every": int(arguments.save_steps),
        "keep_every": callback(trainer, Keeping).every,
        "report_to": (str(refused.value).split(":")[0].removeprefix("report_to "),),
    }


def callback(trainer, kind):
    return next(each for each in trainer.callback_handler.callbacks if isinstance(each, kind))


def lengths_of(batch):
    if "parts" in batch:
        return [length for part in batch["parts"] for length in part["ranges"][:, 0].tolist()]
    if "document_lengths" in batch:
        return batch["document_lengths"]
    return batch["attention_mask"].sum(1).tolist()


def ids_of(batch):
    inputs = batch["parts"][0]["inputs"] if "parts" in batch else batch
    return inputs["input_ids"].tolist()


def adapters_of(knobs, model):
    """The LoRA knobs, read off the adapted layers; the model is as before afterwards."""
    adapted = add_adapters(model, knobs)
    layers = {name: each for name, each in adapted.named_modules() if isinstance(each, LoraLayer)}
    each = next(iter(layers.values()))
    rank = each.lora_A["default"].weight.shape[0]
    found = {
        "lora.r": rank,
        "lora.alpha": each.scaling["default"] * rank,
        "lora.dropout": each.lora_dropout["default"].p,
        "lora.targets": tuple(sorted({name.split(".")[-1] for name in layers})),
    }
    adapted.unload()
    return found


def became_schedule(trainer, epochs_per_step):
    """The knobs of the learning rate, read off its course: where its peak is, where it ends, its shape between."""
    rates = []
    while len(rates) < 6 or (rates[-1] > 1e-12 and len(rates) < 200):
        rates.append(trainer.lr_scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    peak, end = int(np.argmax(rates)), len(rates) - 1
    along = (np.arange(peak, end + 1) - peak) / (end - peak)
    shapes = {"linear": 1 - along, "cosine": (1 + np.cos(np.pi * along)) / 2}
    found = np.array(rates[peak:]) / rates[peak]
    assert np.allclose(rates[:peak], rates[peak] * np.arange(peak) / peak)
    return {
        "learning_rate": rates[peak],
        "warmup_steps": peak,
        "schedule": next(name for name, shape in shapes.items() if np.allclose(found, shape)),
        "schedule_epochs": end * epochs_per_step,
    }


def became_mntp(recipe, tokenizer, store, model, task):
    """Read off batches, the evaluation and the head."""
    batches = [task.collate([number]) for number in range(20 * task.samples)]
    maskable = sum(batch["tokens"] - len(lengths_of(batch)) for batch in batches)
    masked = Counter(
        int(token) for batch in batches for token in batch["input_ids"].flatten()[batch["rows"] + 1]
    )
    rows = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.extend(lengths_of(kwargs)), with_kwargs=True
    )
    task.evaluate(model)
    hook.remove()
    share = sum(masked.values()) / maskable
    return {
        "mask_probability": round(share, 1) if abs(share - round(share, 1)) < 0.02 else share,
        "masking": "all" if len(masked) == 1 else "bert",
        "mask_token": "eos" if masked.most_common(1)[0][0] == tokenizer.eos_token_id else None,
        "layout": "lines" if all(len(lengths_of(batch)) == 1 for batch in batches) else None,
        "train_head": model.get_output_embeddings().weight.requires_grad,
        "held_out": 1 - task.samples / len(store),
        "eval_blocks": len(rows),
        "eval_every": task.evaluate_every,
    }


def became_simcse(recipe, tokenizer, store, model, task):
    """Read off the stored texts, the layers and the loss."""
    rows = [store[number] for number in range(len(store))]
    own = [row.ids[row.first : row.end] for row in rows]
    after = ENCODER["template"].partition("{text}")[2]
    texts = [squeezed(tokenizer.decode(ids)).removesuffix(squeezed(after)) for ids in own]
    assert all("Say" in squeezed(tokenizer.decode(row.ids)) for row in rows)
    dropouts = {
        each.attention_dropout for each in model.modules() if hasattr(each, "attention_dropout")
    }
    return {
        "dropout": dropouts.pop() if len(dropouts) == 1 else dropouts,
        "scale": task.loss.scale,
        "corpus": recipe.simcse.corpus if "abcde" in texts else None,
        "min_tokens": min(map(len, own))
        - len(tokenizer(after, add_special_tokens=False).input_ids),
        "sentences": any(text == "areddoor." for text in texts),
    }


def became_supervised(recipe, tokenizer, triples, model, task):
    """Read off the stored triples and the loss; a prompt is what comes before the tokens that are pooled."""
    before, _, _ = recipe.encoder.template.partition("{text}")
    known = {
        squeezed(before + prompt + recipe.encoder.separator): prompt
        for given in recipe.supervised.corpus.prompts.values()
        for prompt in given
    }
    prompts, sides = {}, []
    for place, each in enumerate(triples.data_sets):
        rows = [triples(place, row) for row in range(4)]
        found = [squeezed(tokenizer.decode(row[0].ids[: row[0].first])) for row in rows]
        prompts[each.name] = tuple(dict.fromkeys(known.get(text, text) for text in found))
        if all(text.first == rows[0][0].first for text in rows[0]):
            sides.append(each.name)
    return {
        "scale": task.loss.scale,
        "corpus.source": recipe.supervised.corpus.source
        if list(prompts) == ["first", "second"]
        else None,
        "corpus.negatives": triples.data_sets[0].negatives,
        "corpus.prompts": prompts,
        "corpus.both_sides": tuple(sides),
    }


def became_distill(recipe, tokenizer, taught, model, task):
    """Read off the stored texts, the teacher's vectors and the loss."""
    rows = [taught.rows.store[number] for number in range(len(taught.rows))]
    own = [row.ids[row.first : row.end] for row in rows]
    after = ENCODER["template"].partition("{text}")[2]
    texts = [squeezed(tokenizer.decode(ids)).removesuffix(squeezed(after)) for ids in own]
    vectors = task.collate(range(5))["teacher"]
    is_theirs = vectors[:, 1].eq(1).all() and len(taught.teacher) == taught.rows.count
    return {
        "corpus": recipe.distill.corpus if any("abab" in text for text in texts) else None,
        "min_tokens": min(map(len, own))
        - len(tokenizer(after, add_special_tokens=False).input_ids),
        "sentences": any(text == "areddoor." for text in texts),
        "teacher": recipe.distill.teacher if is_theirs else None,
        **{name: getattr(task.loss.knobs, name) for name in LOSSES},
    }


LOSSES = ("cosine", "mse", "relational", "scores", "scale")


def squeezed(text):
    """Without spaces, which decoding puts between letters."""
    return text.replace(" ", "")


def became_seeds(stage, run):
    """The seed, read off a run's checkpoint, where another seed gives other batches."""
    _, rows, model, task = opened(stage, run)
    other = replace(run, recipe=run.recipe.model_copy(update={"seed": run.recipe.seed + 1}))
    again = stage.task(other, model, load_tokenizer(run.source), rows)
    firsts = [ids_of(each.collate([0])) for each in (task, again)]
    assert firsts[0] != firsts[1]
    silent = stage.knobs(run.recipe).model_copy(update={"report_to": ()})
    run_stage(stage, replace(run, recipe=run.recipe.model_copy(update={stage.name: silent})))
    checkpoint = max(run.scratch.glob("checkpoint-*"))
    return torch.load(checkpoint / "training_args.bin", weights_only=False).seed


BECAME = {
    "mntp": became_mntp,
    "simcse": became_simcse,
    "supervised": became_supervised,
    "distill": became_distill,
}


def became(recipe, folder):
    """Every knob, read off what the recipe became."""
    first = folder / "0-bi"
    found = became_bidirectional(recipe, first)
    corpus = became_texts(recipe.corpus, recipe, folder)
    found |= {f"corpus.{name}": value for name, value in corpus.items()}
    source = Source.of(first, trust_remote_code=True)
    settings, processes = Encoder.from_pretrained(source).settings, PartialState(cpu=True)
    seeds = set()
    for stage in STAGES:
        scratch = folder / stage.name
        run = StageRun(recipe, source, settings, scratch, folder, processes, Silent())
        tokenizer, rows, model, task = opened(stage, run)
        shared = became_stage(stage.knobs(recipe), model, task, scratch)
        its_own = BECAME[stage.name](recipe, tokenizer, rows, model, task)
        found |= {f"{stage.name}.{name}": value for name, value in (shared | its_own).items()}
        seeds.add(became_seeds(stage, run))
    return found | {"seed": seeds.pop() if len(seeds) == 1 else seeds}


ELSEWHERE = {
    "partial": "for hybrids alone: tests/test_partial.py converts them with it and without",
    "encoder.layers": "the decoder's weights are compared here: tests/test_layers.py drops some",
    **dict.fromkeys(
        ("simcse.spread_out", "supervised.spread_out", "distill.spread_out"),
        "a part of the loss: tests/test_layers.py",
    ),
    "distill.pairs": "instead of a corpus: tests/test_distill.py learns from pairs",
    "encoder.bidirectional": "not with MNTP: tests/test_train_supervised.py trains without it",
    **dict.fromkeys(
        ("simcse.part_tokens", "supervised.part_tokens", "distill.part_tokens"),
        "the same gradient: tests/test_embedding.py",
    ),
    **{
        f"supervised.{name}": "in tests/test_pairs.py, on data that each of them is for"
        for name in (
            "scored_loss",
            "scored_scale",
            "margin",
            "dimensions",
            "held_out",
            "adapter",
            "eval_every",
            "patience",
            "corpus.layout",
            "corpus.data",
            "corpus.weights",
        )
    },
}
"""Knobs that are tested in another file, and why."""


def test_a_recipe_without_a_default_becomes_what_it_says_knob_by_knob(odd, tmp_path):
    said, defaults = leaves(odd), leaves(Recipe())
    for name in ELSEWHERE:
        del said[name]
    untouched = [name for name, value in said.items() if value == defaults[name]]
    assert not untouched, "these knobs would not show whether they work"
    found = became(odd, tmp_path)
    assert found.keys() == said.keys()
    wrong = {
        name: (found[name], value) for name, value in said.items() if not same(found[name], value)
    }
    assert not wrong, "what became of them, and what they say"


def same(found, said):
    if isinstance(said, float) and isinstance(found, float):
        return found == pytest.approx(said)
    return found == said
