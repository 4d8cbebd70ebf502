"""`llm2vec push`: an encoder folder, or an export of one, on a model hub.

A published folder is complete: weights with tokenizer and settings, never an adapter without its
base, no code, and a card with the licence of the decoder. Paths of this machine are left out.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from llm2vec.backbone.source import BUNDLED, Source
from llm2vec.corpus.data_files import HUB
from llm2vec.encoder.folder import PROVENANCE_FILE
from llm2vec.errors import LLM2VecError, ModelError, UsageError, first_line
from llm2vec.runtime.files import files_in, read_json
from llm2vec.serving.export.export import EXPORT_FILE
from llm2vec.serving.folder_check import check_folder
from llm2vec.serving.publish.hub_card import Published, facts_of, front_matter, hub_card
from llm2vec.serving.publish.mteb_results import mteb_results

CARD = "README.md"
_WEIGHTS = ("*.safetensors", "*.gguf", "onnx/*.onnx", "openvino/*.xml")
_TEXT = {".json", ".jsonl", ".md", ".html"}
"""Files that may name paths of this machine."""

_STAGES = ("simcse", "supervised", "distill")
"""Stages of a recipe that may have a corpus of their own."""


@dataclass(frozen=True)
class Upload:
    """The files to publish.

    Attributes:
        name: Name on the hub, `owner/name`.
        files: Path or content of each file, by its path on the hub.
    """

    name: str
    files: Mapping[str, Path | bytes]

    @property
    def card(self) -> str:
        """The card."""
        card = self.files[CARD]
        return card.decode() if isinstance(card, bytes) else card.read_text(encoding="utf8")

    @property
    def sizes(self) -> dict[str, int]:
        """The size of each file, in bytes."""
        return {
            path: len(content) if isinstance(content, bytes) else content.stat().st_size
            for path, content in self.files.items()
        }


def prepare(
    folder: Path,
    name: str,
    *,
    licence: str | None = None,
    base_model: str | None = None,
    languages: Sequence[str] = (),
    datasets: Sequence[str] = (),
    mteb: Path | None = None,
) -> Upload:
    """Check a folder and write its card; nothing is sent.

    Args:
        folder: An encoder folder, or an export.
        name: Name on the hub, `owner/name`.
        licence: Licence of the weights; None is that of the folder's card or the decoder's card.
        base_model: Name of the decoder on the hub; None is that of the provenance, if it is a name
            on the hub.
        languages: Codes of languages; if empty, those of the decoder's card.
        datasets: Data sets on the hub, beside those that the provenance names.
        mteb: Folder of results of mteb; None is no results.

    Raises:
        ModelError: The folder may not be published; the message says why.
        UsageError: The licence is unknown, or the name is not one of a hub.
    """
    _check_name(name)
    check_folder(folder, weights=_WEIGHTS)
    provenance = _provenance(folder)
    decoder = _decoder(provenance)
    own = _own_card(folder)
    licence = licence or front_matter(own or "").get("license")
    known = _facts_of_decoder(decoder) if licence is None or not languages else {}
    paths = [path for path in files_in(folder) if not _is_hidden(path)]
    published = Published(
        name=name,
        licence=licence or known.get("licence") or _no_licence(decoder or folder),
        base_model=base_model or _hub_name(decoder),
        languages=languages or known.get("languages", ()),
        datasets=[*datasets, *_corpora(provenance)],
        results=mteb_results(mteb) if mteb is not None else (),
        files=paths,
        exported_as=_exported_as(folder),
    )
    local = sorted(_local_paths(provenance), key=len, reverse=True)
    card = hub_card(own, published)
    files = _contents(folder, paths, local)
    return Upload(name, {CARD: _without(card, local).encode(), **files})


def _contents(folder: Path, paths: Sequence[str], local: Sequence[str]) -> dict[str, Path | bytes]:
    """The contents of all files but the card, without paths of this machine."""
    return {path: _content(folder / path, local) for path in paths if path != CARD}


def _check_name(name: str) -> None:
    if name.count("/") != 1 or not all(name.split("/")):
        raise UsageError(f"{name} is not a name on a hub; give owner/name")


def _no_licence(decoder: str | Path) -> NoReturn:
    raise UsageError(
        f"the licence of {decoder} is not known, and the encoder inherits it; name it with "
        "--license (such as apache-2.0)"
    )


def send(
    upload: Upload, *, private: bool = True, token: str | None = None, endpoint: str | None = None
) -> str:
    """Publish in one commit; files on the hub that are not among these stay.

    Args:
        upload: Files to publish, from `prepare`.
        private: Whether only its owner sees it; an existing repository stays as visible as it is.
        token: Access token of the hub; None is the token of the last login.
        endpoint: Address of the hub; None is the default one.

    Returns:
        The address of the commit.

    Raises:
        ModelError: The hub refuses, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.errors import HTTPError as AnyHTTPError  # type: ignore[attr-defined]

    api = HfApi(endpoint=endpoint, token=token)
    operations = [CommitOperationAdd(path, content) for path, content in upload.files.items()]
    try:
        api.create_repo(upload.name, private=private, exist_ok=True)
        done = api.create_commit(
            upload.name, operations, commit_message="Encoder made with llm2vec"
        )
    except (AnyHTTPError, HFValidationError, OSError, ValueError) as error:
        raise ModelError(f"{upload.name} was not published: {first_line(error)}") from error
    return str(done.commit_url)


def _own_card(folder: Path) -> str | None:
    path = folder / CARD
    return path.read_text(encoding="utf8") if path.is_file() else None


def _exported_as(folder: Path) -> str | None:
    """The name by which the card of an export calls its folder; None for an encoder."""
    path = folder / EXPORT_FILE
    return Path(read_json(path)["folder"]).name if path.is_file() else None


def _provenance(folder: Path) -> Mapping[str, Any]:
    path = folder / PROVENANCE_FILE
    found: Mapping[str, Any] = read_json(path) if path.is_file() else {}
    return found


def _decoder(provenance: Mapping[str, Any]) -> str | None:
    """The decoder that the encoder was made from, as the provenance names it."""
    imported = provenance.get("imported") or [{}]
    named = provenance.get("recipe", {}).get("decoder") or imported[0].get("source")
    return None if named is None else str(named)


def _facts_of_decoder(decoder: str | None) -> Mapping[str, Any]:
    """The licence and languages that a decoder's card names; empty if it cannot be read."""
    if decoder is None:
        return {}
    try:
        path = Source.of(decoder).find(CARD)
    except LLM2VecError:
        return {}
    return facts_of(None if path is None else path.read_text(encoding="utf8"))


def _hub_name(decoder: str | None) -> str | None:
    """The decoder's name if it is one of the hub: owner/name, and nothing of this machine."""
    if decoder is None or decoder == BUNDLED or Path(decoder).exists():
        return None
    name = decoder.partition(":")[0]
    return name if name.count("/") == 1 and name[0] not in "./~" else None


def _corpora(provenance: Mapping[str, Any]) -> list[str]:
    """The data sets of the hub that the stages were trained on."""
    recipe = provenance.get("recipe", {})
    corpora = [recipe.get("corpus"), *(recipe.get(stage, {}).get("corpus") for stage in _STAGES)]
    sources = [str(corpus.get("source")) for corpus in corpora if isinstance(corpus, Mapping)]
    return [source.removeprefix(HUB) for source in sources if source.startswith(HUB)]


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in Path(path).parts)


def _local_paths(values: Any) -> Iterator[str]:
    """Absolute paths among the values of a file, however deep."""
    if isinstance(values, Mapping):
        values = list(values.values())
    if isinstance(values, list):
        for value in values:
            yield from _local_paths(value)
    elif isinstance(values, str) and Path(values).is_absolute() and len(Path(values).parts) > 1:
        yield values


def _content(path: Path, local: Sequence[str]) -> Path | bytes:
    """The published content of a file: the file, or its text without paths of this machine."""
    if path.suffix not in _TEXT or path.name == "tokenizer.json":
        return path
    text = path.read_text(encoding="utf8")
    changed = _without(text, local)
    return path if changed == text else changed.encode()


def _without(text: str, local: Sequence[str]) -> str:
    """A text that names files of this machine by their last part alone."""
    for path in local:
        for written in {path, json.dumps(path)[1:-1]}:
            text = text.replace(written, Path(path).name)
    return text
