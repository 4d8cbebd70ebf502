"""Long texts in windows, each with the prompt, whose vectors are averaged by length.

With mean pooling the vector of a text is the mean over all of its tokens, each seen with those of
its own window.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llm2vec.encoder.tokenization import Borders, Tokens
from llm2vec.errors import UsageError


@dataclass(frozen=True)
class Windows:
    """Texts in windows.

    Attributes:
        tokens: The windows of all texts, text after text.
        owners: The text that each window is of.
        weights: Tokens of the text itself in each window.
    """

    tokens: list[Tokens]
    owners: list[int]
    weights: list[int]

    def pooled(self, embedding_WD: Tensor, *, count: int) -> Tensor:
        """One vector a text, from those of its windows: embedding_BD.

        Args:
            embedding_WD: A vector for each window.
            count: Number of texts.
        """
        if len(self.tokens) == count:
            return embedding_WD
        owner_W, weight_W = torch.tensor(self.owners), torch.tensor(self.weights).float()
        total_B = torch.zeros(count).index_add_(0, owner_W, weight_W)
        share_W = weight_W / total_B.clamp(min=1)[owner_W]
        embedding_BD = torch.zeros(count, embedding_WD.shape[1])
        return embedding_BD.index_add_(0, owner_W, embedding_WD * share_W[:, None])


def windows_of(texts: Sequence[Tokens], edges: Borders, *, max_length: int) -> Windows:
    """Cut tokenised texts into windows of at most `max_length` tokens.

    What comes before a text (start token, prompt) and the special tokens after it are in each of
    its windows.

    Args:
        texts: Whole texts, uncut.
        edges: The special tokens around every text.
        max_length: Tokens of a window.

    Raises:
        UsageError: A prompt leaves no room for its text.
    """
    found = Windows([], [], [])
    for owner, text in enumerate(texts):
        pieces = [text] if len(text.ids) <= max_length else _pieces(text, edges, max_length)
        for piece in pieces:
            found.tokens.append(piece)
            found.owners.append(owner)
            found.weights.append(piece.end - piece.first)
    return found


def _pieces(text: Tokens, edges: Borders, max_length: int) -> list[Tokens]:
    start = max(text.first, edges.before)
    end = min(text.end, len(text.ids) - edges.after)
    before, own, after = text.ids[:start], text.ids[start:end], text.ids[end:]
    room = max_length - len(before) - len(after)
    if room < 1:
        raise UsageError(
            f"the prompt leaves no room for its text in {max_length} tokens; shorten it or raise "
            "max_length"
        )
    pieces = [own[start : start + room] for start in range(0, len(own), room)]
    return [_piece(text, before, piece, after) for piece in pieces]


def _piece(text: Tokens, before: list[int], own: list[int], after: list[int]) -> Tokens:
    ids = before + own + after
    pooled_after = max(text.end - (len(text.ids) - len(after)), 0)
    return Tokens(ids, min(text.first, len(before)), len(before) + len(own) + pooled_after)
