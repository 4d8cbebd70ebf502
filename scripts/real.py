"""`make real`: fetch SmolLM2-135M, convert it within an hour on two cores, and report what that changed.

    python scripts/real.py [--corpus texts.txt] [--out real/encoder] [--cache .decoders]

Without a corpus the decoder writes its texts itself. Killed, it goes on where it was; finished, it only measures again.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from demo import convert_and_show
from fetch_decoder import CACHE, fetch

import llm2vec
from llm2vec.corpus.texts import SELF
from llm2vec.errors import LLM2VecError
from llm2vec.recipe.files import merged
from llm2vec.runtime.hardware import default_device, has_bfloat16

DECODER = "smollm2-135m"

CHANGES: dict[str, Any] = {
    "corpus": {"self_texts": 1200, "self_tokens": 96},
    "mntp": {"method": "lora", "batch_size": 8, "steps": 160, "eval_every": 80},
    "simcse": {
        "method": "lora",
        "learning_rate": 5e-4,
        "steps": 24,
        "sentences": True,
        "min_tokens": 8,
    },
}
"""Over the preset `small`: adapters instead of all weights, and as many steps as an hour holds in float32."""

LONGER = {"mntp": {"steps": 400}, "simcse": {"steps": 60}}
"""Over that where a machine trains in bfloat16."""


def main() -> None:
    """Fetch, convert and show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", default=SELF, help="file, folder or glob of texts, or `self`")
    parser.add_argument("--out", type=Path, default=Path("real/encoder"))
    parser.add_argument("--cache", type=Path, default=CACHE)
    arguments = parser.parse_args()
    longer = LONGER if has_bfloat16(default_device()) else {}
    try:
        decoder = fetch(DECODER, cache=arguments.cache)
        named = {"decoder": str(decoder), "corpus": {"source": arguments.corpus}}
        recipe = merged(llm2vec.preset("small"), CHANGES, longer, named)
        convert_and_show(llm2vec.Recipe.read(recipe), arguments.out)
    except LLM2VecError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
