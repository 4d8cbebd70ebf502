"""Configuration files of the first implementation (McGill-NLP/llm2vec 0.2.3), read as ours.

What a file leaves out is filled in with the first implementation's default (its script's own, then transformers
4.44's `TrainingArguments`), not with ours. No key is lost silently: one that became something else, or has no effect
here, gives a note. This module knows names and values; it opens no model and no text, and does not import transformers.
"""

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from llm2vec.errors import UsageError
from llm2vec.recipe import POOLING_ALIASES

Kind = Literal["mntp", "simcse", "supervised", "word-task", "test-word-task"]
"""The script a file was written for."""


@dataclass(frozen=True)
class Translated:
    """What a file asks for, in our words.

    Attributes:
        kind: The script it was written for.
        recipe: Nested changes for `Recipe.read(merged(preset("paper"), recipe))`; stages that the script does not have
            are left out by `steps: 0`. A supervised file has a part `supervised`: the knobs of every stage
            (`StageRecipe`), `scale` (1 / temperature), and `corpus.source`, the folder of the E5 jsonl files.
        out: Where the results go; None: the file does not say.
        probe: Of the word tasks: model, task, reading, merge, and how the classifier is trained; else empty.
        adapters: Adapters to merge into the decoder first, in order.
        notes: A line for each key that was translated to something else, or has no effect here.
    """

    kind: Kind
    recipe: dict[str, Any]
    out: str | None
    probe: dict[str, Any]
    adapters: list[str]
    notes: tuple[str, ...]


def read_config(path: Path, *, kind: Kind | None = None) -> Translated:
    """Translate a configuration file.

    Args:
        path: A JSON file.
        kind: The script it was written for; None: told from its keys.

    Raises:
        UsageError: Not a JSON object, an unknown key (with the nearest that exist), a wrong type, a value that does
            not exist, a missing key, or keys that leave the kind open.
    """
    given = _read(path)
    file = _File(path, kind or _guess(path, given), given)
    adapter = file.take("peft_model_name_or_path") or file.take("peft_addr")
    recipe = {
        "decoder": file.need("model_name_or_path"),
        "seed": file.take("seed"),
        "trust_remote_code": file.take("trust_remote_code") or False,
        "mntp": {"steps": 0},
        "simcse": {"steps": 0},
    }
    probe = {}
    if file.kind == "mntp":
        recipe |= _mntp(file)
    elif file.kind in ("simcse", "supervised"):
        recipe |= _contrastive(file)
    else:
        probe = _probe(file)
    out = file.take("output_dir")
    return Translated(file.kind, recipe, out, probe, [adapter] if adapter else [], file.finish())


# --- what the first implementation knows: key:type, or key:choice|choice, and =default where there is one

_MODEL = """
    model_name_or_path:str dtype:auto|bfloat16|float16|float32 attn_implementation:eager|sdpa|flash_attention_2
"""
_TEXTS = """
    model_type:str config_overrides:str config_name:str tokenizer_name:str cache_dir:str use_fast_tokenizer:bool
    model_revision:str token:any trust_remote_code:bool low_cpu_mem_usage:bool max_seq_length:int
    dataset_name:str dataset_config_name:str train_file:str validation_file:str overwrite_cache:bool
    validation_split_percentage:int=5 preprocessing_num_workers:int mlm_probability:float=0.15 line_by_line:bool
    pad_to_max_length:bool max_train_samples:int max_eval_samples:int streaming:bool stop_after_n_steps:int=10000
    data_collator_type:default|all_mask=default
"""
_LORA = "lora_dropout:float=0.05 lora_r:int=8 "
_CONTRASTIVE = """
    peft_model_name_or_path:str bidirectional:bool dataset_file_path:str max_seq_length:int max_train_samples:int
    pooling_mode:mean|weighted_mean|eos_token|last_token|bos_token=mean loss_class:HardNegativeNLLLoss
    loss_scale:float=50 stop_after_n_steps:int=10000 experiment_id:str
"""
_WORDS = """
    peft_addr:str model_class:custom|auto=custom merge_subwords:bool=true bidirectional:bool=true
    classifier_dropout:float=0.1 task:pos_tags|ner_tags|chunk_tags=pos_tags
    retroactive_labels:next_token|same_token=next_token
"""
_TRAINING = """
    output_dir:str seed:int=42 do_train:bool=true per_device_train_batch_size:int=8 gradient_accumulation_steps:int=1
    num_train_epochs:float=3 max_steps:int=-1 learning_rate:float=5e-5 warmup_steps:float=0 warmup_ratio:float=0
    lr_scheduler_type:linear|cosine|constant|constant_with_warmup=linear weight_decay:float=0 max_grad_norm:float=1
    bf16:bool fp16:bool gradient_checkpointing:bool=false logging_steps:int=500 save_steps:int=500
    eval_strategy:no|steps|epoch=no eval_steps:int report_to:any
"""
_TESTED = """
    cls_addr:str output_dir:str dataset_name:str config_file:str max_seq_length:int=1024 batch_size:int=32 seed:int=32
"""
_KEYS: Mapping[Kind, str] = {
    "mntp": _MODEL + _TRAINING + _TEXTS + _LORA + "mask_token_type:blank|eos|mask=blank",
    "simcse": _MODEL + _TRAINING + _CONTRASTIVE + _LORA + "dataset_name:Wiki1M simcse_dropout:float=0.1",
    "supervised": _MODEL + _TRAINING + _CONTRASTIVE + _LORA + "dataset_name:E5",
    "word-task": _MODEL + _TRAINING + _TEXTS + _WORDS,
    "test-word-task": _MODEL + _WORDS + _TESTED,
}
_TYPES: Mapping[str, Any] = {"any": object, "str": str, "int": int, "float": (int, float), "bool": bool}
_OTHER_TRAINING = """
    accelerator_config activation_checkpointing activation_checkpointing_kwargs adafactor adam_beta1 adam_beta2
    adam_epsilon auto_find_batch_size average_tokens_across_devices batch_eval_metrics bf16_full_eval data_seed
    dataloader_drop_last dataloader_in_order dataloader_multiprocessing_context dataloader_num_workers
    dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor ddp_backend
    ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph ddp_timeout debug
    deepspeed disable_tqdm dispatch_batches do_eval do_predict enable_jit_checkpoint eval_accumulation_steps
    eval_delay eval_do_concat_batches eval_on_start eval_use_gather_object fp16_backend fp16_full_eval
    fp16_opt_level fsdp fsdp_config fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap full_determinism
    gradient_checkpointing_kwargs greater_is_better group_by_length half_precision_backend hub_always_push
    hub_model_id hub_private_repo hub_revision hub_strategy hub_token ignore_data_skip include_for_metrics
    include_inputs_for_metrics include_num_input_tokens_seen include_tokens_per_second jit_mode_eval label_names
    label_smoothing_factor length_column_name liger_kernel_config load_best_model_at_end local_rank log_level
    log_level_replica log_on_each_node logging_dir logging_first_step logging_nan_inf_filter logging_strategy
    lr_scheduler_kwargs metric_for_best_model mp_parameters neftune_noise_alpha optim optim_args
    optim_target_modules overwrite_output_dir parallelism_config past_index per_device_eval_batch_size
    prediction_loss_only project push_to_hub push_to_hub_organization ray_scope remove_unused_columns
    restore_callback_states_from_checkpoint resume_from_checkpoint run_name save_on_each_node save_only_model
    save_safetensors save_strategy save_total_limit skip_memory_metrics split_batches tf32 torch_compile
    torch_compile_backend torch_compile_mode torch_empty_cache_steps torchdynamo tpu_metrics_debug tpu_num_cores
    trackio_bucket_id trackio_space_id trackio_static_space_id train_sampling_strategy use_cache use_cpu use_ipex
    use_legacy_prediction_loop use_liger_kernel use_mps_device
"""
"""The other training arguments of transformers 4.44 to 5.23: accepted, without effect."""
_RENAMES = """
    evaluation_strategy=eval_strategy no_cuda=use_cpu per_gpu_eval_batch_size=per_device_eval_batch_size
    per_gpu_train_batch_size=per_device_train_batch_size push_to_hub_model_id=hub_model_id
    push_to_hub_token=hub_token torch_dtype=dtype use_auth_token=token
"""
_RENAMED: Mapping[str, str] = dict(pair.split("=") for pair in _RENAMES.split())
_HUB_NAMES = {"wikitext": "Salesforce/wikitext", "conll2003": "eriktks/conll2003"}  # names older than namespaces
_MARKS: Mapping[Kind, set[str]] = {
    "test-word-task": {"cls_addr"},
    "word-task": {"task", "retroactive_labels"},  # before mntp, whose keys it has too
    "simcse": {"simcse_dropout"},
    "mntp": {"mlm_probability", "data_collator_type", "mask_token_type"},
}
_DATA: Mapping[Any, Kind] = {"Wiki1M": "simcse", "E5": "supervised"}
_WHY = {
    "attn_implementation": "chosen and proven by us",
    "cache_dir": "HF_HOME says where the hub's cache is",
    "cls_addr": "pickled classifiers are not read; `llm2vec probe` trains its own",
    "do_eval": "MNTP is always evaluated on held-out texts, the other stages never",
    "max_train_samples": "it does not count texts; corpus.max_texts does",
    "model_revision": "recipes have none; for one that is not main, download it and give the folder",
    "overwrite_output_dir": "--start-over",
    "push_to_hub": "not done here",
    "resume_from_checkpoint": "the same command goes on where it was stopped",
    "token": "log in with `hf auth login`, or set HF_TOKEN",
    "tokenizer_name": "the decoder's own tokenizer is read",
    "train_file": "dataset_name stands above it",
    "validation_file": "held-out texts are a share of the training texts",
    "warmup_ratio": "not read beside warmup_steps, or when the schedule is constant",
}


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf8"))
    except OSError as error:
        raise UsageError(f"configuration file {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"configuration file {path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"configuration file {path} is not a JSON object, but {type(value).__name__}")
    return value


def _guess(path: Path, given: Mapping[str, Any]) -> Kind:
    for kind, marks in _MARKS.items():
        if marks & given.keys():
            return kind
    data = given.get("dataset_name")
    if isinstance(data, str) and data in _DATA:
        return _DATA[data]
    fitting = [kind for kind in get_args(Kind) if given.keys() <= _names(kind)]
    could = f"its keys fit {', '.join(fitting)}" if fitting else "no kind of file has all its keys"
    raise UsageError(f"{path}: cannot tell what it configures: {could}; say which: {', '.join(get_args(Kind))}")


def _names(kind: Kind) -> set[str]:
    """Every key such a file may have, by old and new names."""
    known = {entry.partition(":")[0] for entry in _KEYS[kind].split()}
    if kind != "test-word-task":  # the one script without training arguments
        known.update(_OTHER_TRAINING.split())
    return known | {old for old, new in _RENAMED.items() if new in known}


class _File:
    """A file's keys with the defaults behind them; what is never taken from it gives a note."""

    def __init__(self, path: Path, kind: Kind, given: Mapping[str, Any]) -> None:
        self.path, self.kind = path, kind
        self.given: dict[str, Any] = {}
        self.notes: list[str] = []
        self._taken: set[str] = set()
        entries = (entry.partition(":") for entry in _KEYS[kind].split())
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
        return json.loads(default) if wanted in _TYPES else default

    def need(self, key: str) -> Any:
        if key not in self.given:
            raise UsageError(f"{self.path}: a {self.kind} file needs {key}")
        return self.take(key)

    def finish(self) -> tuple[str, ...]:
        left = [key for key in self.given if key not in self._taken]
        return (*self.notes, *(f"{key}: {_WHY.get(key, 'has no effect here')}" for key in left))

    def _check_name(self, key: str) -> None:
        names = _names(self.kind)
        if key in names:
            return
        near = difflib.get_close_matches(key, sorted(names), n=2)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        if homes := [kind for kind in get_args(Kind) if key in _names(kind)]:
            hint = f"; it is a key of {', '.join(homes)}"
        raise UsageError(f"{self.path}: there is no {key!r} in a {self.kind} file{hint}")

    def _add(self, name: str, value: Any) -> None:
        key = _RENAMED.get(name, name)
        if key in self.given:
            raise UsageError(f"{self.path}: {key} is given by two names; keep one")
        if key != name:
            self.notes.append(f"{name} is {key} now")
        wanted, _ = self._known.get(key, ("any", ""))
        choices = [] if wanted in _TYPES else wanted.split("|")
        if choices and value not in choices:
            raise UsageError(f"{self.path}: {name} must be {' or '.join(choices)}, not {value!r}")
        if not choices and not _is(value, wanted):
            raise UsageError(f"{self.path}: {name} must be of type {wanted}, not {value!r}")
        self.given[key] = value


def _is(value: Any, wanted: str) -> bool:
    numbers = ("int", "float")  # Python counts true and false among them
    return isinstance(value, _TYPES[wanted]) and not (wanted in numbers and isinstance(value, bool))


def _stage(file: _File) -> dict[str, Any]:
    """The knobs that every stage has."""
    accumulation, schedule = file.take("gradient_accumulation_steps"), file.take("lr_scheduler_type")
    steps, epochs = _length(file)
    reports = file.take("report_to") or []
    reports = [reports] if isinstance(reports, str) else reports
    stage = {
        "steps": steps,
        "batch_size": file.take("per_device_train_batch_size") * accumulation,
        "accumulation": accumulation,
        "max_length": _max_length(file, 1024 if file.kind in ("mntp", "word-task") else 512),
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
    }
    if reports == ["all"]:
        file.notes.append("report_to: all is nothing here; name the integrations")
    if file.kind != "word-task":
        rank = file.take("lora_r")
        stage |= {"method": "lora", "lora": {"r": rank, "alpha": 2 * rank, "dropout": file.take("lora_dropout")}}
    return stage


def _length(file: _File) -> tuple[int, float | None]:
    """Steps, and the epochs that the learning rate's schedule takes; None: it ends with them."""
    steps, limit, epochs = (file.take(key) for key in ("stop_after_n_steps", "max_steps", "num_train_epochs"))
    if not file.take("do_train"):
        file.notes.append("do_train: false is steps: 0")
        return 0, None
    if limit > steps:
        file.notes.append(f"max_steps: the run stops at {steps} (stop_after_n_steps), and the schedule ends there too")
    if "num_train_epochs" in file.given:
        what = "max_steps stands above it" if limit > 0 else "the length of the schedule; the run is counted in steps"
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
        file.notes.append(f"max_seq_length is absent: {default}; a decoder with fewer positions needs a lower one")
    return int(file.take("max_seq_length") or default)


def _precision(file: _File) -> str:
    bfloat16, float16, weights = file.take("bf16"), file.take("fp16"), file.take("dtype")
    if bfloat16 and float16:
        raise UsageError(f"{file.path}: bf16 and fp16 are both true; keep one")
    return "bfloat16" if bfloat16 else "float16" if float16 else weights or "float32"


def _corpus(file: _File) -> dict[str, Any]:
    name = file.take("dataset_name")
    if name is None:
        if "train_file" not in file.given:
            raise UsageError(f"{file.path}: a {file.kind} file needs dataset_name or train_file")
        source = file.take("train_file")
        if Path(source).suffix == ".json":
            file.notes.append("train_file: JSON lines are read from .jsonl files only; rename it")
        return {"source": source}
    if name in _HUB_NAMES:
        file.notes.append(f"dataset_name: {name} is {_HUB_NAMES[name]} on the hub now")
    return {"source": "hub:" + _HUB_NAMES.get(name, name), "config": file.take("dataset_config_name")}


def _mntp(file: _File) -> dict[str, Any]:
    stage, corpus, strategy = _stage(file), _corpus(file), file.take("eval_strategy")
    every = file.take("eval_steps") or stage["log_every"] if strategy == "steps" else max(1, stage["steps"])
    if "eval_strategy" in file.given and strategy != "steps":
        file.notes.append(f"eval_strategy: {strategy} is one evaluation here, at the last step")
    mask = file.take("mask_token_type")
    if mask == "mask":
        file.notes.append("mask_token_type: the tokenizer's own mask token; none is added to a tokenizer without")
    stage |= {
        "mask_probability": file.take("mlm_probability"),
        "masking": {"default": "bert", "all_mask": "all"}[file.take("data_collator_type")],
        "mask_token": mask,
        "layout": "lines" if file.take("line_by_line") else "concatenated",
        "eval_every": every,
    }
    if "max_eval_samples" in file.given:
        stage["eval_blocks"] = file.take("max_eval_samples")
    if "validation_split_percentage" in file.given or "config" not in corpus:  # hub data have their own, as a rule
        stage["held_out"] = file.take("validation_split_percentage") / 100
    if stage["layout"] == "lines" and "max_train_samples" in file.given:
        corpus["max_texts"] = file.take("max_train_samples")
    return {"corpus": corpus, "mntp": stage}


def _contrastive(file: _File) -> dict[str, Any]:
    file.need("dataset_name")
    file.take("loss_class")
    if not file.take("bidirectional"):
        file.notes.append("bidirectional: absent or false was a causal model; attention is bidirectional here")
    theirs = file.take("pooling_mode")
    ours = POOLING_ALIASES.get(theirs, theirs)
    if ours != theirs:
        file.notes.append(f"pooling_mode: {theirs} is {ours} here")
    stage = {**_stage(file), "scale": file.take("loss_scale")}
    corpus, encoder = {"source": file.need("dataset_file_path")}, {"pooling": ours}
    if file.kind == "supervised":
        return {"supervised": stage | {"corpus": corpus}, "encoder": encoder}
    stage |= {"dropout": file.take("simcse_dropout"), "min_tokens": 1}
    return {"corpus": corpus, "simcse": stage, "encoder": encoder}


def _probe(file: _File) -> dict[str, Any]:
    probe = {
        "model": file.need("model_name_or_path"),
        "adapter": file.take("peft_addr"),
        "model_class": file.take("model_class"),
        "bidirectional": file.take("bidirectional"),
        "task": file.take("task"),
        "reading": {"next_token": "before", "same_token": "own"}[file.take("retroactive_labels")],
        "merge": "mean" if file.take("merge_subwords") else "first",
        "seed": file.take("seed"),
    }
    file.notes.append("the data set: `llm2vec probe` reads files; write its parts to --train and --test")
    if file.kind == "word-task":
        return probe | _stage(file) | {"corpus": _corpus(file), "dropout": file.take("classifier_dropout")}
    sizes = {"batch_size": file.take("batch_size"), "max_length": file.take("max_seq_length")}
    data = {"corpus": _corpus(file)} if "dataset_name" in file.given else {}
    return probe | sizes | data | {"precision": _precision(file)}
