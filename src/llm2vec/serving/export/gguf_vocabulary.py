"""A tokenizer in a GGUF file.

llama.cpp has two kinds of tokenizers for decoders: byte-level pieces that are merged by rank, and
SentencePiece's, which are merged by score. It has its own named code for the steps before the
merges. Only names whose code cuts texts as the tokenizer's file does are used here; any other
tokenizer is refused.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm2vec.encoder.tokenization import Borders, added_tokens, borders
from llm2vec.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTE_LEVEL, SENTENCE_PIECE = "gpt2", "llama"
"""llama.cpp's names of the two kinds."""

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
"""GGUF's numbers for the types of tokens."""

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CUTS: Mapping[tuple[str, ...], str] = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (_WORDS % "",): "qwen2",
    (_WORDS % "{1,3}",): "llama-bpe",
}
"""llama.cpp's names of how texts are cut before the merges, by the steps in a tokenizer's file."""

_BLANK = "\u2581"


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer in GGUF's terms.

    Attributes:
        kind: `BYTE_LEVEL` or `SENTENCE_PIECE`.
        cut: llama.cpp's name of how texts are cut before the merges.
        tokens: Tokens; as many as the model has embeddings.
        types: Type of each token, as a number of GGUF's.
        merges: Pairs of tokens by rank, for byte-level pieces.
        scores: Score of each token, for SentencePiece's pieces.
        blank_first: Whether a blank is put before every text.
        composed: Whether texts are brought to Unicode's form NFC first, which llama.cpp does not
            do.
        start: Special token before every text; None if there is none.
        end: Special token after every text; None if there is none.
    """

    kind: str
    cut: str
    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str]
    scores: Sequence[float]
    blank_first: bool
    composed: bool
    start: int | None
    end: int | None


def vocabulary_of(tokenizer: "PreTrainedTokenizerBase", *, rows: int) -> Vocabulary:
    """Describe a tokenizer in GGUF's terms.

    Args:
        tokenizer: Tokenizer of the encoder.
        rows: Number of embeddings of the model.

    Raises:
        ModelError: No tokenizer of llama.cpp is known to be the same.
    """
    backend: Any = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    file = json.loads(backend.to_str())
    model = file["model"]
    if model["type"] != "BPE":
        raise ModelError(
            f"llama.cpp has no tokenizer of the type {model['type']} for a decoder; use --to onnx"
        )
    by_bytes = not model.get("byte_fallback")
    names, types = _tokens(model, file["added_tokens"], rows)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    start, end = _special_ids(tokenizer)
    composed, blank_first = _normalisation(file, by_bytes=by_bytes)
    return Vocabulary(
        kind=BYTE_LEVEL if by_bytes else SENTENCE_PIECE,
        cut=_cut(file) if by_bytes else "default",
        tokens=names,
        types=types,
        merges=merges if by_bytes else (),
        scores=() if by_bytes else _scores(names, merges),
        blank_first=blank_first,
        composed=composed,
        start=start,
        end=end,
    )


def _tokens(
    model: Mapping[str, Any], added: Sequence[Mapping[str, Any]], rows: int
) -> tuple[list[str], list[int]]:
    """Names and types by id; ids without a token are unused."""
    names = [f"[PAD{index}]" for index in range(rows)]
    types = [_UNUSED] * rows
    for token, index in model["vocab"].items():
        names[index] = token
        types[index] = _type(token, model)
    for token in added:
        names[token["id"]] = token["content"].replace(_BLANK, " ")
        types[token["id"]] = _CONTROL if token["special"] else _USER_DEFINED
    return names, types


def _type(token: str, model: Mapping[str, Any]) -> int:
    if token == model.get("unk_token"):
        return _UNKNOWN
    if model.get("byte_fallback") and len(token) == 6 and token.startswith("<0x"):
        return _BYTE
    return _NORMAL


def _scores(names: Sequence[str], merges: Sequence[str]) -> list[float]:
    """Scores by which pieces are merged in order: the earlier a token's merge, the higher."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault(pair.replace(" ", ""), rank)
    return [-float(ranks.get(name, len(merges))) for name in names]


def _cut(file: Mapping[str, Any]) -> str:
    """llama.cpp's name of the steps before the merges."""
    steps = tuple(step for step in _steps(file["pre_tokenizer"]) if step)
    if steps not in _CUTS:
        raise ModelError(
            f"llama.cpp's name for a tokenizer that cuts texts by {', '.join(steps) or 'nothing'} "
            f"is not known here, only those of {', '.join(_CUTS.values())}; use --to onnx"
        )
    return _CUTS[steps]


def _steps(step: Mapping[str, Any] | None) -> list[str]:
    """Each step by its name or its pattern; empty if it cuts nothing."""
    if step is None:
        return []
    if step["type"] == "Sequence":
        return [each for part in step["pretokenizers"] for each in _steps(part)]
    if step["type"] == "Split":
        return [str(step["pattern"].get("Regex"))]
    cuts = step.get("use_regex", True) and step.get("individual_digits", True)
    altered = step.get("add_prefix_space", False)
    name = f"{step['type']} with a blank first" if altered else step["type"]
    return [name if cuts else ""]


def _normalisation(file: Mapping[str, Any], *, by_bytes: bool) -> tuple[bool, bool]:
    """Whether texts are composed first, and whether a blank is put before them."""
    steps = _normalisers(file["normalizer"])
    blanks = file["pre_tokenizer"] or {}
    blank_first = "Prepend" in steps
    if not by_bytes and blanks.get("type") == "Metaspace":
        blank_first = blanks.get("prepend_scheme", "always") != "never"
    allowed = {"NFC"} if by_bytes else {"Prepend", "Replace"}
    if unknown := [step for step in steps if step not in allowed]:
        raise ModelError(
            f"the tokenizer changes texts first ({unknown[0]}), which llama.cpp does not do; use "
            "--to onnx"
        )
    return "NFC" in steps, blank_first


def _normalisers(step: Mapping[str, Any] | None) -> list[str]:
    if step is None:
        return []
    if step["type"] == "Sequence":
        return [each for part in step["normalizers"] for each in _normalisers(part)]
    return [str(step["type"])]


def _special_ids(tokenizer: "PreTrainedTokenizerBase") -> tuple[int | None, int | None]:
    """The special tokens before and after every text."""
    edges: Borders = borders(tokenizer)
    if edges.before > 1 or edges.after > 1:
        raise ModelError(
            f"the tokenizer puts {edges.before} special tokens before and {edges.after} after "
            "every text; llama.cpp puts at most one on each side; use --to onnx"
        )
    ids = added_tokens(tokenizer)
    return (ids[0] if edges.before else None), (ids[-1] if edges.after else None)
