"""`make real`: fetch SmolLM2-135M, convert it within an hour on two cores, and report what that changed.

    python scripts/real.py [--corpus texts.txt] [--hours 0.75] [--out real/encoder] [--cache .decoders]

Without a corpus the decoder writes its texts itself. Killed, it goes on where it was; finished, it only measures again.
"""

import argparse
import sys
from pathlib import Path

from demo import convert_and_show
from fetch_decoder import CACHE, fetch

import llm2vec
from llm2vec.conversion.budget import Budget
from llm2vec.corpus.texts import SELF
from llm2vec.errors import LLM2VecError
from llm2vec.recipe.files import merged

DECODER = "smollm2-135m"

HOURS = 0.75
"""Hours for the conversion; the report has the rest of the hour."""


def main() -> None:
    """Fetch, convert and show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", default=SELF, help="file, folder or glob of texts, or `self`")
    parser.add_argument("--out", type=Path, default=Path("real/encoder"))
    parser.add_argument("--hours", type=float, default=HOURS, help="for the conversion")
    parser.add_argument("--cache", type=Path, default=CACHE)
    arguments = parser.parse_args()
    try:
        decoder = fetch(DECODER, cache=arguments.cache)
        named = {"decoder": str(decoder), "corpus": {"source": arguments.corpus}}
        recipe = llm2vec.Recipe.read(merged(llm2vec.preset("hours"), named))
        convert_and_show(recipe, arguments.out, budget=Budget(hours=arguments.hours))
    except LLM2VecError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
