"""The card (README.md) of a published encoder: the folder's own, with front matter for a hub.

What the folder's card says stays. This module asks no hub; the caller gives it the facts about the
decoder.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from llm2vec.errors import ModelError, first_line
from llm2vec.serving.publish.mteb_results import MTEBResult

_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n*", re.DOTALL)
_OPENED = re.compile(r'(SentenceTransformer|StaticModel\.from_pretrained)\("[^"\n]*"')
"""Calls in a card's code that open the folder by its name."""

_TAGS = ("llm2vec", "sentence-transformers", "feature-extraction", "sentence-similarity")
_REPORT = "report.md"


@dataclass(frozen=True)
class Published:
    """Facts that a published card adds to the folder's own card.

    Attributes:
        name: Name on the hub, `owner/name`.
        licence: Licence of the weights, by its name on the hub.
        base_model: Name of the decoder on the hub; None if it is not there.
        languages: Codes of languages.
        datasets: Names of data sets on the hub.
        results: Scores of MTEB.
        files: Paths of all files.
        exported_as: Folder that the card of an export opens; None for an encoder.
    """

    name: str
    licence: str
    base_model: str | None = None
    languages: Sequence[str] = ()
    datasets: Sequence[str] = ()
    results: Sequence[MTEBResult] = field(default_factory=tuple)
    files: Sequence[str] = ()
    exported_as: str | None = None


def front_matter(card: str) -> dict[str, Any]:
    """Read the front matter of a card; empty if it has none.

    Raises:
        ModelError: The front matter is not YAML of names and values.
    """
    found = _FRONT_MATTER.match(card)
    if found is None:
        return {}
    try:
        values = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        raise ModelError(
            f"the front matter of the card is not YAML ({first_line(error)}); correct README.md"
        ) from error
    if not isinstance(values, dict):
        raise ModelError("the front matter of the card is not a list of names and values")
    return values


def hub_card(card: str | None, published: Published) -> str:
    """Write the card to publish.

    Args:
        card: Card of the folder; None if it has none.
        published: Facts that are added.
    """
    own = card or _plain_card(published)
    known = {**_front_matter(published), **front_matter(own)}
    known["tags"] = list(dict.fromkeys([*known["tags"], *_tags(published)]))
    text = yaml.safe_dump(known, sort_keys=False, allow_unicode=True, width=120)
    body = _body(_FRONT_MATTER.sub("", own), published)
    return f"---\n{text}---\n\n{body}"


def _front_matter(published: Published) -> dict[str, Any]:
    """The facts by the hub's names, without unknown ones."""
    found: dict[str, Any] = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "feature-extraction",
        "license": published.licence,
        "base_model": published.base_model,
        "base_model_relation": published.base_model and "finetune",
        "language": list(published.languages),
        "datasets": list(published.datasets),
        "tags": _tags(published),
        "model-index": _model_index(published),
    }
    return {name: value for name, value in found.items() if value}


def _tags(published: Published) -> list[str]:
    return [*_TAGS, *(["mteb"] if published.results else [])]


def _model_index(published: Published) -> list[dict[str, Any]]:
    """The scores of MTEB in the format of the hub and of MTEB's leaderboard."""
    if not published.results:
        return []
    results = [
        {
            "task": {"type": result.task_type},
            "dataset": {
                "type": result.dataset,
                "name": f"MTEB {result.task}",
                "config": result.subset,
                "split": result.split,
                "revision": result.revision,
            },
            "metrics": [{"type": result.metric, "value": result.value}],
        }
        for result in published.results
    ]
    return [{"name": published.name.rpartition("/")[2], "results": results}]


def _plain_card(published: Published) -> str:
    """The card for a folder without one."""
    return f"""# {published.name.rpartition("/")[2]}

A text encoder made with LLM2Vec. It needs transformers 5.2 or newer; older versions read it
causally, without a warning.

```python
from sentence_transformers import SentenceTransformer

vectors = SentenceTransformer("{published.name}").encode(["Some text.", "Another."])
```
"""


def _body(body: str, published: Published) -> str:
    """The text of the card, which opens the model by its name on the hub."""
    named = _OPENED.sub(lambda call: f"{call[1]}({json.dumps(published.name)}", body)
    parts = [named.strip()]
    if published.exported_as is not None and named == body:
        fetch = f"hf download {published.name} --local-dir {published.exported_as}"
        parts.append(f"The code opens a folder; fetch it first: `{fetch}`.")
    if published.results:
        parts.append(_table(published.results))
    if _REPORT in published.files:
        parts.append(f"What the conversion changed, measured: [{_REPORT}]({_REPORT}).")
    return "\n\n".join(parts) + "\n"


def _table(results: Sequence[MTEBResult]) -> str:
    rows = [
        f"| {result.task} | {result.split} | {result.metric} | {result.value:.2f} |"
        for result in results
    ]
    return "\n".join(["| MTEB | split | metric | score |", "| --- | --- | --- | --- |", *rows])


def facts_of(card: str | None) -> Mapping[str, Any]:
    """The licence and the languages that a decoder's card names."""
    values = front_matter(card) if card else {}
    languages = values.get("language") or []
    return {
        "licence": values.get("license"),
        "languages": [languages] if isinstance(languages, str) else list(languages),
    }
