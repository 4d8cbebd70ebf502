"""The run folder of a conversion: whose it is, what is in it already, and what would make that stale.

Work lies in `OUT.stages/` until the encoder lies in `OUT`, whole. Nothing is kept anywhere else. This module knows
stages only as folders with names.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from llm2vec.backbone.source import Source, relative_name
from llm2vec.corpus.data_files import TABLES
from llm2vec.corpus.texts import corpus_fingerprint
from llm2vec.encoder.folder import CHECKPOINTS, PROVENANCE_FILE
from llm2vec.errors import RunError, UsageError
from llm2vec.recipe.files import differences
from llm2vec.recipe.knobs import Recipe
from llm2vec.runtime import fingerprint
from llm2vec.runtime.files import (
    PARTIAL,
    files_in,
    publish,
    read_json,
    remove_files,
    resolved_folder,
    write_json,
)
from llm2vec.runtime.lock import LOCK_FILES, locked
from llm2vec.runtime.progress import Progress

STAGE_FILE = "stage.json"
"""In a stage's folder: what was done, the proofs, the metrics, and the files that were written."""

REPORT_FACTS = "report.json"
REPORT_FILES = ("report.html", "report.md", REPORT_FACTS)
"""What `llm2vec report` writes into an encoder's folder."""

_RUN_FILE = "run.json"
_PUBLISHING_FILE = "publishing.json"
_OWN_TEXTS = "self.txt"
_SCRATCH = ".work"
_STAGES = "[0-9]-*"


def stages_folder(out: Path) -> Path:
    """Where the stages of the encoder `out` lie, beside it; links are followed."""
    real = resolved_folder(out, option="--out")
    return real.with_name(real.name + ".stages")


class Work:
    """One conversion's folders.

    Attributes:
        out: Where the encoder will lie: a real path, without links.
        folder: The run folder.
        own_texts: The file of texts that the decoder wrote.
        plan: How the recipe was planned within a budget, under the key `plan`; empty where it was not.
    """

    def __init__(
        self,
        recipe: Recipe,
        source: Source,
        out: Path,
        progress: Progress,
        *,
        plan: Mapping[str, Any] | None = None,
    ) -> None:
        self.plan = {} if plan is None else {"plan": plan}
        self.out = resolved_folder(out, option="--out")
        self.folder = stages_folder(out)
        self.own_texts = self.folder / _OWN_TEXTS
        self._recipe, self._source, self._progress = recipe, source, progress
        self._made: list[str] = []

    @property
    def made(self) -> list[Path]:
        """The folders of the stages that are done, in order; the next stage starts from the last one."""
        return [self.folder / name for name in self._made]

    def kept(self) -> dict[str, Path]:
        """The stages' folders by name, also after the run that made them."""
        folders = (path for path in sorted(self.folder.glob(_STAGES)) if path.is_dir())
        return {path.name: path for path in folders if path.suffix not in (PARTIAL, _SCRATCH)}

    def kept_plan(self) -> Mapping[str, Any] | None:
        """The plan that an earlier run under this name was made by; None where there was none."""
        for file in (self.folder / _RUN_FILE, self.out / PROVENANCE_FILE):
            if file.is_file() and (plan := read_json(file).get("plan")) is not None:
                kept: Mapping[str, Any] = plan
                return kept
        return None

    def has_begun(self) -> bool:
        """Whether a stage or the encoder is there."""
        return any(self.folder.glob(_STAGES)) or (self.out / PROVENANCE_FILE).is_file()

    def finished(self) -> bool:
        """Whether the encoder is there.

        Raises:
            RunError: It was made with something else, or is no encoder of this program.
        """
        if not self.out.is_dir() or not any(self.out.iterdir()):
            return False
        provenance = self.out / PROVENANCE_FILE
        if not provenance.is_file():
            if self._was_publishing():
                return False
            raise RunError(
                f"{self.out} exists and is no encoder made here; choose another --out or remove it"
            )
        self._refuse(self._changes(read_json(provenance)), self.out)
        return True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the run folder against other processes; a folder without a finished stage is removed in the end.

        Raises:
            RunError: Another process holds it, it is not ours, or it cannot be made.
        """
        if self.folder.exists() and not (self.folder / _RUN_FILE).is_file():
            names = {each.name for each in self.folder.iterdir() if each.suffix != PARTIAL}
            if not names <= {*LOCK_FILES}:
                raise RunError(
                    f"{self.folder} exists and is not ours; remove it, or choose another --out"
                )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{self.folder} cannot be made: {error.strerror}") from error
        try:
            with locked(self.folder):
                try:
                    yield
                finally:
                    if not any(self.folder.glob(_STAGES)):
                        self._remove_bookkeeping()
        finally:
            remove_files(self.folder, ())

    def forget(self) -> None:
        """Remove what an earlier run made under this name.

        Raises:
            RunError: Something else lies among it; nothing is removed then.
        """
        made = self._stage_folders() if (self.folder / _RUN_FILE).is_file() else []
        encoder = [self.out] if (self.out / PROVENANCE_FILE).is_file() else []
        for folder in (*encoder, *made):
            if strange := sorted({*files_in(folder)} - {*_written(folder)}):
                raise RunError(
                    f"{folder} holds {strange[0]}, which was not written by the run that made it; "
                    "move it, or choose another --out"
                )
        for folder in encoder:
            remove_files(folder, _written(folder))
        if (self.folder / _RUN_FILE).is_file():
            self.remove()

    def begin(self) -> None:
        """Claim the run folder, or go on in it.

        Raises:
            RunError: A stage in it was made with something else.
        """
        known = self.folder / _RUN_FILE
        if known.is_file():
            changes = self._changes(read_json(known))
            if not changes:
                self._remove_partials()
                return
            if any(self.folder.glob(_STAGES)):
                self._refuse(changes, self.folder)
            self._remove_bookkeeping()
        self._remove_partials()
        write_json(known, {**self.identity, **self.plan})

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a run is, as it was at the start: recipe, decoder, adapters and corpora, by content."""
        recipe = self._recipe
        corpora = {"corpus": recipe.corpus, "simcse.corpus": recipe.simcse.corpus}
        hashed_once = cache(corpus_fingerprint)
        fingerprints = {
            name: hashed_once(corpus.source, as_format=corpus.format)
            for name, corpus in corpora.items()
            if corpus
        }
        if recipe.supervised.steps:
            fingerprints["supervised.corpus"] = corpus_fingerprint(
                str(recipe.supervised.corpus.source), formats=TABLES
            )
        return {
            "recipe": recipe.to_dict(),
            "decoder": _fingerprint(self._source),
            "adapters": [_fingerprint(Source.of(adapter)) for adapter in recipe.adapters],
            "corpora": fingerprints,
        }

    def places(self) -> dict[str, Any]:
        """Where the encoder finds the models that it was made from: paths from its own folder, or hub ids."""
        recipe = self._recipe
        return {
            "decoder": relative_name(self.out, recipe.decoder),
            "adapters": [relative_name(self.out, each) for each in recipe.adapters],
        }

    def _changes(self, before: Mapping[str, Any]) -> list[str]:
        """What is not as it was. Contents count, not the places that they are found in."""
        now = self.identity
        old = _completed(before.get("recipe", {}))
        changes = list(differences(_without_places(old), _without_places(now["recipe"])))
        named = _named(old), _named(now["recipe"])
        contents = _contents(before), _contents(now)
        for what, is_now in contents[1].items():
            was = contents[0].get(what)
            if was == is_now:
                continue
            names = [each.get(what) for each in named]
            if names[0] != names[1]:
                changes.append(f"{what}: {names[0]!r} -> {names[1]!r}")
            elif was not in (None, names[0]) and not fingerprint.comparable(was):
                changes.append("the version of this program, whose fingerprints were others")
            else:
                changes.append(_told(what))
        return list(dict.fromkeys(changes))

    def _refuse(self, changes: list[str], where: Path) -> None:
        if changes:
            raise RunError(
                f"{where} was made with something else: {'; '.join(changes)}. "
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

    def publish(self, built: Path) -> None:
        """Put the finished encoder in its place; into a folder that is there and empty, file by file."""
        if self.out.exists():
            write_json(self.folder / _PUBLISHING_FILE, files_in(built))
        publish(built, self.out, last=PROVENANCE_FILE)
        (self.folder / _PUBLISHING_FILE).unlink(missing_ok=True)

    def _was_publishing(self) -> bool:
        """Whether a run was killed while it put the encoder in its place, and nothing else is there."""
        record = self.folder / _PUBLISHING_FILE
        return record.is_file() and {*files_in(self.out)} <= {*read_json(record)}

    def remove(self) -> None:
        """Remove the stages and what belongs to them; what somebody else put there stays."""
        for folder in self._stage_folders():
            remove_files(folder, _written(folder))
        for scratch in self.folder.glob(f"{_STAGES}{_SCRATCH}"):
            shutil.rmtree(scratch, ignore_errors=True)
        self._remove_partials()
        remove_files(self.folder / CHECKPOINTS, ())
        self._remove_bookkeeping()

    def _stage_folders(self) -> list[Path]:
        """The stages' folders, and those of encoders kept along the way."""
        kept = (path for path in self.folder.glob(f"{CHECKPOINTS}/{_STAGES}") if path.is_dir())
        return [*self.kept().values(), *sorted(kept)]

    def _remove_partials(self) -> None:
        """Remove what a killed process left half written; nobody else writes while the folder is held."""
        for pattern in (f"*{PARTIAL}", f"{CHECKPOINTS}/*{PARTIAL}", f"{_STAGES}/*{PARTIAL}"):
            for partial in self.folder.glob(pattern):
                if partial.is_dir():
                    shutil.rmtree(partial, ignore_errors=True)
                else:
                    partial.unlink(missing_ok=True)

    def _remove_bookkeeping(self) -> None:
        for name in (_OWN_TEXTS, _PUBLISHING_FILE, _RUN_FILE):
            (self.folder / name).unlink(missing_ok=True)


def _written(folder: Path) -> list[str]:
    """The files that this program wrote into an encoder's or a stage's folder, as it wrote down itself."""
    for name in (PROVENANCE_FILE, STAGE_FILE):
        if (folder / name).is_file():
            return [*read_json(folder / name).get("files", []), name, *report_files(folder)]
    return []


def report_files(folder: Path) -> tuple[str, ...]:
    """The files of the report that `llm2vec report` wrote into a folder; none where it wrote none."""
    facts = folder / REPORT_FACTS
    if not facts.is_file():
        return ()
    try:
        told = read_json(facts)
    except RunError:
        return ()
    ours = isinstance(told, dict) and {"encoder", "decoder", "proofs"} <= told.keys()
    return REPORT_FILES if ours else ()


def write_stage_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write down what a stage did, and which files its folder holds by now."""
    write_json(folder / STAGE_FILE, {**facts, "files": files_in(folder)})


def read_stage_facts(folder: Path) -> dict[str, Any]:
    """What a stage did, as the provenance has it."""
    facts: dict[str, Any] = read_json(folder / STAGE_FILE)
    return {key: value for key, value in facts.items() if key != "files"}


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


_PLACES = (
    ("decoder",),
    ("adapters",),
    ("corpus", "source"),
    ("simcse", "corpus", "source"),
    ("supervised", "corpus", "source"),
)
"""Keys of a recipe that say where something is; it is compared by content."""


def _without_places(recipe: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[str, Any]:
    kept = {key: value for key, value in recipe.items() if (*path, key) not in _PLACES}
    return {
        key: _without_places(value, (*path, key)) if isinstance(value, Mapping) else value
        for key, value in kept.items()
    }


def _named(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What the places of a recipe are called, by their keys."""
    found: dict[str, Any] = {}
    for path in _PLACES:
        value: Any = recipe
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        found[".".join(path)] = value
    return found


def _contents(identity: Mapping[str, Any]) -> dict[str, str]:
    """The fingerprints of an identity, by the keys of `_PLACES`."""
    corpora = {f"{name}.source": value for name, value in identity.get("corpora", {}).items()}
    adapters = fingerprint.of_values(identity.get("adapters", []))
    return {"decoder": str(identity.get("decoder", "")), "adapters": adapters, **corpora}


def _told(what: str) -> str:
    told = {"decoder": "the decoder's files", "adapters": "the adapters' files"}
    return told.get(what, "the texts of the corpus")


def _fingerprint(model: Source) -> str:
    """The fingerprint of a folder's or file's content; a hub id stands for itself."""
    return str(model) if model.path is None else fingerprint.of_path(model.path)


def _place_of_scratch(folder: Path) -> Path:
    return folder.with_name(folder.name + _SCRATCH)
