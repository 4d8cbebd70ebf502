"""Vectors that are not as long as the layers' states: the model says their length, not its configuration."""

import families
import pytest
import torch
from sentence_transformers import SentenceTransformer

from llm2vec import Encoder, Recipe
from llm2vec.conversion.info import describe
from llm2vec.corpus.tagged import TaggedSentence
from llm2vec.encoder.layers import reading_layer
from llm2vec.errors import UsageError
from llm2vec.evaluation.probe import probe
from llm2vec.evaluation.tagger import Tagger, save_probe

STATES, VECTOR = 64, 32

NARROW = {"word_embed_proj_dim": VECTOR, "do_layer_norm_before": False}
"""As opt-350m: embeddings are widened before the first layer, and states narrowed after the last."""

READING = 1e-5
"""Rounding of float32 vectors of another batch shape."""

SENTENCES = [
    TaggedSentence(("a", "box"), ("X", "Y")),
    TaggedSentence(("two", "red", "boats"), ("X", "Z", "Y")),
] * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("narrow")
    assert families.converted("opt", place, method="lora", **NARROW) == "yes"
    return place


def test_a_vector_is_as_long_as_the_models_states(folder):
    encoder = Encoder.from_pretrained(folder / "encoder")
    assert encoder.dimension == VECTOR
    assert encoder.encode(["A box.", ""]).shape == (2, VECTOR)
    assert encoder.encode([]).shape == (0, VECTOR)


def test_all_weights_of_narrow_states_are_trained(tmp_path):
    assert families.converted("opt", tmp_path, method="full", **NARROW) == "yes"


def test_sentence_transformers_reads_the_same_length(folder):
    theirs = SentenceTransformer(str(folder / "encoder"), device="cpu")
    assert theirs.get_embedding_dimension() == VECTOR
    ours_BD = Encoder.from_pretrained(folder / "encoder").encode(["A box."])
    torch.testing.assert_close(
        ours_BD, torch.tensor(theirs.encode(["A box."])), atol=READING, rtol=READING
    )


def test_info_says_the_length_of_a_vector(folder):
    assert describe(Recipe.read({"decoder": str(folder / "decoder")})).hidden == VECTOR


@pytest.mark.parametrize(("layer", "width"), [(-1, VECTOR), (0, STATES), (2, STATES)])
def test_words_are_as_long_as_their_layers_states(folder, layer, width):
    encoder = Encoder.from_pretrained(folder / "encoder")
    some, none = encoder.words(["a box", ""], layer=layer)
    assert some.vectors_WD.shape == (2, width)
    assert none.vectors_WD.shape == encoder.words([""], layer=layer)[0].vectors_WD.shape
    assert none.vectors_WD.shape == (0, width)


def test_all_layers_at_once_are_refused_where_their_states_differ(folder):
    encoder = Encoder.from_pretrained(folder / "encoder")
    told = f"states of {STATES} numbers and its last one of {VECTOR}"
    with (
        reading_layer(encoder.model, layer="all", pad_id=0) as states_of,
        pytest.raises(UsageError, match=told),
    ):
        states_of([[5, 6]])


def test_a_probe_of_a_wider_layer_is_saved_and_used(folder, tmp_path):
    encoder = Encoder.from_pretrained(folder / "encoder")
    probed = probe(encoder, SENTENCES, SENTENCES, dev=SENTENCES, layer=1, seeds=1)
    save_probe(probed, tmp_path / "probe", encoder=str(folder / "encoder"), model=encoder)
    assert len(Tagger.open(tmp_path / "probe").tag(["a box"])[0]) == 2
