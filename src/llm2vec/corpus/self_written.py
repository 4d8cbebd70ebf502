"""Texts that the decoder writes itself, for a conversion without a corpus."""

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llm2vec.errors import CorpusError
from llm2vec.recipe.knobs import CorpusRecipe
from llm2vec.runtime.progress import Progress, Silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_GENERATION_BATCH = 256


def self_texts(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    corpus: CorpusRecipe,
    *,
    seed: int,
    progress: Progress | None = None,
) -> Iterator[str]:
    """Sample texts in batches from a decoder that is still causal, from its start token.

    A decoder without a start or end token begins from random tokens of its vocabulary.

    Args:
        model: The decoder, with its LM head.
        tokenizer: Tokenizer of the decoder.
        corpus: Number and length of the texts, and how they are sampled.
        seed: Seed of the sampling.
        progress: Listener that hears of each batch.

    Raises:
        CorpusError: The decoder writes nothing but empty texts.
    """
    import torch

    listener = progress or Silent()
    listener.start("writing texts", total=corpus.self_texts)
    left = corpus.self_texts
    tokens = 0
    batch = 0
    while left:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(_seed_of_batch(seed, batch))
            ids_BT = _sample(model, tokenizer, corpus)
        decoded = tokenizer.batch_decode(ids_BT, skip_special_tokens=True)
        on_one_line = (" ".join(text.split()) for text in decoded)
        kept = [text for text in on_one_line if text][:left]
        if not kept:
            raise CorpusError("the decoder writes only empty texts; give it a corpus with --corpus")
        yield from kept
        left -= len(kept)
        batch += 1
        tokens += int(ids_BT.numel())
        listener.advance(len(kept), tokens=tokens)
    listener.finish()


def _seed_of_batch(seed: int, batch: int) -> int:
    return int(hashlib.sha256(f"{seed}/{batch}".encode()).hexdigest()[:8], 16)


def _sample(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", corpus: CorpusRecipe
) -> Any:
    """Sample one batch: ids_BT of the texts, with the start token if there is one."""
    import torch
    from transformers import GenerationConfig

    start = tokenizer.bos_token_id
    if start is None:
        start = tokenizer.eos_token_id
    shape = (min(_GENERATION_BATCH, corpus.self_texts), 1)
    if start is None:
        start_BT = torch.randint(len(tokenizer), shape)
    else:
        start_BT = torch.full(shape, start)
    settings = GenerationConfig(
        do_sample=True,
        temperature=corpus.temperature,
        top_p=corpus.top_p,
        top_k=0,
        max_new_tokens=corpus.self_tokens,
        bos_token_id=start,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )
    start_BT = start_BT.to(model.device)
    # all ones, since a start token that is also the padding token would be masked
    written_BT = model.generate(  # type: ignore[operator]
        start_BT, attention_mask=torch.ones_like(start_BT), generation_config=settings
    )
    return written_BT[:, 0 if start is None else 1 :]
