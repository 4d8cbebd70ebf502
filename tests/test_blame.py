"""What fails is told by what failed: memory, weights, the family, or a mistake of this package."""

import errno
import json
import shutil
import subprocess
import sys

import families
import pytest
import torch
from conftest import DECODERS
from safetensors.torch import load_file, save_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llm2vec import LLM2Vec, Recipe, convert
from llm2vec.backbone import packed_attention, proofs
from llm2vec.backbone.proofs import prove_packing
from llm2vec.backbone.switch import body, make_bidirectional
from llm2vec.cli import main as program
from llm2vec.conversion.info import describe
from llm2vec.errors import ModelError, NotConvertible, RunError, UsageError
from llm2vec.recipe.files import merged
from llm2vec.runtime.memory import says_no_memory

NO_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB."


def fails_with(model, error, *, after=0):
    """Make a model's forward raise an error, from its call number `after` on."""
    calls = iter(range(10**6))

    def fail(*_):
        if next(calls) >= after:
            raise error

    body(model).register_forward_pre_hook(fail)
    return model


# --- memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(NO_MEMORY),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
)
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_proof_without_memory_says_so_and_not_that_the_family_cannot(error, after):
    with pytest.raises(RunError, match=r"out of memory while the model was tried.*free some"):
        make_bidirectional(fails_with(families.tiny("llama"), error, after=after))


def test_a_packing_proof_without_memory_is_not_taken_for_a_family_that_cannot_pack():
    model = families.tiny("llama")
    make_bidirectional(model)
    fails_with(model, torch.OutOfMemoryError(NO_MEMORY), after=5)
    with pytest.raises(RunError, match="out of memory"):
        prove_packing(body(model), plain="sdpa", windows=(None,) * 4)


def few_steps(folder, decoder, **changes):
    (folder / "texts.txt").write_text("\n".join(families.TEXTS))
    named = {"decoder": str(decoder), "corpus": {"source": str(folder / "texts.txt")}}
    return Recipe.read(merged(families.FEW_STEPS, named, changes))


def test_training_without_memory_says_what_needs_less(tmp_path, monkeypatch):
    from llm2vec.training import mntp

    def out_of_memory(*_):
        raise torch.OutOfMemoryError(NO_MEMORY)

    monkeypatch.setattr(mntp, "mntp_loss", out_of_memory)
    decoder = families.write_decoder("llama", tmp_path / "decoder")
    asked = "out of memory in MNTP, with 4 texts of up to 32 tokens at once and weights in float32"
    with pytest.raises(RunError, match=f"{asked} .*2.00 GiB.*gradient_checkpointing"):
        convert(few_steps(tmp_path, decoder), tmp_path / "encoder")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ..."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling ..."), True),
        (RuntimeError("std::bad_alloc"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_is_told_from_other_errors(error, expected):
    assert says_no_memory(error) is expected


LITTLE_MEMORY = """
import resource, sys

import torch

from llm2vec import LLM2Vec
from llm2vec.encoder.words import joined, word_states, word_tokens
from llm2vec.errors import OutOfMemory

torch.set_num_threads(1)
encoder = LLM2Vec.from_pretrained(sys.argv[1])
text, ranges = joined(["house"] * 500)
tokens = encoder.tokens([text] * 400)
words = word_tokens(encoder.tokenizer, [text] * 400, [ranges] * 400, max_length=512)
tries = {
    "encode": lambda: encoder.encode_tokens(tokens, max_tokens=10**7),
    "words": lambda: word_states(encoder.model, words, pad_id=0, max_tokens=10**7),
}
encoder.encode("a")
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 40 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for name, attempt in tries.items():
    try:
        attempt()
    except OutOfMemory as error:
        print(name, error)
print(*encoder.encode("a").shape)
"""
"""A process that may take 40 MB more, and asks for more in one batch."""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is that of Linux")
def test_a_batch_that_does_not_fit_says_what_was_asked_and_what_needs_less():
    child = [sys.executable, "-c", LITTLE_MEMORY, str(DECODERS / "qwen3")]
    done = subprocess.run(child, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    *said, shape = done.stdout.splitlines()
    assert [line.split()[0] for line in said] == ["encode", "words"]
    for line in said:
        assert "with 400 texts of 200,000 tokens in a batch, the longest of 500" in line
        assert "in float32 on cpu" in line
        assert "smaller batch_size (--batch-size)" in line
    assert shape == "64"


def test_one_text_that_does_not_fit_is_to_be_cut_shorter():
    encoder = LLM2Vec.from_pretrained(DECODERS / "qwen3")
    fails_with(encoder.model, MemoryError())
    with pytest.raises(RunError, match=r"with one text of \d+ tokens.*cut texts shorter"):
        encoder.encode("a red house")


def test_a_command_that_runs_out_of_memory_anywhere_ends_with_one_line(monkeypatch, capsys):
    def no_memory():
        raise MemoryError("Unable to allocate 149. GiB for an array")

    monkeypatch.setattr(program, "app", no_memory)
    with pytest.raises(SystemExit, match="1"):
        program.main()
    said = capsys.readouterr().err
    assert said.startswith("llm2vec: out of memory (Unable to allocate 149. GiB for an array): ")
    assert len(said.splitlines()) == 1


# --- mistakes of this package


@pytest.mark.parametrize("where", ["padded_inputs", "packed_inputs"])
def test_a_mistake_of_ours_in_a_proof_is_not_blamed_on_the_family(where, monkeypatch):
    def mistaken(*_, **__):
        raise TypeError("a mistake of ours")

    monkeypatch.setattr(proofs, where, mistaken)
    with pytest.raises(TypeError, match="a mistake of ours"):
        make_bidirectional(families.tiny("llama"))


def test_a_mistake_of_ours_while_layers_are_looked_at_is_not_blamed_on_the_family(monkeypatch):
    from llm2vec.backbone import receptive_field

    def mistaken(*_, **__):
        raise ValueError("a mistake of ours")

    for where in ("_disturbed", "_moved"):
        with monkeypatch.context() as patched:
            patched.setattr(receptive_field, where, mistaken)
            with pytest.raises(ValueError, match="a mistake of ours"):
                make_bidirectional(families.tiny("llama"))


def test_a_mistake_of_ours_in_info_is_not_a_copy_that_cannot_be_built(tmp_path, monkeypatch):
    from llm2vec.backbone import miniature

    def mistaken(*_):
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(miniature, "_small_values", mistaken)
    with pytest.raises(ValueError, match="a mistake of ours"):
        describe(few_steps(tmp_path, DECODERS / "qwen3"))


# --- the family


def test_a_family_whose_code_fails_is_refused_by_what_it_said():
    model = fails_with(families.tiny("llama"), TypeError("forward() takes no mask"))
    with pytest.raises(NotConvertible, match=r"llama cannot be made.*forward\(\) takes no mask"):
        make_bidirectional(model)


def test_a_family_whose_code_fails_on_packed_rows_alone_is_padded(monkeypatch):
    def refuses(*_, document_lengths=None, **__):
        raise AttributeError("no such attention")

    monkeypatch.setattr(packed_attention, "packed_attention", refuses)
    switch = make_bidirectional(families.tiny("llama"))
    assert not switch.packs
    assert "the family cannot: no such attention" in switch.notes[0]


# --- the text


def test_what_is_no_text_is_named_by_every_method(encoder):
    for wrong in (lambda: encoder.encode(5), lambda: encoder.encode(["good", None])):
        with pytest.raises(UsageError, match="encode takes texts"):
            wrong()
    for texts in (5, ["good", None], [["a", 5]]):
        with pytest.raises(UsageError, match="words takes texts or lists of words, not"):
            encoder.words(texts)
    with pytest.raises(UsageError, match="chunks takes texts, and row 1 is None"):
        encoder.chunks(["good", None])


# --- weights


def damaged(folder, *, value, name="model.layers.1.mlp.up_proj.weight"):
    """The tiny qwen3 with one value in one weight that is no number."""
    shutil.copytree(DECODERS / "qwen3", folder)
    weights = load_file(folder / "model.safetensors")
    weights[name][3, 5] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_numbers_are_blamed_on_their_file(value, tmp_path):
    folder = damaged(tmp_path / "decoder", value=value)
    said = r"1 of \d+ weights of .*decoder are not numbers .*layers.1.mlp.up_proj.weight"
    with pytest.raises(ModelError, match=said) as raised:
        LLM2Vec.from_pretrained(folder)
    assert not isinstance(raised.value, NotConvertible)
    with pytest.raises(ModelError, match=said):
        convert(few_steps(tmp_path, folder), tmp_path / "encoder")


def test_weights_of_a_model_given_by_hand_are_looked_at_before_its_family_is_blamed():
    model = families.tiny("llama")
    with torch.no_grad():
        model.model.layers[2].self_attn.q_proj.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="layers.2.self_attn.q_proj.weight") as raised:
        make_bidirectional(model)
    assert not isinstance(raised.value, NotConvertible)


def test_states_too_large_for_their_type_are_blamed_on_the_type():
    model = families.tiny("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1e4)
        model.model.layers[0].mlp.up_proj.weight.mul_(1e4)
    with pytest.raises(ModelError, match="not numbers .* in torch.float16: load it in another"):
        make_bidirectional(model.half())


# --- small copies

PHI_4_MINI = {
    "model_type": "phi3",
    "vocab_size": 200064,
    "hidden_size": 3072,
    "num_attention_heads": 24,
    "num_hidden_layers": 4,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 4096,
    "max_position_embeddings": 131072,
    "rope_scaling": {"type": "longrope", "long_factor": [2.0] * 48, "short_factor": [1.0] * 48},
}

MINICPM_3 = {
    "model_type": "minicpm3",
    "hidden_size": 2560,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "num_hidden_layers": 4,
    "q_lora_rank": 768,
    "kv_lora_rank": 256,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "rope_scaling": {
        "type": "longrope",
        "long_factor": [2.0] * 16,
        "short_factor": [1.0] * 16,
        "original_max_position_embeddings": 32768,
    },
}

MROPE = {
    "model_type": "qwen2",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
}


def described(folder, values):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"vocab_size": 512, **values}))
    return describe(Recipe.read({"decoder": str(folder)}))


@pytest.mark.parametrize("values", [PHI_4_MINI, MINICPM_3])
def test_models_that_scale_their_rotations_by_lists_are_tried_on_a_small_copy(values, tmp_path):
    if values["model_type"] not in CONFIG_MAPPING:
        pytest.skip(f"this version of transformers has no {values['model_type']}")
    assert described(tmp_path / "model", values).convertible is True


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_transformers_cannot_build_is_one_line(tmp_path):
    with pytest.raises(ModelError, match="transformers cannot build a model of .*KeyError 'mrope'"):
        described(tmp_path / "model", MROPE)


ODD_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel


class OddConfig(LlamaConfig):
    model_type = "odd_code"

    def __post_init__(self, **others):
        super().__post_init__(**others)
        1 / ({config} - self.vocab_size)


class OddModel(LlamaModel):
    config_class = OddConfig


class OddForCausalLM(LlamaForCausalLM):
    config_class = OddConfig

    def __init__(self, config):
        1 / ({model} - config.vocab_size)
        super().__init__(config)
"""
"""Code that cannot be given as many tokens as it names."""

SMALL_VOCABULARY = 128


@pytest.mark.parametrize("broken", ["config", "model"])
def test_a_copy_that_cannot_be_built_is_a_sentence_whatever_was_raised(broken, tmp_path):
    folder = families.write_decoder("llama", tmp_path / "decoder", vocab_size=200)
    numbers = {"config": 0, "model": 0, broken: SMALL_VOCABULARY}
    (folder / "odd.py").write_text(ODD_CODE.format(**numbers))
    classes = {
        "AutoConfig": "odd.OddConfig",
        "AutoModel": "odd.OddModel",
        "AutoModelForCausalLM": "odd.OddForCausalLM",
    }
    config = json.loads((folder / "config.json").read_text())
    changes = {"model_type": "odd_code", "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(config | changes))
    found = describe(Recipe.read({"decoder": str(folder), "trust_remote_code": True}))
    assert found.convertible is None
    assert found.reason == (
        "no small copy of it can be built to try (division by zero); convert proves the real one"
    )


def test_simcse_of_a_family_that_takes_no_dropout_is_refused_before_anything_is_trained(tmp_path):
    decoder = families.write_decoder("diffllama", tmp_path / "decoder")
    with pytest.raises(UsageError, match=r"diffllama has no live attention dropout.*simcse.steps"):
        convert(few_steps(tmp_path, decoder), tmp_path / "encoder")
    assert not (tmp_path / "encoder.stages" / "0-bi").exists()
