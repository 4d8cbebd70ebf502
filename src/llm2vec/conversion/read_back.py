"""The last proof: a saved folder gives the same vectors in other libraries, without our code."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from llm2vec.backbone.loading import quiet
from llm2vec.backbone.proofs import Proof
from llm2vec.encoder.encoder import Encoder
from llm2vec.errors import ProofFailed

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedModel

_PROBE_TEXTS = (
    "The old man the boats.",
    "Encoders read a text in both directions, so every token may look at what follows it as well "
    "as at what precedes.",
    "Yes",
    "A short one, then.",
)
_READ_BACK_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""Largest difference between vectors here and in sentence-transformers, relative to their length,
by data type. Another batch shape rounds in another way."""


def prove_read_back(encoder: Encoder, folder: Path, *, trust_remote_code: bool = False) -> Proof:
    """Open a saved folder as other people would, with none of our code, and compare vectors.

    The texts are compared without the encoder's template, which other libraries do not use.

    Args:
        encoder: The encoder that was saved.
        folder: The folder that it was saved to.
        trust_remote_code: Whether model code in the folder may run.

    Raises:
        ProofFailed: `SentenceTransformer` or `AutoModel` gives other vectors than `encode`.
    """
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel

    if encoder.settings.template is not None:
        plain_settings = replace(encoder.settings, template=None)
        encoder = Encoder(encoder.model, encoder.tokenizer, settings=plain_settings)
    with quiet():
        opened = SentenceTransformer(
            str(folder), device=str(encoder.device), trust_remote_code=trust_remote_code
        )
        plain = AutoModel.from_pretrained(folder, trust_remote_code=trust_remote_code)
        plain = plain.eval().to(encoder.device)
    margin = max(
        _vectors_apart(encoder, opened),
        _prompted_vectors_apart(encoder, opened),
        _states_apart(encoder, plain),
    )
    allowed = _READ_BACK_TOLERANCE[encoder.model.dtype]
    if not margin <= allowed:
        raise ProofFailed(
            f"{folder}: opened by sentence-transformers it gives other vectors (off by "
            f"{margin:.1e}, allowed "
            f"{allowed:.0e}); the encoder is not published. Please report this with the decoder's "
            "name"
        )
    detail = f"relative, allowed {allowed}"
    return Proof("the saved folder gives the same vectors", True, margin, detail)


def _vectors_apart(encoder: Encoder, opened: "SentenceTransformer") -> float:
    texts = list(_PROBE_TEXTS)
    ours_BD = encoder.encode(texts, convert_to_numpy=True)
    theirs_BD = opened.encode(texts, convert_to_numpy=True, show_progress_bar=False)
    return _distance(ours_BD, theirs_BD)


def _prompted_vectors_apart(encoder: Encoder, opened: "SentenceTransformer") -> float:
    """The largest distance with each prompt, of normalised vectors.

    Sentence-transformers' mean with a prompt may have another length, but never another direction.
    """
    texts = list(_PROBE_TEXTS)
    apart = 0.0
    for name in encoder.settings.prompts:
        ours_BD = encoder.encode(texts, prompt_name=name, normalize=True, convert_to_numpy=True)
        theirs_BD = opened.encode(
            texts, prompt_name=name, normalize_embeddings=True, show_progress_bar=False
        )
        apart = max(apart, _distance(ours_BD, theirs_BD))
    return apart


def _states_apart(encoder: Encoder, plain: "PreTrainedModel") -> float:
    ids_BT = torch.tensor([encoder.tokens([_PROBE_TEXTS[0]])[0].ids], device=encoder.device)
    with torch.inference_mode():
        ours_BTD = encoder.model(input_ids=ids_BT, use_cache=False).last_hidden_state
        theirs_BTD = plain(input_ids=ids_BT, use_cache=False).last_hidden_state
    return _distance(ours_BTD[0].float().cpu().numpy(), theirs_BTD[0].float().cpu().numpy())


def _distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    lengths = np.linalg.norm(ours, axis=-1, keepdims=True).clip(min=1e-9)
    return float((np.abs(ours - theirs) / lengths).max())
