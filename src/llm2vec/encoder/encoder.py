"""`Encoder`, the object that users hold: it opens a folder, encodes texts, and saves.

Texts take one straight line: tokens, batches by token budget, the backbone, pooling. A vector
depends on its text and prompt alone, never on the other texts of its batch.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
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
from llm2vec.backbone.positions import position_limit
from llm2vec.backbone.source import Source
from llm2vec.backbone.switch import body, is_bidirectional, save_model
from llm2vec.encoder.batching import (
    MAX_TOKENS,
    MAX_TOKENS_GPU,
    batch_memory_checked,
    on_each_core,
    plan_for,
    token_states,
)
from llm2vec.encoder.chunks import Chunks, Unit, chunks_of
from llm2vec.encoder.devices import DevicePool
from llm2vec.encoder.folder import (
    CONFIG_FILE,
    PROVENANCE_FILE,
    differences_elsewhere,
    files_of_encoder,
    refuse_other_model,
    write_settings,
)
from llm2vec.encoder.layers import states_width
from llm2vec.encoder.loading import load_parts
from llm2vec.encoder.pooling import pool_tokens
from llm2vec.encoder.settings import Settings
from llm2vec.encoder.tokenization import Tokens, encoder_tokens, forget_truncation
from llm2vec.encoder.words import Merge, Range, Reading, Words, words_of
from llm2vec.errors import UsageError
from llm2vec.runtime.files import (
    folder_beside,
    publish,
    put_files,
    resolved_folder,
    write_json,
)
from llm2vec.runtime.memory import memory_checked
from llm2vec.runtime.progress import OnProgress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llm2vec.backbone.adapter_chain import Chain
    from llm2vec.backbone.switch import Switch

_BAR_AFTER_S = 2.0
"""Seconds that encoding takes before a progress bar is drawn."""

_WINDOW = 8192
"""Number of texts that are tokenised and sorted together. It bounds memory, and leaves next to no
padding."""


class Encoder(nn.Module):
    """A text encoder made from a decoder.

    Attributes:
        model: The backbone, without LM head.
        tokenizer: Tokenizer of the backbone.
        settings: Pooling, lengths and prompts.
        switch: The way in which the backbone was made bidirectional, with the measured proofs; None
            for a causal baseline.
        chain: The base and the adapters that the backbone was loaded from; None for an encoder made
            from parts.

    Example:
        >>> encoder = Encoder.from_pretrained("encoder")  # doctest: +SKIP
        >>> encoder.encode(["Some text.", "Another."]).shape  # doctest: +SKIP
        torch.Size([2, 192])
    """

    _default_settings = Settings()
    """The settings of a model whose folder has none."""

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
        self._pool = DevicePool()

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
        """Load an encoder, a decoder or a chain of adapters, and prove that it is bidirectional.

        Args:
            source: A folder, a GGUF file, a hub id, or `bundled`, the project's own small decoder.
                A `Source` adds the revision, the token, the cache folder, and whether code of the
                model may run. A folder that holds an adapter names its own base.
            adapters: Adapters to merge, in the order in which they were trained, in float32. The
                encoder takes the last settings among those of the source and of the adapters.
            bidirectional: Whether the model is made bidirectional; False keeps a decoder causal
                (the paper's "Uni" baseline). None takes the folder's setting.
            pooling: The way from token states to one vector: `mean`, `weighted_mean`, `last` or
                `first`. None takes the folder's setting.
            max_length: Length of the longest sequence, in tokens, prompt included; at most the
                model's number of positions. None takes the folder's setting.
            normalize: Whether vectors are scaled to length 1. None takes the folder's setting.
            prompts: Prompts by their names. None takes the folder's setting.
            template: A format string with `{text}` that prompt and text are wrapped in, or `chat`
                for the tokenizer's own chat template. None takes the folder's setting.
            device: Device of the model. None is a GPU, if there is one, and otherwise the CPU.
            dtype: Data type of the weights. "auto" is the data type of the saved weights, except on
                a CPU, where it is float32; or bfloat16 for a model of at least 50 million weights
                on a processor with instructions for it, if a few texts keep their vectors (cosine
                at least 0.999). Name a type to train the encoder or to save it.
            attention: Attention implementation to load with. None is SDPA, or the implementation
                that the family needs.

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
        parts = load_parts(
            source,
            adapters,
            changes=changes,
            loading=loading,
            default_settings=cls._default_settings,
        )
        encoder = cls(
            parts.model,
            parts.tokenizer,
            settings=parts.settings,
            switch=parts.switch,
            chain=parts.chain,
        )
        encoder.settings = encoder._within_positions(encoder.settings)
        return encoder

    def _within_positions(self, settings: Settings) -> Settings:
        """The same settings, with a longest sequence that the model has positions for."""
        limit = position_limit(self.model.config)
        if limit is None:
            return settings
        return settings.within(limit)

    @cached_property
    def dimension(self) -> int:
        """Number of elements of a vector, as the model gives it."""
        return states_width(body(self.model))

    @property
    def max_tokens(self) -> int:
        """Largest number of tokens in a batch."""
        return MAX_TOKENS if self.device.type == "cpu" else MAX_TOKENS_GPU

    @property
    def device(self) -> torch.device:
        """Device of the backbone."""
        return self.model.device

    @overload
    def encode(
        self,
        texts: str | Sequence[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        batch_size: int | None = None,
        devices: str | Sequence[str] | None = None,
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
        devices: str | Sequence[str] | None = None,
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
        devices: str | Sequence[str] | None = None,
        normalize: bool | None = None,
        show_progress: bool = True,
        convert_to_numpy: bool = False,
    ) -> Tensor | np.ndarray:
        """Encode texts to vectors, in the order of the texts.

        Args:
            texts: Texts, or a single text, whose result has no first axis.
            prompt: Prompt that comes before every text; it takes part in attention and is not
                pooled.
            prompt_name: Name of a prompt in the settings, instead of `prompt`. Without either, the
                default prompt of the settings is used.
            batch_size: Largest number of texts in a batch. None is as many as a token budget
                allows.
            devices: Devices that share the work, such as `["cuda:0", "cuda:1"]`, or `all` for every
                GPU. Each has a process with a copy of the encoder, which is spawned by the first
                call and kept until `close`. None is the encoder's own device, in this process.
            normalize: Whether vectors are scaled to length 1. None takes the encoder's setting.
            show_progress: Whether a bar with the time left is drawn on a terminal, once encoding
                has taken two seconds.
            convert_to_numpy: Whether to return a numpy array instead of a tensor.

        Returns:
            embedding_BD in float32, on the CPU. A text without tokens (the empty string) gives the
            zero vector.

        Raises:
            OutOfMemory: A batch does not fit into memory, or the vectors of all texts do not.
            UsageError: Something is not a text, or there is no such prompt or device.
            RunError: A process on another device died twice at the same texts.
        """
        given = _list_of_texts(texts)
        if prompt is not None and prompt_name is not None:
            raise UsageError(
                f"prompt and prompt_name are two prompts for one text ({prompt!r}, "
                f"{prompt_name!r}); give only one of them"
            )
        if prompt is None:
            prompt = self.prompt_named(prompt_name)
        embedding_BD = self._vectors(
            given,
            prompts=[prompt] * len(given),
            batch_size=batch_size,
            devices=devices,
            normalize=normalize,
            show_progress=show_progress,
        )
        vectors = embedding_BD[0] if isinstance(texts, str) else embedding_BD
        return vectors.numpy() if convert_to_numpy else vectors

    def _vectors(
        self,
        texts: Sequence[str],
        *,
        prompts: Sequence[str],
        batch_size: int | None,
        devices: str | Sequence[str] | None = None,
        normalize: bool | None,
        show_progress: bool,
    ) -> Tensor:
        """Encode texts, each behind its own prompt (without separator): embedding_BD."""
        before = self._with_separator(prompts)
        disable = (
            None if show_progress else True
        )  # None disables the bar where there is no terminal
        with tqdm(
            total=len(texts), desc="encode", unit="text", disable=disable, delay=_BAR_AFTER_S
        ) as bar:
            if devices is None:
                embedding_BD = self._in_windows(
                    texts, before, batch_size=batch_size, on_progress=bar.update
                )
            else:
                embedding_BD = self._pool.vectors(
                    self,
                    texts,
                    devices=devices,
                    before=before,
                    batch_size=batch_size,
                    on_progress=bar.update,
                )
        if normalize is None:
            normalize = self.settings.normalize
        if normalize:
            embedding_BD = nn.functional.normalize(embedding_BD, dim=-1)
        return embedding_BD

    def _in_windows(
        self,
        texts: Sequence[str],
        before: Sequence[str] | None,
        *,
        batch_size: int | None,
        on_progress: OnProgress,
    ) -> Tensor:
        """Encode texts in this process, so many of them at a time: embedding_BD."""
        with memory_checked(
            f"with {len(texts):,} vectors of {self.dimension:,} numbers",
            advice="encode fewer texts at once, or write shards: llm2vec encode --out FOLDER",
        ):
            embedding_BD = torch.zeros(len(texts), self.dimension, device="cpu")
        for start in range(0, len(texts), _WINDOW):
            window = slice(start, start + _WINDOW)
            tokens = self.tokens(texts[window], prompts=before and before[window])
            embedding_BD[window] = self.encode_tokens(
                tokens, batch_size=batch_size, on_progress=on_progress
            )
        return embedding_BD

    def close(self) -> None:
        """End the processes on other devices that `encode` has spawned.

        They end with this process anyway. `with encoder:` calls this at the end of the block.
        """
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def tokens(
        self,
        texts: Sequence[str],
        *,
        prompts: Sequence[str] | None = None,
        max_length: int | None = None,
    ) -> list[Tokens]:
        """Tokenise texts as the backbone reads them, and find the tokens that are pooled.

        Args:
            texts: Texts to tokenise.
            prompts: What comes before each text, separator included; None is nothing.
            max_length: Length of the longest sequence, in tokens. None takes the encoder's setting.

        Raises:
            UsageError: A prompt leaves no room for its text.
        """
        settings = self.settings.changed(max_length=max_length)
        return encoder_tokens(self.tokenizer, texts, settings=settings, prompts=prompts)

    def encode_tokens(
        self,
        tokens: Sequence[Tokens],
        *,
        batch_size: int | None = None,
        max_tokens: int | None = None,
        on_progress: OnProgress = silent,
    ) -> Tensor:
        """Encode tokenised texts, in their order: embedding_BD in float32, on the CPU.

        Args:
            tokens: Tokenised texts, as from `tokens`.
            batch_size: Largest number of texts in a batch. None is as many as a token budget
                allows.
            max_tokens: Largest number of tokens in a batch. None is a number that suits the device.
            on_progress: Called after each batch with the number of texts in it.

        Raises:
            OutOfMemory: A batch does not fit.
        """
        embedding_BD = torch.zeros(len(tokens), self.dimension, device="cpu")
        batches = plan_for(
            self.model,
            [len(each.ids) for each in tokens],
            max_tokens=max_tokens or self.max_tokens,
            max_texts=batch_size,
        )

        def vectors_of(batch: list[int]) -> Tensor:
            return self.embed([tokens[index] for index in batch]).cpu()

        with evaluating(self.model):
            results = on_each_core(vectors_of, batches, device=self.device)
            for batch, vectors_BD in zip(batches, results, strict=True):
                embedding_BD[batch] = vectors_BD
                on_progress(len(batch))
        without_tokens = len(tokens) - sum(map(len, batches))
        on_progress(without_tokens)
        return embedding_BD

    def embed(self, tokens: Sequence[Tokens]) -> Tensor:
        """Vectors of one batch, differentiable: embedding_BD in float32, on the model's device.

        Args:
            tokens: Tokenised texts, as from `tokens`.

        Raises:
            OutOfMemory: The batch does not fit.
        """
        documents = [each.ids for each in tokens if each.ids]
        if not documents:
            return torch.zeros(len(tokens), self.dimension, device=self.device)
        pad_id = int(self.tokenizer.pad_token_id)
        with batch_memory_checked(self.model, documents):
            states_ND = token_states(self.model, documents, pad_id=pad_id)
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
            texts: Raw texts (or one), which are cut into words; or lists of words, which are joined
                by spaces.
            reading: The tokens that a word is read from: its `own`, or those one position `before`,
                whose states MNTP trains to predict it.
            merge: The way from several tokens' states to one vector: their `mean`, the `first` or
                the `last`.
            layer: Layer whose states are read: 0 is the embedding, -1 the last layer.

        Raises:
            OutOfMemory: A batch does not fit into memory, or the vectors of all words do not.
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
        """Parts of texts, and a vector for each that depends on the whole text (late chunking).

        Args:
            texts: Whole texts, or a single text.
            spans: Character ranges in each text, in any order; they may overlap. None cuts texts
                into the parts of `unit`.
            unit: The parts that texts are cut into without spans: `sentence`, `word` or `token`.
            max_length: Length of the longest sequence, in tokens, up to the model's positions. None
                takes the encoder's setting. Parts beyond it have the zero vector.

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

        A new folder is whole or absent. In an existing folder, such as a trainer's, files of the
        same names are replaced one by one, and all other files stay.

        Adapters that `model` was given since it was loaded are merged into the written weights;
        `model` itself stays as it is.

        Weights are written in the data type that `model` computes in. Where `dtype="auto"` chose
        bfloat16, load with the type that the folder should have.

        Args:
            folder: The folder to make or to write into.

        Raises:
            ModelError: The folder holds an adapter or weights of another program, which would be
                read with the encoder or instead of it. Nothing is written then.
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
        """Write weights, tokenizer and settings into an existing folder."""
        save_model(merged_copy(self.model), folder)
        forget_truncation(self.tokenizer)
        self.tokenizer.save_pretrained(folder)
        write_settings(self.settings, folder, tokenizer=self.tokenizer, dimension=self.dimension)

    def prompt_named(self, name: str | None) -> str:
        """The prompt of a name; None is the name of the default prompt, if there is one.

        Raises:
            UsageError: There is no prompt of that name.
        """
        if name is None:
            name = self.settings.default_prompt_name
        if name is None:
            return ""
        known = self.settings.prompts
        if name not in known:
            names = ", ".join(known) or "none"
            raise UsageError(f"there is no prompt named {name!r}; the prompts are: {names}")
        return known[name]

    def _with_separator(self, prompts: Sequence[str]) -> list[str] | None:
        """What comes before each text, separator included; None where no text has a prompt."""
        before = [self.settings.before_text(prompt) for prompt in prompts]
        return before if any(before) else None


def _list_of_texts(texts: Any) -> list[str]:
    """One text or several, as a list.

    Raises:
        UsageError: One of them is not a text.
    """
    if isinstance(texts, str):
        return [texts]
    if not isinstance(texts, Iterable):
        raise UsageError(f"encode takes texts, and this is {type(texts).__name__}: {texts!r}"[:200])
    found = texts.tolist() if hasattr(texts, "tolist") else list(texts)
    for index, text in enumerate(found):
        if not isinstance(text, str):
            problem = f"row {index} is {type(text).__name__}: {text!r}"[:200]
            raise UsageError(f"encode takes texts, and {problem}; a prompt goes into prompt=")
    return found
