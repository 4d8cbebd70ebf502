"""What a fine-tuning starts from: a decoder, an encoder folder, `uni:DECODER` or `auto:ENCODER`.

A decoder or an encoder folder is made bidirectional and proven; `uni:` keeps a decoder causal;
`auto:` takes any encoder of transformers as it is.
"""

from dataclasses import dataclass

import torch
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerFast

from llm2vec.backbone.loading import embedding_rows, load_decoder, load_tokenizer, quiet
from llm2vec.backbone.source import UNI, Source
from llm2vec.backbone.switch import make_bidirectional
from llm2vec.backbone.vocabulary import fit_tokenizer
from llm2vec.errors import ModelError, first_line
from llm2vec.evaluation.subjects import AUTO, RANDOM, TFIDF
from llm2vec.runtime.hardware import default_device


@dataclass(frozen=True)
class Start:
    """A body that can be trained.

    Attributes:
        prefix: `uni:`, `auto:` or nothing; before the folder's name it opens the result in the same
            way.
        model: The transformer without a head, in float32.
        tokenizer: Its tokenizer.
        facts: How it was made bidirectional, and the proofs; empty if it was not.
        trust_remote_code: Whether code that comes with the model may run.
    """

    prefix: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    facts: dict[str, object]
    trust_remote_code: bool = False


def open_start(name: str, *, trust_remote_code: bool = False) -> Start:
    """Open what a fine-tuning starts from.

    Args:
        name: A folder or hub name, with `uni:` or `auto:` before it or not.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        ModelError: There is no such model, or it has no weights that can be trained.
        NotConvertible: A decoder that cannot be made bidirectional.
    """
    if name == TFIDF or name.startswith(RANDOM):
        raise ModelError(f"{name} has no weights to train; name a decoder or an encoder")
    prefix = next((each for each in (UNI, AUTO) if name.startswith(each)), "")
    source = Source.of(name.removeprefix(prefix), trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(source)
    if prefix == AUTO:
        model = _any_encoder(source)
    else:
        model = load_decoder(source, head=False, dtype=torch.float32)
    fit_tokenizer(tokenizer, rows=embedding_rows(model))
    facts = make_bidirectional(model).to_dict() if prefix == "" else {}
    return Start(prefix, model, tokenizer, facts, trust_remote_code)


def _any_encoder(source: Source) -> PreTrainedModel:
    try:
        with quiet():
            model = AutoModel.from_pretrained(str(source), dtype=torch.float32, **source.options())
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load {source} as an encoder: {first_line(error)}") from error
    loaded: PreTrainedModel = model.to(default_device())
    return loaded
