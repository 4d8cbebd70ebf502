"""One file of a model, from its folder or from the hub; a file that is not there is None, not an error."""

from pathlib import Path
from typing import Any

from llm2vec.backbone.source import is_gguf
from llm2vec.errors import ModelError, first_line

_MAIN = ("config.json", "adapter_config.json")
"""Of which every model has one."""


def find_file(source: str | Path, name: str, **hub: Any) -> Path | None:
    """Where a file of a model lies.

    Args:
        source: A folder or a hub id; a GGUF file is one file and has no others.
        name: Of the file.
        **hub: `revision`, `token`, `cache_dir`.

    Raises:
        ModelError: There is no such folder and no such model, or no way to ask.
    """
    if Path(source).is_dir():
        return Path(source) / name if (Path(source) / name).is_file() else None
    if is_gguf(source):
        return None
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    known = {
        key: hub[key] for key in ("revision", "token", "cache_dir") if hub.get(key) is not None
    }
    try:
        return Path(hf_hub_download(str(source), name, **known))
    except LocalEntryNotFoundError as error:
        others = [
            try_to_load_from_cache(str(source), other, cache_dir=hub.get("cache_dir"))
            for other in _MAIN
        ]
        if any(isinstance(other, str) for other in others):
            return None  # no network, but the model was fetched before, without this file
        raise ModelError(
            f"there is no folder {source}, and the hub cannot be asked: {first_line(error)}"
        ) from error
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(
            f"cannot find {source}, neither as a folder nor on the hub: {first_line(error)}"
        ) from error
