"""Word vectors: `read_split`, as the probe reads them, against the plain padded loop one would write.

    python benchmarks/word_states.py [--data FILE] [--sentences 4000]

The loop: 32 sentences at a time in their order, padded to the longest, each word's states averaged in Python. Both give
the same vectors (checked).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from machine import heading, in_turns

from llm2vec import LLM2Vec
from llm2vec.corpus.tagged import TaggedSentence, read_tagged
from llm2vec.encoder.words import joined
from llm2vec.evaluation.probe import read_split


@torch.inference_mode()
def plain_loop(encoder: LLM2Vec, sentences: Sequence[TaggedSentence]) -> torch.Tensor:
    """Words of all sentences: vectors_ND."""
    vectors = []
    for start in range(0, len(sentences), 32):
        texts, offsets = zip(
            *(joined(sentence.words) for sentence in sentences[start : start + 32]), strict=True
        )
        batch = encoder.tokenizer(
            list(texts), padding=True, return_offsets_mapping=True, return_tensors="pt"
        )
        states_BTD = encoder.model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).last_hidden_state
        for states_TD, spans, words in zip(
            states_BTD, batch["offset_mapping"].tolist(), offsets, strict=True
        ):
            for first, last in words:
                own = [
                    place for place, span in enumerate(spans) if span[0] < last and span[1] > first
                ]
                vectors.append(states_TD[own].mean(0))
    return torch.stack(vectors)


def main() -> None:
    """Take turns, three times each, and print the best of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data/word/conll2000/train.txt")
    )
    parser.add_argument("--sentences", type=int, default=4000)
    arguments = parser.parse_args()
    encoder = LLM2Vec.from_pretrained("bundled")
    sentences = read_tagged(arguments.data)[: arguments.sentences]
    ways = {
        "llm2vec": lambda: read_split(encoder, sentences, readings=("own",)).vectors["own"][0],
        "padded loop": lambda: plain_loop(encoder, sentences),
    }
    seconds, vectors = in_turns(ways)
    if (vectors["llm2vec"] - vectors["padded loop"]).abs().max() > 1e-3:
        sys.exit("the two do not give the same vectors")
    words = len(vectors["llm2vec"])
    print(heading())
    print(f"{len(sentences):,} sentences, {words:,} words, the bundled decoder\n")
    print("| way | seconds | words/s | faster |\n| --- | --- | --- | --- |")
    slow = min(seconds["padded loop"])
    for name, taken in seconds.items():
        print(
            f"| {name} | {min(taken):.2f} | {words / min(taken):,.0f} | {slow / min(taken):.2f}x |"
        )


if __name__ == "__main__":
    main()
