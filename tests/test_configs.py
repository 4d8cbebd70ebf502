"""Configuration files of the first implementation: what they amount to, and errors that help."""

import dataclasses
import json

import pytest

from llm2vec.cli.words import ProbeOptions, options_over
from llm2vec.errors import UsageError
from llm2vec.legacy.configs import read_config
from llm2vec.recipe.files import differences, merged
from llm2vec.recipe.knobs import Recipe
from llm2vec.recipe.presets import preset

SHEARED_MNTP = {
    "model_name_or_path": "princeton-nlp/Sheared-LLaMA-1.3B",
    "dataset_name": "wikitext",
    "dataset_config_name": "wikitext-103-raw-v1",
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 32,
    "gradient_accumulation_steps": 1,
    "do_train": True,
    "do_eval": True,
    "max_seq_length": 512,
    "mask_token_type": "blank",
    "data_collator_type": "default",
    "mlm_probability": 0.2,
    "overwrite_output_dir": True,
    "output_dir": "output/mntp/Sheared-LLaMA-1.3B",
    "evaluation_strategy": "steps",
    "eval_steps": 100,
    "save_steps": 200,
    "stop_after_n_steps": 1000,
    "lora_r": 16,
    "gradient_checkpointing": True,
    "torch_dtype": "bfloat16",
    "attn_implementation": "flash_attention_2",
}
MISTRAL_MNTP = SHEARED_MNTP | {
    "model_name_or_path": "mistralai/Mistral-7B-Instruct-v0.2",
    "data_collator_type": "all_mask",
    "mlm_probability": 0.8,
    "output_dir": "output/mntp/Mistral-7B-Instruct-v0.2",
}
SHEARED_SIMCSE = {
    "model_name_or_path": "princeton-nlp/Sheared-LLaMA-1.3B",
    "peft_model_name_or_path": "McGill-NLP/LLM2Vec-Sheared-LLaMA-mntp",
    "simcse_dropout": 0.3,
    "bidirectional": True,
    "pooling_mode": "mean",
    "dataset_name": "Wiki1M",
    "dataset_file_path": "cache/wiki1m_for_simcse.txt",
    "remove_unused_columns": False,
    "learning_rate": 3e-5,
    "loss_scale": 20,
    "per_device_train_batch_size": 128,
    "gradient_accumulation_steps": 1,
    "do_train": True,
    "max_seq_length": 128,
    "overwrite_output_dir": True,
    "output_dir": "output/mntp-simcse/Sheared-LLaMA-1.3B",
    "logging_steps": 50,
    "save_steps": 200,
    "save_only_model": True,
    "stop_after_n_steps": 1000,
    "num_train_epochs": 3,
    "lora_r": 16,
    "gradient_checkpointing": True,
    "torch_dtype": "bfloat16",
    "attn_implementation": "flash_attention_2",
    "seed": 42,
}
MISTRAL_SUPERVISED = {
    "model_name_or_path": "mistralai/Mistral-7B-Instruct-v0.2",
    "peft_model_name_or_path": "McGill-NLP/LLM2Vec-Mistral-7B-Instruct-v2-mntp",
    "bidirectional": True,
    "pooling_mode": "mean",
    "dataset_name": "E5",
    "dataset_file_path": "cache/echo-data",
    "remove_unused_columns": False,
    "learning_rate": 2e-4,
    "warmup_steps": 300,
    "num_train_epochs": 3,
    "per_device_train_batch_size": 64,
    "max_seq_length": 512,
    "output_dir": "output/mntp-supervised/Mistral-7B-Instruct-v0.2",
    "save_steps": 200,
    "stop_after_n_steps": 1000,
    "lora_r": 16,
    "gradient_checkpointing": True,
    "torch_dtype": "bfloat16",
    "loss_class": "HardNegativeNLLLoss",
    "seed": 42,
}
WORD_TASK = {
    "model_name_or_path": "princeton-nlp/Sheared-LLaMA-1.3B",
    "peft_addr": "McGill-NLP/LLM2Vec-Sheared-LLaMA-mntp",
    "model_class": "custom",
    "bidirectional": True,
    "merge_subwords": True,
    "classifier_dropout": 0.1,
    "dataset_name": "conll2003",
    "task": "pos_tags",
    "retroactive_labels": "next_token",
    "learning_rate": 5e-4,
    "num_train_epochs": 10,
    "stop_after_n_steps": 4000,
    "max_seq_length": 512,
    "output_dir": "output/word-task/pos",
    "torch_dtype": "bfloat16",
}
TEST_WORD_TASK = {
    "model_name_or_path": "princeton-nlp/Sheared-LLaMA-1.3B",
    "peft_addr": "McGill-NLP/LLM2Vec-Sheared-LLaMA-mntp",
    "cls_addr": "output/word-task/pos/checkpoint-3000",
    "model_class": "custom",
    "bidirectional": True,
    "merge_subwords": True,
    "dataset_name": "conll2003",
    "task": "chunk_tags",
    "retroactive_labels": "same_token",
    "max_seq_length": 512,
    "batch_size": 32,
    "output_dir": "output/word-task/pos/test",
    "torch_dtype": "bfloat16",
}
FILES = {
    "mntp": SHEARED_MNTP,
    "simcse": SHEARED_SIMCSE,
    "supervised": MISTRAL_SUPERVISED,
    "word-task": WORD_TASK,
    "test-word-task": TEST_WORD_TASK,
}
LEAST = {
    "mntp": {"model_name_or_path": "m", "train_file": "t.txt"},
    "simcse": {"model_name_or_path": "m", "dataset_name": "Wiki1M", "dataset_file_path": "w.txt"},
    "supervised": {"model_name_or_path": "m", "dataset_name": "E5", "dataset_file_path": "e5"},
    "word-task": {"model_name_or_path": "m", "train_file": "t.txt"},
    "test-word-task": {"model_name_or_path": "m"},
}


@pytest.fixture
def translate(tmp_path):
    """Write keys to a file and translate it."""

    def write(values, **options):
        path = tmp_path / "config.json"
        path.write_text(values if isinstance(values, str) else json.dumps(values))
        return read_config(path, **options)

    return write


def recipe_of(translated):
    """The recipe a file amounts to."""
    return Recipe.read(merged(preset("paper"), translated.recipe))


def different(translated, name):
    """What differs from a preset, the SimCSE stage aside, which an MNTP file does not have."""
    here, there = recipe_of(translated).to_dict(), Recipe.read(preset(name)).to_dict()
    return [line for line in differences(there, here) if not line.startswith("simcse.")]


@pytest.mark.parametrize(
    ("values", "name"), [(SHEARED_MNTP, "s-llama-1.3b"), (MISTRAL_MNTP, "mistral-7b")]
)
def test_a_published_mntp_file_amounts_to_our_preset(translate, values, name):
    translated = translate(values)
    wrapped = (
        "Mistral" in values["model_name_or_path"]
    )  # no other library would wrap texts, so our preset does not
    assert (
        sorted(different(translated, name))
        == [
            "corpus.column: 'text' -> None",  # none is `text` too, where there is one, as in WikiText
            *(["encoder.template: None -> '[INST] {text} [/INST]'"] if wrapped else []),
            "mntp.log_every: 10 -> 500",  # absent from the file; transformers' default, which changes no weight
        ]
    )
    assert translated.recipe["simcse"] == {"steps": 0}
    assert (translated.kind, translated.out) == ("mntp", values["output_dir"])


def test_a_published_simcse_file_amounts_to_our_preset(translate):
    translated = translate(SHEARED_SIMCSE)
    here, there = recipe_of(translated).to_dict(), Recipe.read(preset("s-llama-1.3b")).to_dict()
    assert list(differences(there["simcse"], here["simcse"], "simcse.")) == [
        # the same texts, as the recipe's corpus and a file
        f"simcse.corpus: {there['simcse']['corpus']!r} -> None",
        "simcse.min_tokens: 4 -> 1",  # the first implementation left no text out
    ]
    assert (here["corpus"]["source"], here["mntp"]["steps"]) == ("cache/wiki1m_for_simcse.txt", 0)
    assert here["adapters"] == ["McGill-NLP/LLM2Vec-Sheared-LLaMA-mntp"]


def test_a_published_supervised_file_amounts_to_our_preset(translate):
    translated = translate(MISTRAL_SUPERVISED)
    here, there = recipe_of(translated).to_dict(), Recipe.read(preset("mistral-7b")).to_dict()
    corpus = here["supervised"].pop("corpus")
    there["supervised"].pop("corpus")
    assert (
        list(differences(there["supervised"], here["supervised"], "supervised."))
        == [
            "supervised.log_every: 50 -> 500",  # absent from the file; transformers' default, which changes no weight
            "supervised.steps: 0 -> 1000",
        ]
    )
    assert (here["mntp"]["steps"], here["simcse"]["steps"], corpus["source"]) == (
        0,
        0,
        "cache/echo-data",
    )
    assert here["adapters"] == ["McGill-NLP/LLM2Vec-Mistral-7B-Instruct-v2-mntp"]
    prompts = corpus["prompts"]
    assert len(prompts) == 14
    assert prompts["fever"] == [
        "Given a claim, retrieve documents that support or refute the claim;"
    ]
    assert {name for name, texts in prompts.items() if len(texts) == 2} == {
        "allnli",
        "quora_duplicates",
    }
    assert not recipe_of(translated).trains_on_own_texts


def test_prompts_are_those_of_the_data_sets_that_are_there(translate, tmp_path):
    for name in ("allnli.jsonl", "squad.jsonl.gz", "mine.jsonl"):
        (tmp_path / "e5").mkdir(exist_ok=True)
        (tmp_path / "e5" / name).touch()
    translated = translate(MISTRAL_SUPERVISED | {"dataset_file_path": str(tmp_path / "e5")})
    assert set(translated.recipe["supervised"]["corpus"]["prompts"]) == {"allnli", "squad"}
    assert "dataset_file_path: read too, without a prompt: mine" in translated.notes


def test_an_encoder_made_here_stands_in_for_decoder_and_adapter(translate, tmp_path):
    (tmp_path / "config.json").touch()
    recipe = translate(SHEARED_SIMCSE | {"peft_model_name_or_path": str(tmp_path)}).recipe
    assert (recipe["decoder"], recipe["adapters"]) == (str(tmp_path), [])
    (tmp_path / "adapter_config.json").touch()
    recipe = translate(SHEARED_SIMCSE | {"peft_model_name_or_path": str(tmp_path)}).recipe
    assert (recipe["decoder"], recipe["adapters"]) == (
        SHEARED_SIMCSE["model_name_or_path"],
        [str(tmp_path)],
    )


def test_a_word_task_is_a_probe_and_no_recipe(translate):
    translated = translate(WORD_TASK)
    assert translated.recipe == {}
    assert translated.probe == {
        "model": WORD_TASK["model_name_or_path"],
        "adapters": [WORD_TASK["peft_addr"]],
        **dict.fromkeys(("train", "test", "dev"), "hub:tomaarsen/conll2003"),
        "column": "pos_tags",
        "reading": "before",
        "merge": "mean",
    }
    for key in (
        "learning_rate",
        "num_train_epochs",
        "stop_after_n_steps",
        "output_dir",
        "classifier_dropout",
    ):
        assert len([note for note in translated.notes if note.startswith(f"{key}: ")]) == 1, key
    assert (
        translate(WORD_TASK | {"bidirectional": False}).probe["model"]
        == f"uni:{WORD_TASK['model_name_or_path']}"
    )
    bert = {key: value for key, value in WORD_TASK.items() if key != "peft_addr"} | {
        "model_class": "auto"
    }
    assert translate(bert).probe["model"] == f"auto:{WORD_TASK['model_name_or_path']}"


def test_a_test_of_a_word_task_is_a_probe_too(translate):
    translated = translate(TEST_WORD_TASK | {"merge_subwords": False})
    probe = translated.probe
    assert (probe["column"], probe["reading"], probe["merge"]) == ("chunk_tags", "own", "first")
    assert probe["test"] == "hub:tomaarsen/conll2003"
    assert any(note.startswith("cls_addr: pickled") for note in translated.notes)


def test_the_command_line_replaces_a_word_tasks_file_and_that_our_defaults(translate):
    nothing = dict.fromkeys(("train", "test", "dev", "column", "reading", "merge"))
    assert options_over({}, nothing) == ProbeOptions(reading="auto", merge="mean")
    file = translate(WORD_TASK).probe
    assert options_over(file, nothing) == ProbeOptions(**file)
    own = {"train": "a.jsonl", "test": "b.jsonl", "merge": "last"}
    found = options_over(file, {**nothing, **own})
    without_development_set_of_other_data = {**file, **own, "dev": None}
    assert found == ProbeOptions(**without_development_set_of_other_data)
    values = LEAST["word-task"] | {"validation_file": "v.txt"}
    file = translate(values, among=("word-task", "test-word-task")).probe
    found = options_over(file, nothing)
    assert (found.train, found.test, found.dev) == ("t.txt", "v.txt", None)


@pytest.mark.parametrize("kind", FILES)
def test_the_kind_is_told_from_the_keys(translate, kind):
    assert translate(FILES[kind]).kind == kind
    assert translate(FILES[kind], kind=kind) == translate(FILES[kind])


def test_a_kind_that_cannot_be_told_is_asked_for(translate):
    with pytest.raises(
        UsageError, match="its keys fit mntp, word-task; needed is mntp or simcse or"
    ):
        translate(LEAST["mntp"])
    assert translate(LEAST["mntp"], among=("mntp", "simcse", "supervised")).kind == "mntp"
    with pytest.raises(UsageError, match="its keys fit test-word-task; needed is mntp or simcse$"):
        translate(TEST_WORD_TASK, among=("mntp", "simcse"))
    with pytest.raises(UsageError, match="its keys fit simcse, supervised"):
        translate({"model_name_or_path": "m", "loss_class": "HardNegativeNLLLoss"})
    with pytest.raises(
        UsageError, match="there is no 'model' in any kind of file; did you mean model_type"
    ):
        translate({"model": "m"})


@pytest.mark.parametrize("kind", FILES)
def test_every_file_that_says_the_least_is_a_recipe_or_a_probe(translate, kind):
    translated = translate(LEAST[kind], kind=kind)
    named = translated.probe["model"] if translated.probe else recipe_of(translated).decoder
    assert (named, translated.out) == ("m", None)


def test_defaults_are_the_first_implementations_not_ours(translate):
    mntp = recipe_of(translate(LEAST["mntp"], kind="mntp")).mntp
    assert (mntp.steps, mntp.batch_size, mntp.max_length, mntp.learning_rate) == (
        10_000,
        8,
        1024,
        5e-5,
    )
    assert (mntp.schedule, mntp.schedule_epochs, mntp.warmup_steps) == ("linear", 3, 0)
    assert (mntp.lora.r, mntp.lora.alpha, mntp.lora.dropout) == (8, 16, 0.05)
    assert (mntp.mask_probability, mntp.masking, mntp.mask_token) == (0.15, "bert", "blank")
    assert (mntp.layout, mntp.precision, mntp.gradient_checkpointing) == (
        "concatenated",
        "float32",
        False,
    )
    assert (mntp.log_every, mntp.save_every, mntp.held_out) == (500, 500, 0.05)
    simcse = recipe_of(translate(LEAST["simcse"])).simcse
    assert (simcse.steps, simcse.batch_size, simcse.learning_rate) == (10_000, 8, 5e-5)
    assert (simcse.dropout, simcse.scale, simcse.lora.r) == (0.1, 50, 8)
    probe = translate(LEAST["word-task"], kind="word-task").probe
    assert (probe["column"], probe["reading"], probe["merge"]) == ("pos_tags", "before", "mean")


def test_a_key_of_another_name_means_the_same_and_gives_one_note(translate):
    new = {"eval_strategy": "steps", "dtype": "bfloat16"}
    old = {"evaluation_strategy": "steps", "torch_dtype": "bfloat16"}
    rest = {key: value for key, value in SHEARED_MNTP.items() if key not in old}
    before, after = translate(rest | old), translate(rest | new)
    renames = [f"{name} is {now} now" for name, now in zip(old, new, strict=True)]
    assert sorted(set(before.notes) - set(after.notes)) == sorted(renames)
    assert len(before.notes) == len(set(before.notes)) == len(after.notes) + 2
    assert dataclasses.replace(before, notes=()) == dataclasses.replace(after, notes=())
    with pytest.raises(UsageError, match="given by two names"):
        translate(rest | old | new)


def test_a_key_without_effect_gives_one_note_that_says_why(translate):
    added = {"push_to_hub": True, "optim": "adamw_torch", "token": "secret", "model_revision": "v2"}
    notes = translate(SHEARED_MNTP | added).notes
    for key in (
        "overwrite_output_dir",
        "attn_implementation",
        "do_eval",
        "per_device_eval_batch_size",
        *added,
    ):
        assert len([note for note in notes if note.startswith(f"{key}: ")]) == 1, key
    assert "overwrite_output_dir: --start-over" in notes
    assert "secret" not in " ".join(notes)


@pytest.mark.parametrize(
    ("added", "expected", "note"),
    [
        ({"gradient_accumulation_steps": 4}, {"batch_size": 128, "accumulation": 4}, None),
        ({"max_steps": 300}, {"steps": 300, "schedule_epochs": None}, None),
        (
            {"max_steps": 5000},
            {"steps": 1000, "schedule_epochs": None},
            "max_steps: the run stops at 1000",
        ),
        ({"do_train": False}, {"steps": 0}, "do_train: false"),
        ({"warmup_ratio": 0.1}, {"warmup_steps": 100}, "warmup_ratio: a share of 1000"),
        ({"warmup_ratio": 0.1, "warmup_steps": 5}, {"warmup_steps": 5}, "warmup_ratio: not read"),
        (
            {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5},
            {"schedule": "constant"},
            None,
        ),
        ({"bf16": True, "torch_dtype": None}, {"precision": "bfloat16"}, None),
        ({"report_to": "wandb"}, {"report_to": ("wandb",)}, None),
        ({"report_to": ["none"]}, {"report_to": ()}, None),
        (
            {"evaluation_strategy": "no"},
            {"eval_every": 1000},
            "eval_strategy: no is one evaluation",
        ),
        ({"line_by_line": True}, {"layout": "lines"}, None),
        ({"max_train_samples": 9}, {}, "max_train_samples: it does not count texts"),
        (
            {"mask_token_type": "mask"},
            {"mask_token": "mask"},
            "mask_token_type: the tokenizer's own",
        ),
        (
            {"validation_split_percentage": 10, "max_eval_samples": 7},
            {"held_out": 0.1, "eval_blocks": 7},
            None,
        ),
    ],
)
def test_training_arguments_become_knobs(translate, added, expected, note):
    translated = translate(SHEARED_MNTP | added)
    stage = recipe_of(translated).mntp
    assert {key: getattr(stage, key) for key in expected} == expected
    if note is not None:
        assert len([line for line in translated.notes if line.startswith(note)]) == 1


def test_own_texts_are_read_from_their_file_and_a_data_set_takes_precedence(translate):
    rest = {key: value for key, value in SHEARED_MNTP.items() if not key.startswith("dataset")}
    own = recipe_of(
        translate(rest | {"train_file": "mine.txt", "line_by_line": True, "max_train_samples": 9})
    )
    assert (own.corpus.source, own.corpus.max_texts, own.mntp.held_out) == ("mine.txt", 9, 0.05)
    both = translate(SHEARED_MNTP | {"train_file": "mine.txt", "dataset_name": "some/texts"})
    assert recipe_of(both).corpus.source == "hub:some/texts"
    assert "train_file: dataset_name takes precedence" in both.notes


def test_a_causal_contrastive_run_and_another_pooling_are_noted(translate):
    translated = translate(SHEARED_SIMCSE | {"bidirectional": False, "pooling_mode": "eos_token"})
    assert recipe_of(translated).encoder.pooling == "last"
    assert "pooling_mode: eos_token is last here" in translated.notes
    assert any(
        note.endswith("here every stage trains bidirectionally") for note in translated.notes
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            SHEARED_MNTP | {"mlm_probabilty": 0.2},
            r"config.json: there is no 'mlm_probabilty' in a mntp file.*mlm_prob",
        ),
        (
            SHEARED_MNTP | {"simcse_dropout": 0.3},
            "no 'dataset_config_name' in a simcse.*a key of mntp",
        ),
        (SHEARED_MNTP | {"lora_r": "16"}, "lora_r must be of type int, not '16'"),
        (SHEARED_MNTP | {"lora_r": True}, "lora_r must be of type int, not True"),
        (SHEARED_MNTP | {"learning_rate": "5e-5"}, "learning_rate must be of type float"),
        (SHEARED_MNTP | {"line_by_line": 1}, "line_by_line must be of type bool"),
        (
            SHEARED_MNTP | {"torch_dtype": "bf16"},
            "torch_dtype must be auto or bfloat16 or .*'bf16'",
        ),
        (
            SHEARED_MNTP | {"data_collator_type": "some"},
            "data_collator_type must be default or all_mask, not 'some'",
        ),
        (
            SHEARED_MNTP | {"mask_token_type": ["blank"]},
            "mask_token_type must be blank or eos or mask",
        ),
        (SHEARED_MNTP | {"bf16": True, "fp16": True}, "bf16 and fp16 are both true"),
        (SHEARED_MNTP | {"model_name_or_path": None}, "a mntp file needs model_name_or_path"),
        (SHEARED_MNTP | {"dataset_name": None}, "a mntp file needs dataset_name or train_file"),
        (SHEARED_SIMCSE | {"pooling_mode": "median"}, "pooling_mode must be mean or .*'median'"),
        (SHEARED_SIMCSE | {"dataset_file_path": None}, "a simcse file needs dataset_file_path"),
        (SHEARED_SIMCSE | {"loss_class": "Other"}, "loss_class must be HardNegativeNLLLoss"),
        (WORD_TASK | {"model_class": "auto"}, "peft_addr goes with model_class custom"),
        (WORD_TASK | {"task": "words"}, "task must be pos_tags or ner_tags or chunk_tags"),
        (
            TEST_WORD_TASK | {"learning_rate": 1.0},
            "no 'learning_rate' in a test-word-task file; it is a key of mntp",
        ),
        ("{", "config.json is not JSON"),
        ("[1]", "not a JSON object, but list"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(translate, values, words):
    with pytest.raises(UsageError, match=words):
        translate(values)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match="absent.json cannot be read"):
        read_config(tmp_path / "absent.json")


def test_every_training_argument_of_the_installed_transformers_is_known(translate):
    from transformers import TrainingArguments

    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    translated = translate(SHEARED_MNTP | dict.fromkeys(names - set(SHEARED_MNTP)))
    assert translated == translate(SHEARED_MNTP)
