"""`LLM2Vec`, the encoder users hold: load a folder, encode texts, save.

Texts take one straight line: tokens, batches by token budget, the backbone, pooling. A vector depends on its text (and
prompt) alone, never on what else was in the batch.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from llm2vec import backbone, batching, decoder
from llm2vec.adapters import merge_chain
from llm2vec.errors import ModelError, UsageError
from llm2vec.files import whole_folder
from llm2vec.folder import Settings, pooling_named, read_settings, write_settings
from llm2vec.places import place
from llm2vec.pooling import pool
from llm2vec.recipe import Pooling
from llm2vec.tokens import Tokens, borders, tokenize
from llm2vec.words import Merge, Reading, Words, find_words, joined, word_states, word_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_WINDOW = 8192
"""Texts tokenised and sorted together: bounds memory, and leaves next to no padding."""


class LLM2Vec(nn.Module):
    """A text encoder made from a decoder.

    Attributes:
        model: The backbone, without LM head.
        tokenizer: Its tokenizer.
        settings: Pooling, lengths, prompts.
        switch: How the backbone was made bidirectional and the measured proofs; None for a causal baseline.

    Example:
        >>> encoder = LLM2Vec.from_pretrained("encoder")  # doctest: +SKIP
        >>> encoder.encode(["Some text.", "Another."]).shape  # doctest: +SKIP
        torch.Size([2, 192])
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        *,
        settings: Settings | None = None,
        switch: "backbone.Switch | None" = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings or Settings()
        self.switch = switch

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        peft_model_name_or_path: str | Path | Sequence[str | Path] | None = None,
        *,
        enable_bidirectional: bool | None = None,
        pooling_mode: str | None = None,
        max_length: int | None = None,
        skip_instruction: bool | None = None,
        normalize: bool | None = None,
        device: str | None = None,
        dtype: "torch.dtype | str" = "auto",
        attention: str | None = None,
        **hub: Any,
    ) -> Self:
        """Load an encoder folder, or any decoder, and prove that it is bidirectional.

        Args:
            source: A folder, a hub id, or `bundled`: the project's own small decoder.
            peft_model_name_or_path: An adapter, or several in the order they were trained in; merged. The last
                settings found are taken.
            enable_bidirectional: False keeps a decoder causal (the "Uni" baseline); None: as the folder says.
            pooling_mode: Overrides the folder's pooling.
            max_length: Overrides the folder's longest sequence, in tokens; cut to the model's positions.
            skip_instruction: Overrides whether prompts are left out of pooling.
            normalize: Overrides whether vectors are scaled to length 1.
            device: Where to; None: a GPU if there is one.
            dtype: Of the weights; "auto": as saved, but float32 on a CPU, where half precision is slow.
            attention: Attention implementation to load with; None: SDPA, or what the family needs.
            **hub: `revision`, `token`, `cache_dir`, `trust_remote_code`, for model, tokenizer and config alike.

        Raises:
            ModelError: The source cannot be loaded, or cannot be made bidirectional.
        """
        source = place(source)
        adapters = _as_list(peft_model_name_or_path)
        folders = [Path(each) for each in (source, *adapters) if Path(each).is_dir()]
        known = [found for folder in folders if (found := read_settings(folder)) is not None]
        settings = known[-1] if known else Settings()
        settings = settings.changed(
            pooling_mode=None if pooling_mode is None else pooling_named(pooling_mode),
            max_length=max_length,
            normalize=normalize,
            skip_instruction=skip_instruction,
            bidirectional=enable_bidirectional,
        )
        tokenizer = decoder.load_tokenizer(source, **hub)
        model = decoder.load(source, head=False, dtype=dtype, device=device, attention=attention, **hub).eval()
        decoder.check_vocabulary(model, tokenizer)
        if adapters:
            model = merge_chain(model, adapters, token=hub.get("token")).eval()
        if not settings.bidirectional and backbone.is_bidirectional(model.config):
            raise ModelError(f"{source} is bidirectional already; its causal baseline is the decoder it was made from")
        switch = backbone.make_bidirectional(model) if settings.bidirectional else None
        limit = backbone.position_limit(model.config)
        if limit is not None and settings.max_length > limit:
            settings = settings.changed(max_length=limit)
        return cls(model, tokenizer, settings=settings, switch=switch)

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def max_tokens(self) -> int:
        """Tokens in a batch."""
        return batching.MAX_TOKENS if self.device.type == "cpu" else batching.MAX_TOKENS_GPU

    @property
    def device(self) -> torch.device:
        """Where the backbone is."""
        return self.model.device

    @overload
    def encode(
        self,
        sentences: str | Sequence[str],
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize: bool | None = None,
        convert_to: Literal["tensor"] = "tensor",
    ) -> Tensor: ...
    @overload
    def encode(
        self,
        sentences: str | Sequence[str],
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize: bool | None = None,
        convert_to: Literal["numpy"],
    ) -> np.ndarray: ...
    def encode(
        self,
        sentences: str | Sequence[str],
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize: bool | None = None,
        convert_to: Literal["tensor", "numpy"] = "tensor",
    ) -> Tensor | np.ndarray:
        """Vectors of texts, in their order.

        Args:
            sentences: Texts, or one text (the result then has no first axis).
            batch_size: At most so many texts at a time; None: as many as a token budget allows.
            show_progress_bar: Draw one, with time left.
            prompt: What stands before every text; it takes part in attention and is not pooled.
            prompt_name: The same, by its name in the settings.
            normalize: Scale to length 1; None: as the settings say.
            convert_to: Kind of array; on the CPU, in float32.

        Returns:
            embedding_BD. A text without tokens (the empty string) gives the zero vector.

        Raises:
            UsageError: Not texts, or an unknown prompt name.
        """
        texts = [sentences] if isinstance(sentences, str) else list(sentences)
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise UsageError(f"encode takes texts, not {type(wrong[0]).__name__}: {wrong[0]!r}")
        prompts = self._prompts(len(texts), prompt, prompt_name)
        embedding_BD = torch.zeros(len(texts), self.dimension)
        with tqdm(total=len(texts), desc="encode", unit="text", disable=not show_progress_bar) as bar:
            for start in range(0, len(texts), _WINDOW):
                window = slice(start, start + _WINDOW)
                tokens = self.tokens(texts[window], prompts=prompts and prompts[window])
                embedding_BD[window] = self.encode_tokens(tokens, batch_size=batch_size, seen=bar.update)
        if self.settings.normalize if normalize is None else normalize:
            embedding_BD = nn.functional.normalize(embedding_BD, dim=-1)
        result = embedding_BD[0] if isinstance(sentences, str) else embedding_BD
        return result.numpy() if convert_to == "numpy" else result

    def tokens(self, texts: Sequence[str], *, prompts: Sequence[str] | None = None) -> list[Tokens]:
        """Token ids as the backbone reads them, and each text's own range."""
        found = tokenize(self.tokenizer, texts, max_length=self.settings.max_length, prompts=prompts)
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
        batches = batching.plan(
            lengths, max_tokens=self.max_tokens, max_texts=batch_size, padded=not batching.is_packed(self.model)
        )
        was_training = self.model.training
        self.model.eval()
        for batch in batches:
            embedding_BD[batch] = self.embed([tokens[index] for index in batch]).cpu()
            seen(len(batch))
        seen(len(tokens) - sum(map(len, batches)))
        self.model.train(was_training)
        return embedding_BD

    def words(
        self,
        texts: Sequence[str] | Sequence[Sequence[str]],
        *,
        reading: Reading = "own",
        merge: Merge = "mean",
    ) -> list[Words]:
        """The words of texts, where they stand, and a vector for each (paper, section 3.1).

        Args:
            texts: Raw texts, cut at spaces and punctuation; or lists of words, which are joined by spaces.
            reading: A word's own tokens, or those one place before, where MNTP writes.
            merge: How the states of several tokens become one vector.

        Example:
            >>> encoder.words(["New York is big."])[0].words  # doctest: +SKIP
            ('New', 'York', 'is', 'big', '.')
        """
        pairs = [(text, find_words(text)) if isinstance(text, str) else joined(text) for text in texts]
        read = word_tokens(
            self.tokenizer,
            [text for text, _ in pairs],
            [offsets for _, offsets in pairs],
            max_length=self.settings.max_length,
        )
        found = word_states(
            self.model,
            read,
            pad_id=int(self.tokenizer.pad_token_id),
            max_tokens=self.max_tokens,
            readings=(reading,),
            merge=merge,
        )
        vectors_ND = found[reading][0] if found else torch.zeros(0, self.dimension)
        parts = vectors_ND.split([len(offsets) for _, offsets in pairs])
        return [
            Words(tuple(text[start:end] for start, end in offsets), tuple(offsets), part_WD)
            for (text, offsets), part_WD in zip(pairs, parts, strict=True)
        ]

    def embed(self, tokens: Sequence[Tokens]) -> Tensor:
        """Vectors of one batch, differentiable: embedding_BD, float32, on the model's device."""
        states_ND = batching.token_states(
            self.model, [each.ids for each in tokens], pad_id=int(self.tokenizer.pad_token_id)
        )
        return pool_tokens(states_ND, tokens, pooling=self.settings.pooling_mode)

    def _prompts(self, count: int, prompt: str | None, prompt_name: str | None) -> list[str] | None:
        if prompt_name is not None:
            if prompt_name not in self.settings.prompts:
                known = ", ".join(self.settings.prompts) or "none"
                raise UsageError(f"there is no prompt named {prompt_name!r}; there are: {known}")
            prompt = self.settings.prompts[prompt_name]
        if not prompt or not prompt.strip():
            return None
        return [prompt.strip() + self.settings.separator] * count

    def save(self, output_path: str | Path) -> None:
        """Write a folder that opens here, in `SentenceTransformer` and in `AutoModel`; whole or not at all."""
        with whole_folder(Path(output_path)) as partial:
            self.write(partial)

    def write(self, folder: Path) -> None:
        """Fill a folder that is there: weights, tokenizer, settings."""
        backbone.save_model(self.model, folder)
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


def pool_tokens(states_ND: Tensor, tokens: Sequence[Tokens], *, pooling: Pooling) -> Tensor:
    """Vectors of a batch from its flat states: embedding_BD in float32."""
    bounds_B3 = torch.tensor([(len(each.ids), each.first, each.end) for each in tokens], device=states_ND.device)
    lengths_B, first_B, end_B = bounds_B3.unbind(1)
    return pool(states_ND, lengths_B=lengths_B, first_B=first_B, end_B=end_B, pooling=pooling)
