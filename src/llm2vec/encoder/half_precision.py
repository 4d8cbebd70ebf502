"""bfloat16 on a CPU that has instructions for it, where vectors stay next to what they are.

How next is measured on a few texts when an encoder is loaded. It knows nothing of how.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from llm2vec.backbone.mode import evaluating
from llm2vec.encoder.batching import token_states
from llm2vec.encoder.pooling import pool_tokens
from llm2vec.encoder.tokenization import encoder_tokens
from llm2vec.runtime.hardware import default_device, has_bfloat16

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llm2vec.encoder.settings import Settings

LEAST_COSINE = 0.999
"""Cosine to float32 below which a model keeps computing in float32."""

FEWEST_WEIGHTS = 50_000_000
"""Weights of a model for which bfloat16 is worth its rounding: narrow layers are not faster in it.

Measured as faster: SmolLM2-135M, 1.67 times on a CPU with AVX-512-BF16."""

_TEXTS = (
    "A short one.",
    "How do I get my money back if the parcel never arrived?",
    "The old miller opened the green door before the rain came, and nobody knew why.",
    "Die Katze sitzt seit drei Stunden auf der Fensterbank und schaut den Spatzen zu.",
    "def add(first, second):\n    return first + second",
    "In 1997 the council sold 12.5 hectares of woodland; the price, 340,000 crowns, was paid. " * 4,
)


def exact_dtype() -> torch.dtype | str:
    """The data type to load a model in that will be trained or saved: no weight is rounded."""
    return torch.float32 if default_device().type == "cpu" else "auto"


def is_worth_trying(model: "PreTrainedModel", dtype: torch.dtype | str) -> bool:
    """Whether a model that was loaded in float32 may be loaded in bfloat16 instead.

    Args:
        model: The model.
        dtype: The data type that was asked for; "auto" leaves the choice.
    """
    if dtype != "auto" or model.dtype != torch.float32 or model.device.type != "cpu":
        return False
    return has_bfloat16(model.device) and model.num_parameters() >= FEWEST_WEIGHTS


def sample_vectors(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", settings: "Settings"
) -> Tensor:
    """Vectors of a few texts, by which two data types are compared: embedding_BD."""
    tokens = encoder_tokens(tokenizer, _TEXTS, settings=settings)
    documents = [each.ids for each in tokens]
    with evaluating(model), torch.inference_mode():
        states_ND = token_states(model, documents, pad_id=int(tokenizer.pad_token_id))
        return pool_tokens(states_ND, tokens, pooling=settings.pooling)


def least_cosine(exact_BD: Tensor, rounded_BD: Tensor) -> float:
    """The cosine of the two vectors of the text that differ most; 0 where one is no number."""
    least = float(cosine_similarity(exact_BD.float(), rounded_BD.float()).min())
    return least if least == least else 0.0
