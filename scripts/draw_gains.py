"""Draw the README's picture, docs/gains.svg, from the numbers in docs/gains.json.

    python scripts/draw_gains.py

The numbers are those of docs/results.md. A bar is a score with its 95% interval: grey for the
decoder as it was (Uni), blue for each stage of the conversion. A dashed line is a level to compare
with.
"""

import json
from pathlib import Path
from typing import Any

from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DOCS = Path(__file__).parents[1] / "docs"
CAUSAL, CONVERTED = "#9aa1ab", "#1d5fa8"
TEXT = "#1d2026"


def main() -> None:
    """Read the numbers and write the picture."""
    panels = json.loads((DOCS / "gains.json").read_text(encoding="utf8"))["panels"]
    figure = Figure(figsize=(10, 3), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels)), panels, strict=True):
        draw(axes, panel)
    rcParams["svg.fonttype"] = "none"
    rcParams["svg.hashsalt"] = "gains"
    figure.savefig(DOCS / "gains.svg", metadata={"Date": None, "Creator": None})


def draw(axes: Axes, panel: dict[str, Any]) -> None:
    """One panel: the decoder and the stages as bars, the level as a dashed line."""
    bars, level = panel["bars"], panel["level"]
    values = [bar["value"] for bar in bars]
    below = [bar["value"] - bar["low"] for bar in bars]
    above = [bar["high"] - bar["value"] for bar in bars]
    colors = [CAUSAL] + [CONVERTED] * (len(bars) - 1)
    axes.bar(range(len(bars)), values, 0.6, color=colors, yerr=[below, above], ecolor=TEXT)
    for index, value in enumerate(values):
        axes.text(index + 0.05, value, f"{value:.1f}", va="bottom", color=TEXT)
    beside = axes.get_yaxis_transform()
    axes.axhline(level["value"], color=TEXT, linewidth=1, linestyle="--")
    axes.text(1.01, level["value"], level["name"], transform=beside, va="center", color=TEXT)
    axes.set_xticks(range(len(bars)), [bar["name"].replace("+SimCSE", "\n+SimCSE") for bar in bars])
    axes.set_title(panel["title"], color=TEXT, fontsize=11)
    axes.set_ylim(bottom=max(0, min([*values, level["value"]]) - 15))
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
