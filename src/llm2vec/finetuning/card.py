"""The README of a tagger's or classifier's folder: what it is, how to open it, and its scores."""

import json
from collections.abc import Mapping
from typing import Any

from llm2vec.finetuning.metrics import Outcome

_PIPELINES = {"tagger": "token-classification", "classifier": "text-classification"}
_MOST_ROWS = 40


def card(name: str, kind: str, facts: Mapping[str, Any], outcome: Outcome, *, why_not: str) -> str:
    """The text of a model card.

    Args:
        name: The folder's name.
        kind: `tagger` or `classifier`.
        facts: What `labels.json` says.
        outcome: What it reached on the development data.
        why_not: Why plain transformers does not open it with its labels; empty if it does.
    """
    parts = [
        f"---\nlibrary_name: transformers\npipeline_tag: {_PIPELINES[kind]}\ntags: [llm2vec]\n---",
        f"# {name}",
        _about(kind, facts),
        _opening(name, kind, facts, why_not),
        "## Development data",
        _scores(outcome),
        _table(outcome),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _about(kind: str, facts: Mapping[str, Any]) -> str:
    what = "words" if kind == "tagger" else "texts"
    steps = facts["steps"]
    return (
        f"Labels {what} with {len(facts['labels'])} labels. "
        f"Fine-tuned by llm2vec from `{facts['model']}`: "
        f"{steps['trained']} steps, of which the weights of step {steps['kept']} scored best."
    )


def _opening(name: str, kind: str, facts: Mapping[str, Any], why_not: str) -> str:
    quoted = json.dumps(name, ensure_ascii=False)
    ours = (
        f"from llm2vec.finetuning.folder import open_tagger\n\n"
        f'spans = open_tagger({quoted}).tag(["Some text."])'
        if kind == "tagger"
        else f"from llm2vec.finetuning.folder import TextClassifier\n\n"
        f'labels = TextClassifier.open({quoted}).classify(["Some text."])'
    )
    if why_not:
        return (
            f"Plain transformers cannot open it with its labels: {why_not}.\n\n"
            f"```python\n{ours}\n```"
        )
    first = kind == "tagger" and facts["merge"] == "first"
    option = ', aggregation_strategy="first"' if first else ""
    plain = (
        "from transformers import pipeline\n\n"
        f'labels = pipeline("{_PIPELINES[kind]}", {quoted}{option})("Some text.")'
    )
    last = kind == "tagger" and not first
    note = "It labels tokens; the label of a word is that of its last token.\n\n" if last else ""
    return f"```python\n{plain}\n```\n\n{note}```python\n{ours}\n```"


def _scores(outcome: Outcome) -> str:
    lines = [
        f"- {outcome.metric}: {outcome.value:.4f}; accuracy: {outcome.accuracy:.4f}",
        f"- expected calibration error: {outcome.calibration_error:.4f}; at the fitted temperature "
        f"{outcome.temperature:.2f}: {outcome.calibrated_error:.4f}",
    ]
    if outcome.unseen:
        lines.append(f"- {outcome.unseen} labels do not occur in training and count as wrong")
    return "\n".join(lines)


def _table(outcome: Outcome) -> str:
    rows = ["| label | precision | recall | F1 | count |", "| --- | --- | --- | --- | --- |"]
    by_count = sorted(outcome.by_label.items(), key=lambda each: -each[1].get("count", 0))
    for label, each in by_count[:_MOST_ROWS]:
        numbers = " | ".join(f"{each.get(key, 0):.3f}" for key in ("precision", "recall", "f1"))
        rows.append(f"| {label} | {numbers} | {each.get('count', 0):.0f} |")
    return "\n".join(rows)
