"""`llm2vec export`: write an encoder in another form, open it as others would, compare, and publish the folder.

An export that does not give the vectors of its source is no export: nothing is left of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

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
from llm2vec.serving.export.to_servers import TO_TEI, TO_VLLM
from llm2vec.serving.export.to_static import STATIC

FORMS: tuple[Form, ...] = (ONNX, GGUF, STATIC, TO_TEI, TO_VLLM)

EXPORT_FILE = "export.json"
"""What was written and measured, in the folder of an export."""

_A_PROMPT = "Represent this sentence for searching:"
"""Tried beside the encoder's own prompts."""


@dataclass(frozen=True)
class Exported:
    """What came of an export.

    Attributes:
        folder: Where it lies.
        source: Name of the encoder's folder.
        form: As of `--to`.
        precision: Of the weights.
        weights: File with the weights.
        weights_bytes: Its size, second files included.
        agreement: With the source's vectors; None for a form that has vectors of its own.
        similarity: Spearman correlation on graded pairs, of `source` and of `export`.
        pairs: What the pairs are.
        notes: What a person should know.
        facts: Of the form.
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
        """For JSON."""
        return asdict(self)


def export(
    source: str | Path,
    to: str,
    *,
    out: str | Path,
    precision: str | None = None,
    pairs: str | Path | None = None,
) -> Exported:
    """Write an encoder in another form and prove that it is the same.

    Args:
        source: An encoder folder or hub id.
        to: The form, one of `FORMS` by name.
        out: The folder to make.
        precision: Of the weights; None: the form's first.
        pairs: Graded pairs to measure the loss on (`score, text, text`); None: the bundled ones.

    Raises:
        UsageError: There is no such form or precision, or a package is missing.
        ModelError: The encoder cannot be written in this form; the message says why.
        ProofFailed: The export gives other vectors than its source.
        RunError: `out` exists.
    """
    form, precision = _chosen(to, precision)
    out = Path(out)
    if out.exists():
        raise RunError(f"{out} exists already; choose another --out or remove it")
    graded = BUNDLED_SETS / "pairs.jsonl" if pairs is None else Path(pairs)
    optional("scipy", extra="evaluate")
    encoder = Encoder.from_pretrained(source, device="cpu", dtype=torch.float32)
    with atomic_folder(out) as partial:
        written = form.write(encoder, partial, precision)
        original, exported = _embedder(encoder), form.open(partial, written, encoder)
        agreement = _agreement(form, precision, original, exported, encoder.settings)
        scores = {
            name: float(sts(embed, graded).value)
            for name, embed in (("source", original), ("export", exported))
        }
        result = Exported(
            folder=str(out),
            source=Path(source).name,
            form=form.name,
            precision=precision,
            weights=written.weights,
            weights_bytes=_bytes(partial / written.weights),
            agreement=agreement,
            similarity=scores,
            pairs="bundled pairs" if pairs is None else graded.name,
            notes=(*written.notes, *_notes(form, encoder.settings)),
            facts=written.facts,
        )
        _describe(result, form, written, encoder, Path(source), partial)
    return result


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
    """The source; its limit on texts without their prompts is ours alone, and left out of the comparison."""
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
            f"exported to {form.name} ({precision}) it gives other vectors: cosine {found.least_cosine:.6f} for "
            f"{found.worst!r}, at least {least} is allowed; nothing was written"
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
    """Of the file and of those that continue its name."""
    return sum(each.stat().st_size for each in weights.parent.glob(weights.name + "*"))


def _describe(
    result: Exported, form: Form, written: Written, encoder: Encoder, source: Path, folder: Path
) -> None:
    """Write the facts, the card, and the source's provenance beside the weights."""
    provenance = {}
    if (source / PROVENANCE_FILE).is_file():
        provenance = read_json(source / PROVENANCE_FILE)
        write_json(folder / PROVENANCE_FILE, provenance)
    write_json(folder / EXPORT_FILE, {**result.to_dict(), "versions": versions()})
    snippet = form.snippet(Path(result.folder).name, written, encoder.settings)
    card = export_card(
        result.to_dict(), library=form.library, snippet=snippet, provenance=provenance
    )
    (folder / "README.md").write_text(card, encoding="utf8")
