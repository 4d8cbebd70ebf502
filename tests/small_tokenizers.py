"""Tokenizers of a handful of tokens, for what large vocabularies hide."""

from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast


def dna(*, before="<s>", after="</s>"):
    """Four letters and nothing for all others: no unknown token, and no token for any word."""
    vocabulary = {token: index for index, token in enumerate(("<s>", "</s>", "<pad>", *"ACGT"))}
    backend = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = Split(Regex("."), "isolated")
    pieces = [*([before] if before else []), "$A", *([after] if after else [])]
    special = [(token, vocabulary[token]) for token in (before, after) if token]
    backend.post_processor = TemplateProcessing(single=" ".join(pieces), special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
