"""Threads that share one encoder: nothing that a call does may change what another call finds."""

import copy
import ctypes
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import DECODERS
from torch import nn

from llm2vec import Encoder, LLM2Vec
from llm2vec.backbone.mode import evaluating
from llm2vec.encoder.batching import on_each_core
from llm2vec.encoder.tokenization import Tokens

TEXTS = [
    "The mill by the river has stood empty for years, and nobody remembers who owned it.",
    "Yes.",
    "Rain is expected in the north, while the south stays dry and warm until the weekend.",
]
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
"""Float32 in batches of another shape."""


@pytest.fixture
def own():
    """An encoder of this test alone, since its modes and its tokenizer are looked at."""
    return Encoder.from_pretrained(DECODERS / "qwen3", max_length=9)


@pytest.fixture
def two_cores():
    """Two threads for torch, so that batches go to a pool."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_all_public_methods_together_give_what_each_gives_alone(own, two_cores, tmp_path):
    """Long texts, cut and uncut; inner layers and last ones; a tokenizer that others set to truncate."""
    drop_in = LLM2Vec(own.model, own.tokenizer, settings=own.settings)
    short = Encoder(own.model, own.tokenizer, settings=own.settings.changed(doc_max_length=3))
    tokens = own.tokens(TEXTS)
    features = drop_in.tokenize(TEXTS)
    calls = {
        "encode": lambda: own.encode(TEXTS, batch_size=1),
        "encode shortened": lambda: short.encode(TEXTS),
        "encode prompted": lambda: own.encode(TEXTS, prompt="Find:"),
        "words": lambda: torch.cat([each.vectors_WD for each in own.words(TEXTS)]),
        "words inside": lambda: torch.cat([each.vectors_WD for each in own.words(TEXTS, layer=1)]),
        "words inside deeper": lambda: own.words(TEXTS[0], layer=2)[0].vectors_WD,
        "encode_tokens": lambda: own.encode_tokens(tokens),
        "embed": lambda: own.embed(tokens).detach(),
        "tokenize": lambda: drop_in.tokenize(TEXTS)["input_ids"].float(),
        "forward": lambda: drop_in(features).detach(),
    }
    expected = {name: call() for name, call in calls.items()}
    own.tokenizer(TEXTS, truncation=True, max_length=2, padding=True)

    def often(name):
        return [(name, calls[name]()) for _ in range(6)]

    with ThreadPoolExecutor(len(calls)) as pool:
        found = [pair for pairs in pool.map(often, calls) for pair in pairs]
        pool.submit(own.save, tmp_path / "saved").result()
    for name, vectors in found:
        torch.testing.assert_close(vectors, expected[name], **CLOSE, msg=name)
    assert not own.model.training


def test_saving_beside_encoding_writes_what_saving_alone_writes(own, tmp_path):
    own.save(tmp_path / "alone")
    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(own.encode, TEXTS) for _ in range(8)]
        pool.submit(own.save, tmp_path / "beside").result()
        vectors = [reader.result() for reader in readers]
    alone, beside = sorted((tmp_path / "alone").iterdir()), sorted((tmp_path / "beside").iterdir())
    assert [path.name for path in alone] == [path.name for path in beside]
    for first, second in zip(alone, beside, strict=True):
        assert first.is_dir() or first.read_bytes() == second.read_bytes(), first.name
    for each in vectors:
        torch.testing.assert_close(each, own.encode(TEXTS), **CLOSE)


def test_evaluation_blocks_that_overlap_leave_every_module_in_its_mode():
    model = nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5)))
    model.train()
    model[1][0].eval()
    first, second = evaluating(model), evaluating(model)
    first.__enter__()
    second.__enter__()
    assert not any(module.training for module in model.modules())
    first.__exit__(None, None, None)
    assert not any(module.training for module in model.modules()), "the second is still inside"
    second.__exit__(None, None, None)
    assert [module.training for module in model.modules()] == [True, True, True, False, True]
    with evaluating(model):
        model.train()
    assert [module.training for module in model.modules()] == [True, True, True, False, True]


def test_a_training_model_has_no_dropout_while_any_thread_encodes(own):
    noisy = Encoder(
        Encoder.from_pretrained(DECODERS / "gpt2").model,  # its dropout is 0.1
        Encoder.from_pretrained(DECODERS / "gpt2").tokenizer,
    )
    expected = noisy.encode(TEXTS)
    noisy.train()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: noisy.encode(TEXTS), range(12)))
    for vectors in found:
        torch.testing.assert_close(vectors, expected, **CLOSE)
    assert all(module.training for module in noisy.modules())


def test_what_words_and_encode_tokens_return_can_be_trained_on(own):
    word_vectors = own.words(TEXTS[0])[0].vectors_WD
    tagger = nn.Linear(own.dimension, 2)
    tagger(word_vectors).sum().backward()
    tagger(own.encode_tokens([Tokens([5, 6], 0, 2)])).sum().backward()
    tagger(own.encode(TEXTS)).sum().backward()
    assert tagger.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_vectors_do_not_depend_on_the_autocast_around_the_call(name, two_cores):
    encoder = Encoder.from_pretrained(DECODERS / name)
    expected, words = encoder.encode(TEXTS), encoder.words(TEXTS[0])[0].vectors_WD
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for batch_size in (None, 1):
            torch.testing.assert_close(
                encoder.encode(TEXTS, batch_size=batch_size), expected, **CLOSE
            )
        torch.testing.assert_close(encoder.words(TEXTS[0])[0].vectors_WD, words, **CLOSE)


def test_a_training_step_under_autocast_gives_float32_vectors_near_the_exact_ones(own):
    tokens = own.tokens(TEXTS)
    exact = own.embed(tokens).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = own.embed(tokens)
    rough.sum().backward()
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).norm() / exact.norm() < 0.1


def test_the_number_of_threads_is_left_alone_for_this_thread_and_for_new_ones(two_cores):
    seen = []

    def work(batch):
        thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        return torch.get_num_threads()

    inside = list(on_each_core(work, [[0], [1], [2], [3]], device=torch.device("cpu")))
    assert inside == [1] * 4
    assert seen == [2] * 4
    assert torch.get_num_threads() == 2


def test_an_error_in_one_batch_ends_the_others_and_leaves_the_threads(two_cores):
    def work(batch):
        raise ValueError(f"batch {batch}")

    with pytest.raises(ValueError, match=r"batch \[0\]"):
        list(on_each_core(work, [[0], [1], [2]], device=torch.device("cpu")))
    assert torch.get_num_threads() == 2


ALLOCATOR = """
import ctypes, sys
libc = ctypes.CDLL(None)
called = []
class Watched(ctypes.CDLL):
    def __getattr__(self, name):
        if name == "mallopt":
            called.append(name)
        return super().__getattr__(name)
ctypes.CDLL = Watched
from llm2vec import Encoder
Encoder.from_pretrained(sys.argv[1]).encode(["one", "two", "three"], batch_size=1)
print("library", called)
from llm2vec.cli import main
sys.argv = ["llm2vec", "--version"]
try:
    main.main()
except SystemExit:
    pass
print("program", called)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library")
def test_only_the_command_line_changes_the_allocator_of_its_process():
    done = subprocess.run(
        [sys.executable, "-c", ALLOCATOR, str(DECODERS / "qwen3")],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert "library []" in lines
    assert lines[-1] == "program ['mallopt']"


def test_a_copy_of_an_encoder_is_an_encoder_of_its_own(own):
    other = copy.deepcopy(own)
    torch.testing.assert_close(other.encode(TEXTS), own.encode(TEXTS), **CLOSE)
