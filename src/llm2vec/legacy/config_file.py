"""Reads a configuration file of version 0.2.3 and checks it against its script's schema.

Null is the same as an absent key. Every key that is never taken has no effect and gives a note.
"""

import difflib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from llm2vec.errors import UsageError
from llm2vec.legacy.config_keys import (
    KIND_OF_DATA_SET,
    MARKS,
    RENAMED,
    WHY_WITHOUT_EFFECT,
    key_names,
)
from llm2vec.legacy.config_schema import SCHEMAS, STAGES, Kind

KINDS: tuple[Kind, ...] = get_args(Kind)


class ConfigFile:
    """A checked file.

    Attributes:
        path: Path of the file.
        kind: Script that the file was written for.
        given: Names of the keys that the file has, by their names of today.
        notes: Lines about keys that became something else.
    """

    def __init__(self, path: Path, kind: Kind, values: Mapping[str, Any]) -> None:
        self.path, self.kind = path, kind
        self.notes: list[str] = []
        for key in values:
            self._check_name(key)
        given = self._by_names_of_today(
            {key: value for key, value in values.items() if value is not None}
        )
        self.given = frozenset(given)
        self._order = list(given)
        self._taken: set[str] = set()
        schema = SCHEMAS[kind]
        try:
            self._values = schema(**{k: v for k, v in given.items() if k in schema.model_fields})
        except ValidationError as error:
            raise UsageError(f"{path}: {self._wrong_value(error, values)}") from None

    def take(self, key: str) -> Any:
        """The value of a key in the file, or the default of its script; None if it has neither."""
        self._taken.add(key)
        return getattr(self._values, key, None)

    def need(self, key: str) -> Any:
        """The value of a key.

        Raises:
            UsageError: The file does not have the key.
        """
        if key not in self.given:
            raise UsageError(f"{self.path}: a {self.kind} file needs {key}")
        return self.take(key)

    def all_notes(self) -> tuple[str, ...]:
        """The notes, with one for each key that was never taken."""
        reason = "every probe reads its encoder and trains alike"
        if self.kind in STAGES:
            reason = "has no effect here"
        left = [key for key in self._order if key not in self._taken]
        return (*self.notes, *(f"{key}: {WHY_WITHOUT_EFFECT.get(key, reason)}" for key in left))

    def _check_name(self, key: str) -> None:
        names = key_names(self.kind)
        if key in names:
            return
        hint = near_names(key, names)
        homes = [kind for kind in KINDS if key in key_names(kind)]
        if homes:
            hint = f"; it is a key of {', '.join(homes)}"
        raise UsageError(f"{self.path}: there is no {key!r} in a {self.kind} file{hint}")

    def _by_names_of_today(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values under the names that transformers gives their keys today."""
        given = {}
        for name, value in values.items():
            key = RENAMED.get(name, name)
            if key in given:
                raise UsageError(f"{self.path}: {key} is given by two names; keep one")
            if key != name:
                self.notes.append(f"{name} is {key} now")
            given[key] = value
        return given

    def _wrong_value(self, error: ValidationError, values: Mapping[str, Any]) -> str:
        """The first value in the file that is wrong, and what it must be."""
        wrong = {each["loc"][0] for each in error.errors()}
        name = next(name for name in values if RENAMED.get(name, name) in wrong)
        annotation = SCHEMAS[self.kind].model_fields[RENAMED.get(name, name)].annotation
        return f"{name} must be {_described(annotation)}, not {values[name]!r}"


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UsageError: The file cannot be read, is not JSON, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"configuration file {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"configuration file {path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(
            f"configuration file {path} is not a JSON object, but {type(value).__name__}"
        )
    return value


def kind_of(path: Path, values: Mapping[str, Any], among: Sequence[Kind]) -> Kind:
    """The script that a file was written for, found from its keys.

    Args:
        path: Path of the file, for errors.
        values: Values of the file by key.
        among: Kinds that are possible.

    Raises:
        UsageError: No kind has all the keys, or several have.
    """
    marked = _marked_kind(values)
    if marked is not None and marked in among:
        return marked
    fitting = [kind for kind in KINDS if values.keys() <= key_names(kind)]
    possible = [kind for kind in fitting if kind in among]
    if len(possible) == 1:
        return possible[0]
    everything = set().union(*(key_names(kind) for kind in KINDS))
    unknown = [key for key in values if key not in everything]
    if unknown:
        hint = near_names(unknown[0], everything)
        raise UsageError(f"{path}: there is no {unknown[0]!r} in any kind of file{hint}")
    could = f"its keys fit {', '.join(fitting)}" if fitting else "no kind of file has all its keys"
    raise UsageError(
        f"{path}: cannot tell what it configures: {could}; needed is {' or '.join(among)}"
    )


def _marked_kind(values: Mapping[str, Any]) -> Kind | None:
    """The kind that a key or a data set gives away."""
    for kind, marks in MARKS.items():
        if marks & values.keys():
            return kind
    return KIND_OF_DATA_SET.get(str(values.get("dataset_name")))


def near_names(key: str, names: Collection[str]) -> str:
    """A hint at names that are close to a wrong one; empty if there are none."""
    near = difflib.get_close_matches(key, sorted(names), n=2)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _described(annotation: Any) -> str:
    """The values of a key in words, from the type of its field."""
    for part in (annotation, *get_args(annotation)):
        if get_origin(part) is Literal:
            return " or ".join(get_args(part))
    [wanted] = [part for part in get_args(annotation) or (annotation,) if part is not type(None)]
    return f"of type {wanted.__name__}"
