"""Configuration files of the first implementation (McGill-NLP/llm2vec 0.2.3), read as ours.

What a file leaves out is filled in with the first implementation's default (its script's own, then transformers
4.44's `TrainingArguments`), not with ours. No key is lost silently: one that became something else, or has no effect
here, gives a note. This module knows names and values; it opens no model and no text, and does not import transformers.
"""

import difflib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from llm2vec.encoder.templates import known_templates
from llm2vec.errors import UsageError
from llm2vec.legacy.config_keys import (
    DATA,
    E5_PROMPTS,
    HUB_NAMES,
    KEYS,
    MARKS,
    RENAMED,
    STAGES,
    TYPES,
    WHY,
    Kind,
    key_names,
)
from llm2vec.recipe.knobs import POOLING_ALIASES

_DATA_SETS = ("train", "test", "dev")


@dataclass(frozen=True)
class Translated:
    """What a file asks for, in our words.

    Attributes:
        kind: The script it was written for.
        recipe: Nested changes for `Recipe.read(merged(preset("paper"), recipe))`; stages that the script does not have
            are left out by `steps: 0`. Empty for the word tasks.
        out: Where the results go; None: the file does not say.
        probe: Of the word tasks, what `llm2vec probe` is told: model, adapters, train, test, dev, column, reading and
            merge; else empty.
        notes: A line for each key that was translated to something else, or has no effect here.
    """

    kind: Kind
    recipe: dict[str, Any]
    out: str | None
    probe: dict[str, Any]
    notes: tuple[str, ...]


def read_config(
    path: Path, *, kind: Kind | None = None, among: Sequence[Kind] = get_args(Kind)
) -> Translated:
    """Translate a configuration file.

    Args:
        path: A JSON file.
        kind: The script it was written for; None: told from its keys.
        among: The scripts that would do.

    Raises:
        UsageError: Not a JSON object, an unknown key (with the nearest that exist), a wrong type, a value that does
            not exist, a missing key, or keys that leave the kind open.
    """
    given = _read(path)
    file = _File(path, kind or _guess(path, given, among), given)
    if file.kind not in STAGES:
        probe = _probe(file)
        return Translated(file.kind, {}, None, probe, file.finish())
    model, adapters = _start(file, "peft_model_name_or_path")
    recipe = {
        "decoder": model,
        "adapters": adapters,
        "seed": file.take("seed"),
        "trust_remote_code": file.take("trust_remote_code") or False,
        "mntp": {"steps": 0},
        "simcse": {"steps": 0},
    }
    recipe |= _mntp(file) if file.kind == "mntp" else _contrastive(file)
    if (
        template := known_templates()["wrapped"].get(str(file.given["model_name_or_path"]))
    ) is not None:
        recipe.setdefault("encoder", {})["template"] = template
        file.notes.append(
            "model_name_or_path: pairs and encoded texts are wrapped as they were for it (encoder.template)"
        )
    return Translated(file.kind, recipe, file.take("output_dir"), {}, file.finish())


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"configuration file {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"configuration file {path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(
            f"configuration file {path} is not a JSON object, but {type(value).__name__}"
        )
    return value


def _guess(path: Path, given: Mapping[str, Any], among: Sequence[Kind]) -> Kind:
    data = given.get("dataset_name")
    marked = next((kind for kind, marks in MARKS.items() if marks & given.keys()), None)
    if marked is None and isinstance(data, str):
        marked = DATA.get(data)
    if marked is not None and marked in among:
        return marked
    fitting: list[Kind] = [kind for kind in get_args(Kind) if given.keys() <= key_names(kind)]
    if len(left := [kind for kind in fitting if kind in among]) == 1:
        return left[0]
    everything = {key for kind in get_args(Kind) for key in key_names(kind)}
    if unknown := [key for key in given if key not in everything]:
        raise UsageError(
            f"{path}: there is no {unknown[0]!r} in any kind of file{_near(unknown[0], everything)}"
        )
    could = f"its keys fit {', '.join(fitting)}" if fitting else "no kind of file has all its keys"
    raise UsageError(
        f"{path}: cannot tell what it configures: {could}; needed is {' or '.join(among)}"
    )


def _near(key: str, names: Collection[str]) -> str:
    near = difflib.get_close_matches(key, sorted(names), n=2)
    return f"; did you mean {' or '.join(near)}?" if near else ""


class _File:
    """A file's keys with the defaults behind them; what is never taken from it gives a note."""

    def __init__(self, path: Path, kind: Kind, given: Mapping[str, Any]) -> None:
        self.path, self.kind = path, kind
        self.given: dict[str, Any] = {}
        self.notes: list[str] = []
        self._taken: set[str] = set()
        entries = (entry.partition(":") for entry in KEYS[kind].split())
        self._known = {key: about.partition("=")[::2] for key, _, about in entries}
        for key in given:
            self._check_name(key)
        for key, value in given.items():
            if value is not None:  # null is as good as absent
                self._add(key, value)

    def take(self, key: str) -> Any:
        """The file's value, or its script's default; None: neither has one."""
        self._taken.add(key)
        wanted, default = self._known.get(key, ("any", ""))
        if key in self.given or not default:
            return self.given.get(key)
        return json.loads(default) if wanted in TYPES else default

    def need(self, key: str) -> Any:
        if key not in self.given:
            raise UsageError(f"{self.path}: a {self.kind} file needs {key}")
        return self.take(key)

    def finish(self) -> tuple[str, ...]:
        left = [key for key in self.given if key not in self._taken]
        other = (
            "has no effect here"
            if self.kind in STAGES
            else "every probe reads its encoder and trains alike"
        )
        return (*self.notes, *(f"{key}: {WHY.get(key, other)}" for key in left))

    def _check_name(self, key: str) -> None:
        names = key_names(self.kind)
        if key in names:
            return
        hint = _near(key, names)
        if homes := [kind for kind in get_args(Kind) if key in key_names(kind)]:
            hint = f"; it is a key of {', '.join(homes)}"
        raise UsageError(f"{self.path}: there is no {key!r} in a {self.kind} file{hint}")

    def _add(self, name: str, value: Any) -> None:
        key = RENAMED.get(name, name)
        if key in self.given:
            raise UsageError(f"{self.path}: {key} is given by two names; keep one")
        if key != name:
            self.notes.append(f"{name} is {key} now")
        wanted, _ = self._known.get(key, ("any", ""))
        choices = [] if wanted in TYPES else wanted.split("|")
        if choices and value not in choices:
            raise UsageError(f"{self.path}: {name} must be {' or '.join(choices)}, not {value!r}")
        if not choices and not _is(value, wanted):
            raise UsageError(f"{self.path}: {name} must be of type {wanted}, not {value!r}")
        self.given[key] = value


def _is(value: Any, wanted: str) -> bool:
    numbers = ("int", "float")  # Python counts true and false among them
    return isinstance(value, TYPES[wanted]) and not (wanted in numbers and isinstance(value, bool))


def _start(file: _File, key: str) -> tuple[str, list[str]]:
    """The decoder, and the adapters to merge into it; what is named as one may be an encoder made here."""
    model, adapter = file.need("model_name_or_path"), file.take(key)
    if not adapter:
        return model, []
    folder = Path(adapter).expanduser()
    if (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        file.notes.append(
            f"{key}: {adapter} is a whole model, and stands in for model_name_or_path"
        )
        return adapter, []
    return model, [adapter]


def _stage(file: _File) -> dict[str, Any]:
    """The knobs that every stage has."""
    accumulation, schedule, rank = (
        file.take(key) for key in ("gradient_accumulation_steps", "lr_scheduler_type", "lora_r")
    )
    steps, epochs = _length(file)
    reports = file.take("report_to") or []
    reports = [reports] if isinstance(reports, str) else reports
    stage = {
        "steps": steps,
        "batch_size": file.take("per_device_train_batch_size") * accumulation,
        "accumulation": accumulation,
        "max_length": _max_length(file, 1024 if file.kind == "mntp" else 512),
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
        "report_to": [] if reports in (["none"], ["all"]) else reports,
        "method": "lora",
        "lora": {"r": rank, "alpha": 2 * rank, "dropout": file.take("lora_dropout")},
    }
    if reports == ["all"]:
        file.notes.append("report_to: all is nothing here; name the integrations")
    return stage


def _length(file: _File) -> tuple[int, float | None]:
    """Steps, and the epochs that the learning rate's schedule takes; None: it ends with them."""
    steps, limit, epochs = (
        file.take(key) for key in ("stop_after_n_steps", "max_steps", "num_train_epochs")
    )
    if not file.take("do_train"):
        file.notes.append("do_train: false is steps: 0")
        return 0, None
    if limit > steps:
        file.notes.append(
            f"max_steps: the run stops at {steps} (stop_after_n_steps), and the schedule ends there too"
        )
    if "num_train_epochs" in file.given:
        what = (
            "max_steps stands above it"
            if limit > 0
            else "the length of the schedule; the run is counted in steps"
        )
        file.notes.append(f"num_train_epochs: {what}")
    return (min(steps, limit), None) if limit > 0 else (steps, epochs)


def _warmup(file: _File, steps: int) -> int:
    count = file.take("warmup_steps") or file.take("warmup_ratio")
    if 0 < count < 1:  # transformers 5 reads such a number of steps as a ratio
        file.notes.append(f"warmup_ratio: a share of {steps} steps here, not of all epochs")
        count = math.ceil(count * steps)
    return int(count)


def _max_length(file: _File, default: int) -> int:
    if "max_seq_length" not in file.given:
        file.notes.append(
            f"max_seq_length is absent: {default}; a decoder with fewer positions needs a lower one"
        )
    return int(file.take("max_seq_length") or default)


def _precision(file: _File) -> str:
    bfloat16, float16, weights = file.take("bf16"), file.take("fp16"), file.take("dtype")
    if bfloat16 and float16:
        raise UsageError(f"{file.path}: bf16 and fp16 are both true; keep one")
    if bfloat16:
        return "bfloat16"
    if float16:
        return "float16"
    return weights or "float32"


def _corpus(file: _File) -> dict[str, Any]:
    if (name := _hub_name(file)) is not None:
        return {"source": name, "config": file.take("dataset_config_name")}
    if "train_file" not in file.given:
        raise UsageError(f"{file.path}: a {file.kind} file needs dataset_name or train_file")
    source = file.take("train_file")
    if Path(source).suffix == ".json":
        file.notes.append("train_file: JSON lines are read from .jsonl files only; rename it")
    return {"source": source}


def _hub_name(file: _File) -> str | None:
    name = file.take("dataset_name")
    if name in HUB_NAMES:
        file.notes.append(f"dataset_name: {name} is {HUB_NAMES[name]} on the hub now")
    return None if name is None else "hub:" + HUB_NAMES.get(name, name)


def _mntp(file: _File) -> dict[str, Any]:
    stage, corpus, strategy = _stage(file), _corpus(file), file.take("eval_strategy")
    every = (
        file.take("eval_steps") or stage["log_every"]
        if strategy == "steps"
        else max(1, stage["steps"])
    )
    if "eval_strategy" in file.given and strategy != "steps":
        file.notes.append(f"eval_strategy: {strategy} is one evaluation here, at the last step")
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
        "eval_every": every,
    }
    if "max_eval_samples" in file.given:
        stage["eval_blocks"] = file.take("max_eval_samples")
    if (
        "validation_split_percentage" in file.given or "config" not in corpus
    ):  # hub data have their own, as a rule
        stage["held_out"] = file.take("validation_split_percentage") / 100
    if stage["layout"] == "lines" and "max_train_samples" in file.given:
        corpus["max_texts"] = file.take("max_train_samples")
    return {"corpus": corpus, "mntp": stage}


def _contrastive(file: _File) -> dict[str, Any]:
    file.need("dataset_name")
    file.take("loss_class")
    if not file.take("bidirectional"):
        file.notes.append(
            "bidirectional: absent or false was a causal model; here every stage trains bidirectionally"
        )
    theirs = file.take("pooling_mode")
    ours = POOLING_ALIASES.get(theirs, theirs)
    if ours != theirs:
        file.notes.append(f"pooling_mode: {theirs} is {ours} here")
    stage = {**_stage(file), "scale": file.take("loss_scale")}
    source, encoder = file.need("dataset_file_path"), {"pooling": ours}
    if file.kind == "supervised":
        return {"supervised": stage | {"corpus": _pairs(file, source)}, "encoder": encoder}
    stage |= {"dropout": file.take("simcse_dropout"), "min_tokens": 1}
    return {"corpus": {"source": source}, "simcse": stage, "encoder": encoder}


def _pairs(file: _File, folder: str) -> dict[str, Any]:
    """The E5 folder, with the prompts of the data sets that are in it; of all, where there is no such folder."""
    there = {
        path.name.partition(".jsonl")[0] for path in Path(folder).expanduser().rglob("*.jsonl*")
    }
    prompts = {
        name: [f"{text};" for text in texts]
        for name, texts in E5_PROMPTS.items()
        if name in there or not there
    }
    if others := sorted(there - E5_PROMPTS.keys()):
        file.notes.append(f"dataset_file_path: read too, without a prompt: {', '.join(others)}")
    return {"source": folder, "prompts": prompts}


def _probe(file: _File) -> dict[str, Any]:
    model, adapters = _start(file, "peft_addr")
    any_encoder, bidirectional = file.take("model_class") == "auto", file.take("bidirectional")
    if any_encoder and adapters:
        raise UsageError(f"{file.path}: peft_addr goes with model_class custom; leave one out")
    data = dict.fromkeys(_DATA_SETS, _hub_name(file))
    if data["train"] is None:
        data |= {"train": file.take("train_file"), "test": file.take("validation_file")}
        if data["test"] is not None:
            file.notes.append(
                "validation_file: what is measured on, for want of another; --test names one"
            )
    if any_encoder:
        model = f"auto:{model}"
    elif not bidirectional:
        model = f"uni:{model}"
    return {
        "model": model,
        "adapters": adapters,
        **data,
        "column": file.take("task"),
        "reading": {"next_token": "before", "same_token": "own"}[file.take("retroactive_labels")],
        "merge": "mean" if file.take("merge_subwords") else "first",
    }
