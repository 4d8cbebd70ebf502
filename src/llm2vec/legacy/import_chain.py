"""A chain of adapters of version 0.2.3 as one encoder folder: merged, proven, and read back."""

import warnings
from pathlib import Path
from typing import Any

from llm2vec.backbone.adapter_chain import Chain, chain_provenance
from llm2vec.conversion.read_back import prove_read_back
from llm2vec.encoder.encoder import Encoder
from llm2vec.encoder.folder import PROVENANCE_FILE, about_template
from llm2vec.encoder.sentence_transformers_files import unlike_elsewhere
from llm2vec.errors import UsageError
from llm2vec.runtime.files import (
    atomic_folder,
    files_in,
    refuse_occupied,
    resolved_folder,
    write_json,
)


def import_encoder(chain: Chain, out: Path, *, pooling: str | None = None) -> dict[str, Any]:
    """Merge a chain of adapters and write the encoder, completely or not at all.

    Args:
        chain: Base and adapters, as `find_chain` returns them.
        out: Folder to make, which must be empty or not exist.
        pooling: Pooling; None takes what the adapters' settings say.

    Returns:
        The contents of `provenance.json`: the adapters in the order they were merged, and the
        proofs.

    Raises:
        RunError: The folder is not empty.
        ModelError: A model cannot be loaded, an adapter does not fit, or the decoder cannot be made
            bidirectional.
        UsageError: sentence-transformers has no equivalent of the pooling.
        ProofFailed: sentence-transformers reads other vectors from the folder.
    """
    out = resolved_folder(out, option="--out")
    refuse_occupied(out)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the caller has shown the doubts already
        encoder = Encoder.from_pretrained(chain.base, adapters=chain.folders, pooling=pooling)
    encoder.settings = encoder.settings.changed(boundary="offsets")
    reason = unlike_elsewhere(encoder.settings, encoder.tokenizer)
    if reason is not None:
        raise UsageError(f"{reason}; choose another pooling")
    with atomic_folder(out) as partial:
        encoder.write(partial)
        proof = prove_read_back(encoder, partial, trust_remote_code=chain.base.trust_remote_code)
        facts = chain_provenance(chain)
        facts["notes"] += filter(None, [about_template(encoder.settings)])
        facts["switch"] = encoder.switch.to_dict() if encoder.switch else None
        facts["read_back"] = proof.to_dict()
        write_json(partial / PROVENANCE_FILE, {**facts, "files": files_in(partial)})
    return facts
