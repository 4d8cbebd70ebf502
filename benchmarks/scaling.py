"""What MNTP gains as a decoder gets better: docs/scaling.svg, from a sweep over checkpoints of its pretraining.

    python benchmarks/scaling.py SWEEP_OUT --decoders 2.2=2.2M 8.8=8.8M 16=16M 32=bundled

Each decoder is named by the millions of tokens it has read and by its file in the sweep's folder: `*NAME.json` for Bi,
`uni:*NAME.json` for Uni, and the conversion whose name begins with NAME (or `real, textbooks`, for the bundled one).
"""

import argparse
from importlib.resources import files
from pathlib import Path

from llm2vec.report.figures import curves
from llm2vec.runtime.files import read_json

TASKS = {
    "EWT POS": "part-of-speech (EWT), accuracy x 100",
    "CoNLL-2000 chunks": "chunks (CoNLL-2000), accuracy x 100",
}
COLORS = {"Uni": "var(--c0)", "Bi": "var(--c1)", "Bi+MNTP": "var(--c2)"}


def scores(folder: Path, name: str) -> dict[str, dict[str, float]]:
    """Of Uni, Bi and Bi+MNTP."""
    found = {}
    for title, begins in (("Uni", "uni:"), ("Bi", "")):
        (file,) = (
            each
            for each in folder.glob(f"*{name}.json")
            if each.name.startswith("uni:") == bool(begins)
        )
        found[title] = read_json(file)
    converted = next(
        iter(
            sorted(
                folder.glob(
                    f"{'real, textbooks' if name == 'bundled' else name + ' tokens'} *.json"
                )
            )
        )
    )
    return {**found, "Bi+MNTP": read_json(converted)["scores"]["1-mntp"]}


def main() -> None:
    """Draw one picture a task, side by side."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--decoders", nargs="+", required=True, metavar="MILLIONS=NAME")
    parser.add_argument("--out", type=Path, default=Path("docs/scaling.svg"))
    arguments = parser.parse_args()
    found = {
        float(tokens): scores(arguments.sweep, name)
        for tokens, name in (e.split("=") for e in arguments.decoders)
    }
    pictures = []
    for place, (task, title) in enumerate(TASKS.items()):
        series = {
            model: ([(tokens, each[model][task] / 100) for tokens, each in found.items()], color)
            for model, color in COLORS.items()
        }
        drawn = curves(title, series, percent=True, along="million tokens read:")
        inner = drawn[drawn.index("<svg") : drawn.index("</svg>")].partition(">")[2]
        label = f'<text x="44" y="10">{title}</text>'
        pictures.append(
            f'<svg x="{place * 370}" y="0" width="360" height="246" viewBox="0 -16 360 246">{label}{inner}</svg>'
        )
    style = (files("llm2vec") / "assets" / "report.css").read_text(encoding="utf8")
    whole = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 740 246"><style>{style}</style>'
    back = '<rect width="740" height="246" fill="var(--back)"/>'
    arguments.out.write_text(f"{whole}{back}{''.join(pictures)}</svg>\n", encoding="utf8")


if __name__ == "__main__":
    main()
