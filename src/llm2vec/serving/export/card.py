"""The card (README.md) of an export: what it is, how to open it, how near it is to its source."""

from collections.abc import Mapping
from typing import Any


def export_card(
    facts: Mapping[str, Any], *, library: str, snippet: str, provenance: Mapping[str, Any]
) -> str:
    """Write the card of an export.

    Args:
        facts: Facts of the export, as in `export.json`.
        library: Name, on the model hub, of the library that opens the export.
        snippet: Code that opens the export.
        provenance: Provenance of the source; empty if it is unknown.
    """
    name = facts["folder"].rstrip("/").rpartition("/")[2]
    decoder = provenance.get("recipe", {}).get("decoder")
    made = f", which LLM2Vec made from the decoder `{decoder}`" if decoder else ""
    notes = "".join(f"- {note}\n" for note in facts["notes"])
    return f"""---
library_name: {library}
pipeline_tag: feature-extraction
tags: [llm2vec, {facts["form"]}, feature-extraction]
---

# {name}

The text encoder `{facts["source"]}`{made}, as {facts["form"]} in {facts["precision"]}.

```python
{snippet}
```

{_measured(facts)}
{notes}"""


def _measured(facts: Mapping[str, Any]) -> str:
    """The measured numbers, as a list."""
    lines = [f"- `{facts['weights']}`: {facts['weights_bytes'] / 1e6:,.1f} MB"]
    agreement = facts["agreement"]
    if agreement is not None:
        lines.append(
            f"- {agreement['texts']} texts encoded by source and export: cosine at least "
            f"{agreement['least_cosine']:.6f}, {agreement['mean_cosine']:.6f} on average"
        )
    scores = facts["similarity"]
    lines.append(
        f"- Spearman correlation with graded pairs ({facts['pairs']}): "
        f"source {scores['source']:.4f}, export {scores['export']:.4f}"
    )
    return "\n".join(lines)
