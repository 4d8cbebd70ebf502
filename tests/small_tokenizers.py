"""Tokenizers of a handful of tokens, for what large vocabularies hide."""

from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Prepend, Replace, Sequence
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
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


WORDS = ["find", "it", "the", "cat", "cats", "apples", "say", "where", "is", "and", "then"] * 20


def blank_first():
    """Pieces as Llama 2's and Mistral's are made: a blank before every text, which joins the words it has seen."""
    backend = Tokenizer(BPE(unk_token="<unk>"))
    backend.normalizer = Sequence([Prepend("\u2581"), Replace(" ", "\u2581")])
    backend.train_from_iterator(
        [" ".join(WORDS[start : start + 3]) for start in range(0, len(WORDS), 3)],
        BpeTrainer(
            vocab_size=120,
            special_tokens=["<unk>", "<s>", "</s>"],
            initial_alphabet=list("\u25810123456789:!?.\u6771\u4eacQ"),
            show_progress=False,
        ),
    )
    backend.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
    )
