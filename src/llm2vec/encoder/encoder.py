"""`Encoder`, the object that users hold: open a folder, encode texts, save.

Texts take one straight line: tokens, batches by token budget, the backbone, pooling. A vector depends on its text and
prompt alone, never on what else was in the batch.
"""

import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from llm2vec.backbone.adapter_chain import chain_provenance
from llm2vec.backbone.adapters import merged_copy
from llm2vec.backbone.mode import evaluating
from llm2vec.backbone.positions import longrope_limit, position_limit
from llm2vec.backbone.source import Source
from llm2vec.backbone.switch import body, is_bidirectional, save_model
from llm2vec.encoder.batching import (
    MAX_TOKENS,
    MAX_TOKENS_GPU,
    is_packed,
    on_each_core,
    plan_batches,
    token_states,
)
from llm2vec.encoder.chunks import Chunks, Unit, chunks_of
from llm2vec.encoder.folder import (
    CONFIG_FILE,
    PROVENANCE_FILE,
    differences_elsewhere,
    files_of_encoder,
    refuse_other_model,
    write_settings,
)
from llm2vec.encoder.layers import states_width
from llm2vec.encoder.loading import open_parts
from llm2vec.encoder.pooling import pool_tokens
from llm2vec.encoder.settings import Settings
from llm2vec.encoder.templates import split_template
from llm2vec.encoder.tokenization import Tokens, forget_truncation, shortened, tokenize
from llm2vec.encoder.words import Merge, Range, Reading, Words, words_of
from llm2vec.errors import UsageError
from llm2vec.runtime.files import (
    folder_beside,
    publish,
    put_files,
    resolved_folder,
    write_json,
)
from llm2vec.runtime.progress import OnProgress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llm2vec.backbone.adapter_chain import Chain
    from llm2vec.backbone.switch import Switch

_BAR_AFTER_S = 2.0

_WINDOW = 8192
"""Texts tokenised and sorted together: bounds memory, and leaves next to no padding."""


class Encoder(nn.Module):
    """A text encoder made from a decoder.

    Attributes:
        model: The backbone, without LM head.
        tokenizer: Its tokenizer.
        settings: Pooling, lengths, prompts.
        switch: How the backbone was made bidirectional, with the measured proofs; None for a causal baseline.
        chain: The base and the adapters it was loaded from; None if it was made from parts.

    Example:
        >>> encoder = Encoder.from_pretrained("encoder")  # doctest: +SKIP
        >>> encoder.encode(["Some text.", "Another."]).shape  # doctest: +SKIP
        torch.Size([2, 192])
    """

    _otherwise = Settings()
    """The settings of a model that has none."""

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        *,
        settings: Settings | None = None,
        switch: "Switch | None" = None,
        chain: "Chain | None" = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings or self._within_positions(
            Settings(bidirectional=is_bidirectional(model.config))
        )
        self.switch = switch
        self.chain = chain

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | Source,
        *,
        adapters: Sequence[str | Path] = (),
        bidirectional: bool | None = None,
        pooling: str | None = None,
        max_length: int | None = None,
        normalize: bool | None = None,
        prompts: Mapping[str, str] | None = None,
        template: str | None = None,
        device: str | None = None,
        dtype: "torch.dtype | str" = "auto",
        attention: str | None = None,
    ) -> Self:
        """Load an encoder folder, any decoder, or a chain of adapters, and prove that it is bidirectional.

        Args:
            source: A folder, a GGUF file, a hub id, or `bundled`: the project's own small decoder. A `Source` says the
                revision, the token, the cache folder, and whether code of the model may run. One that holds an
                adapter names its own base.
            adapters: Adapters to merge, in the order they were trained in, in float32. The last settings found are
                taken.
            bidirectional: False keeps a decoder causal (the paper's "Uni" baseline); None is what the folder says.
            pooling: How states become a vector: `mean`, `weighted_mean`, `last` or `first`; None is the folder's.
            max_length: Longest sequence, in tokens, prompt included; cut to the model's positions. None is the
                folder's.
            normalize: Whether vectors are scaled to length 1; None is what the folder says.
            prompts: Prompts by name; None is the folder's.
            template: What prompt and text are wrapped in: a format string with `{text}`, or `chat` for the
                tokenizer's own; None is the folder's.
            device: Device of the model; None is a GPU if there is one.
            dtype: Data type of the weights; "auto" is the saved one, but float32 on a CPU, where half precision is
                slow.
            attention: Attention implementation to load with; None is SDPA, or what the family needs.

        Raises:
            ModelError: The source cannot be loaded, or cannot be made bidirectional.
            UsageError: There is no such pooling, or the template has no `{text}`.
        """
        changes = {
            "bidirectional": bidirectional,
            "pooling": pooling,
            "max_length": max_length,
            "normalize": normalize,
            "prompts": None if prompts is None else dict(prompts),
            "template": template,
        }
        loading = {"device": device, "dtype": dtype, "attention": attention}
        return cls._open(Source.of(source), adapters, changes=changes, loading=loading)

    @classmethod
    def _open(
        cls,
        source: Source,
        adapters: Sequence[str | Path],
        *,
        changes: Mapping[str, Any],
        loading: Mapping[str, Any],
    ) -> Self:
        opened = open_parts(
            source, adapters, changes=changes, loading=loading, otherwise=cls._otherwise
        )
        encoder = cls(
            opened.model,
            opened.tokenizer,
            settings=opened.settings,
            switch=opened.switch,
            chain=opened.chain,
        )
        encoder.settings = encoder._within_positions(encoder.settings)
        return encoder

    def _within_positions(self, settings: Settings) -> Settings:
        """Settings whose longest sequence the model has positions for."""
        limit = position_limit(self.model.config)
        return settings if limit is None else settings.within(limit)

    @cached_property
    def dimension(self) -> int:
        """Length of a vector, as the model gives it."""
        return states_width(body(self.model))

    @property
    def max_tokens(self) -> int:
        """Tokens in a batch."""
        return MAX_TOKENS if self.device.type == "cpu" else MAX_TOKENS_GPU

    @property
    def device(self) -> torch.device:
        """The device of the backbone."""
        return self.model.device

    @overload
    def encode(
        self,
        texts: str | Sequence[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        batch_size: int | None = None,
        normalize: bool | None = None,
        show_progress: bool = True,
        convert_to_numpy: Literal[False] = False,
    ) -> Tensor: ...
    @overload
    def encode(
        self,
        texts: str | Sequence[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        batch_size: int | None = None,
        normalize: bool | None = None,
        show_progress: bool = True,
        convert_to_numpy: Literal[True],
    ) -> np.ndarray: ...
    def encode(
        self,
        texts: str | Sequence[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        batch_size: int | None = None,
        normalize: bool | None = None,
        show_progress: bool = True,
        convert_to_numpy: bool = False,
    ) -> Tensor | np.ndarray:
        """Vectors of texts, in their order.

        Args:
            texts: Texts, or one text, whose result then has no first axis.
            prompt: What comes before every text; it takes part in attention and is not pooled.
            prompt_name: The name of such a prompt in the settings; without either, their default prompt is taken.
            batch_size: The most texts in a batch; None is as many as a token budget allows.
            normalize: Whether vectors are scaled to length 1; None is what the settings say.
            show_progress: Draw a bar on a terminal, with the time left, once encoding takes longer than two seconds.
            convert_to_numpy: Return a numpy array instead of a tensor.

        Returns:
            embedding_BD in float32, on the CPU. A text without tokens (the empty string) gives the zero vector.

        Raises:
            UsageError: Something is not a text, or there is no such prompt.
        """
        rows = _rows(texts)
        if prompt is not None and prompt_name is not None:
            raise UsageError(
                f"prompt and prompt_name are two prompts for one text ({prompt!r}, "
                f"{prompt_name!r}); give one of them"
            )
        if prompt is None:
            prompt = self.prompt_named(prompt_name)
        embedding_BD = self._vectors(
            rows,
            prompts=[prompt] * len(rows),
            batch_size=batch_size,
            normalize=normalize,
            show_progress=show_progress,
        )
        result = embedding_BD[0] if isinstance(texts, str) else embedding_BD
        return result.numpy() if convert_to_numpy else result

    def _vectors(
        self,
        texts: Sequence[str],
        *,
        prompts: Sequence[str],
        batch_size: int | None,
        normalize: bool | None,
        show_progress: bool,
    ) -> Tensor:
        """Vectors of texts, each with its own prompt, without separator: embedding_BD."""
        before = self._before(prompts)
        embedding_BD = torch.zeros(len(texts), self.dimension, device="cpu")
        hidden = None if show_progress else True  # None hides it where there is no terminal
        with tqdm(
            total=len(texts), desc="encode", unit="text", disable=hidden, delay=_BAR_AFTER_S
        ) as bar:
            for start in range(0, len(texts), _WINDOW):
                window = slice(start, start + _WINDOW)
                tokens = self.tokens(texts[window], prompts=before and before[window])
                embedding_BD[window] = self.encode_tokens(
                    tokens, batch_size=batch_size, on_progress=bar.update
                )
        if self.settings.normalize if normalize is None else normalize:
            embedding_BD = nn.functional.normalize(embedding_BD, dim=-1)
        return embedding_BD

    def tokens(
        self,
        texts: Sequence[str],
        *,
        prompts: Sequence[str] | None = None,
        max_length: int | None = None,
    ) -> list[Tokens]:
        """Token ids as the backbone reads them, and each text's own range.

        Args:
            texts: Texts; cut to `doc_max_length` tokens and wrapped in the template.
            prompts: What comes before each text, separator included; None is nothing.
            max_length: Longest sequence, in tokens; None is what the settings say.
        """
        settings = self.settings
        before, after = split_template(settings.template)
        if settings.doc_max_length is not None:
            texts = shortened(self.tokenizer, texts, most=settings.doc_max_length)
        if settings.template is not None:
            texts = [text.rstrip() for text in texts]  # as chat templates do
        if before:
            prompts = [before + each for each in prompts or [""] * len(texts)]
        return self._tokens(texts, prompts, suffix=after, max_length=max_length)

    def _tokens(
        self,
        texts: Sequence[str],
        prompts: Sequence[str] | None,
        *,
        suffix: str = "",
        max_length: int | None = None,
    ) -> list[Tokens]:
        return tokenize(
            self.tokenizer,
            texts,
            max_length=max_length or self.settings.max_length,
            prompts=prompts,
            suffix=suffix,
            boundary=self.settings.boundary,
            skip_prompt=self.settings.skip_prompt,
            pool_special=self.settings.pools_special,
        )

    def encode_tokens(
        self,
        tokens: Sequence[Tokens],
        *,
        batch_size: int | None = None,
        max_tokens: int | None = None,
        on_progress: OnProgress = silent,
    ) -> Tensor:
        """Vectors of tokenised texts, in their order: embedding_BD, float32, on the CPU.

        Args:
            tokens: Token ids as from `tokens`; their ranges say what is pooled.
            batch_size: The most texts in a batch; None is as many as a token budget allows.
            max_tokens: The most tokens in a batch; None is as many as suit the device.
            on_progress: Called after each batch with the number of texts in it.
        """
        embedding_BD = torch.zeros(len(tokens), self.dimension, device="cpu")
        lengths = [len(each.ids) for each in tokens]
        batches = plan_batches(
            lengths,
            max_tokens=max_tokens or self.max_tokens,
            max_texts=batch_size,
            padded=not is_packed(self.model),
            border=longrope_limit(self.model.config),
        )

        def vectors_of(batch: list[int]) -> Tensor:
            return self.embed([tokens[index] for index in batch]).cpu()

        with evaluating(self.model):
            done = on_each_core(vectors_of, batches, device=self.device)
            for batch, vectors_BD in zip(batches, done, strict=True):
                embedding_BD[batch] = vectors_BD
                on_progress(len(batch))
        on_progress(len(tokens) - sum(map(len, batches)))
        return embedding_BD

    def embed(self, tokens: Sequence[Tokens]) -> Tensor:
        """Vectors of one batch, differentiable: embedding_BD, float32, on the model's device."""
        real = [each for each in tokens if each.ids]
        if not real:
            return torch.zeros(len(tokens), self.dimension, device=self.device)
        states_ND = token_states(
            self.model, [each.ids for each in real], pad_id=int(self.tokenizer.pad_token_id)
        )
        return pool_tokens(states_ND, tokens, pooling=self.settings.pooling)

    def words(
        self,
        texts: str | Sequence[str] | Sequence[Sequence[str]],
        *,
        reading: Reading = "own",
        merge: Merge = "mean",
        layer: int = -1,
    ) -> list[Words]:
        """The words of texts, where they are, and a vector for each (paper, section 3.1).

        Args:
            texts: Raw texts (or one), cut into words; or lists of words, which are joined by spaces.
            reading: Whether a word is read from its own tokens, or from those one place before, where MNTP writes.
            merge: How the states of several tokens become one vector.
            layer: The layer whose states are read: 0 is the embedding, -1 the last layer.

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

    def chunks(
        self,
        texts: str | Sequence[str],
        spans: Sequence[Sequence[Range]] | None = None,
        *,
        unit: Unit = "sentence",
        max_length: int | None = None,
    ) -> list[Chunks]:
        """Parts of texts, and a vector for each that knows the whole text (late chunking).

        Args:
            texts: Whole texts, or one.
            spans: Character ranges for each text, in any order; they may overlap. None: those of `unit`.
            unit: What texts are cut into where there are no spans: `sentence`, `word` or `token`.
            max_length: Longest sequence, in tokens, which a decoder with more positions may read; None is what the
                settings say. Parts beyond it have the zero vector.

        Raises:
            UsageError: A span is not within its text.

        Example:
            >>> encoder.chunks(["It rained. We stayed in."])[0].texts  # doctest: +SKIP
            ('It rained.', 'We stayed in.')
        """
        return chunks_of(
            self.model,
            self.tokenizer,
            [texts] if isinstance(texts, str) else texts,
            spans=spans,
            unit=unit,
            max_length=max_length or self.settings.max_length,
            max_tokens=self.max_tokens,
        )

    def save(self, folder: str | Path) -> None:
        """Write a folder that opens here, in `SentenceTransformer` and in `AutoModel`.

        A new folder is whole or absent. In an existing one, such as a trainer's, files of the same names are replaced
        one by one, and all others stay.

        Adapters that `model` was given since it was loaded are merged into what is written; `model` stays as it is.

        Args:
            folder: The folder to make or to write into.

        Raises:
            ModelError: The folder holds an adapter or weights of another program, which would be read with the encoder
                or instead of it; nothing is written then.
            UsageError: `folder` is a file.
        """
        folder = resolved_folder(Path(folder), option="folder")
        refuse_other_model(folder)
        for note in differences_elsewhere(self.settings, self.tokenizer):
            warnings.warn(note, stacklevel=2)
        with folder_beside(folder) as partial:
            self.write(partial)
            if self.chain is not None and self.chain.adapters:
                write_json(partial / PROVENANCE_FILE, chain_provenance(self.chain))
            if folder.is_dir():
                put_files(partial, folder, outdated=files_of_encoder(folder), last=CONFIG_FILE)
            else:
                publish(partial, folder)

    def write(self, folder: Path) -> None:
        """Fill an existing folder with weights, tokenizer and settings."""
        save_model(merged_copy(self.model), folder)
        forget_truncation(self.tokenizer)
        self.tokenizer.save_pretrained(folder)
        write_settings(self.settings, folder, tokenizer=self.tokenizer, dimension=self.dimension)

    def prompt_named(self, name: str | None) -> str:
        """A prompt by its name; None names the default prompt, if there is one.

        Raises:
            UsageError: There is no prompt of that name.
        """
        name = self.settings.default_prompt_name if name is None else name
        if name is None:
            return ""
        known = self.settings.prompts
        if name not in known:
            names = ", ".join(known) or "none"
            raise UsageError(f"there is no prompt named {name!r}; there are: {names}")
        return known[name]

    def _before(self, prompts: Sequence[str]) -> list[str] | None:
        """What comes before each text, separator included; None where no text has a prompt."""
        before = [self.settings.before_text(prompt) for prompt in prompts]
        return before if any(before) else None


def _rows(texts: Any) -> list[str]:
    """Texts as a list.

    Raises:
        UsageError: One of them is not a text.
    """
    if isinstance(texts, str):
        return [texts]
    rows = texts.tolist() if hasattr(texts, "tolist") else list(texts)
    for number, row in enumerate(rows):
        if not isinstance(row, str):
            what = f"row {number} is {type(row).__name__}: {row!r}"[:200]
            raise UsageError(f"encode takes texts, and {what}; a prompt goes into prompt=")
    return rows
