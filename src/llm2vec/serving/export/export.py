"""`llm2vec export`: writes an encoder in another form, opens it as others would, and compares.

An export that does not give the vectors of its source is an error, and nothing is left of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm2vec.backbone.source import Source
from llm2vec.encoder.encoder import Encoder
from llm2vec.encoder.folder import PROVENANCE_FILE
from llm2vec.encoder.settings import Settings
from llm2vec.errors import ProofFailed, RunError, UsageError
from llm2vec.evaluation.analysis import BUNDLED_SETS
from llm2vec.evaluation.sentence_tasks import sts
from llm2vec.evaluation.subjects import Embedder
from llm2vec.runtime.files import atomic_folder, read_json, write_json
from llm2vec.runtime.hardware import versions
from llm2vec.runtime.optional import optional
from llm2vec.serving.export.card import export_card
from llm2vec.serving.export.comparison import Agreement, compare, comparison_texts
from llm2vec.serving.export.form import Form, Written
from llm2vec.serving.export.to_gguf import GGUF
from llm2vec.serving.export.to_onnx import ONNX
from llm2vec.serving.export.to_openvino import OPENVINO
from llm2vec.serving.export.to_servers import TO_TEI, TO_VLLM
from llm2vec.serving.export.to_static import STATIC

FORMS: tuple[Form, ...] = (ONNX, OPENVINO, GGUF, STATIC, TO_TEI, TO_VLLM)

EXPORT_FILE = "export.json"
"""The file, in the folder of an export, that says what was written and measured."""

_A_PROMPT = "Represent this sentence for searching:"
"""A prompt that is tried beside the encoder's own."""


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        folder: Folder of the export.
        source: Name of the encoder's folder.
        form: Name of the form, as for `--to`.
        precision: Precision of the weights.
        weights: File with the weights.
        weights_bytes: Size of the weights, second files included.
        agreement: Agreement with the source's vectors; None for a form with vectors of its own.
        similarity: Spearman correlation on graded pairs, of `source` and of `export`.
        pairs: Name of the pairs.
        notes: What a person should know.
        facts: Further facts of the form.
    """

    folder: str
    source: str
    form: str
    precision: str
    weights: str
    weights_bytes: int
    agreement: Agreement | None
    similarity: Mapping[str, float]
    pairs: str
    notes: tuple[str, ...]
    facts: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data for JSON."""
        return asdict(self)


def export(
    source: str | Path | Source,
    to: str,
    *,
    out: str | Path,
    precision: str | None = None,
    pairs: str | Path | None = None,
) -> Exported:
    """Write an encoder in another form and prove that it is the same.

    Args:
        source: An encoder folder or hub id; a `Source` says whether code of the model may run.
        to: Name of a form, one of `FORMS`.
        out: The folder to make.
        precision: Precision of the weights; None is the form's first.
        pairs: File of graded pairs (`score, text, text`), on which the loss of quality is
            measured; None is the bundled pairs.

    Raises:
        UsageError: The form or the precision does not exist, or a package is missing.
        ModelError: The encoder cannot be written in this form; the message says why.
        ProofFailed: The export gives other vectors than its source.
        RunError: `out` exists.
    """
    form, precision = _chosen(to, precision)
    out = _new_folder(out)
    graded = _graded_pairs(pairs)
    optional("scipy", extra="evaluate")
    found = Source.of(source)
    encoder = Encoder.from_pretrained(found, device="cpu", dtype=torch.float32)
    with atomic_folder(out) as partial:
        written = form.write(encoder, partial, precision)
        original = _embedder(encoder)
        exported = form.open(partial, written, encoder)
        agreement = _agreement(form, precision, original, exported, encoder.settings)
        result = Exported(
            folder=str(out),
            source=Path(found.name).name,
            form=form.name,
            precision=precision,
            weights=written.weights,
            weights_bytes=_bytes(partial / written.weights),
            agreement=agreement,
            similarity=_similarity(original, exported, graded),
            pairs=graded.name,
            notes=(*written.notes, *_notes(form, encoder.settings)),
            facts=written.facts,
        )
        _describe(result, form, written, encoder, found, partial)
    return result


def _new_folder(out: str | Path) -> Path:
    folder = Path(out)
    if folder.exists():
        raise RunError(f"{folder} exists already; choose another --out or remove it")
    return folder


@dataclass(frozen=True)
class _GradedPairs:
    """A file of graded pairs, and its name for people."""

    path: Path
    name: str


def _graded_pairs(given: str | Path | None) -> _GradedPairs:
    if given is None:
        return _GradedPairs(BUNDLED_SETS / "pairs.jsonl", "bundled pairs")
    return _GradedPairs(Path(given), Path(given).name)


def _similarity(source: Embedder, exported: Embedder, graded: _GradedPairs) -> dict[str, float]:
    """The Spearman correlation of cosines and grades, of source and export."""
    return {
        "source": float(sts(source, graded.path).value),
        "export": float(sts(exported, graded.path).value),
    }


def _chosen(to: str, precision: str | None) -> tuple[Form, str]:
    known = {form.name: form for form in FORMS}
    if to not in known:
        raise UsageError(f"--to {to}: there is {', '.join(known)}")
    form = known[to]
    precision = precision or form.precisions[0]
    if precision not in form.precisions:
        raise UsageError(f"--precision {precision}: {to} has {', '.join(form.precisions)}")
    return form, precision


def _embedder(encoder: Encoder) -> Embedder:
    """The source, without its limit on texts before their prompts, which no other library has."""
    whole = Encoder(
        encoder.model,
        encoder.tokenizer,
        settings=replace(encoder.settings, doc_max_length=None),
        switch=encoder.switch,
    )

    def embed(texts: Sequence[str], *, prompt: str | None = None) -> np.ndarray:
        return whole.encode(list(texts), prompt=prompt, convert_to_numpy=True)

    return embed


def _agreement(
    form: Form, precision: str, source: Embedder, exported: Embedder, settings: Settings
) -> Agreement | None:
    least = form.least_cosine[precision]
    if least is None:
        return None
    prompts = [] if _prompts_differ(form, settings) else [*settings.prompts.values(), _A_PROMPT]
    found = compare(source, exported, comparison_texts(), prompts=prompts)
    if found.least_cosine < least:
        raise ProofFailed(
            f"exported to {form.name} ({precision}) it gives other vectors: cosine "
            f"{found.least_cosine:.6f} for {found.worst!r}, at least {least} is allowed; nothing "
            "was written"
        )
    return found


def _prompts_differ(form: Form, settings: Settings) -> bool:
    """Whether what opens the form pools prompts where the source does not."""
    averaged = settings.pooling in ("mean", "weighted_mean")
    return averaged and settings.skip_prompt and not form.leaves_prompts_out


def _notes(form: Form, settings: Settings) -> list[str]:
    notes = []
    if settings.template is not None:
        notes.append(f"texts must be wrapped before they are encoded: {settings.template!r}")
    if settings.doc_max_length is not None:
        notes.append(
            f"texts are not cut to {settings.doc_max_length} tokens before their prompt is added"
        )
    if settings.prompts and _prompts_differ(form, settings):
        notes.append("prompts are pooled here, so vectors with a prompt differ from the source's")
    return notes


def _bytes(weights: Path) -> int:
    """The size of a file and of those whose names begin with its name."""
    return sum(each.stat().st_size for each in weights.parent.glob(weights.name + "*"))


def _describe(
    result: Exported, form: Form, written: Written, encoder: Encoder, source: Source, folder: Path
) -> None:
    """Write the facts, the card, and the source's provenance beside the weights."""
    provenance = {}
    path = source.find(PROVENANCE_FILE)
    if path is not None:
        provenance = read_json(path)
        write_json(folder / PROVENANCE_FILE, provenance)
    write_json(folder / EXPORT_FILE, {**result.to_dict(), "versions": versions()})
    snippet = form.snippet(Path(result.folder).name, written, encoder.settings)
    card = export_card(
        result.to_dict(), library=form.library, snippet=snippet, provenance=provenance
    )
    (folder / "README.md").write_text(card, encoding="utf8")
