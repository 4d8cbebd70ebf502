"""What a vocabulary's size does to averaged vectors before anything is learned: the floor under a small decoder's STS.

    python benchmarks/vocabulary.py --sizes 6144 12288 24576 [--data ../shared/data]

Tokenizers as `pretrain_decoder.py` trains them, a random vector for each token, the mean of its tokens' for a text;
Spearman correlation with graded similarity, two draws of the vectors.
"""

import argparse
import sys
from pathlib import Path

import torch
from gains import STS

from llm2vec.evaluation.sentence_tasks import sts

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from pretrain_decoder import make_tokenizer


def main() -> None:
    """Train the tokenizers, measure, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[6144, 12288, 24576])
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    arguments = parser.parse_args()
    files = sorted(path for path in (arguments.data / "text").iterdir() if ".txt" in path.suffixes)
    print("| vocabulary | STS-B | STS, mean of 6 |\n| --- | --- | --- |")
    for size in arguments.sizes:
        tokenizer = make_tokenizer(files, size)
        found = []
        for seed in (0, 1):
            vectors_VD = torch.randn(
                len(tokenizer), arguments.width, generator=torch.Generator().manual_seed(seed)
            )

            def embed(texts, tokenizer=tokenizer, vectors_VD=vectors_VD, **_):
                return torch.stack(
                    [vectors_VD[ids].mean(0) for ids in tokenizer(list(texts))["input_ids"]]
                ).numpy()

            folder = arguments.data / "sent" / "sts"
            found.append([100 * sts(embed, folder / f"{name}.test.tsv").value for name in STS])
        first, mean = (sum(each[0] for each in found) / 2, sum(map(sum, found)) / (2 * len(STS)))
        print(f"| {size:,} | {first:.1f} | {mean:.1f} |", flush=True)


if __name__ == "__main__":
    main()
