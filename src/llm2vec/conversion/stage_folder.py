"""The folders that a stage leaves: its encoder, and those of models kept during training."""

import shutil
from pathlib import Path

from llm2vec.backbone.loading import load_decoder
from llm2vec.backbone.source import Source
from llm2vec.conversion.run_folder import write_stage_facts
from llm2vec.encoder.encoder import Encoder
from llm2vec.encoder.folder import CHECKPOINTS
from llm2vec.encoder.settings import Settings
from llm2vec.runtime.files import atomic_folder
from llm2vec.training.stage import ADAPTER, Trained
from llm2vec.training.trainer import KEPT


def write_stage(
    folder: Path,
    trained: Trained,
    settings: Settings,
    scratch: Path,
    *,
    trust_remote_code: bool,
) -> None:
    """Write a stage's encoder folder and, beside it, those of the models kept during training.

    Args:
        folder: The stage's folder to make, whole or not at all.
        trained: The result of the stage.
        settings: The encoder's settings.
        scratch: The folder in which the trainer kept models.
        trust_remote_code: Whether model code that came with the decoder may run.
    """
    for kept in sorted(scratch.glob(f"{KEPT}[0-9]*[0-9]")):
        source = Source(kept, trust_remote_code=trust_remote_code)
        _write_kept(source, folder, trained, settings)
    with atomic_folder(folder) as partial:
        Encoder(trained.model, trained.tokenizer, settings=settings).write(partial)
        if (scratch / ADAPTER).is_dir():
            shutil.copytree(scratch / ADAPTER, partial / ADAPTER)
        write_stage_facts(partial, trained.facts)


def _write_kept(kept: Source, folder: Path, trained: Trained, settings: Settings) -> None:
    """Write the encoder folder of a kept model, unless an earlier try wrote it."""
    step = int(Path(kept.name).name.removeprefix(KEPT))
    encoder_folder = folder.parent / CHECKPOINTS / f"{folder.name}-{step}"
    if encoder_folder.is_dir():
        return
    body = load_decoder(
        kept, head=False, dtype=trained.model.dtype, config_overrides=trained.configuration
    )
    with atomic_folder(encoder_folder) as partial:
        Encoder(body, trained.tokenizer, settings=settings).write(partial)
        write_stage_facts(partial, {"stage": trained.facts["stage"], "step": step})
