"""`LLM2Vec`, the class of version 0.2.3, over our `Encoder`.

It takes the arguments of version 0.2.3 by their names, texts as `[instruction, text]` pairs, and
padded features for code that trains or pools by itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, Unpack, overload

import numpy as np
import torch
from torch import Tensor, nn

from llm2vec.backbone.source import Source
from llm2vec.backbone.switch import is_bidirectional
from llm2vec.encoder.encoder import Encoder
from llm2vec.encoder.folder import SETTINGS_FILE
from llm2vec.encoder.half_precision import exact_dtype
from llm2vec.encoder.loading import END_TOKEN_POOLING
from llm2vec.encoder.pooling import pool_tokens
from llm2vec.encoder.settings import Settings, pooling_named
from llm2vec.encoder.templates import published_template
from llm2vec.encoder.tokenization import encoder_tokens
from llm2vec.errors import UsageError
from llm2vec.legacy.arguments import (
    SEPARATOR,
    Texts,
    from_features,
    loading_arguments,
    split_pairs,
    to_features,
)

if TYPE_CHECKING:
    from transformers import (
        BatchEncoding,
        PreTrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )

    from llm2vec.backbone.adapter_chain import Chain
    from llm2vec.backbone.switch import Switch


def _setting(name: str) -> Any:
    """A property that reads and changes one of the encoder's settings."""

    def read(self: "LLM2Vec") -> Any:
        return getattr(self.settings, name)

    def write(self: "LLM2Vec", value: Any) -> None:
        if name == "pooling":
            value = _pooling(value)
        changed: Any = {name: value}
        self.settings = self._within_positions(replace(self.settings, **changed))

    return property(read, write)


def _pooling(name: str) -> str:
    if name == END_TOKEN_POOLING:
        raise UsageError(
            "eos_token ends every text with a token, by the template; name it when loading"
        )
    return pooling_named(name)


class Options(TypedDict, total=False):
    """Arguments of `encode` that version 0.2.3 did not have."""

    prompt: str | None
    prompt_name: str | None
    devices: str | Sequence[str] | None
    normalize: bool | None
    show_progress: bool


class LLM2Vec(Encoder):
    """The encoder with the arguments of version 0.2.3, and with everything that `Encoder` offers.

    Args:
        model: Backbone, used as it is: causal or bidirectional, with the template of its name.
        tokenizer: Tokenizer of the backbone.
        pooling_mode: `mean`, `weighted_mean`, `eos_token`, `last_token` or `bos_token`; None is
            `mean`.
        max_length: Longest sequence, in tokens; None is 512.
        doc_max_length: Longest text without its instruction, in tokens; None sets no limit.
        skip_instruction: Whether instructions are left out of pooling; None leaves them out.
        settings: Settings that the other arguments change; None takes the defaults.
        switch: How the model was made bidirectional, as of `Encoder`.
        chain: Adapters that were merged, as of `Encoder`.

    Example:
        >>> encoder = LLM2Vec.from_pretrained("encoder")  # doctest: +SKIP
        >>> encoder.encode([["Find the answer:", "Who asks?"]]).shape  # doctest: +SKIP
        torch.Size([1, 192])
    """

    _default_settings = Settings(boundary="text")

    pooling_mode = _setting("pooling")
    max_length = _setting("max_length")
    doc_max_length = _setting("doc_max_length")
    skip_instruction = _setting("skip_prompt")

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        pooling_mode: str | None = None,
        max_length: int | None = None,
        doc_max_length: int | None = None,
        skip_instruction: bool | None = None,
        *,
        settings: Settings | None = None,
        switch: "Switch | None" = None,
        chain: "Chain | None" = None,
    ) -> None:
        if settings is None:
            settings = self._default_settings.changed(
                template=published_template(
                    [str(model.config._name_or_path)],
                    model.config.model_type,
                    tokenizer,
                    with_end_token=pooling_mode == END_TOKEN_POOLING,
                ),
                bidirectional=is_bidirectional(model.config),
            )
        settings = settings.changed(
            pooling=pooling_mode and pooling_named(pooling_mode),
            max_length=max_length,
            doc_max_length=doc_max_length,
            skip_prompt=skip_instruction,
        )
        super().__init__(model, tokenizer, settings=settings, switch=switch, chain=chain)
        self.settings = self._within_positions(settings)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the arguments are version 0.2.3's
        cls,
        base_model_name_or_path: str | Path | Source,
        peft_model_name_or_path: str | Path | Sequence[str | Path] | None = None,
        merge_peft: bool = True,  # noqa: ARG003
        enable_bidirectional: bool | None = None,
        *,
        pooling_mode: str | None = None,
        max_length: int | None = None,
        doc_max_length: int | None = None,
        skip_instruction: bool | None = None,
        normalize: bool | None = None,
        template: str | None = None,
        **others: Any,
    ) -> Self:
        """Load a decoder, an adapter or a chain of adapters, and prove that it is bidirectional.

        Args:
            base_model_name_or_path: Folder, hub id or `bundled`. A folder that holds an adapter
                names its own base.
            peft_model_name_or_path: Adapter, or several in the order they were trained.
            merge_peft: Without effect: adapters are always merged; the vectors are the same.
            enable_bidirectional: Whether the decoder is made bidirectional; None is what the folder
                says.
            pooling_mode: Pooling; None is the folder's.
            max_length: Longest sequence, in tokens; None is the folder's.
            doc_max_length: Longest text without its instruction, in tokens; None is the folder's.
            skip_instruction: Whether instructions are left out of pooling; None is what the folder
                says.
            normalize: Whether vectors are scaled to length 1; None is what the folder says.
            template: Template around texts; None is the folder's.
            **others: `revision`, `token`, `cache_dir` and `trust_remote_code` for model, tokenizer
                and configuration alike; `torch_dtype`, `device_map`, `attn_implementation` and
                `attention_dropout` as in transformers; `dtype`, `device` and `attention` as of
                `Encoder.from_pretrained`.

        Raises:
            ModelError: Something cannot be loaded, or cannot be made bidirectional.
            UsageError: An argument does not exist.
        """
        hub, loading = loading_arguments(others)
        changes = {
            "bidirectional": enable_bidirectional,
            "pooling": pooling_mode,
            "max_length": max_length,
            "doc_max_length": doc_max_length,
            "skip_prompt": skip_instruction,
            "normalize": normalize,
            "template": template,
        }
        if loading.get("dtype", "auto") == "auto":  # code of 0.2.3 trains and saves what it loads
            loading["dtype"] = exact_dtype()
        source = Source.of(base_model_name_or_path)
        adapters = _as_list(peft_model_name_or_path)
        return cls._open(replace(source, **hub), adapters, changes=changes, loading=loading)

    @property
    def config(self) -> "PreTrainedConfig":
        """The backbone's configuration."""
        return self.model.config

    @overload  # type: ignore[override]  # the arguments are version 0.2.3's, and ours by name
    def encode(
        self,
        sentences: Texts,
        batch_size: int | None = None,
        show_progress_bar: bool = True,
        convert_to_numpy: Literal[False] = False,
        convert_to_tensor: bool = False,
        device: str | None = None,
        **ours: Unpack[Options],
    ) -> Tensor: ...
    @overload
    def encode(
        self,
        sentences: Texts,
        batch_size: int | None = None,
        show_progress_bar: bool = True,
        *,
        convert_to_numpy: Literal[True],
        convert_to_tensor: bool = False,
        device: str | None = None,
        **ours: Unpack[Options],
    ) -> np.ndarray: ...
    def encode(
        self,
        sentences: Texts,
        batch_size: int | None = None,
        show_progress_bar: bool = True,
        convert_to_numpy: bool = False,
        convert_to_tensor: bool = False,
        device: str | None = None,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        devices: str | Sequence[str] | None = None,
        normalize: bool | None = None,
        show_progress: bool = True,
    ) -> Tensor | np.ndarray:
        """Vectors of texts or `[instruction, text]` pairs, in their order.

        Args:
            sentences: Texts or pairs, or one text, for which the result has no first axis.
            batch_size: Most texts in a batch; None cuts batches by tokens.
            show_progress_bar: Whether progress is drawn; `show_progress` by its old name.
            convert_to_numpy: Whether the result is a numpy array.
            convert_to_tensor: Whether the result is a tensor even with `convert_to_numpy`.
            device: Device to move the encoder to first; None leaves it where it is.
            prompt: Prompt before every text that has no instruction.
            prompt_name: Name of such a prompt in the settings.
            devices: Devices that share the work, each with a process, as of `Encoder.encode`.
            normalize: Whether vectors are scaled to length 1; None is what the settings say.
            show_progress: Whether progress is drawn.

        Raises:
            UsageError: A row is neither a text nor a pair, a text has two prompts, or there is no
                prompt of that name.
        """
        texts, instructions, alone = split_pairs(sentences)
        if prompt is not None and prompt_name is not None:
            raise UsageError(
                f"prompt and prompt_name are two prompts for one text ({prompt!r}, "
                f"{prompt_name!r}); give only one of them"
            )
        if prompt is None and (instructions is None or prompt_name is not None):
            prompt = self.prompt_named(prompt_name)
        if device is not None:
            self.to(device)
        embedding_BD = self._vectors(
            texts,
            prompts=_one_prompt_each(instructions or [""] * len(texts), prompt or ""),
            batch_size=batch_size,
            devices=devices,
            normalize=normalize,
            show_progress=show_progress_bar and show_progress,
        )
        result = embedding_BD[0] if alone else embedding_BD
        return result.numpy() if convert_to_numpy and not convert_to_tensor else result

    def prepare_for_tokenization(self, text: str) -> str:
        """A text with its marker, for `tokenize`, in the template that `encode` uses."""
        template = self.settings.template
        return text if template is None else template.replace("{text}", text.strip())

    def tokenize(self, texts: Texts) -> "BatchEncoding":
        """Texts as padded tensors: `input_ids`, `attention_mask`, `embed_mask`, each ids_BT.

        The texts are not cut to `doc_max_length`, and not wrapped in the template (see
        `prepare_for_tokenization`).

        Args:
            texts: Texts or pairs. The part of a text before the marker `!@#$%^&*()` is its
                instruction, character by character.
        """
        plain, instructions, _ = split_pairs(texts)
        if instructions is not None:
            prompts = self._with_separator(instructions)
        else:
            parts = [_split_at_marker(text) for text in plain]
            prompts, plain = [prompt for prompt, _ in parts], [text for _, text in parts]
        settings = replace(self.settings, template=None, doc_max_length=None)
        tokens = encoder_tokens(self.tokenizer, plain, settings=settings, prompts=prompts)
        return to_features(tokens, pad_id=int(self.tokenizer.pad_token_id))

    def forward(self, sentence_feature: Mapping[str, Tensor]) -> Tensor:
        """Vectors of tokenised texts, differentiable: embedding_BD.

        Args:
            sentence_feature: Features as `tokenize` returns them, padded on either side.
        """
        return self.embed(from_features(sentence_feature, whole=not self.settings.skip_prompt))

    def get_pooling(self, features: Mapping[str, Tensor], last_hidden_states: Tensor) -> Tensor:
        """Pool states_BTD that were computed elsewhere from the same features: embedding_BD."""
        mask_BT = features.get("attention_mask", torch.ones(last_hidden_states.shape[:2])).bool()
        states_ND = last_hidden_states[mask_BT.to(last_hidden_states.device)]
        tokens = from_features(features, whole=not self.settings.skip_prompt)
        return pool_tokens(states_ND, tokens, pooling=self.settings.pooling)

    def save(  # type: ignore[override]  # the arguments are version 0.2.3's
        self, output_path: str | Path, merge_before_save: bool = False, save_config: bool = True
    ) -> None:
        """Write a whole encoder folder.

        Args:
            output_path: Folder to write, as of `Encoder.save`.
            merge_before_save: Without effect: the written weights always include the adapters.
            save_config: Whether the file of settings is written too.
        """
        super().save(output_path)
        if not save_config:
            (Path(output_path) / SETTINGS_FILE).unlink()

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None
    ) -> nn.Module:
        """Change the number of tokens in the backbone's embeddings, as transformers does."""
        return self.model.resize_token_embeddings(new_num_tokens, pad_to_multiple_of)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Recompute states in training instead of keeping them; the options are transformers'."""
        self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs, **options)


def _as_list(value: str | Path | Sequence[str | Path] | None) -> list[str | Path]:
    if value is None:
        return []
    return [value] if isinstance(value, str | Path) else list(value)


def _split_at_marker(text: str) -> tuple[str, str]:
    """The instruction before the marker, and the text after it; without a marker, all is text."""
    if SEPARATOR not in text:
        return "", text
    instruction, _, rest = text.partition(SEPARATOR)
    return instruction, rest


def _one_prompt_each(instructions: Sequence[str], common: str) -> list[str]:
    """Each text's prompt: its own instruction, or the prompt that all texts share.

    Raises:
        UsageError: A text has both.
    """
    if not common.strip():
        return list(instructions)
    if twice := next((each for each in instructions if each.strip()), None):
        raise UsageError(
            f"a pair has the instruction {twice!r} and encode was given the prompt {common!r}, "
            "two prompts for one text; leave one of them out"
        )
    return [common] * len(instructions)
