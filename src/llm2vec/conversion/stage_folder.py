"""What a stage leaves on disk: its encoder folder, and those of the models kept along the way."""

from pathlib import Path

from llm2vec.backbone.loading import load_decoder
from llm2vec.backbone.source import Source
from llm2vec.conversion.run_folder import write_stage_facts
from llm2vec.encoder.encoder import Encoder
from llm2vec.encoder.folder import CHECKPOINTS
from llm2vec.encoder.settings import Settings
from llm2vec.runtime.files import atomic_folder
from llm2vec.training.stage import Trained
from llm2vec.training.trainer import KEPT


def write_stage(
    folder: Path,
    trained: Trained,
    settings: Settings,
    scratch: Path,
    *,
    trust_remote_code: bool = False,
) -> None:
    """Write a stage's encoder folder, and those of the models kept along the way beside it.

    Args:
        folder: The stage's folder, made whole or not at all.
        trained: What the stage left.
        settings: The encoder's settings.
        scratch: Where the trainer kept models along the way.
        trust_remote_code: Run model code that came with the decoder.
    """
    for kept in sorted(scratch.glob(f"{KEPT}[0-9]*[0-9]")):
        source = Source(kept, trust_remote_code=trust_remote_code)
        _write_kept(source, folder, trained, settings)
    with atomic_folder(folder) as partial:
        Encoder(trained.model, trained.tokenizer, settings=settings).write(partial)
        write_stage_facts(partial, trained.facts)


def _write_kept(kept: Source, folder: Path, trained: Trained, settings: Settings) -> None:
    step = int(Path(kept.name).name.removeprefix(KEPT))
    place = folder.parent / CHECKPOINTS / f"{folder.name}-{step}"
    if place.is_dir():
        return
    body = load_decoder(
        kept, head=False, dtype=trained.model.dtype, config_overrides=trained.configuration
    )
    with atomic_folder(place) as partial:
        Encoder(body, trained.tokenizer, settings=settings).write(partial)
        write_stage_facts(partial, {"stage": trained.facts["stage"], "step": step})
