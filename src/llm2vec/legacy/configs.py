"""Configuration files of version 0.2.3 (McGill-NLP/llm2vec), translated into recipes and probes.

A key that a file leaves out has the default of version 0.2.3, not ours. No key is lost silently:
one that became something else, or has no effect here, gives a note. This module opens no model and
no text, and does not import transformers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm2vec.encoder.templates import known_templates
from llm2vec.errors import UsageError
from llm2vec.legacy.config_file import KINDS, ConfigFile, kind_of, read_json_object
from llm2vec.legacy.config_keys import HUB_NAMES
from llm2vec.legacy.config_schema import STAGES, Kind
from llm2vec.recipe.e5 import E5_PROMPTS
from llm2vec.recipe.knobs import POOLING_ALIASES

_MNTP_LENGTH, _CONTRASTIVE_LENGTH = 1024, 512
"""Longest sequences of version 0.2.3, where a file does not say max_seq_length."""


@dataclass(frozen=True)
class Translated:
    """What a file amounts to.

    Attributes:
        kind: Script that the file was written for.
        recipe: Nested changes for `Recipe.read(merged(preset("paper"), recipe))`. Stages that the
            script does not have get `steps: 0`. Empty for word tasks.
        out: Folder of the results; None if the file does not say it.
        probe: Options of `llm2vec probe` for a word task: model, adapters, train, test, dev,
            column, reading and merge. Empty for other kinds.
        notes: A line for each key that was translated to something else, or has no effect here.
    """

    kind: Kind
    recipe: dict[str, Any]
    out: str | None
    probe: dict[str, Any]
    notes: tuple[str, ...]


def read_config(
    path: Path, *, kind: Kind | None = None, among: Sequence[Kind] = KINDS
) -> Translated:
    """Translate a configuration file.

    Args:
        path: JSON file.
        kind: Script that the file was written for; None finds it from the file's keys.
        among: Kinds that are possible.

    Raises:
        UsageError: The file is not a JSON object, has an unknown key (the error names the nearest
            that exist), a value of a wrong type or that does not exist, lacks a key, or leaves the
            kind open.
    """
    values = read_json_object(path)
    file = ConfigFile(path, kind or kind_of(path, values, among), values)
    if file.kind not in STAGES:
        probe = _probe(file)
        return Translated(file.kind, {}, None, probe, file.all_notes())
    recipe = _recipe(file)
    return Translated(file.kind, recipe, file.take("output_dir"), {}, file.all_notes())


def _recipe(file: ConfigFile) -> dict[str, Any]:
    """The recipe of a training file."""
    model, adapters = _start(file, "peft_model_name_or_path")
    recipe: dict[str, Any] = {
        "decoder": model,
        "adapters": adapters,
        "seed": file.take("seed"),
        "trust_remote_code": file.take("trust_remote_code") or False,
        "mntp": {"steps": 0},
        "simcse": {"steps": 0},
    }
    recipe |= _mntp(file) if file.kind == "mntp" else _contrastive(file)
    template = known_templates()["wrapped"].get(str(file.take("model_name_or_path")))
    if template is not None:
        recipe.setdefault("encoder", {})["template"] = template
        file.notes.append(
            "model_name_or_path: pairs and encoded texts are wrapped as they were for it "
            "(encoder.template)"
        )
    return recipe


def _start(file: ConfigFile, key: str) -> tuple[str, list[str]]:
    """The decoder, and the adapters to merge into it.

    An encoder that was made here may be named in the place of an adapter.
    """
    model, adapter = file.need("model_name_or_path"), file.take(key)
    if not adapter:
        return model, []
    folder = Path(adapter).expanduser()
    is_model = (folder / "config.json").is_file()
    if is_model and not (folder / "adapter_config.json").is_file():
        file.notes.append(f"{key}: {adapter} is a whole model, and replaces model_name_or_path")
        return adapter, []
    return model, [adapter]


def _stage(file: ConfigFile) -> dict[str, Any]:
    """The knobs that every stage has."""
    accumulation = file.take("gradient_accumulation_steps")
    schedule = file.take("lr_scheduler_type")
    rank = file.take("lora_r")
    steps, epochs = _length(file)
    default_length = _MNTP_LENGTH if file.kind == "mntp" else _CONTRASTIVE_LENGTH
    return {
        "steps": steps,
        "batch_size": file.take("per_device_train_batch_size") * accumulation,
        "accumulation": accumulation,
        "max_length": _max_length(file, default_length),
        "learning_rate": file.take("learning_rate"),
        "schedule": schedule.removesuffix("_with_warmup"),
        "schedule_epochs": epochs,
        "warmup_steps": 0 if schedule == "constant" else _warmup(file, steps),
        "weight_decay": file.take("weight_decay"),
        "max_grad_norm": file.take("max_grad_norm"),
        "precision": _precision(file),
        "gradient_checkpointing": file.take("gradient_checkpointing"),
        "log_every": file.take("logging_steps"),
        "save_every": file.take("save_steps"),
        "report_to": _reports(file),
        "method": "lora",
        "lora": {"r": rank, "alpha": 2 * rank, "dropout": file.take("lora_dropout")},
    }


def _reports(file: ConfigFile) -> list[str]:
    """The integrations that metrics are reported to."""
    named = file.take("report_to") or []
    reports = [named] if isinstance(named, str) else list(named)
    if reports == ["all"]:
        file.notes.append("report_to: all is nothing here; name the integrations")
    return [] if reports in (["none"], ["all"]) else reports


def _length(file: ConfigFile) -> tuple[int, float | None]:
    """Steps, and the epochs of the learning rate's schedule; None ends it with the steps."""
    steps, limit = file.take("stop_after_n_steps"), file.take("max_steps")
    epochs = file.take("num_train_epochs")
    if not file.take("do_train"):
        file.notes.append("do_train: false is steps: 0")
        return 0, None
    if limit > steps:
        file.notes.append(
            f"max_steps: the run stops at {steps} (stop_after_n_steps), and the schedule ends "
            "there too"
        )
    is_limited = limit > 0
    if "num_train_epochs" in file.given:
        meaning = "the length of the schedule; the run is counted in steps"
        if is_limited:
            meaning = "max_steps takes precedence"
        file.notes.append(f"num_train_epochs: {meaning}")
    return (min(steps, limit), None) if is_limited else (steps, epochs)


def _warmup(file: ConfigFile, steps: int) -> int:
    count = file.take("warmup_steps") or file.take("warmup_ratio")
    if 0 < count < 1:  # transformers 5 reads such a number of steps as a ratio
        file.notes.append(f"warmup_ratio: a share of {steps} steps here, not of all epochs")
        count = math.ceil(count * steps)
    return int(count)


def _max_length(file: ConfigFile, default: int) -> int:
    if "max_seq_length" not in file.given:
        file.notes.append(
            f"max_seq_length is absent: {default}; a decoder with fewer positions needs a lower one"
        )
    return int(file.take("max_seq_length") or default)


def _precision(file: ConfigFile) -> str:
    bfloat16, float16, weights = file.take("bf16"), file.take("fp16"), file.take("dtype")
    if bfloat16 and float16:
        raise UsageError(f"{file.path}: bf16 and fp16 are both true; keep one")
    if bfloat16:
        return "bfloat16"
    if float16:
        return "float16"
    return weights or "float32"


def _corpus(file: ConfigFile) -> dict[str, Any]:
    name = _hub_name(file)
    if name is not None:
        return {"source": name, "config": file.take("dataset_config_name")}
    if "train_file" not in file.given:
        raise UsageError(f"{file.path}: a {file.kind} file needs dataset_name or train_file")
    source = file.take("train_file")
    if Path(source).suffix == ".json":
        file.notes.append("train_file: JSON lines are read from .jsonl files only; rename it")
    return {"source": source}


def _hub_name(file: ConfigFile) -> str | None:
    """The data set of the hub that a file names, as a source of texts."""
    name: str | None = file.take("dataset_name")
    if name is None:
        return None
    if name in HUB_NAMES:
        file.notes.append(f"dataset_name: {name} is {HUB_NAMES[name]} on the hub now")
    return "hub:" + HUB_NAMES.get(name, name)


def _mntp(file: ConfigFile) -> dict[str, Any]:
    stage, corpus = _stage(file), _corpus(file)
    mask = file.take("mask_token_type")
    if mask == "mask":
        file.notes.append(
            "mask_token_type: the tokenizer's own mask token; none is added to a tokenizer without"
        )
    stage |= {
        "mask_probability": file.take("mlm_probability"),
        "masking": {"default": "bert", "all_mask": "all"}[file.take("data_collator_type")],
        "mask_token": mask,
        "layout": "lines" if file.take("line_by_line") else "concatenated",
        "eval_every": _evaluation_steps(file, stage),
    }
    if "max_eval_samples" in file.given:
        stage["eval_blocks"] = file.take("max_eval_samples")
    # As a rule, data sets of the hub have held-out texts of their own.
    if "validation_split_percentage" in file.given or "config" not in corpus:
        stage["held_out"] = file.take("validation_split_percentage") / 100
    if stage["layout"] == "lines" and "max_train_samples" in file.given:
        corpus["max_texts"] = file.take("max_train_samples")
    return {"corpus": corpus, "mntp": stage}


def _evaluation_steps(file: ConfigFile, stage: dict[str, Any]) -> int:
    """Steps between two evaluations."""
    strategy = file.take("eval_strategy")
    if strategy == "steps":
        return int(file.take("eval_steps") or stage["log_every"])
    if "eval_strategy" in file.given:
        file.notes.append(f"eval_strategy: {strategy} is one evaluation here, at the last step")
    return max(1, int(stage["steps"]))


def _contrastive(file: ConfigFile) -> dict[str, Any]:
    file.need("dataset_name")
    file.take("loss_class")
    if not file.take("bidirectional"):
        file.notes.append(
            "bidirectional: absent or false was a causal model; here every stage trains "
            "bidirectionally"
        )
    mode = file.take("pooling_mode")
    pooling = POOLING_ALIASES.get(mode, mode)
    if pooling != mode:
        file.notes.append(f"pooling_mode: {mode} is {pooling} here")
    stage = {**_stage(file), "scale": file.take("loss_scale")}
    source, encoder = file.need("dataset_file_path"), {"pooling": pooling}
    if file.kind == "supervised":
        return {"supervised": stage | {"corpus": _pairs(file, source)}, "encoder": encoder}
    stage |= {"dropout": file.take("simcse_dropout"), "min_tokens": 1}
    return {"corpus": {"source": source}, "simcse": stage, "encoder": encoder}


def _pairs(file: ConfigFile, folder: str) -> dict[str, Any]:
    """The E5 folder with the prompts of its data sets; with all prompts if there is no folder."""
    paths = Path(folder).expanduser().rglob("*.jsonl*")
    present = {path.name.partition(".jsonl")[0] for path in paths}
    prompts = {}
    for name, texts in E5_PROMPTS.items():
        if name in present or not present:
            prompts[name] = [f"{text};" for text in texts]
    others = sorted(present - E5_PROMPTS.keys())
    if others:
        file.notes.append(f"dataset_file_path: read too, without a prompt: {', '.join(others)}")
    return {"source": folder, "prompts": prompts}


def _probe(file: ConfigFile) -> dict[str, Any]:
    """The options of `llm2vec probe` that a word task's file amounts to."""
    model, adapters = _start(file, "peft_addr")
    any_encoder, bidirectional = file.take("model_class") == "auto", file.take("bidirectional")
    if any_encoder and adapters:
        raise UsageError(f"{file.path}: peft_addr goes with model_class custom; leave one out")
    if any_encoder:
        model = f"auto:{model}"
    elif not bidirectional:
        model = f"uni:{model}"
    return {
        "model": model,
        "adapters": adapters,
        **_word_data(file),
        "column": file.take("task"),
        "reading": {"next_token": "before", "same_token": "own"}[file.take("retroactive_labels")],
        "merge": "mean" if file.take("merge_subwords") else "first",
    }


def _word_data(file: ConfigFile) -> dict[str, str | None]:
    """The labelled sentences to train and to measure on, and to choose a reading on."""
    name = _hub_name(file)
    if name is not None:
        return {"train": name, "test": name, "dev": name}
    test = file.take("validation_file")
    if test is not None:
        file.notes.append(
            "validation_file: what is measured on, for want of another; --test names one"
        )
    return {"train": file.take("train_file"), "test": test, "dev": None}
