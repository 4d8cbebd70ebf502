"""What a form of export is: a name, its precisions, and how it is written, opened and described.

A form knows how to write an encoder and how other people open what was written. Whether the two agree is not
its business: the skeleton in `export` compares them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm2vec.encoder.encoder import Encoder
from llm2vec.encoder.settings import Settings
from llm2vec.evaluation.subjects import Embedder


@dataclass(frozen=True)
class Written:
    """What a form says about the files it wrote.

    Attributes:
        weights: The file with the weights, relative to the folder.
        notes: What a person should know before using them.
        facts: Further facts for `export.json`.
    """

    weights: str
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Form:
    """One form of export.

    Attributes:
        name: The value of `--to`.
        library: What the model hub calls the library that opens it.
        least_cosine: The precisions, the default first; for each, the least cosine between a vector of the
            source and one of the export that counts as the same. None: the form has vectors of its own, and
            only its scores can be compared.
        leaves_prompts_out: Whether what opens it can leave prompts out of pooling, as the source does.
        write: Fills an empty folder, at one of the precisions.
        open: Opens a written folder as other people would; the source tells it what they would have to know.
        snippet: Code for the card that opens a folder of this name.
    """

    name: str
    library: str
    least_cosine: Mapping[str, float | None]
    leaves_prompts_out: bool
    write: Callable[[Encoder, Path, str], Written]
    open: Callable[[Path, Written, Encoder], Embedder]
    snippet: Callable[[str, Written, Settings], str]

    @property
    def precisions(self) -> Sequence[str]:
        """Names of the precisions, the default first."""
        return tuple(self.least_cosine)
