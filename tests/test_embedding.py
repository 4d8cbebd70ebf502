"""Steps that are read part by part: against one call, and against all parts with their states kept."""

import pytest
import torch
from conftest import DECODERS

from llm2vec.backbone.loading import load_decoder, load_tokenizer
from llm2vec.backbone.switch import make_bidirectional
from llm2vec.encoder.batching import is_packed
from llm2vec.encoder.settings import Settings
from llm2vec.encoder.tokenization import encoder_tokens
from llm2vec.training import embedding
from llm2vec.training.contrastive import ContrastiveLoss, contrastive_batch

TEXTS = [
    f"{who} {did} the green door{end}"
    for who in ("The old miller", "Nobody", "My brother")
    for did in ("opened", "painted")
    for end in (".", " before the rain came.")
]
PARTS = 40
"""Tokens in a part: three texts or so."""

SAME_GRADIENT = 1e-5
"""Of the gradients' own length, in float32."""


@pytest.fixture(scope="module")
def tokens():
    tokenizer = load_tokenizer(DECODERS / "qwen3")
    return encoder_tokens(tokenizer, TEXTS, settings=Settings(max_length=48))


def noisy_model(dropout):
    overrides = {"attention_dropout": dropout}
    decoder = DECODERS / "qwen3"
    model = load_decoder(decoder, head=False, dtype=torch.float32, config_overrides=overrides)
    make_bidirectional(model)
    return model.train()


def gradients(model, tokens, *, part_tokens=None, seed=0):
    """The loss of a text against itself, and the gradients of all weights in one vector."""
    rows = [(each, each) for each in tokens]
    batch = contrastive_batch(rows, packed=is_packed(model), pad_id=0, part_tokens=part_tokens)
    assert (len(batch["parts"]) > 3) == (part_tokens is not None)
    torch.manual_seed(seed)
    model.zero_grad()
    loss = ContrastiveLoss(20.0, "mean")(model, batch, None)
    loss.backward()
    found = torch.cat([weight.grad.flatten() for weight in model.parameters()])
    return loss.item(), found


def apart(first, second):
    return float((first - second).norm() / second.norm())


def test_parts_have_the_gradient_of_one_call(tokens):
    model = noisy_model(0.0)
    # A text is its own positive here, so without noise all that is left are the other texts.
    loss, whole = gradients(model, tokens)
    in_parts, found = gradients(model, tokens, part_tokens=PARTS)
    assert in_parts == pytest.approx(loss, rel=1e-5)
    assert apart(found, whole) < SAME_GRADIENT


def test_the_second_reading_of_a_part_has_the_dropout_of_the_first(tokens, monkeypatch):
    model = noisy_model(0.3)
    loss, found = gradients(model, tokens, part_tokens=PARTS)
    with monkeypatch.context() as patched:
        patched.setattr(embedding, "checkpoint", lambda read, part, **_: read(part))
        kept, whole = gradients(model, tokens, part_tokens=PARTS)
    assert loss == kept
    assert apart(found, whole) < SAME_GRADIENT
    assert apart(gradients(model, tokens, part_tokens=PARTS, seed=1)[1], whole) > 0.1
    with monkeypatch.context() as patched:
        forgetful = embedding.checkpoint
        patched.setattr(
            embedding,
            "checkpoint",
            lambda read, part, **kept: forgetful(
                read, part, **{**kept, "preserve_rng_state": False}
            ),
        )
        assert apart(gradients(model, tokens, part_tokens=PARTS)[1], whole) > 0.01


def test_no_states_are_kept_between_the_parts(tokens):
    model = noisy_model(0.0)
    rows = [(each, each) for each in tokens]

    def kept_numbers(part_tokens):
        batch = contrastive_batch(rows, packed=is_packed(model), pad_id=0, part_tokens=part_tokens)
        numbers = 0

        def count(tensor):
            nonlocal numbers
            numbers += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            ContrastiveLoss(20.0, "mean")(model, batch, None)
        return numbers

    assert kept_numbers(PARTS) < kept_numbers(None) / 20
