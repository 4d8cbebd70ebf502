"""`make demo`: convert the bundled decoder on texts it writes itself, and report what that changed.

    python scripts/demo.py [--out demo/encoder]

Killed, it goes on where it was; finished, it only measures again.
"""

import argparse
import resource
import time
import warnings
from pathlib import Path

from rich.markdown import Markdown

import llm2vec
from llm2vec.cli.console import ProgressDisplay, people, results
from llm2vec.conversion.budget import Budget
from llm2vec.conversion.within import convert_within
from llm2vec.recipe.files import merged
from llm2vec.report.html import to_markdown, write_report
from llm2vec.report.measure import measure
from llm2vec.report.sections import sections
from llm2vec.runtime.hardware import default_device, has_bfloat16

LONGER = {"corpus": {"self_texts": 5120}, "mntp": {"steps": 480}}
"""Over the preset `small` where a machine trains in bfloat16, which leaves the time for it: five minutes either way,
and what MNTP does to words is plain."""

SHOWN = ("In short", "Training", "Nearest neighbours")
"""Parts of the report that the terminal shows; the page has all."""


def main() -> None:
    """Convert the bundled decoder and show what it gained."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("demo/encoder"))
    out = parser.parse_args().out
    recipe = merged(llm2vec.preset("small"), LONGER if has_bfloat16(default_device()) else {})
    convert_and_show(llm2vec.Recipe.read(recipe), out)


def convert_and_show(recipe: llm2vec.Recipe, out: Path, *, budget: Budget | None = None) -> None:
    """Convert, within a budget if there is one, write the report, print its short parts and what they took."""
    warnings.simplefilter("ignore")
    started = time.monotonic()
    if budget is None:
        llm2vec.convert(recipe, out, keep_stages=True, progress=ProgressDisplay())
    else:
        convert_within(recipe, budget, out, keep_stages=True, progress=ProgressDisplay())
    report = measure(out, progress=ProgressDisplay())
    page = write_report(report, out.parent)
    results.print(Markdown(to_markdown([part for part in sections(report) if part.title in SHOWN])))
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    people.print(
        f"{time.monotonic() - started:.0f} s, at most {peak_gb:.2f} GB of memory; the encoder is in {out}"
    )
    people.print(f"the whole report: {page}")


if __name__ == "__main__":
    main()
