"""Convert a decoder from Python, with a recipe of one's own, and open the result as others would.

python examples/convert.py DECODER texts.txt ENCODER [STEPS]
"""

import sys

from sentence_transformers import SentenceTransformer

from llm2vec import Recipe, convert


def main(decoder: str, corpus: str, out: str, steps: str = "1000") -> None:
    """Convert, then print the cosine of two sentences."""
    recipe = Recipe.read(
        {
            "decoder": decoder,
            "corpus": {"source": corpus},
            "mntp": {"steps": int(steps), "batch_size": 8, "max_length": 128},
            "simcse": {"steps": int(steps) // 4, "batch_size": 16, "max_length": 64},
        }
    )
    conversion = convert(recipe, out)
    encoder = SentenceTransformer(str(conversion.folder))
    vectors = encoder.encode(["The shop is closed.", "The store has shut."])
    print(f"{float(encoder.similarity(vectors[0], vectors[1])):.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
