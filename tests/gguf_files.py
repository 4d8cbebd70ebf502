"""GGUF files of small decoders, written as other programs write them."""

import json
from pathlib import Path

import gguf
import numpy as np
from safetensors.torch import load_file

ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen3": gguf.MODEL_ARCH.QWEN3}
NORMAL, CONTROL = 1, 3


def write_gguf(folder: Path, place: Path, *, blocks: str = "F32") -> Path:
    """A decoder's folder as a GGUF file.

    Args:
        folder: Decoder of one of `ARCHITECTURES`, with a byte-level BPE tokenizer.
        place: The file to write.
        blocks: Type of the matrices: F32, Q8_0 ...
    """
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(place, config["model_type"])
    _write_shape(writer, config)
    _write_vocabulary(writer, json.loads((folder / "tokenizer.json").read_text()), config)
    names = gguf.get_tensor_name_map(
        ARCHITECTURES[config["model_type"]], config["num_hidden_layers"]
    )
    for name, weight in load_file(folder / "model.safetensors").items():
        weight = _as_llama_cpp(name, weight.float().numpy(), config)
        kind = gguf.GGMLQuantizationType[blocks if weight.ndim == 2 else "F32"]
        writer.add_tensor(
            names.get_name(name, (".weight",)), gguf.quantize(weight, kind), raw_dtype=kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return place


def _write_shape(writer: gguf.GGUFWriter, config: dict) -> None:
    rope = config.get("rope_parameters") or config
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_rope_dimension_count(head)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_vocab_size(config["vocab_size"])


def _write_vocabulary(writer: gguf.GGUFWriter, tokenizer: dict, config: dict) -> None:
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    vocabulary = {**tokenizer["model"]["vocab"], **special}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    tokens += [f"[PAD{index}]" for index in range(len(tokens), config["vocab_size"])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in special else NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    end = config.get("eos_token_id")
    if end is not None:
        writer.add_eos_token_id(end)
        writer.add_bos_token_id(end)


def _as_llama_cpp(name: str, weight: np.ndarray, config: dict) -> np.ndarray:
    """llama.cpp keeps the two halves of each rotary dimension of a Llama side by side."""
    if config["model_type"] != "llama" or not name.endswith(("q_proj.weight", "k_proj.weight")):
        return weight
    heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
