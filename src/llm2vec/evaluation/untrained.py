"""Vectors of texts from a decoder in which nothing is trained: what a conversion has to beat.

PromptEOL (Jiang et al. 2023, arXiv 2307.16645, section 3) asks for the text in one word and takes
the state from which the answer would be written, with no example or with one. Echo embeddings
(Springer et al. 2024, arXiv 2402.15449, section 3) give the text twice and pool over the second,
whose states have seen the whole first. The decoder stays causal. These are vectors of whole texts;
words have none.
"""

from collections.abc import Sequence

import numpy as np

from llm2vec.encoder.encoder import Encoder
from llm2vec.encoder.tokenization import Tokens, shortened, untruncated
from llm2vec.errors import UsageError

QUESTION = 'This sentence: "{text}" means in one word: "'
"""What asks for one word; the answer would begin after the last quotation mark."""

EXAMPLE = QUESTION.format(text="The children laughed at the clown.") + 'Fun". '
"""A question with its answer, before the one that is asked."""

TWICE = "Rewrite the sentence: {text}, rewritten sentence: "
"""What comes before the second copy of a text."""


class OneWord:
    """Texts to vectors by a question for one word.

    Args:
        encoder: A causal decoder that pools the last state.
        example: What comes before the question, as it is.
    """

    def __init__(self, encoder: Encoder, *, example: str = "") -> None:
        self._encoder = encoder
        self._template = example.replace("{", "{{").replace("}", "}}") + QUESTION

    def __call__(self, texts: Sequence[str], *, prompt: str | None = None) -> np.ndarray:
        """Vectors of texts: embedding_BD."""
        before = self._encoder.settings.before_text(prompt or "")
        template = before.replace("{", "{{").replace("}", "}}") + self._template
        most = _room(self._encoder, template.format(text=""))
        asked = [
            template.format(text=text)
            for text in shortened(self._encoder.tokenizer, list(texts), most=most)
        ]
        return _vectors(self._encoder, self._encoder.tokens(asked))


class Echo:
    """Texts to vectors by repeating them.

    Args:
        encoder: A causal decoder.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def __call__(self, texts: Sequence[str], *, prompt: str | None = None) -> np.ndarray:
        """Vectors of texts: embedding_BD."""
        before = self._encoder.settings.before_text(prompt or "")
        most = _room(self._encoder, before + TWICE.format(text="")) // 2
        short = shortened(self._encoder.tokenizer, list(texts), most=most)
        firsts = [before + TWICE.format(text=text) for text in short]
        return _vectors(self._encoder, self._encoder.tokens(short, prompts=firsts))


def _room(encoder: Encoder, around: str) -> int:
    """Number of tokens that the prompt around a text leaves for it, minus a small reserve.

    Raises:
        UsageError: It leaves none.
    """
    taken = len(untruncated(encoder.tokenizer, [around])["input_ids"][0])
    room = encoder.settings.max_length - taken - 4
    if room < 2:
        raise UsageError(
            f"the question takes {taken} of the decoder's {encoder.settings.max_length} tokens, "
            "which leaves no room "
            "for a text"
        )
    return room


def _vectors(encoder: Encoder, tokens: Sequence[Tokens]) -> np.ndarray:
    vectors_BD: np.ndarray = encoder.encode_tokens(tokens).numpy()
    return vectors_BD
