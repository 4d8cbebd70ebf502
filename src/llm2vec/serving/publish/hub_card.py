"""The card (README.md) of a published encoder: the folder's own, with the front matter that a hub reads.

What the folder's card says already stays. This module asks no hub; what it must know of the decoder is given to it.
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
    """What a card says beside what the folder's own says.

    Attributes:
        name: On the hub, `owner/name`.
        licence: Of the weights, by the hub's name for it.
        base_model: The decoder's name on the hub; None where it is not there.
        languages: Codes of languages.
        datasets: Names of data sets on the hub.
        results: Scores of MTEB.
        files: Paths of all files.
        exported_as: For an export, the folder that its card opens; None for an encoder.
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
    """What the front matter of a card says; empty where it has none.

    Raises:
        ModelError: It is not YAML of names and values.
    """
    found = _FRONT_MATTER.match(card)
    if found is None:
        return {}
    try:
        values = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        raise ModelError(
            f"the front matter of the card is no YAML ({first_line(error)}); correct README.md"
        ) from error
    if not isinstance(values, dict):
        raise ModelError("the front matter of the card is no list of names and values")
    return values


def hub_card(card: str | None, published: Published) -> str:
    """The card to publish.

    Args:
        card: The folder's own card; None where it has none.
        published: What is known beside it.
    """
    own = card or _plain_card(published)
    known = {**_front_matter(published), **front_matter(own)}
    known["tags"] = list(dict.fromkeys([*known["tags"], *_tags(published)]))
    text = yaml.safe_dump(known, sort_keys=False, allow_unicode=True, width=120)
    body = _body(_FRONT_MATTER.sub("", own), published)
    return f"---\n{text}---\n\n{body}"


def _front_matter(published: Published) -> dict[str, Any]:
    """By the hub's names; what is not known is left out."""
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
    """MTEB's scores as the hub and MTEB's leaderboard read them."""
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
    """For a folder without a card."""
    return f"""# {published.name.rpartition("/")[2]}

A text encoder made with LLM2Vec. Needs transformers 5.2 or newer (older versions silently read it causally).

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
    """Licence and languages that a decoder's card names."""
    values = front_matter(card) if card else {}
    languages = values.get("language") or []
    return {
        "licence": values.get("license"),
        "languages": [languages] if isinstance(languages, str) else list(languages),
    }
