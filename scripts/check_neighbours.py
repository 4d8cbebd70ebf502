"""Look for state that depends on the batch: are vectors the same alone, after and beside longer texts?

    python scripts/check_neighbours.py [TYPE ...]

Encodes texts of 1 to 600 words with a tiny random model of every type that docs/families.md lists
as converted, and prints each type whose vectors differ by more than rounding; and those with a sparse
indexer, whose ties depend on the length of a row, so that longer texts have rows without padding.
"""

import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import transformers

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

LENGTHS = (1, 2, 3, 5, 7, 9, 13, 20, 40, 80, 160, 600)
TEXT = "the old man saw a red house near one river and then he went home again to sleep"
ROUNDING = 2e-5
"""Largest difference that rounding explains in float32, as a share of the largest number."""


def main() -> None:
    """Try every type, and print the differences."""
    import families

    from llm2vec.backbone.positions import selection_limit
    from llm2vec.encoder.encoder import Encoder

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    words = TEXT.split()
    texts = [" ".join(words[index % len(words)] for index in range(n)) for n in LENGTHS]
    types = sys.argv[1:] or converted_types()
    for model_type in types:
        with tempfile.TemporaryDirectory() as folder:
            decoder = families.write_decoder(model_type, Path(folder) / "decoder")
            encoder = Encoder.from_pretrained(str(decoder), max_length=512)
            after, beside = differences(encoder, texts)
        if (limit := selection_limit(encoder.model.config)) is not None:
            print(f"{model_type}: texts of more than {limit} tokens are not padded")
        if max(after, beside) > ROUNDING:
            print(f"{model_type}: after longer texts {after:.1e}, beside them {beside:.1e}")
    print(f"{len(types)} types tried")


def converted_types() -> list[str]:
    """The types that the table lists as converted."""
    table = (ROOT / "docs" / "families.md").read_text(encoding="utf8").splitlines()
    rows = [line for line in table if line.startswith("| `")]
    return [row.split("`")[1] for row in rows if "| refused |" not in row]


def differences(encoder, texts) -> tuple[float, float]:
    """How far vectors of texts alone differ after longer texts, and beside them."""
    alone_BD = np.array([encoder.encode(text, convert_to_numpy=True) for text in texts])
    backwards = [encoder.encode(text, convert_to_numpy=True) for text in reversed(texts)]
    together_BD = encoder.encode(texts, convert_to_numpy=True)
    largest = np.abs(alone_BD).max()
    after = np.abs(alone_BD - np.array(backwards)[::-1]).max() / largest
    beside = np.abs(alone_BD - together_BD).max() / largest
    return float(after), float(beside)


if __name__ == "__main__":
    main()
