"""Two knobs from the later literature: dropped last layers, and vectors that are spread over all directions."""

import numpy as np
import pytest
import torch
from conftest import DECODERS

from llm2vec import Encoder, Recipe, convert
from llm2vec.backbone.loading import load_decoder
from llm2vec.conversion.info import describe
from llm2vec.encoder.layers import reading_layer
from llm2vec.errors import UsageError
from llm2vec.recipe.knobs import DistillRecipe, SupervisedRecipe
from llm2vec.training.contrastive import ContrastiveLoss, spread_out
from llm2vec.training.distill import DistillLoss
from llm2vec.training.pair_loss import PairLoss

TEXT = "The old miller opened the green door."
SAME_STATE = 1e-4
"""Of float32 states of length about 10."""


def recipe(name, corpus, **encoder):
    small = {"steps": 2, "batch_size": 4, "max_length": 32}
    return Recipe.read(
        {
            "decoder": str(DECODERS / name),
            "corpus": {"source": str(corpus)},
            "mntp": {"steps": 0},
            "simcse": {**small, "steps": 0},
            "encoder": {"max_length": 64, **encoder},
        }
    )


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "qwen3"])
def test_the_kept_layers_give_the_states_that_the_whole_model_has_there(name, corpus, tmp_path):
    convert(recipe(name, corpus, layers=2), tmp_path / "out")
    short = Encoder.from_pretrained(tmp_path / "out")
    assert short.model.config.num_hidden_layers == 2
    whole = Encoder.from_pretrained(DECODERS / name)
    ids = [whole.tokens([TEXT])[0].ids]
    with torch.no_grad(), reading_layer(whole.model, layer=2, pad_id=0) as states_of:
        expected = states_of(ids)[0]
    norm = next(each for path, each in whole.model.named_modules() if path in ("norm", "ln_f"))
    with torch.no_grad(), reading_layer(short.model, layer=-1, pad_id=0) as states_of:
        found = states_of(ids)[0]
        torch.testing.assert_close(found, norm(expected), atol=SAME_STATE, rtol=1e-4)


def test_training_goes_on_from_fewer_layers_and_more_than_there_are_is_refused(corpus, tmp_path):
    chosen = recipe("qwen3", corpus, layers=1).to_dict()
    chosen["mntp"] = {"steps": 1, "batch_size": 2, "max_length": 32, "eval_blocks": 2}
    chosen["simcse"]["steps"] = 1
    done = convert(Recipe.read(chosen), tmp_path / "out", keep_stages=True)
    for folder in (*done.stages.values(), done.folder):
        assert load_decoder(folder, head=False).config.num_hidden_layers == 1
    with pytest.raises(UsageError, match=r"encoder.layers=9: this model \(qwen3\) has only 3"):
        convert(recipe("qwen3", corpus, layers=9), tmp_path / "more")


def test_info_counts_the_layers_that_are_kept(corpus):
    whole, short = (describe(recipe("qwen3", corpus, **each)) for each in ({}, {"layers": 1}))
    assert short.parameters < whole.parameters
    assert sum(short.windows.values()) == 1


def test_spread_out_is_the_mean_squared_cosine_of_different_texts():
    vectors = np.random.default_rng(0).normal(size=(5, 7))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    squares = [(unit[i] @ unit[j]) ** 2 for i in range(5) for j in range(5) if i != j]
    found = spread_out(torch.tensor(vectors))
    assert float(found) == pytest.approx(np.mean(squares), rel=1e-5)
    assert float(spread_out(torch.ones(1, 3))) == pytest.approx(0.0, abs=1e-6)


def test_the_weight_of_spread_out_is_added_to_each_contrastive_loss(monkeypatch):
    vectors = torch.tensor(np.random.default_rng(0).normal(size=(8, 7)), dtype=torch.float32)
    anchor, positive = vectors.split(4)
    same = {"identities": torch.arange(8), "groups": torch.zeros(4, dtype=torch.long), "rows": 4}
    for module in ("contrastive", "distill"):
        monkeypatch.setattr(f"llm2vec.training.{module}.embed", lambda *_, **__: vectors)
    both = float(spread_out(anchor) + spread_out(positive)) / 2

    def gain(loss_of, batch):
        plain, spread = (loss_of(weight)(torch.nn.Module(), batch, None) for weight in (0.0, 3.0))
        return float(spread - plain) / 3

    assert gain(lambda weight: ContrastiveLoss(20.0, "mean", weight), same) == pytest.approx(
        both, rel=1e-4
    )
    knobs = {"corpus": {"source": "x"}}

    def of_pairs(weight):
        loss = PairLoss.of(SupervisedRecipe(spread_out=weight, **knobs), pooling="mean")
        return lambda _, batch, __: loss.of_vectors(vectors, batch)

    assert gain(of_pairs, same) == pytest.approx(both, rel=1e-4)
    taught = {"teacher": torch.ones(8, 7) + torch.eye(8)[:, :7]}
    found = gain(lambda weight: DistillLoss(DistillRecipe(spread_out=weight), "mean"), taught)
    assert found == pytest.approx(float(spread_out(vectors)), rel=1e-4)
