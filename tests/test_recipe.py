"""Recipes: defaults, overrides, and errors that help."""

import pytest

from llm2vec.errors import UsageError
from llm2vec.recipe.files import differences, merged, read_settings, read_yaml, to_yaml
from llm2vec.recipe.knobs import Recipe
from llm2vec.recipe.presets import PRESETS, preset


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_recipe_and_survives_yaml(name, tmp_path):
    recipe = Recipe.read(preset(name))
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    assert Recipe.read(read_yaml(tmp_path / "recipe.yaml")) == recipe


@pytest.mark.parametrize(
    ("name", "decoder", "masking", "probability"),
    [
        ("s-llama-1.3b", "princeton-nlp/Sheared-LLaMA-1.3B", "bert", 0.2),
        ("llama-2-7b", "meta-llama/Llama-2-7b-chat-hf", "bert", 0.2),
        ("mistral-7b", "mistralai/Mistral-7B-Instruct-v0.2", "all", 0.8),
        ("llama-3-8b", "meta-llama/Meta-Llama-3-8B-Instruct", "bert", 0.2),
        ("llama-3.1-8b", "meta-llama/Meta-Llama-3.1-8B-Instruct", "bert", 0.2),
    ],
)
def test_the_papers_presets_are_its_published_configurations(name, decoder, masking, probability):
    recipe = Recipe.read(preset(name))
    assert (recipe.decoder, recipe.mntp.masking, recipe.mntp.mask_probability) == (
        decoder,
        masking,
        probability,
    )
    assert (recipe.mntp.steps, recipe.mntp.batch_size, recipe.mntp.max_length) == (1000, 32, 512)
    assert (recipe.mntp.lora.r, recipe.mntp.lora.alpha, recipe.mntp.lora.dropout) == (16, 32, 0.05)
    assert (recipe.mntp.learning_rate, recipe.mntp.schedule, recipe.mntp.warmup_steps) == (
        5e-5,
        "linear",
        0,
    )
    assert (recipe.simcse.batch_size, recipe.simcse.max_length, recipe.simcse.learning_rate) == (
        128,
        128,
        3e-5,
    )
    assert (recipe.simcse.dropout, recipe.simcse.scale, recipe.simcse.steps) == (0.3, 20.0, 1000)
    supervised = recipe.supervised
    assert (supervised.steps, supervised.batch_size, supervised.max_length) == (0, 64, 512)
    assert (supervised.learning_rate, supervised.warmup_steps, supervised.scale) == (
        2e-4,
        300,
        50.0,
    )
    assert recipe.corpus.config == "wikitext-103-raw-v1"


def test_an_unknown_key_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match=r"no 'mntp.step'; did you mean 'mntp.steps'"):
        Recipe.read({"mntp": {"step": 3}})
    with pytest.raises(UsageError, match=r"no 'simcse.lora.rank'"):
        Recipe.read({"simcse": {"lora": {"rank": 3}}})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"mntp": {"steps": -3}}, "mntp.steps.*-3"),
        ({"mntp": {"masking": "most"}}, "mntp.masking.*'bert' or 'all'.*'most'"),
        ({"encoder": {"pooling": "median"}}, "encoder.pooling"),
        ({"seed": "many"}, "seed.*'many'"),
    ],
)
def test_a_wrong_value_is_named(values, words):
    with pytest.raises(UsageError, match=words):
        Recipe.read(values)


def test_settings_are_laid_over_a_preset_key_by_key():
    layers = merged(preset("small"), read_settings(["mntp.steps=7", "simcse.learning_rate=5e-5"]))
    recipe = Recipe.read(layers)
    assert recipe.mntp.steps == 7
    assert recipe.mntp.method == "full"
    assert recipe.simcse.learning_rate == 5e-5


def test_one_prompt_may_be_written_as_a_text():
    recipe = Recipe.read(read_settings(["supervised.corpus.prompts.nli='Find it:'"]))
    assert recipe.supervised.corpus.prompts == {"nli": ("Find it:",)}
    assert Recipe.read(recipe.to_dict()) == recipe


@pytest.mark.parametrize("setting", ["mntp.steps", "=4", "mntp.steps=[1"])
def test_a_setting_that_is_none_says_how_to_write_it(setting):
    with pytest.raises(UsageError, match="--set"):
        read_settings([setting])


def test_a_damaged_recipe_file_is_one_clear_error(tmp_path):
    (tmp_path / "broken.yaml").write_text("mntp: [")
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(UsageError, match="not YAML"):
        read_yaml(tmp_path / "broken.yaml")
    with pytest.raises(UsageError, match="no keys"):
        read_yaml(tmp_path / "list.yaml")
    with pytest.raises(UsageError, match="does not exist"):
        read_yaml(tmp_path / "absent.yaml")


def test_differences_name_what_changed():
    before, after = Recipe(), Recipe.read({"mntp": {"steps": 5}})
    assert list(differences(before.to_dict(), after.to_dict())) == ["mntp.steps: 1000 -> 5"]
