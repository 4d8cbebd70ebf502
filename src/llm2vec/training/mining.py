"""Hard negatives: for each anchor the texts that look most like its positive, and are none.

The vectors are made by the bulk engine and kept in a folder beside the result, so that a killed run
goes on. The search and its limits are those of `mine_hard_negatives` of sentence-transformers.
"""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from llm2vec.bulk.run import encode_to_folder
from llm2vec.bulk.shards import shard_files
from llm2vec.corpus.data_files import refuse_input
from llm2vec.corpus.pairs import plain_pairs
from llm2vec.corpus.texts import read_texts
from llm2vec.errors import CorpusError, UsageError, first_line
from llm2vec.recipe.knobs import CorpusRecipe
from llm2vec.runtime.files import atomic_file
from llm2vec.runtime.optional import optional
from llm2vec.runtime.progress import Progress, Silent

if TYPE_CHECKING:
    from llm2vec.encoder.encoder import Encoder

Sampling = Literal["top", "random"]

_TEXT = "text"


@dataclass(frozen=True)
class Limits:
    """Which candidates of an anchor may be its negatives.

    Attributes:
        negatives: Number of negatives of each pair. A pair that has fewer is left out.
        share: Largest score of a negative, as a share of the positive's score; None is no limit.
        margin: Least difference between the positive's score and a negative's; None is no limit.
        max_score: Largest score of a negative; None is no limit.
        min_score: Smallest score of a negative; None is no limit.
        skip: Number of the nearest candidates that are passed over.
        depth: Number of the nearest candidates that are looked at.
        sampling: Whether the nearest of the candidates that are left are taken, or random ones.
    """

    negatives: int = 1
    share: float | None = 0.95
    margin: float | None = None
    max_score: float | None = None
    min_score: float | None = None
    skip: int = 0
    depth: int = 100
    sampling: Sampling = "top"


@dataclass(frozen=True)
class Mined:
    """What mining found.

    Attributes:
        out: The file that was written.
        vectors: The folder of the vectors.
        pairs: Number of different pairs that were read.
        rows: Number of rows that were written.
        candidates: Number of texts that negatives were taken from.
    """

    out: str
    vectors: str
    pairs: int
    rows: int
    candidates: int


def mine(
    encoder: "Encoder",
    pairs: str,
    out: str | Path,
    *,
    corpus: CorpusRecipe | None = None,
    limits: Limits | None = None,
    prompt: str = "",
    seed: int = 42,
    progress: Progress | None = None,
) -> Mined:
    """Find hard negatives for pairs, and write them as rows that the supervised stage reads.

    Args:
        encoder: The encoder whose cosines are the scores.
        pairs: A file, folder or glob of rows with `anchor` (or `query`) and `positive`.
        out: The file to write: JSON lines with `anchor`, `positive`, the list `negative`, and
            `scores`, the positive's first.
        corpus: Texts to take negatives from, beside the positives of all pairs; None takes them
            from the positives alone.
        limits: Which candidates may be negatives; None is the default limits.
        prompt: Prompt before the anchors; it is not pooled.
        seed: Seed of random sampling.
        progress: Listener that encoding is reported to. None reports to nobody.

    Raises:
        CorpusError: The pairs or the corpus cannot be read, or no pair has enough negatives.
        UsageError: The limits contradict each other.
        UsageError: `out` is a folder or a file that is read.
        RunError: The folder of vectors was made from something else.
    """
    limits, out = limits or Limits(), Path(out)
    _check_target(out, pairs, corpus)
    rows = _different_pairs(pairs)
    texts = [] if corpus is None else list(read_texts(corpus))
    folder = out.with_name(out.name + ".vectors")
    anchors = list(dict.fromkeys(anchor for anchor, _ in rows))
    candidates = list(dict.fromkeys([*texts, *(positive for _, positive in rows)]))
    vectors = _Vectors(
        anchors=_encoded(encoder, anchors, folder / "anchors", prompt, progress),
        candidates=_encoded(encoder, candidates, folder / "candidates", "", progress),
    )
    random.seed(seed)  # the library draws from the module's own generator
    written = _write(_mined(rows, vectors, texts, limits), vectors, out)
    if not written:
        raise CorpusError(
            f"none of {len(rows)} pairs has enough negatives ({limits.negatives}) in these limits; "
            "allow higher scores, look deeper, or give a corpus"
        )
    return Mined(str(out), str(folder), len(rows), written, len(candidates))


def _check_target(out: Path, pairs: str, corpus: CorpusRecipe | None) -> None:
    """Refuse a file that cannot be written or is read, before any work is done."""
    if out.is_dir():
        raise UsageError(f"--out {out}: this is a folder; name a file")
    refuse_input(out, pairs)
    if corpus is not None:
        refuse_input(out, corpus.source)


def _different_pairs(source: str) -> list[tuple[str, str]]:
    """The pairs with two texts, each once, in their order."""
    rows = list(dict.fromkeys(pair for pair in plain_pairs(source) if all(pair)))
    if not rows:
        raise CorpusError(f"{source}: every row has an empty text")
    return rows


def _encoded(
    encoder: "Encoder",
    texts: Sequence[str],
    folder: Path,
    prompt: str,
    progress: Progress | None,
) -> dict[str, np.ndarray]:
    """The vector of each text, those of an earlier try included."""
    source = folder.with_suffix(".jsonl")
    with atomic_file(source) as partial, partial.open("w", encoding="utf8") as file:
        file.writelines(json.dumps({_TEXT: text}) + "\n" for text in texts)
    encode_to_folder(
        encoder,
        str(source),
        folder,
        column=_TEXT,
        prompt=prompt,
        normalize=True,
        keep_text=False,
        progress=progress or Silent(),
    )
    return dict(zip(texts, _stored(folder), strict=True))


def _stored(folder: Path) -> np.ndarray:
    """The vectors of a folder of shards, in the order of their rows."""
    from pyarrow import parquet

    parts = []
    for path in shard_files(folder).values():
        column = parquet.read_table(path, columns=["vector"]).column("vector").combine_chunks()
        parts.append(column.flatten().to_numpy().reshape(len(column), -1))
    vectors_BD: np.ndarray = np.concatenate(parts)
    return vectors_BD


@dataclass(frozen=True)
class _Vectors:
    """Stored vectors in the place of a model, with what `mine_hard_negatives` asks of one.

    Attributes:
        anchors: Vectors of length 1 of the anchors, by their texts.
        candidates: Vectors of length 1 of the candidates, by their texts.
    """

    anchors: Mapping[str, np.ndarray]
    candidates: Mapping[str, np.ndarray]
    device = torch.device("cpu")

    def encode_query(self, texts: Sequence[str], **_: Any) -> np.ndarray:
        return np.stack([self.anchors[text] for text in texts])

    def encode_document(self, texts: Sequence[str], **_: Any) -> np.ndarray:
        return np.stack([self.candidates[text] for text in texts])

    def similarity(self, first_BD: Any, second_CD: Any) -> Tensor:
        return torch.as_tensor(first_BD) @ torch.as_tensor(second_CD).T

    def similarity_pairwise(self, first_BD: Any, second_BD: Any) -> Tensor:
        return (torch.as_tensor(first_BD) * torch.as_tensor(second_BD)).sum(dim=-1)


def _mined(
    rows: Sequence[tuple[str, str]], vectors: _Vectors, texts: Sequence[str], limits: Limits
) -> list[Mapping[str, Any]]:
    """The pairs with their negatives, as the library finds them.

    An anchor that is a candidate too counts as a positive of its own, so that it is no negative of
    itself; these pairs are left out in the end.
    """
    from sentence_transformers.util import mine_hard_negatives

    datasets = optional("datasets", extra="data")
    own = [(anchor, anchor) for anchor in vectors.anchors if anchor in vectors.candidates]
    columns = zip(*dict.fromkeys([*rows, *own]), strict=True)
    data = datasets.Dataset.from_dict(dict(zip(("anchor", "positive"), columns, strict=True)))
    model: Any = vectors
    try:
        found: Iterable[Mapping[str, Any]] = mine_hard_negatives(
            data,
            model,
            corpus=list(texts) or None,
            num_negatives=limits.negatives,
            relative_margin=None if limits.share is None else 1 - limits.share,
            absolute_margin=limits.margin,
            max_score=limits.max_score,
            min_score=limits.min_score,
            range_min=limits.skip,
            range_max=limits.depth,
            sampling_strategy=limits.sampling,
            output_format="n-tuple",
            verbose=False,
        )
    except ValueError as error:
        raise UsageError(f"these limits do not go together: {first_line(error)}") from error
    return [row for row in found if row["anchor"] != row["positive"]]


def _write(found: Sequence[Mapping[str, Any]], vectors: _Vectors, out: Path) -> int:
    """Write the mined rows; their number. Without a row no file is written."""
    if not found:
        return 0
    with atomic_file(out) as partial, partial.open("w", encoding="utf8") as file:
        for row in found:
            negatives = [value for name, value in row.items() if name.startswith("negative")]
            others = [row["positive"], *negatives]
            cosines = vectors.encode_document(others) @ vectors.anchors[row["anchor"]]
            values = {
                "anchor": row["anchor"],
                "positive": row["positive"],
                "negative": negatives,
                "scores": [round(float(cosine), 4) for cosine in cosines],
            }
            file.write(json.dumps(values, ensure_ascii=False) + "\n")
    return len(found)
