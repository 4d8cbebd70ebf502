"""Which uses of a word are alike? A word's vector depends on the words on both sides of it.

python examples/word_senses.py ENCODER bank "He sat on the bank of the river." "The bank lends money." ...
"""

import sys

import torch

from llm2vec import Encoder


def main(folder: str, word: str, *texts: str) -> None:
    """Print the cosine of the word's vectors for each pair of texts."""
    encoder = Encoder.from_pretrained(folder)
    vectors = []
    for found in encoder.words(list(texts)):
        if word not in found.words:
            raise SystemExit(f"{word!r} is not a word of {' '.join(found.words)!r}")
        vectors.append(found.vectors_WD[found.words.index(word)])
    word_BD = torch.nn.functional.normalize(torch.stack(vectors), dim=-1)
    cosine_BB = word_BD @ word_BD.T
    for first in range(len(texts)):
        for second in range(first):
            print(f"{float(cosine_BB[first, second]):.3f}  {texts[second]}  |  {texts[first]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
