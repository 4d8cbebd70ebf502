"""Tokenizers that fit their model: every token has an embedding, and one of them pads.

Padding is masked, so any token can pad. Many folders pad with a token that was added to the
tokenizer but never to the model. Such a token is removed from the vocabulary here, so that its name
in a text is read as letters.
"""

import json
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from llm2vec.errors import ModelError


def fit_tokenizer(tokenizer: PreTrainedTokenizerFast, *, rows: int) -> None:
    """Make a tokenizer pad with a token that the model has, and check its other tokens.

    Args:
        tokenizer: The tokenizer, which is changed if its padding token has no embedding.
        rows: Number of tokens that the model has embeddings for.

    Raises:
        ModelError: Another token has no embedding, or there is no other token to pad with.
    """
    if isinstance(tokenizer.pad_token_id, int) and tokenizer.pad_token_id >= rows:
        beyond = str(tokenizer.pad_token)
        tokenizer.pad_token = None
        _remove_token(tokenizer, beyond)
        choose_padding(tokenizer, "the decoder")
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= rows:
        raise ModelError(
            f"the tokenizer does not belong to the model: it has ids up to {largest}, the model "
            f"has {rows} embeddings"
        )


def choose_padding(tokenizer: PreTrainedTokenizerFast, source: object) -> None:
    """Make a tokenizer without a padding token pad with another special token.

    Args:
        tokenizer: The tokenizer, which is changed.
        source: Source of the tokenizer, for the message.

    Raises:
        ModelError: The tokenizer has no special token.
    """
    candidates = (tokenizer.eos_token, tokenizer.unk_token, *tokenizer.all_special_tokens)
    tokenizer.pad_token = next((each for each in candidates if each is not None), None)
    if tokenizer.pad_token is None:
        raise ModelError(
            f"the tokenizer of {source} has no special token to pad with; give it a pad_token"
        )


def forget_padding_beyond(config: PreTrainedConfig) -> None:
    """Remove a padding token without an embedding from a configuration.

    Layers could not be built with it.

    Args:
        config: Configuration of a decoder, or of a model around one, which is changed.
    """
    text = config.get_text_config(decoder=True)
    padding = getattr(text, "pad_token_id", None)
    rows = getattr(text, "vocab_size", None)
    if isinstance(padding, int) and isinstance(rows, int) and padding >= rows:
        text.pad_token_id = None


def _remove_token(tokenizer: PreTrainedTokenizerFast, token: str) -> None:
    """Remove a token from a tokenizer, which the library `tokenizers` has no function for."""
    parts: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    parts["added_tokens"] = [each for each in parts["added_tokens"] if each["content"] != token]
    vocabulary = parts["model"].get("vocab")
    if isinstance(vocabulary, dict):
        vocabulary.pop(token, None)
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(parts))
