"""Draw the README's picture: what a conversion gained, from the report of a run.

    make demo && python scripts/draw_gains.py demo/report.json docs/gains.svg

Draws one panel for words and one for sentences. A bar is a score times 100 with its 95% interval,
for the causal decoder (Uni) and for each stage of the conversion; a dashed line is a floor.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure

TASKS = {"words": "part-of-speech", "sentences": "similarity"}
FLOORS = {"part-of-speech": "word identity", "similarity": "tf-idf"}
CAUSAL, CONVERTED = "#9aa1ab", "#1d5fa8"
TEXT = "#1d2026"


def main() -> None:
    """Read the report and write the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    report = json.loads(arguments.report.read_text(encoding="utf8"))
    figure = Figure(figsize=(9, 2.9), layout="constrained")
    for axes, (kind, task) in zip(figure.subplots(1, 2), TASKS.items(), strict=True):
        [entry] = [each for each in report[kind] if each["task"] == task]
        draw(axes, entry)
    rcParams["svg.fonttype"] = "none"
    rcParams["svg.hashsalt"] = arguments.picture.name
    figure.savefig(arguments.picture, metadata={"Date": None, "Creator": None})


def draw(axes: Axes, entry: dict[str, Any]) -> None:
    """One panel: the decoder and the stages as bars, the floor as a dashed line."""
    rows = [row for row in entry["rows"] if not row["baseline"]]
    values = [100 * row["value"] for row in rows]
    below = [100 * (row["value"] - row["low"]) for row in rows]
    above = [100 * (row["high"] - row["value"]) for row in rows]
    colors = [CAUSAL] + [CONVERTED] * (len(rows) - 1)
    axes.bar(range(len(rows)), values, 0.6, color=colors, yerr=[below, above], ecolor=TEXT)
    for index, value in enumerate(values):
        axes.text(index + 0.05, value, f"{value:.1f}", va="bottom", color=TEXT)
    name = FLOORS[entry["task"]]
    level = 100 * floor(entry, name)
    axes.axhline(level, color=TEXT, linewidth=1, linestyle="--")
    beside = axes.get_yaxis_transform()
    axes.text(1.01, level, name, transform=beside, va="center", color=TEXT)
    axes.set_xticks(
        range(len(rows)), [row["model"].replace("+SimCSE", "\n+SimCSE") for row in rows]
    )
    axes.set_title(f"{entry['task']}, {entry['metric']} x 100", color=TEXT, fontsize=11)
    axes.set_ylim(bottom=max(0, min([*values, level]) - 15))
    axes.spines[["top", "right"]].set_visible(False)


def floor(entry: dict[str, Any], name: str) -> float:
    """The score of a floor: counted with the words, measured like a model with the sentences."""
    rows = {row["model"]: row["value"] for row in entry["rows"]}
    scores = {**rows, **entry.get("floors", {})}
    return float(scores[name])


if __name__ == "__main__":
    main()
