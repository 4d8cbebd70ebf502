"""`make demo`: convert the bundled decoder on texts it writes itself, and look at what that changed.

    python scripts/demo.py [--out demo/encoder]

Killed, it goes on where it was; finished, it only shows the result again.
"""

import argparse
import resource
import time
import warnings
from pathlib import Path

import llm2vec
from llm2vec.evaluate.analysis import bundled_sentences, bundled_triples, future_tokens, neighbours
from llm2vec.terminal import Drawn, people

SHOWN = ("My sister sings in a choir.", "The coach shouted at the referee.", "I have had a sore throat for a week.")
"""Sentences whose neighbours are shown; those that the set does not hold are left out."""


def masked_tokens(provenance: dict) -> str:
    """Held-out masked accuracy and loss before and after MNTP."""
    metrics = next(stage["metrics"] for stage in provenance["stages"] if stage["stage"] == "mntp")
    first, *_, last = [line for line in metrics if "eval_loss" in line]
    lines = ["| masked tokens, held out | before MNTP | after |", "| --- | --- | --- |"]
    lines.append(f"| accuracy | {first['eval_accuracy']:.1%} | {last['eval_accuracy']:.1%} |")
    lines.append(f"| loss | {first['eval_loss']:.2f} | {last['eval_loss']:.2f} |")
    return "\n".join(lines)


def future(encoders: dict) -> str:
    """Cosines of a shared beginning under different endings."""
    lines = [
        "| future tokens | paraphrased ending | other sense | gap | nearer: paraphrase |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, encoder in encoders.items():
        found = future_tokens(encoder, bundled_triples())
        same = sum(found.paraphrase) / len(found.paraphrase)
        other = sum(found.different) / len(found.different)
        lines.append(f"| {name} | {same:.3f} | {other:.3f} | {found.gap:.3f} | {found.right:.0%} |")
    return "\n".join(lines)


def near(encoders: dict) -> str:
    """Nearest neighbours of a few sentences, before and after."""
    texts = bundled_sentences()
    wanted = [texts.index(text) for text in SHOWN if text in texts]
    found = {name: neighbours(encoder, texts, of=wanted, count=2) for name, encoder in encoders.items()}
    lines = ["| sentence | encoder | nearest of 60 |", "| --- | --- | --- |"]
    for row, index in enumerate(wanted):
        for name in encoders:
            said = "; ".join(f"{each.text} ({each.cosine:.2f})" for each in found[name][row])
            lines.append(f"| {texts[index] if name == next(iter(encoders)) else ''} | {name} | {said} |")
    return "\n".join(lines)


def main() -> None:
    """Convert, measure, print, write `report.md` beside the encoder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo/encoder"))
    out = parser.parse_args().out
    warnings.simplefilter("ignore")
    started = time.monotonic()
    conversion = llm2vec.convert(llm2vec.Recipe.read(llm2vec.preset("small")), out, keep_stages=True, progress=Drawn())
    encoders = {"Uni, the decoder": llm2vec.LLM2Vec.from_pretrained("bundled", enable_bidirectional=False)}
    for name, place in zip(("Bi", "Bi + MNTP", "Bi + MNTP + SimCSE"), conversion.stages.values(), strict=True):
        encoders[name] = llm2vec.LLM2Vec.from_pretrained(place)
    first_and_last = {name: encoders[name] for name in (next(iter(encoders)), next(reversed(encoders)))}
    parts = [masked_tokens(dict(conversion.provenance)), future(encoders), near(first_and_last)]
    report = "\n\n".join(["# What the conversion changed", *parts]) + "\n"
    (out.parent / "report.md").write_text(report, encoding="utf8")
    print(report)
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    people.print(f"{time.monotonic() - started:.0f} s, at most {peak_gb:.2f} GB of memory; the encoder is in {out}")


if __name__ == "__main__":
    main()
