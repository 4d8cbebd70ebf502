"""What a recipe that goes on with an encoder keeps of it: its settings and its provenance."""

from pathlib import Path
from typing import Any

from llm2vec.backbone.source import UNI, Source
from llm2vec.conversion.run_folder import STAGE_FILE
from llm2vec.encoder.folder import PROVENANCE_FILE, SETTINGS_FILE, read_settings
from llm2vec.encoder.settings import Settings
from llm2vec.runtime.files import read_json

_IN_RECIPES = ("pooling", "max_length", "normalize", "prompts", "template", "separator")
"""Settings that a recipe's section `encoder` has too."""


def own_settings(source: Source) -> Settings | None:
    """The settings of an encoder that this program made; None for any other model."""
    return None if source.find(SETTINGS_FILE) is None else read_settings(source)


def kept_settings(name: str, *, trust_remote_code: bool) -> dict[str, Any]:
    """The part of a recipe that goes on with a model: its name, and the settings of its encoder.

    Args:
        name: Folder or hub id; `uni:` before a decoder keeps it causal.
        trust_remote_code: Whether model code that comes with the model may run.

    Raises:
        ModelError: The model does not exist, or its settings are damaged.
    """
    decoder = name.removeprefix(UNI)
    source = Source.of(decoder, trust_remote_code=trust_remote_code)
    source.check()
    settings = own_settings(source)
    encoder: dict[str, Any] = {}
    if settings is not None:
        encoder = {key: getattr(settings, key) for key in _IN_RECIPES}
    if name.startswith(UNI):
        encoder["bidirectional"] = False
    return {"decoder": decoder, "trust_remote_code": trust_remote_code, "encoder": encoder}


def last_stage(source: Source) -> str | None:
    """The stage that an encoder was trained by last; None if its files do not say."""
    for name in (STAGE_FILE, PROVENANCE_FILE):
        path = source.find(name)
        if path is not None and own_settings(source) is not None:
            facts = read_json(path)
            stages = facts.get("stages") or [facts]
            return str(stages[-1].get("stage"))
    return None


def lineage(source: Source) -> dict[str, Any]:
    """What the provenance says of the encoder that a training went on with; empty for a decoder."""
    if own_settings(source) is None:
        return {}
    path = source.find(PROVENANCE_FILE)
    if path is None:
        stage = source.find(STAGE_FILE)
        return {} if stage is None else {"parent": {"stages": [_stage_facts(stage)]}}
    before = read_json(path)
    kept = ("recipe", "decoder", "adapters", "corpora", "stages", "parent")
    return {"parent": {key: before[key] for key in kept if key in before}}


def _stage_facts(path: Path) -> dict[str, Any]:
    """What the file of a stage's folder says of it, without the list of files."""
    return {key: value for key, value in read_json(path).items() if key != "files"}
