"""A tokenizer that fits a model: each of its tokens has an embedding, and one of them pads.

Padding is masked, so any token will do. Many folders pad with a token that was added to the tokenizer and never to the
model; it goes out of the vocabulary here, so that the letters of its name in a text are letters.
"""

import json
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from llm2vec.errors import ModelError


def fit_tokenizer(tokenizer: PreTrainedTokenizerFast, *, rows: int) -> None:
    """Let a tokenizer pad with a token that the model has, and compare the two vocabularies.

    Args:
        tokenizer: The tokenizer; changed in place where it pads with a token beyond the embeddings.
        rows: Number of tokens that the model has embeddings for.

    Raises:
        ModelError: Another token has no embedding, or there is no other token to pad with.
    """
    if isinstance(tokenizer.pad_token_id, int) and tokenizer.pad_token_id >= rows:
        beyond = str(tokenizer.pad_token)
        tokenizer.pad_token = None
        _take_out(tokenizer, beyond)
        choose_padding(tokenizer, "the decoder")
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= rows:
        raise ModelError(
            f"the tokenizer does not belong to the model: it has ids up to {largest}, the model "
            f"has {rows} embeddings"
        )


def choose_padding(tokenizer: PreTrainedTokenizerFast, source: object) -> None:
    """Let a tokenizer without a padding token pad with another special token.

    Args:
        tokenizer: The tokenizer; changed in place.
        source: What the message calls the place that it came from.

    Raises:
        ModelError: It has no special token.
    """
    candidates = (tokenizer.eos_token, tokenizer.unk_token, *tokenizer.all_special_tokens)
    tokenizer.pad_token = next((each for each in candidates if each is not None), None)
    if tokenizer.pad_token is None:
        raise ModelError(
            f"the tokenizer of {source} has no special token to pad with; give it a pad_token"
        )


def forget_padding_beyond(config: PreTrainedConfig) -> None:
    """Take a padding token without an embedding out of a configuration, which no layer could be built from.

    Args:
        config: The configuration of a decoder, or of a model around one; changed in place.
    """
    text = config.get_text_config(decoder=True)
    padding, rows = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
    if isinstance(padding, int) and isinstance(rows, int) and padding >= rows:
        text.pad_token_id = None


def _take_out(tokenizer: PreTrainedTokenizerFast, token: str) -> None:
    """Take a token out of a tokenizer; `tokenizers` itself can only add some."""
    parts: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    parts["added_tokens"] = [each for each in parts["added_tokens"] if each["content"] != token]
    vocabulary = parts["model"].get("vocab")
    if isinstance(vocabulary, dict):
        vocabulary.pop(token, None)
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(parts))
