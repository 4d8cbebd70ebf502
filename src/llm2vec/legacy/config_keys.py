"""Tables for configuration files of version 0.2.3: old names, prompts, keys without effect."""

from collections.abc import Mapping

from llm2vec.legacy.config_schema import SCHEMAS, Kind

_IGNORED_TRAINING = """
    accelerator_config activation_checkpointing activation_checkpointing_kwargs adafactor
    adam_beta1 adam_beta2 adam_epsilon auto_find_batch_size average_tokens_across_devices
    batch_eval_metrics bf16_full_eval data_seed dataloader_drop_last dataloader_in_order
    dataloader_multiprocessing_context dataloader_num_workers dataloader_persistent_workers
    dataloader_pin_memory dataloader_prefetch_factor ddp_backend ddp_broadcast_buffers
    ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph ddp_timeout debug deepspeed
    disable_tqdm dispatch_batches do_eval do_predict enable_jit_checkpoint eval_accumulation_steps
    eval_delay eval_do_concat_batches eval_on_start eval_use_gather_object fp16_backend
    fp16_full_eval fp16_opt_level fsdp fsdp_config fsdp_min_num_params
    fsdp_transformer_layer_cls_to_wrap full_determinism gradient_checkpointing_kwargs
    greater_is_better group_by_length half_precision_backend hub_always_push hub_model_id
    hub_private_repo hub_revision hub_strategy hub_token ignore_data_skip include_for_metrics
    include_inputs_for_metrics include_num_input_tokens_seen include_tokens_per_second
    jit_mode_eval label_names label_smoothing_factor length_column_name liger_kernel_config
    load_best_model_at_end local_rank log_level log_level_replica log_on_each_node logging_dir
    logging_first_step logging_nan_inf_filter logging_strategy lr_scheduler_kwargs
    metric_for_best_model mp_parameters neftune_noise_alpha optim optim_args optim_target_modules
    overwrite_output_dir parallelism_config past_index per_device_eval_batch_size
    prediction_loss_only project push_to_hub push_to_hub_organization ray_scope
    remove_unused_columns restore_callback_states_from_checkpoint resume_from_checkpoint run_name
    save_on_each_node save_only_model save_safetensors save_strategy save_total_limit
    skip_memory_metrics split_batches tf32 torch_compile torch_compile_backend torch_compile_mode
    torch_empty_cache_steps torchdynamo tpu_metrics_debug tpu_num_cores trackio_bucket_id
    trackio_space_id trackio_static_space_id train_sampling_strategy use_cache use_cpu use_ipex
    use_legacy_prediction_loop use_liger_kernel use_mps_device
"""
"""The other training arguments of transformers 4.44 to 5.23, which are accepted without effect."""

RENAMED: Mapping[str, str] = {
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_token": "hub_token",
    "torch_dtype": "dtype",
    "use_auth_token": "token",
}
"""Keys that transformers has renamed, with their names of today."""

HUB_NAMES = {"wikitext": "Salesforce/wikitext", "conll2003": "tomaarsen/conll2003"}
"""Names on the hub of data sets whose old names, or whose loading code, no longer work."""

MARKS: Mapping[Kind, set[str]] = {
    "test-word-task": {"cls_addr"},
    "word-task": {"task", "retroactive_labels"},  # before mntp, because it has mntp's keys too
    "simcse": {"simcse_dropout"},
    "mntp": {"mlm_probability", "data_collator_type", "mask_token_type"},
}
"""Keys that only files for one script have."""

KIND_OF_DATA_SET: Mapping[str, Kind] = {"Wiki1M": "simcse", "E5": "supervised"}
"""Data sets that only files for one script name."""

WHY_WITHOUT_EFFECT: Mapping[str, str] = {
    "attn_implementation": "chosen and proven here",
    "cache_dir": "HF_HOME says where the hub's cache is",
    "cls_addr": "pickled classifiers are not read; `llm2vec probe` trains its own",
    "do_eval": "MNTP is always evaluated on held-out texts, the other stages never",
    "max_train_samples": "it does not count texts; corpus.max_texts does",
    "model_revision": "a recipe has none; download another revision and give its folder",
    "output_dir": "`llm2vec probe --save FOLDER` keeps a probe",
    "overwrite_output_dir": "--start-over",
    "push_to_hub": "not done here",
    "resume_from_checkpoint": "the same command goes on where it was stopped",
    "token": "log in with `hf auth login`, or set HF_TOKEN",
    "tokenizer_name": "the decoder's own tokenizer is read",
    "train_file": "dataset_name takes precedence",
    "validation_file": "held-out texts are a share of the training texts, or the data set's own",
    "warmup_ratio": "not read beside warmup_steps, or when the schedule is constant",
}
"""Why a key has no effect here, for those that people may miss."""


def key_names(kind: Kind) -> set[str]:
    """The names of all keys that a file may have, old names included."""
    known = set(SCHEMAS[kind].model_fields)
    if kind != "test-word-task":  # the one script without training arguments
        known |= set(_IGNORED_TRAINING.split())
    return known | {old for old, new in RENAMED.items() if new in known}
