"""Files and settings of recipes: read, laid over one another, compared, and printed."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from llm2vec.errors import UsageError
from llm2vec.recipe.knobs import Recipe


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Lay nested mappings over one another; later ones win, key by key."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = result.get(key)
            if isinstance(value, Mapping) and isinstance(below, Mapping):
                result[key] = merged(below, value)
            else:
                result[key] = value
    return result


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a recipe file as nested mappings.

    Raises:
        UsageError: The file does not exist, or is not a YAML mapping.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UsageError(f"recipe file {path} does not exist") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe file {path} is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(value, dict):
        raise UsageError(
            f"recipe file {path} holds no keys; `llm2vec recipe` prints one to start from"
        )
    return value


def read_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Read `key.inner=value` settings as nested mappings; values are read as YAML.

    Example:
        >>> read_settings(["mntp.steps=500", "simcse.lora.r=8"])
        {'mntp': {'steps': 500}, 'simcse': {'lora': {'r': 8}}}

    Raises:
        UsageError: A setting has no `=`, or its value is not YAML.
    """
    result: dict[str, Any] = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or not key:
            raise UsageError(
                f"--set {setting!r}: write KEY=VALUE, for instance --set mntp.steps=500"
            )
        try:
            value = _number(yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise UsageError(f"--set {setting!r}: {text!r} is not a value: {error}") from error
        for part in reversed(key.split(".")):
            value = {part: value}
        result = merged(result, value)
    return result


def _number(value: Any) -> Any:
    """A value with 5e-5 as a number, which YAML reads as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """The values in which two nested mappings differ, each as `key: old -> new`."""
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from differences(before, after, f"{path}{key}.")
        elif before != after:
            yield f"{path}{key}: {before!r} -> {after!r}"


def to_yaml(recipe: Recipe) -> str:
    """Print a recipe as YAML; each knob has its meaning, its unit and its default's source."""
    return "".join(_yaml_lines(recipe, indent=""))


def _yaml_lines(part: BaseModel, indent: str) -> Iterator[str]:
    for name, field in type(part).model_fields.items():
        value = getattr(part, name)
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:\n"
            yield from _yaml_lines(value, indent + "  ")
        else:
            yield f"{indent}{name}: {_yaml_value(value)}  # {_about(field)}\n"


def _yaml_value(value: Any) -> str:
    """A value on one line of YAML, without the document end that follows a bare scalar."""
    plain = [_plain(each) for each in value] if isinstance(value, tuple) else value
    text: str = yaml.safe_dump(plain, default_flow_style=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def _about(field: FieldInfo) -> str:
    """A field's meaning, unit and source."""
    notes = [field.description or ""]
    extra = field.json_schema_extra
    if isinstance(extra, dict):
        notes += [str(extra[key]) for key in ("unit", "source") if extra.get(key)]
    return " | ".join(notes)
