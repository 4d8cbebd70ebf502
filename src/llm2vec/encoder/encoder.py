"""`LLM2Vec`, the encoder users hold: load a folder, encode texts, save.

Texts take one straight line: tokens, batches by token budget, the backbone, pooling. A vector depends on its text (and
prompt) alone, never on what else was in the batch.
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, Unpack, overload

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from llm2vec.backbone.adapters import merged_copy, told
from llm2vec.backbone.switch import is_bidirectional, save_model
from llm2vec.encoder.batching import (
    MAX_TOKENS,
    MAX_TOKENS_GPU,
    evaluating,
    is_packed,
    on_each_core,
    plan_batches,
    token_states,
)
from llm2vec.encoder.features import pool_tokens
from llm2vec.encoder.folder import (
    MODEL_FILES,
    PROVENANCE_FILE,
    SETTINGS_FILE,
    Settings,
    about_template,
    pooling_named,
    write_settings,
)
from llm2vec.encoder.interface import FirstInterface
from llm2vec.encoder.loading import open_parts
from llm2vec.encoder.reference import EOS_TOKEN, Texts, loading_arguments, split_pairs, template_of
from llm2vec.encoder.tokenization import Tokens, borders, shortened, tokenize
from llm2vec.encoder.words import Merge, Reading, Words, words_of
from llm2vec.errors import UsageError
from llm2vec.runtime.files import whole_folder, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from llm2vec.backbone.adapters import Chain
    from llm2vec.backbone.switch import Switch


class Options(TypedDict, total=False):
    """What `encode` takes beside texts; see there."""

    convert_to_tensor: bool
    device: str | None
    prompt: str | None
    prompt_name: str | None
    normalize: bool | None


_BAR_AFTER_S = 2.0

_WINDOW = 8192
"""Texts tokenised and sorted together: bounds memory, and leaves next to no padding."""


class LLM2Vec(FirstInterface):
    """A text encoder made from a decoder.

    Attributes:
        model: The backbone, without LM head.
        tokenizer: Its tokenizer.
        settings: Pooling, lengths, prompts.
        switch: How the backbone was made bidirectional and the measured proofs; None for a causal baseline.
        chain: The base and the adapters it was loaded from; None: made from parts.

    Example:
        >>> encoder = LLM2Vec.from_pretrained("encoder")  # doctest: +SKIP
        >>> encoder.encode(["Some text.", "Another."]).shape  # doctest: +SKIP
        torch.Size([2, 192])
    """

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
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        if (
            settings is None
        ):  # a model that somebody else made; its attention and its template are what it says
            name, kind = str(model.config._name_or_path), model.config.model_type
            template = template_of([name], kind, tokenizer, ended=pooling_mode == EOS_TOKEN)
            settings = Settings(template=template, bidirectional=is_bidirectional(model.config))
        self.settings = settings.changed(
            pooling_mode=pooling_mode and pooling_named(pooling_mode),
            max_length=max_length,
            doc_max_length=doc_max_length,
            skip_instruction=skip_instruction,
        )
        self.switch = switch
        self.chain = chain

    @classmethod
    def from_pretrained(
        cls,
        base_model_name_or_path: str | Path,
        peft_model_name_or_path: str | Path | Sequence[str | Path] | None = None,
        merge_peft: bool = True,  # noqa: ARG003  # the first implementation's; ours always merges
        enable_bidirectional: bool | None = None,
        *,
        pooling_mode: str | None = None,
        max_length: int | None = None,
        doc_max_length: int | None = None,
        skip_instruction: bool | None = None,
        normalize: bool | None = None,
        template: str | None = None,
        device: str | None = None,
        dtype: "torch.dtype | str" = "auto",
        attention: str | None = None,
        **others: Any,
    ) -> Self:
        """Load an encoder folder, any decoder, or a chain of adapters, and prove that it is bidirectional.

        Args:
            base_model_name_or_path: A folder, a GGUF file, a hub id, or `bundled`: the project's own small
                decoder. One that holds an adapter names its own base.
            peft_model_name_or_path: An adapter, or several; merged in the order they were trained in, in float32. The
                last settings found are taken.
            merge_peft: Adapters are merged whatever it says; the vectors are the same.
            enable_bidirectional: False keeps a decoder causal (the "Uni" baseline); None: as the folder says.
            pooling_mode: Overrides the folder's pooling.
            max_length: Overrides the folder's longest sequence, in tokens; cut to the model's positions.
            doc_max_length: Overrides the longest text without its prompt, in tokens.
            skip_instruction: Overrides whether prompts are left out of pooling.
            normalize: Overrides whether vectors are scaled to length 1.
            template: What texts are wrapped in: a format string with `{text}`, or `chat`: the tokenizer's own.
            device: Where to; None: a GPU if there is one.
            dtype: Of the weights; "auto": as saved, but float32 on a CPU, where half precision is slow.
            attention: Attention implementation to load with; None: SDPA, or what the family needs.
            **others: `revision`, `token`, `cache_dir`, `trust_remote_code`, for model, tokenizer and config alike;
                `torch_dtype`, `device_map`, `attn_implementation`, `attention_dropout` as transformers names them.

        Raises:
            ModelError: The source cannot be loaded, or cannot be made bidirectional.
            UsageError: An argument that does not exist.
        """
        given = {
            "device": device,
            "dtype": dtype,
            "attention": attention,
            **loading_arguments(others),
        }
        ours = ("device", "dtype", "attention", "config_overrides")
        loading = {name: given.pop(name) for name in ours if name in given}
        changes = {
            "pooling_mode": pooling_mode,
            "max_length": max_length,
            "doc_max_length": doc_max_length,
            "skip_instruction": skip_instruction,
            "normalize": normalize,
            "template": template,
            "bidirectional": enable_bidirectional,
        }
        adapters = _as_list(peft_model_name_or_path)
        opened = open_parts(
            base_model_name_or_path, adapters, changes=changes, loading=loading, hub=given
        )
        return cls(
            opened.model,
            opened.tokenizer,
            settings=opened.settings,
            switch=opened.switch,
            chain=opened.chain,
        )

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def max_tokens(self) -> int:
        """Tokens in a batch."""
        return MAX_TOKENS if self.device.type == "cpu" else MAX_TOKENS_GPU

    @property
    def config(self) -> "PreTrainedConfig":
        """The backbone's configuration."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where the backbone is."""
        return self.model.device

    @overload
    def encode(
        self,
        sentences: Texts,
        batch_size: int | None = None,
        show_progress_bar: bool = True,
        *,
        convert_to_numpy: Literal[True],
        **options: Unpack[Options],
    ) -> np.ndarray: ...
    @overload
    def encode(
        self,
        sentences: Texts,
        batch_size: int | None = None,
        show_progress_bar: bool = True,
        *,
        convert_to_numpy: Literal[False] = False,
        **options: Unpack[Options],
    ) -> Tensor: ...
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
        normalize: bool | None = None,
    ) -> Tensor | np.ndarray:
        """Vectors of texts, in their order.

        Args:
            sentences: A text (the result then has no first axis), texts, or `[instruction, text]` pairs.
            batch_size: At most so many texts at a time; None: as many as a token budget allows.
            show_progress_bar: Draw one on a terminal, with time left, once it takes longer than two seconds.
            convert_to_numpy: A numpy array instead of a tensor.
            convert_to_tensor: A tensor, also where `convert_to_numpy` is set.
            device: Move the encoder there first.
            prompt: What stands before every text; it takes part in attention and is not pooled.
            prompt_name: The same, by its name in the settings.
            normalize: Scale to length 1; None: as the settings say.

        Returns:
            embedding_BD in float32, on the CPU. A text without tokens (the empty string) gives the zero vector.

        Raises:
            UsageError: Not texts, or an unknown prompt name.
        """
        texts, instructions, alone = split_pairs(sentences)
        prompts = self._prompts(instructions or [prompt or ""] * len(texts), prompt_name)
        if device is not None:
            self.to(device)
        embedding_BD = torch.zeros(len(texts), self.dimension)
        hidden = None if show_progress_bar else True  # None: hidden where there is no terminal
        with tqdm(
            total=len(texts), desc="encode", unit="text", disable=hidden, delay=_BAR_AFTER_S
        ) as bar:
            for start in range(0, len(texts), _WINDOW):
                window = slice(start, start + _WINDOW)
                tokens = self.tokens(texts[window], prompts=prompts and prompts[window])
                embedding_BD[window] = self.encode_tokens(
                    tokens, batch_size=batch_size, seen=bar.update
                )
        if self.settings.normalize if normalize is None else normalize:
            embedding_BD = nn.functional.normalize(embedding_BD, dim=-1)
        result = embedding_BD[0] if alone else embedding_BD
        return result.numpy() if convert_to_numpy and not convert_to_tensor else result

    def tokens(self, texts: Sequence[str], *, prompts: Sequence[str] | None = None) -> list[Tokens]:
        """Token ids as the backbone reads them, and each text's own range.

        Args:
            texts: Cut to `doc_max_length` tokens first, and wrapped in the template.
            prompts: What stands before each text, separator included.
        """
        settings = self.settings
        before, _, after = (settings.template or "{text}").partition("{text}")
        if settings.doc_max_length is not None:
            texts = shortened(self.tokenizer, texts, most=settings.doc_max_length)
        if settings.template is not None:
            texts = [
                text.rstrip() for text in texts
            ]  # as the first implementation; chat templates trim too
        if before:
            prompts = [before + each for each in prompts or [""] * len(texts)]
        return self._tokens(texts, prompts, suffix=after)

    def _tokens(
        self, texts: Sequence[str], prompts: Sequence[str] | None, *, suffix: str = ""
    ) -> list[Tokens]:
        found = tokenize(
            self.tokenizer,
            texts,
            max_length=self.settings.max_length,
            prompts=prompts,
            suffix=suffix,
        )
        if not self.settings.skip_instruction:
            return [Tokens(each.ids, 0, len(each.ids)) for each in found]
        return found

    @torch.inference_mode()
    def encode_tokens(
        self,
        tokens: Sequence[Tokens],
        *,
        batch_size: int | None = None,
        seen: Callable[[int], object] = lambda _: None,
    ) -> Tensor:
        """Vectors of tokenised texts, in their order: embedding_BD, float32, on the CPU.

        Args:
            tokens: As from `tokens`; their ranges say what is pooled.
            batch_size: At most so many texts at a time; None: as many as a token budget allows.
            seen: Told how many texts are done, after each batch.
        """
        embedding_BD = torch.zeros(len(tokens), self.dimension)
        lengths = [len(each.ids) for each in tokens]
        batches = plan_batches(
            lengths,
            max_tokens=self.max_tokens,
            max_texts=batch_size,
            padded=not is_packed(self.model),
        )

        @torch.inference_mode()  # each thread has its own mode
        def vectors_of(batch: list[int]) -> Tensor:
            return self.embed([tokens[index] for index in batch]).cpu()

        with evaluating(self.model):
            done = on_each_core(vectors_of, batches, device=self.device)
            for batch, vectors_BD in zip(batches, done, strict=True):
                embedding_BD[batch] = vectors_BD
                seen(len(batch))
        seen(len(tokens) - sum(map(len, batches)))
        return embedding_BD

    def words(
        self,
        texts: str | Sequence[str] | Sequence[Sequence[str]],
        *,
        reading: Reading = "own",
        merge: Merge = "mean",
        layer: int = -1,
    ) -> list[Words]:
        """The words of texts, where they stand, and a vector for each (paper, section 3.1).

        Args:
            texts: Raw texts (or one), cut at spaces and punctuation; or lists of words, which are joined by spaces.
            reading: A word's own tokens, or those one place before, where MNTP writes.
            merge: How the states of several tokens become one vector.
            layer: 0 is the embedding, -1 the last layer; numbers between count from either end.

        Raises:
            UsageError: The model has no such layer, or there is no such reading or merging.

        Example:
            >>> encoder.words(["New York is big."])[0].words  # doctest: +SKIP
            ('New', 'York', 'is', 'big', '.')
        """
        return words_of(
            self.model,
            self.tokenizer,
            texts,
            max_length=self.settings.max_length,
            max_tokens=self.max_tokens,
            reading=reading,
            merge=merge,
            layer=layer,
        )

    def embed(self, tokens: Sequence[Tokens]) -> Tensor:
        """Vectors of one batch, differentiable: embedding_BD, float32, on the model's device."""
        real = [each for each in tokens if each.ids]
        if not real:
            return torch.zeros(len(tokens), self.dimension, device=self.device)
        states_ND = token_states(
            self.model, [each.ids for each in real], pad_id=int(self.tokenizer.pad_token_id)
        )
        return pool_tokens(states_ND, tokens, pooling=self.settings.pooling_mode)

    def _prompts(self, prompts: Sequence[str], prompt_name: str | None) -> list[str] | None:
        """What stands before each text, separator included; None where nothing does."""
        if prompt_name is not None:
            if prompt_name not in self.settings.prompts:
                known = ", ".join(self.settings.prompts) or "none"
                raise UsageError(f"there is no prompt named {prompt_name!r}; there are: {known}")
            prompts = [self.settings.prompts[prompt_name]] * len(prompts)
        if not any(prompt.strip() for prompt in prompts):
            return None
        return [
            prompt.strip() + self.settings.separator if prompt.strip() else "" for prompt in prompts
        ]

    def save(
        self, output_path: str | Path, merge_before_save: bool = False, save_config: bool = True
    ) -> None:
        """Write a folder that opens here, in `SentenceTransformer` and in `AutoModel`; whole or not at all.

        Args:
            output_path: The folder to make. In one that is there, such as a trainer's, what is not of a model stays.
            merge_before_save: Nothing to do: adapters were merged when they were loaded, and those that `model` was
                given since are merged into what is written.
            save_config: False leaves our settings file out.
        """
        if (note := about_template(self.settings)) is not None:
            warnings.warn(note, stacklevel=2)
        with whole_folder(Path(output_path), replacing=MODEL_FILES) as partial:
            self.write(partial)
            if self.chain is not None and self.chain.adapters:
                write_json(partial / PROVENANCE_FILE, told(self.chain))
            if not save_config:
                (partial / SETTINGS_FILE).unlink()

    def write(self, folder: Path) -> None:
        """Fill a folder that is there: weights, tokenizer, settings."""
        save_model(merged_copy(self.model), folder)
        self.tokenizer.save_pretrained(folder)
        edges = borders(self.tokenizer)
        write_settings(
            self.settings,
            folder,
            tokenizer=self.tokenizer,
            dimension=self.dimension,
            own_tokens_only=self.settings.skip_instruction and bool(edges.before or edges.after),
        )


def _as_list(value: str | Path | Sequence[str | Path] | None) -> list[str | Path]:
    if value is None:
        return []
    return [value] if isinstance(value, str | Path) else list(value)
