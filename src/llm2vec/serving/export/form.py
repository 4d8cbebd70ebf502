"""Forms of export: a name, precisions, and functions that write, open and describe an export.

A form knows how to write an encoder and how other people open what was written. It does not check
that the two agree; `export` compares them.
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
    """Facts about the files that a form wrote.

    Attributes:
        weights: File with the weights, relative to the folder.
        notes: What a person should know before using the export.
        facts: Further facts for `export.json`.
    """

    weights: str
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Form:
    """One form of export.

    Attributes:
        name: Name of the form, as for `--to`.
        library: Name, on the model hub, of the library that opens the export.
        least_cosine: Least cosine, by precision, of a vector of the source and one of the export
            that count as the same; the default precision is first. None: the form has vectors of
            its own, and only its scores can be compared.
        leaves_prompts_out: Whether the library can leave prompts out of pooling, as the source
            does.
        write: Function that fills an empty folder, at one of the precisions.
        open: Function that opens a written folder as other people would; it takes from the source
            what they would have to know.
        snippet: Function that gives the code for the card, for a folder's name.
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
