"""The first implementation's methods beside `encode`, for code that trains or pools by itself, over ours.

A class of its own only to be read by itself: what users hold is `LLM2Vec`, which has them all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llm2vec.encoder.features import from_features, pool_tokens, to_features
from llm2vec.encoder.folder import Settings, pooling_named
from llm2vec.encoder.reference import EOS_TOKEN, SEPARATOR, Texts, split_pairs
from llm2vec.encoder.tokenization import Tokens
from llm2vec.errors import UsageError

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase


def _setting(name: str) -> Any:
    """A setting as an attribute, which the first implementation had, and others changed."""

    def found(self: "FirstInterface") -> Any:
        return getattr(self.settings, name)

    def change(self: "FirstInterface", value: Any) -> None:
        if name == "pooling_mode" and value == EOS_TOKEN:
            raise UsageError(
                "eos_token ends every text with a token, by the template; name it when loading"
            )
        changed: Any = {name: pooling_named(value) if name == "pooling_mode" else value}
        self.settings = replace(self.settings, **changed)

    return property(found, change)


class FirstInterface(nn.Module):
    """What `LLM2Vec` offers beside its own methods, by the names that the first implementation gave it."""

    if TYPE_CHECKING:  # what `LLM2Vec` has
        model: PreTrainedModel
        tokenizer: PreTrainedTokenizerBase
        settings: Settings

        def embed(self, tokens: Sequence[Tokens]) -> Tensor: ...
        def _prompts(self, prompts: Sequence[str], prompt_name: str | None) -> list[str] | None: ...
        def _tokens(self, texts: Sequence[str], prompts: Sequence[str] | None) -> list[Tokens]: ...

    pooling_mode = _setting("pooling_mode")
    max_length = _setting("max_length")
    doc_max_length = _setting("doc_max_length")
    skip_instruction = _setting("skip_instruction")

    def prepare_for_tokenization(self, text: str) -> str:
        """A text for `tokenize`, its marker included, in the template that `encode` puts around texts."""
        template = self.settings.template
        return text if template is None else template.replace("{text}", text.strip())

    def tokenize(self, texts: Texts) -> "BatchEncoding":
        """Texts as padded tensors: `input_ids`, `attention_mask`, `embed_mask`, each ids_BT.

        Neither wrapped in the template (see `prepare_for_tokenization`) nor cut to `doc_max_length`.

        Args:
            texts: As of `encode`; in a text, what stands before `!@#$%^&*()` is its instruction, to the letter.
        """
        plain, instructions, _ = split_pairs(texts)
        if instructions is not None:
            prompts = self._prompts(instructions, None)
        else:
            cut = [
                text.partition(SEPARATOR) if SEPARATOR in text else ("", "", text) for text in plain
            ]
            prompts, plain = [before for before, _, _ in cut], [after for _, _, after in cut]
        return to_features(self._tokens(plain, prompts), pad_id=int(self.tokenizer.pad_token_id))

    def forward(self, sentence_feature: Mapping[str, Tensor]) -> Tensor:
        """Vectors of tokenised texts, differentiable: embedding_BD.

        Args:
            sentence_feature: As from `tokenize`; rows may be padded on either side.
        """
        return self.embed(from_features(sentence_feature, whole=not self.settings.skip_instruction))

    def get_pooling(self, features: Mapping[str, Tensor], last_hidden_states: Tensor) -> Tensor:
        """Pool states_BTD that somebody else computed from the same features: embedding_BD."""
        mask_BT = features.get("attention_mask", torch.ones(last_hidden_states.shape[:2])).bool()
        states_ND = last_hidden_states[mask_BT.to(last_hidden_states.device)]
        tokens = from_features(features, whole=not self.settings.skip_instruction)
        return pool_tokens(states_ND, tokens, pooling=self.settings.pooling_mode)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None
    ) -> nn.Module:
        """Make room for more tokens in the backbone's embeddings."""
        return self.model.resize_token_embeddings(new_num_tokens, pad_to_multiple_of)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Recompute states in training instead of keeping them; options are those of transformers."""
        self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs, **options)
