"""The configuration files of version 0.2.3: keys, types and defaults, a model for each script.

A default is that of version 0.2.3, not ours: its script's own, or else that of `TrainingArguments`
in transformers 4.44. None is the default of a key that has none.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Kind = Literal["mntp", "simcse", "supervised", "word-task", "test-word-task"]
"""The script that a file was written for."""

STAGES: tuple[Kind, ...] = ("mntp", "simcse", "supervised")
WORD_TASKS: tuple[Kind, ...] = ("word-task", "test-word-task")


class ModelKeys(BaseModel):
    """Keys of every script."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())

    model_name_or_path: str | None = None
    dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = None
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"] | None = None


class TrainingKeys(ModelKeys):
    """Training arguments that have a meaning here."""

    output_dir: str | None = None
    seed: int = 42
    do_train: bool = True
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    num_train_epochs: float = 3
    max_steps: int = -1
    learning_rate: float = 5e-5
    warmup_steps: float = 0
    warmup_ratio: float = 0
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    weight_decay: float = 0
    max_grad_norm: float = 1
    bf16: bool | None = None
    fp16: bool | None = None
    gradient_checkpointing: bool = False
    logging_steps: int = 500
    save_steps: int = 500
    eval_strategy: Literal["no", "steps", "epoch"] = "no"
    eval_steps: int | None = None
    report_to: Any = None


class TextKeys(ModelKeys):
    """Keys of the scripts that read running text or words."""

    model_type: str | None = None
    config_overrides: str | None = None
    config_name: str | None = None
    tokenizer_name: str | None = None
    cache_dir: str | None = None
    use_fast_tokenizer: bool | None = None
    model_revision: str | None = None
    token: Any = None
    trust_remote_code: bool | None = None
    low_cpu_mem_usage: bool | None = None
    max_seq_length: int | None = None
    dataset_name: str | None = None
    dataset_config_name: str | None = None
    train_file: str | None = None
    validation_file: str | None = None
    overwrite_cache: bool | None = None
    validation_split_percentage: int = 5
    preprocessing_num_workers: int | None = None
    mlm_probability: float = 0.15
    line_by_line: bool | None = None
    pad_to_max_length: bool | None = None
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    streaming: bool | None = None
    stop_after_n_steps: int = 10_000
    data_collator_type: Literal["default", "all_mask"] = "default"


class LoraKeys(ModelKeys):
    """Keys of the scripts that train adapters."""

    lora_dropout: float = 0.05
    lora_r: int = 8


class ContrastiveKeys(ModelKeys):
    """Keys of the scripts that train by contrast."""

    peft_model_name_or_path: str | None = None
    bidirectional: bool | None = None
    dataset_file_path: str | None = None
    max_seq_length: int | None = None
    max_train_samples: int | None = None
    pooling_mode: Literal["mean", "weighted_mean", "eos_token", "last_token", "bos_token"] = "mean"
    loss_class: Literal["HardNegativeNLLLoss"] | None = None
    loss_scale: float = 50
    stop_after_n_steps: int = 10_000
    experiment_id: str | None = None


class WordKeys(ModelKeys):
    """Keys of the scripts that train and test word classifiers."""

    peft_addr: str | None = None
    model_class: Literal["custom", "auto"] = "custom"
    merge_subwords: bool = True
    bidirectional: bool = True
    classifier_dropout: float = 0.1
    task: Literal["pos_tags", "ner_tags", "chunk_tags"] = "pos_tags"
    retroactive_labels: Literal["next_token", "same_token"] = "next_token"


class MntpFile(TrainingKeys, TextKeys, LoraKeys):
    """A file for `run_mntp.py`."""

    mask_token_type: Literal["blank", "eos", "mask"] = "blank"  # noqa: S105  # no password


class SimcseFile(TrainingKeys, ContrastiveKeys, LoraKeys):
    """A file for `run_simcse.py`."""

    dataset_name: Literal["Wiki1M"] | None = None
    simcse_dropout: float = 0.1


class SupervisedFile(TrainingKeys, ContrastiveKeys, LoraKeys):
    """A file for `run_supervised.py`."""

    dataset_name: Literal["E5"] | None = None


class WordTaskFile(TrainingKeys, TextKeys, WordKeys):
    """A file for `run_word_task.py`."""


class WordTaskTestFile(WordKeys):
    """A file for `test_word_task.py`."""

    cls_addr: str | None = None
    output_dir: str | None = None
    dataset_name: str | None = None
    config_file: str | None = None
    max_seq_length: int = 1024
    batch_size: int = 32
    seed: int = 32


SCHEMAS: Mapping[Kind, type[ModelKeys]] = {
    "mntp": MntpFile,
    "simcse": SimcseFile,
    "supervised": SupervisedFile,
    "word-task": WordTaskFile,
    "test-word-task": WordTaskTestFile,
}
