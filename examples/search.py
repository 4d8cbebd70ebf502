"""Find the line of a file that is nearest in meaning to a question.

python examples/search.py ENCODER lines.txt "Who repairs shoes?"
"""

import sys
from pathlib import Path

from llm2vec import Encoder


def main(folder: str, file: str, question: str) -> None:
    """Print the three nearest lines with their cosines."""
    encoder = Encoder.from_pretrained(folder)
    lines = [line for line in Path(file).read_text(encoding="utf8").splitlines() if line.strip()]
    line_BD = encoder.encode(lines, normalize=True)
    question_D = encoder.encode(question, normalize=True)
    cosine_B = line_BD @ question_D
    for index in cosine_B.argsort(descending=True)[:3].tolist():
        print(f"{float(cosine_B[index]):.3f}  {lines[index]}")


if __name__ == "__main__":
    main(*sys.argv[1:4])
