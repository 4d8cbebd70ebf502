"""Texts that the decoder itself writes, for a conversion without a corpus."""

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
    """Texts that a still-causal decoder writes, sampled in batches from its start token.

    A decoder without a start or end token begins from tokens drawn at random from its vocabulary.

    Raises:
        CorpusError: The decoder writes nothing but empty texts.
    """
    import torch

    listener = progress or Silent()
    listener.start("writing texts", total=corpus.self_texts)
    written = tokens = 0
    batch = 0
    while written < corpus.self_texts:
        generator_seed = int(hashlib.sha256(f"{seed}/{batch}".encode()).hexdigest()[:8], 16)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(generator_seed)
            ids_BT = _sample(model, tokenizer, corpus)
        texts = [text.strip() for text in tokenizer.batch_decode(ids_BT, skip_special_tokens=True)]
        kept = [" ".join(text.split()) for text in texts if text][: corpus.self_texts - written]
        if not kept:
            raise CorpusError("the decoder writes only empty texts; give it a corpus with --corpus")
        yield from kept
        written, tokens, batch = written + len(kept), tokens + int(ids_BT.numel()), batch + 1
        listener.advance(len(kept), tokens=tokens)
    listener.finish()


def _sample(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", corpus: CorpusRecipe
) -> Any:
    import torch
    from transformers import GenerationConfig

    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    shape = (min(_GENERATION_BATCH, corpus.self_texts), 1)
    start_BT = torch.randint(len(tokenizer), shape) if start is None else torch.full(shape, start)
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
    # all ones, or a start token that is also the padding would be masked
    written_BT = model.generate(  # type: ignore[operator]
        start_BT, attention_mask=torch.ones_like(start_BT), generation_config=settings
    )
    return written_BT[:, 0 if start is None else 1 :]
