"""The work folder of a conversion: whose it is, what stands in it already, and what would make that stale.

Work lies in `OUT.stages/` until the encoder stands in `OUT`, whole. Nothing is kept anywhere else. This module knows
stages only as folders with names.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm2vec.backbone.source import Source
from llm2vec.corpus.texts import corpus_fingerprint
from llm2vec.corpus.triples import KINDS
from llm2vec.encoder.folder import PROVENANCE_FILE
from llm2vec.errors import RunError, UsageError
from llm2vec.recipe.knobs import Recipe, differences
from llm2vec.runtime.files import PARTIAL, fingerprint, read_json, write_json
from llm2vec.runtime.progress import Progress

_RUN_FILE = "run.json"
_SCRATCH = ".work"


class Work:
    """One conversion's folders.

    Attributes:
        out: Where the encoder will stand.
        folder: Where the work lies.
        own_texts: The file of texts that the decoder wrote.
    """

    def __init__(self, recipe: Recipe, source: Source, out: Path, progress: Progress) -> None:
        self.out = out
        self.folder = out.with_name(out.name + ".stages")
        self.own_texts = self.folder / "self.txt"
        self._recipe, self._source, self._progress = recipe, source, progress
        self._made: list[str] = []

    @property
    def made(self) -> list[Path]:
        """The stages' folders that stand, in order; the last one is what the next stage starts from."""
        return [self.folder / name for name in self._made]

    def kept(self) -> dict[str, Path]:
        """The stages' folders by name, also after the run that made them."""
        return {
            path.name: path
            for path in sorted(self.folder.glob("[0-9]-*"))
            if path.suffix != PARTIAL
        }

    def finished(self) -> bool:
        """Whether the encoder stands there; a different one is refused."""
        provenance = self.out / PROVENANCE_FILE
        if not self.out.exists():
            return False
        if not provenance.is_file():
            raise RunError(
                f"{self.out} exists and is no encoder made here; choose another --out or remove it"
            )
        self._refuse_changes(read_json(provenance), self.out)
        return True

    def forget(self) -> None:
        """Remove what an earlier run made under this name, and nothing else."""
        for folder, ours in ((self.out, PROVENANCE_FILE), (self.folder, _RUN_FILE)):
            if (folder / ours).is_file():
                shutil.rmtree(folder)

    def begin(self) -> None:
        """Claim the work folder, or go on in it."""
        known = self.folder / _RUN_FILE
        if known.is_file():
            self._refuse_changes(read_json(known), self.folder)
            return
        if self.folder.exists() and any(self.folder.iterdir()):
            raise RunError(
                f"{self.folder} exists and is not ours; remove it, or choose another --out"
            )
        write_json(known, self.identity())

    def identity(self) -> dict[str, Any]:
        """What a run is: recipe, decoder, adapters and corpora, by content."""
        recipe = self._recipe
        corpora = {"corpus": recipe.corpus, "simcse.corpus": recipe.simcse.corpus or recipe.corpus}
        fingerprints = {name: corpus_fingerprint(corpus.source) for name, corpus in corpora.items()}
        if recipe.supervised.steps:
            fingerprints["supervised.corpus"] = corpus_fingerprint(
                str(recipe.supervised.corpus.source), kinds=KINDS
            )
        return {
            "recipe": recipe.to_dict(),
            "decoder": _fingerprint(self._source),
            "adapters": [_fingerprint(Source.of(adapter)) for adapter in recipe.adapters],
            "corpora": fingerprints,
        }

    def _refuse_changes(self, before: Mapping[str, Any], where: Path) -> None:
        now = self.identity()
        changed = list(differences(_completed(before.get("recipe", {})), now["recipe"]))
        if before.get("decoder") != now["decoder"]:
            changed.append("the decoder's files")
        if before.get("adapters", []) != now["adapters"] and not changed:
            changed.append("the adapters' files")
        if before.get("corpora") != now["corpora"] and not changed:
            changed.append("the texts of the corpus")
        if changed:
            raise RunError(
                f"{where} was made with something else: {'; '.join(changed)}. "
                "Say --start-over to throw it away, or choose another --out"
            )

    def stage(self, name: str, make: Callable[[Path], None]) -> None:
        """Make a stage's folder unless it is there."""
        folder = self.folder / name
        if folder.is_dir():
            self._progress.note(f"{name} is there already")
        else:
            make(folder)
        shutil.rmtree(_place_of_scratch(folder), ignore_errors=True)
        if folder.is_dir():
            self._made.append(name)


@contextmanager
def scratch_beside(folder: Path) -> Iterator[Path]:
    """A stage's own place for tokens and checkpoints; kept when the stage is cut short, removed when it is done."""
    scratch = _place_of_scratch(folder)
    scratch.mkdir(parents=True, exist_ok=True)
    yield scratch
    shutil.rmtree(scratch, ignore_errors=True)


def _completed(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """A recipe as it was written down, with the defaults of knobs that did not exist then."""
    try:
        return Recipe.read(recipe).to_dict()
    except UsageError:
        return recipe


def _fingerprint(model: Source) -> str:
    """The fingerprint of a folder's or file's content; a hub id stands for itself."""
    return str(model) if model.path is None else fingerprint(model.path)


def _place_of_scratch(folder: Path) -> Path:
    return folder.with_name(folder.name + _SCRATCH)
