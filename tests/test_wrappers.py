"""Multimodal models: the text decoder is taken out whole, or refused with the reason."""

import pytest
import torch
from conftest import DECODERS
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

from llm2vec import Encoder, Recipe, convert
from llm2vec.backbone import wrapper
from llm2vec.backbone.loading import load_config, load_decoder
from llm2vec.conversion.info import describe
from llm2vec.errors import ModelError

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def make_wrapper(folder, kind, **changes):
    """A tiny multimodal model with random weights and a real tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(DECODERS / "qwen3")
    plain = AutoConfig.for_model(kind)
    text = {**TEXT, "vocab_size": len(tokenizer), "model_type": plain.get_text_config().model_type}
    vision = {**VISION, "model_type": plain.vision_config.model_type}
    config = AutoConfig.for_model(kind, text_config={**text, **changes}, vision_config=vision)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", ["gemma3", "mistral3", "llava", "smolvlm", "internvl"])
def test_the_text_decoder_gives_the_logits_of_its_wrapper(kind, tmp_path):
    whole = make_wrapper(tmp_path, kind)
    decoder = load_decoder(tmp_path, head=True)
    ids_BT = torch.arange(5, 25)[None]
    with torch.no_grad():
        theirs_BTV = whole(input_ids=ids_BT).logits
        ours_BTV = decoder(input_ids=ids_BT).logits
    assert torch.equal(ours_BTV, theirs_BTV)
    assert decoder.config.model_type == whole.config.get_text_config(decoder=True).model_type
    assert "vision_config" in wrapper.other_parts(whole.config)
    assert not any("vision" in name for name, _ in decoder.named_parameters())


def test_a_wrapper_is_converted_and_saved_as_its_text_decoders_own_type(tmp_path):
    make_wrapper(tmp_path / "wrapper", "gemma3")
    corpus = tmp_path / "texts.txt"
    corpus.write_text("".join(f"The cat {n} sat near the old bridge.\n" for n in range(100)))
    recipe = {
        "decoder": str(tmp_path / "wrapper"),
        "corpus": {"source": str(corpus)},
        "mntp": {"steps": 2, "batch_size": 2, "max_length": 32, "eval_blocks": 2},
        "simcse": {"steps": 0},
        "encoder": {"max_length": 64},
    }
    notes = describe(Recipe.read(recipe)).notes
    assert "left out: vision_config" in notes[0]
    convert(Recipe.read(recipe), tmp_path / "encoder")
    assert load_config(tmp_path / "encoder").model_type == "gemma3_text"
    vectors_BD = Encoder.from_pretrained(tmp_path / "encoder").encode(["One text.", "Another."])
    assert vectors_BD.shape == (2, 32)


def test_a_decoder_whose_logits_differ_from_its_wrappers_is_refused(tmp_path):
    make_wrapper(tmp_path, "cohere2_vision", logit_scale=0.25)
    with pytest.raises(ModelError, match="gives other logits than inside its wrapper"):
        load_decoder(tmp_path, head=True)


def test_a_text_decoder_that_is_no_model_by_itself_is_refused_by_its_type(tmp_path):
    AutoConfig.for_model("qwen3_vl").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="qwen3_vl_text"):
        load_config(tmp_path)


def test_a_wrapper_without_all_its_weights_is_refused(tmp_path):
    whole = make_wrapper(tmp_path, "llava")
    weights = whole.state_dict()
    del weights[next(name for name in weights if "q_proj" in name and "language" in name)]
    whole.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ModelError, match="has no weights for"):
        load_decoder(tmp_path, head=True)
