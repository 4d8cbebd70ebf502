"""The keys of the first implementation's configuration files: type and default of each, by the script that reads it.

An entry is key:type, or key:choice|choice, and =default where there is one. This module holds tables alone; `configs`
says what they amount to.
"""

from collections.abc import Mapping
from typing import Any, Literal

Kind = Literal["mntp", "simcse", "supervised", "word-task", "test-word-task"]
"""The script a file was written for."""
STAGES: tuple[Kind, ...] = ("mntp", "simcse", "supervised")
WORD_TASKS: tuple[Kind, ...] = ("word-task", "test-word-task")

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
KEYS: Mapping[Kind, str] = {
    "mntp": _MODEL + _TRAINING + _TEXTS + _LORA + "mask_token_type:blank|eos|mask=blank",
    "simcse": _MODEL
    + _TRAINING
    + _CONTRASTIVE
    + _LORA
    + "dataset_name:Wiki1M simcse_dropout:float=0.1",
    "supervised": _MODEL + _TRAINING + _CONTRASTIVE + _LORA + "dataset_name:E5",
    "word-task": _MODEL + _TRAINING + _TEXTS + _WORDS,
    "test-word-task": _MODEL + _WORDS + _TESTED,
}
TYPES: Mapping[str, Any] = {
    "any": object,
    "str": str,
    "int": int,
    "float": (int, float),
    "bool": bool,
}
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
RENAMED: Mapping[str, str] = dict(pair.split("=") for pair in _RENAMES.split())
HUB_NAMES = {"wikitext": "Salesforce/wikitext", "conll2003": "tomaarsen/conll2003"}
"""Names older than namespaces, and data sets that came as code, which `datasets` no longer runs."""
_WIKIPEDIA = "Given a question, retrieve Wikipedia passages that answer the question"
_CHINESE = "Given a Chinese search query, retrieve web passages that answer the question"
E5_PROMPTS: Mapping[str, tuple[str, ...]] = {
    "allnli": (
        "Given a premise, retrieve a hypothesis that is entailed by the premise",
        "Retrieve semantically similar text",
    ),
    "dureader": (_CHINESE,),
    "eli5_question_answer": (
        "Provided a user question, retrieve the highest voted answers on Reddit ELI5 forum",
    ),
    "fever": ("Given a claim, retrieve documents that support or refute the claim",),
    "hotpot_qa": (
        "Given a multi-hop question, retrieve documents that can help answer the question",
    ),
    "miracl": (_WIKIPEDIA,),
    "mrtydi": (_WIKIPEDIA,),
    "msmarco_passage": (
        "Given a web search query, retrieve relevant passages that answer the query",
    ),
    "msmarco_document": (
        "Given a web search query, retrieve relevant documents that answer the query",
    ),
    "nq": (_WIKIPEDIA,),
    "quora_duplicates": (
        "Given a question, retrieve questions that are semantically equivalent to the given question",
        "Find questions that have the same meaning as the input question",
    ),
    "squad": ("Retrieve Wikipedia passages that answer the question",),
    "t2ranking": (_CHINESE,),
    "trivia_qa": ("Retrieve Wikipedia passages that answer the question",),
}
"""The anchors' prompts by file (paper, table 8); of two, every other row has the second."""
MARKS: Mapping[Kind, set[str]] = {
    "test-word-task": {"cls_addr"},
    "word-task": {"task", "retroactive_labels"},  # before mntp, whose keys it has too
    "simcse": {"simcse_dropout"},
    "mntp": {"mlm_probability", "data_collator_type", "mask_token_type"},
}
DATA: Mapping[Any, Kind] = {"Wiki1M": "simcse", "E5": "supervised"}
WHY = {
    "attn_implementation": "chosen and proven by us",
    "cache_dir": "HF_HOME says where the hub's cache is",
    "cls_addr": "pickled classifiers are not read; `llm2vec probe` trains its own",
    "do_eval": "MNTP is always evaluated on held-out texts, the other stages never",
    "max_train_samples": "it does not count texts; corpus.max_texts does",
    "model_revision": "recipes have none; for one that is not main, download it and give the folder",
    "output_dir": "`llm2vec probe --save FOLDER` keeps a probe",
    "overwrite_output_dir": "--start-over",
    "push_to_hub": "not done here",
    "resume_from_checkpoint": "the same command goes on where it was stopped",
    "token": "log in with `hf auth login`, or set HF_TOKEN",
    "tokenizer_name": "the decoder's own tokenizer is read",
    "train_file": "dataset_name stands above it",
    "validation_file": "held-out texts are a share of the training texts, or the data set's own",
    "warmup_ratio": "not read beside warmup_steps, or when the schedule is constant",
}


def key_names(kind: Kind) -> set[str]:
    """Every key such a file may have, by old and new names."""
    known = {entry.partition(":")[0] for entry in KEYS[kind].split()}
    if kind != "test-word-task":  # the one script without training arguments
        known.update(_OTHER_TRAINING.split())
    return known | {old for old, new in RENAMED.items() if new in known}
