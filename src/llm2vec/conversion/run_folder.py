"""The run folder of a conversion: which run made it, what is in it, and what would make that stale.

A run keeps its work in `OUT.stages/` until the encoder is in `OUT`, whole; it keeps nothing
anywhere else. This module knows stages only as folders with names.
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
from llm2vec.recipe.knobs import DistillRecipe, Recipe, SupervisedRecipe
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
"""Name of the file in a stage's folder that holds what was done, the proofs, the metrics, and a
list of files."""

REPORT_FACTS = "report.json"
REPORT_FILES = ("report.html", "report.md", REPORT_FACTS)
"""Names of the files that `llm2vec report` writes into an encoder's folder."""

_RUN_FILE = "run.json"
"""Name of the file in a run folder that holds the run's identity."""

_PUBLISHING_FILE = "publishing.json"
"""Name of the file that lists what is being moved to `OUT`, while it is being moved."""

_OWN_TEXTS = "self.txt"
_CLOCK_FILE = "clock.json"
_SCRATCH = ".work"
_STAGES = "[0-9]-*"


def stages_folder(out: Path) -> Path:
    """The run folder of the encoder `out`, which is beside it; links are followed."""
    real = resolved_folder(out, option="--out")
    return real.with_name(real.name + ".stages")


class RunFolder:
    """The run folder of one conversion, and the encoder folder that comes of it.

    Args:
        recipe: What is to be done.
        source: The decoder.
        out: The encoder folder to make.
        progress: Listener that stages are reported to.
        plan: The plan of the recipe within a budget; None without one.

    Attributes:
        out: Path of the encoder folder, without links.
        folder: Path of the run folder.
        own_texts: Path of the file of texts that the decoder wrote.
        clock_file: Path of the file of seconds that a budget of hours has spent.
        plan: The plan of the recipe within a budget, under the key `plan`; empty without one.
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
        self.clock_file = self.folder / _CLOCK_FILE
        self._recipe = recipe
        self._source = source
        self._progress = progress
        self._finished: list[str] = []

    @property
    def finished_stages(self) -> list[Path]:
        """The folders of this run's finished stages, in order."""
        return [self.folder / name for name in self._finished]

    def stage_folders(self) -> dict[str, Path]:
        """The folders of all finished stages by their names, also after the run that made them."""
        folders = [path for path in sorted(self.folder.glob(_STAGES)) if path.is_dir()]
        return {path.name: path for path in folders if path.suffix not in (PARTIAL, _SCRATCH)}

    def kept_plan(self) -> Mapping[str, Any] | None:
        """The plan of an earlier run of the same `out`; None if it had no plan."""
        for file in (self.folder / _RUN_FILE, self.out / PROVENANCE_FILE):
            plan: Mapping[str, Any] | None = read_json(file).get("plan") if file.is_file() else None
            if plan is not None:
                return plan
        return None

    def has_begun(self) -> bool:
        """Whether a stage or the encoder is finished."""
        return any(self.folder.glob(_STAGES)) or (self.out / PROVENANCE_FILE).is_file()

    def finished(self) -> bool:
        """Whether the encoder folder holds the finished encoder.

        Raises:
            RunError: The encoder was made from something else, or the folder was not made by this
                program.
        """
        if not self.out.is_dir() or not any(self.out.iterdir()):
            return False
        provenance = self.out / PROVENANCE_FILE
        if not provenance.is_file():
            if self._was_publishing():
                return False
            raise RunError(
                f"{self.out} exists and was not made by this program; choose another --out, or "
                "remove it"
            )
        self._refuse_changes(read_json(provenance), made=self.out)
        return True

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of the run folder inside the block.

        The folder is removed in the end if it holds no finished stage.

        Raises:
            RunError: Another process works in the folder, another program made it, or it cannot be
                made.
        """
        if self.folder.exists() and not (self.folder / _RUN_FILE).is_file():
            names = {path.name for path in self.folder.iterdir() if path.suffix != PARTIAL}
            if not names <= {*LOCK_FILES}:
                raise RunError(
                    f"{self.folder} exists and was not made by this program; remove it, or choose "
                    "another --out"
                )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"{self.folder} cannot be made: {error.strerror}; choose another --out"
            ) from error
        try:
            with locked(self.folder):
                try:
                    yield
                finally:
                    if not any(self.folder.glob(_STAGES)):
                        self._remove_bookkeeping()
        finally:
            remove_files(self.folder, ())

    def start_over(self) -> None:
        """Remove the encoder and the stages of an earlier run.

        Raises:
            RunError: A folder of theirs holds a file that the run did not write; nothing is removed
                then.
        """
        has_run = (self.folder / _RUN_FILE).is_file()
        has_encoder = (self.out / PROVENANCE_FILE).is_file()
        if has_encoder:
            _refuse_other_files(self.out)
        if has_run:
            for folder in self._all_stage_folders():
                _refuse_other_files(folder)
        if has_encoder:
            remove_files(self.out, _written_files(self.out))
        if has_run:
            self.remove()

    def begin(self) -> None:
        """Write this run's identity into the run folder, or go on with a run of the same identity.

        Raises:
            RunError: A stage in the folder was made from something else.
        """
        run_file = self.folder / _RUN_FILE
        if run_file.is_file():
            before = read_json(run_file)
            if any(self.folder.glob(_STAGES)):
                self._refuse_changes(before, made=self.folder)
            if self._changes(before):
                self._remove_bookkeeping()
        self._remove_partials()
        if not run_file.is_file():
            write_json(run_file, {**self.identity, **self.plan})

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What makes a run the same: recipe, decoder, adapters and corpora, by content."""
        recipe = self._recipe
        fingerprint_once = cache(corpus_fingerprint)
        fingerprints = {}
        corpora = {
            "corpus": recipe.corpus,
            "simcse.corpus": recipe.simcse.corpus,
            "distill.corpus": recipe.distill.corpus,
        }
        for name, corpus in corpora.items():
            if corpus:
                fingerprints[name] = fingerprint_once(corpus.source, as_format=corpus.format)
        if recipe.supervised.steps:
            fingerprints |= _of_pairs(recipe.supervised)
        if recipe.distill.steps:
            fingerprints |= _of_distillation(recipe.distill)
        return {
            "recipe": recipe.to_dict(),
            "decoder": _fingerprint(self._source),
            "adapters": [_fingerprint(Source.of(adapter)) for adapter in recipe.adapters],
            "corpora": fingerprints,
        }

    def source_paths(self) -> dict[str, Any]:
        """Paths from the encoder's folder to the models it was made from, or hub ids."""
        recipe = self._recipe
        return {
            "decoder": relative_name(self.out, recipe.decoder),
            "adapters": [relative_name(self.out, adapter) for adapter in recipe.adapters],
        }

    def _refuse_changes(self, before: Mapping[str, Any], *, made: Path) -> None:
        """Refuse a folder that was made under another identity."""
        changes = self._changes(before)
        if changes:
            raise RunError(
                f"{made} was made with something else: {'; '.join(changes)}. "
                "Say --start-over to throw it away, or choose another --out"
            )

    def _changes(self, before: Mapping[str, Any]) -> list[str]:
        """The differences between an identity and this run's, for people.

        Models and corpora are compared by content, not by their paths.
        """
        now = self.identity
        recipe_before = _with_new_knobs(before.get("recipe", {}))
        recipe_now = now["recipe"]
        changes = list(differences(_without_paths(recipe_before), _without_paths(recipe_now)))
        paths_before, paths_now = _paths(recipe_before), _paths(recipe_now)
        contents_before = _contents(before)
        for key, content in _contents(now).items():
            content_before = contents_before.get(key)
            if content_before == content:
                continue
            path_before, path_now = paths_before.get(key), paths_now.get(key)
            if path_before != path_now:
                change = f"{key}: {path_before!r} -> {path_now!r}"
            elif _other_kind(content_before, path_before):
                change = "the version of this program, which takes other fingerprints"
            else:
                change = _CONTENTS.get(key, "the texts of the corpus")
            changes.append(change)
        return list(dict.fromkeys(changes))

    def stage(self, name: str, make: Callable[[Path], None]) -> None:
        """Make a stage's folder, unless an earlier run has finished it.

        Args:
            name: Name of the folder.
            make: Function that makes the folder, whole or not at all.
        """
        folder = self.folder / name
        if folder.is_dir():
            self._progress.note(f"{name} is finished already")
        else:
            make(folder)
        shutil.rmtree(_scratch_folder(folder), ignore_errors=True)
        if folder.is_dir():
            self._finished.append(name)

    def publish(self, built: Path) -> None:
        """Move the finished encoder to `out`; if that is an empty folder, file by file.

        Args:
            built: The folder of the finished encoder.
        """
        if self.out.exists():
            write_json(self.folder / _PUBLISHING_FILE, files_in(built))
        publish(built, self.out, last=PROVENANCE_FILE)
        (self.folder / _PUBLISHING_FILE).unlink(missing_ok=True)

    def _was_publishing(self) -> bool:
        """Whether a run was killed while it moved the encoder to `out`."""
        record = self.folder / _PUBLISHING_FILE
        return record.is_file() and {*files_in(self.out)} <= {*read_json(record)}

    def remove(self) -> None:
        """Remove the stages and what belongs to them; files that a run did not write stay."""
        for folder in self._all_stage_folders():
            remove_files(folder, _written_files(folder))
        for scratch in self.folder.glob(f"{_STAGES}{_SCRATCH}"):
            shutil.rmtree(scratch, ignore_errors=True)
        self._remove_partials()
        remove_files(self.folder / CHECKPOINTS, ())
        self._remove_bookkeeping()

    def _all_stage_folders(self) -> list[Path]:
        """The folders of stages, and of encoders that were kept during training."""
        kept = [path for path in self.folder.glob(f"{CHECKPOINTS}/{_STAGES}") if path.is_dir()]
        return [*self.stage_folders().values(), *sorted(kept)]

    def _remove_partials(self) -> None:
        """Remove what a killed process left half written; nobody else writes in a locked folder."""
        for pattern in (f"*{PARTIAL}", f"{CHECKPOINTS}/*{PARTIAL}", f"{_STAGES}/*{PARTIAL}"):
            for partial in self.folder.glob(pattern):
                if partial.is_dir():
                    shutil.rmtree(partial, ignore_errors=True)
                else:
                    partial.unlink(missing_ok=True)

    def _remove_bookkeeping(self) -> None:
        for name in (_OWN_TEXTS, _PUBLISHING_FILE, _CLOCK_FILE, _RUN_FILE):
            (self.folder / name).unlink(missing_ok=True)


def _of_pairs(knobs: SupervisedRecipe) -> dict[str, str]:
    """The fingerprints of the files of pairs, by the part of the recipe that names them."""
    found = {}
    pairs, held_out = knobs.corpus, knobs.held_out
    if knobs.adapter is not None and Path(knobs.adapter).is_dir():
        found["supervised.adapter"] = fingerprint.of_path(Path(knobs.adapter))
    if held_out is not None:
        found["supervised.held_out"] = corpus_fingerprint(held_out.file, formats=TABLES)
    if pairs.source is not None:
        found["supervised.corpus"] = corpus_fingerprint(pairs.source, formats=TABLES)
    if pairs.data:
        files = [corpus_fingerprint(data.file, formats=TABLES) for data in pairs.data]
        found["supervised.corpus.data"] = fingerprint.of_values(files)
    return found


def _written_files(folder: Path) -> list[str]:
    """The files that this program wrote into an encoder's or a stage's folder, by its own list."""
    for name in (PROVENANCE_FILE, STAGE_FILE):
        if (folder / name).is_file():
            listed = read_json(folder / name).get("files", [])
            return [*listed, name, *report_files(folder)]
    return []


def _refuse_other_files(folder: Path) -> None:
    """Refuse a folder with files that this program did not write there."""
    others = {*files_in(folder)} - {*_written_files(folder)}
    if others:
        raise RunError(
            f"{folder} holds {min(others)}, which was not written by the run that made it; "
            "move it, or choose another --out"
        )


def report_files(folder: Path) -> tuple[str, ...]:
    """The names of the files that `llm2vec report` wrote into a folder; empty if it wrote none."""
    facts_file = folder / REPORT_FACTS
    if not facts_file.is_file():
        return ()
    try:
        facts = read_json(facts_file)
    except RunError:
        return ()
    is_report = isinstance(facts, dict) and {"encoder", "decoder", "proofs"} <= facts.keys()
    return REPORT_FILES if is_report else ()


def write_stage_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write what a stage did, and a list of the files in its folder.

    Args:
        folder: The stage's folder, complete but for this file.
        facts: What the stage did.
    """
    write_json(folder / STAGE_FILE, {**facts, "files": files_in(folder)})


def read_stage_facts(folder: Path) -> dict[str, Any]:
    """What a stage did, without the list of files."""
    facts: dict[str, Any] = read_json(folder / STAGE_FILE)
    return {key: value for key, value in facts.items() if key != "files"}


@contextmanager
def scratch_beside(folder: Path) -> Iterator[Path]:
    """A folder for a stage's tokens and checkpoints, beside the stage's own folder.

    It is removed when the block ends well, and kept when it is cut short.
    """
    scratch = _scratch_folder(folder)
    scratch.mkdir(parents=True, exist_ok=True)
    yield scratch
    shutil.rmtree(scratch, ignore_errors=True)


def _scratch_folder(folder: Path) -> Path:
    return folder.with_name(folder.name + _SCRATCH)


def _with_new_knobs(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """A recipe as an older version wrote it, with the defaults of knobs that did not exist then."""
    try:
        return Recipe.read(recipe).to_dict()
    except UsageError:
        return recipe


_PATH_KEYS = (
    ("decoder",),
    ("adapters",),
    ("corpus", "source"),
    ("simcse", "corpus", "source"),
    ("supervised", "corpus", "source"),
    ("distill", "corpus", "source"),
    ("distill", "pairs"),
    ("distill", "teacher"),
    ("supervised", "held_out", "file"),
)
"""Keys of a recipe whose values are paths or hub ids, which are compared by content."""

_DATA_SETS = ("supervised", "corpus", "data")
"""The key of a recipe whose values name files in a list, which are compared by content too."""

_CONTENTS = {
    "decoder": "the decoder's files",
    "adapters": "the adapters' files",
    "distill.teacher": "the teacher's files",
}
"""Names of contents for people, by the keys of the recipe."""


def _without_paths(recipe: Mapping[str, Any], parents: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe without the values of `_PATH_KEYS`."""
    kept = {}
    for key, value in recipe.items():
        path = (*parents, key)
        if path in _PATH_KEYS:
            continue
        kept[key] = _without_paths(value, path) if isinstance(value, Mapping) else value
        if path == _DATA_SETS:
            kept[key] = [_without_file(each) for each in value]
    return kept


def _without_file(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key != "file"}


def _paths(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `_PATH_KEYS` in a recipe, by their keys joined with dots."""
    found: dict[str, Any] = {}
    for path in _PATH_KEYS:
        value: Any = recipe
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        found[".".join(path)] = value
    return found


def _contents(identity: Mapping[str, Any]) -> dict[str, str]:
    """The fingerprints in an identity, by the keys of `_paths`."""
    corpora = {
        f"{name}.source" if name.endswith("corpus") else name: value
        for name, value in identity.get("corpora", {}).items()
    }
    adapters = fingerprint.of_values(identity.get("adapters", []))
    return {"decoder": str(identity.get("decoder", "")), "adapters": adapters, **corpora}


def _other_kind(content: str | None, path: Any) -> bool:
    """Whether the fingerprint of a content was taken in another way than fingerprints are now."""
    if content is None or content == path:
        return False
    return not fingerprint.comparable(content)


def _of_distillation(knobs: DistillRecipe) -> dict[str, str]:
    """The fingerprints of what distillation reads beside texts, by the knobs that name it."""
    teacher = str(knobs.teacher)
    path = Path(teacher).expanduser()
    content = fingerprint.of_path(path) if path.exists() else _fingerprint(Source.of(teacher))
    found = {"distill.teacher": content}
    if knobs.pairs is not None:
        found["distill.pairs"] = corpus_fingerprint(knobs.pairs, formats=TABLES)
    return found


def _fingerprint(model: Source) -> str:
    """The fingerprint of a folder's or file's content; a hub id is its own fingerprint."""
    if model.path is None:
        return str(model)
    return fingerprint.of_path(model.path)
