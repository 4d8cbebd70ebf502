"""The sections about how a model came to its scores: training, analyses, proofs and the run."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llm2vec.report.figures import PALETTE, cells, curves, histograms
from llm2vec.report.section import Facts, Section, hundredths

Points = Sequence[tuple[float, float]]
"""Steps, and the value of a metric at each."""

_STAGES = {"mntp": "MNTP", "simcse": "SimCSE"}
_SHOWN_LAYERS = 8
"""The table of layers shows about so many of them."""


def training(report: Facts) -> Section:
    """The losses and the masked accuracy of each stage that was trained."""
    figures, table = [], [["", "first", "last"]]
    for stage, metrics in report["training"].items():
        name = _stage(stage)
        losses = _points(metrics, "loss")
        held_out = _points(metrics, "eval_loss")
        score = _points(metrics, "eval_score")
        accuracy = [] if score else _points(metrics, "eval_accuracy")
        series = {"training": (losses, PALETTE[1]), "held out": (held_out, PALETTE[2])}
        figures.append(curves(f"{name}, loss", series))
        series = {"held out": (accuracy, PALETTE[2])}
        figures.append(curves(f"{name}, masked tokens right, %", series, percent=True))
        figures.append(_score_curve(name, score))
        table += _first_and_best(f"{name}, held-out score", score)
        table += _first_and_last(f"{name}, masked accuracy held out", accuracy, ".1%")
        if held_out:
            table += _first_and_last(f"{name}, held-out loss", held_out, ".3f")
        else:
            table += _first_and_last(f"{name}, training loss", losses, ".3f")
    return Section("Training", "", [figure for figure in figures if figure], [table])


def _points(metrics: Sequence[Facts], key: str) -> list[tuple[float, float]]:
    """The steps at which a metric was logged, and its values."""
    return [(line["step"], line[key]) for line in metrics if key in line]


def _first_and_last(name: str, points: Points, form: str) -> list[list[str]]:
    """A row with the first and the last value; no row if there are no points."""
    if not points:
        return []
    (_, first), *_ = points
    *_, (_, last) = points
    return [[name, format(first, form), format(last, form)]]


def _score_curve(name: str, points: Points) -> str:
    """The held-out score of a stage that is trained for it; empty for other stages."""
    title = f"{name}, held-out score x 100"
    return curves(title, {"held out": (points, PALETTE[2])}, percent=True)


def _first_and_best(name: str, points: Points) -> list[list[str]]:
    """A row with the first and the highest score, whose weights were kept."""
    if not points:
        return []
    best_step, best = max(points, key=lambda point: point[1])
    (_, first), *_ = points
    return [[name, format(first, ".3f"), f"{best:.3f} (step {best_step})"]]


def _stage(name: str) -> str:
    """A stage's name in the paper, from its name with or without a number."""
    plain = name.rpartition("-")[2]
    return _STAGES.get(plain, plain)


def efficiency(report: Facts) -> Section:
    """The scores of the encoders that were kept during training."""
    rows = report["efficiency"]
    tasks = list(rows[0]["scores"])
    figures = []
    for stage in dict.fromkeys(row["stage"] for row in rows):
        of_stage = [row for row in rows if row["stage"] == stage]
        for task, color in zip(tasks, PALETTE[1:], strict=False):
            points = [(row["step"], row["scores"][task]) for row in of_stage]
            title = f"{_stage(stage)}, {task} x 100"
            figures.append(curves(title, {task: (points, color)}, percent=True))
    table = [["stage", "step", *tasks]]
    for row in rows:
        scores = map(hundredths, row["scores"].values())
        table.append([_stage(row["stage"]), str(row["step"]), *scores])
    text = (
        "Scores of the encoders kept during training (keep_every), read from own tokens (paper, "
        "section 5)."
    )
    return Section("Sample efficiency", text, figures, [table])


def future_tokens(report: Facts) -> Section:
    """How much the states of a beginning depend on its ending."""
    rows = report["future"]
    cosines = [value for row in rows for value in (*row["paraphrase"], *row["different"])]
    names, bounds = ("paraphrased ending", "other sense"), (min(cosines), max(cosines))
    figures = [
        histograms(row["model"], row["paraphrase"], row["different"], names=names, bounds=bounds)
        for row in rows
    ]
    table = [["future tokens", *names, "gap", "paraphrase is nearer"]]
    for row in rows:
        means = [f"{_mean(row[kind]):.3f}" for kind in ("paraphrase", "different")]
        table.append([row["model"], *means, f"{row['gap']:.3f}", f"{row['right']:.0%}"])
    text = (
        "Do the states of a beginning depend on its ending? Cosine of a shared beginning, pooled "
        "alone, before two endings: one that says the same in other words, and one of another "
        "sense (paper, section 4.1; 15 bins). The states of a causal model do not: its cosines "
        "are all 1."
    )
    return Section("Future tokens", text, figures, [table])


def layers(report: Facts) -> Section:
    """How near causal and bidirectional states are, layer by layer."""
    cosines, means = report["layers"]["cosine_LT"], report["layers"]["by_layer"]
    names = ["emb", *(str(number) for number in range(1, len(cosines)))]
    figure = cells("cosine of causal and bidirectional states", cosines, names=names)
    last = len(means) - 1
    every = max(1, last // _SHOWN_LAYERS)
    shown = sorted({*range(0, len(means), every), last})
    table = [
        ["layer", *(names[index] for index in shown)],
        ["mean cosine", *(f"{means[index]:.2f}" for index in shown)],
    ]
    text = (
        "The decoder's own states with and without its causal mask, before training, layer by "
        "layer and token by token; the stronger the colour, the nearer. They stay near in "
        "Mistral-7B in the paper (section 4.2), which gains by the switch alone; on smaller "
        "decoders nearness did not foretell that. The scores of Bi above say it."
    )
    return Section("Causal against bidirectional states", text, [figure], [table])


def neighbours(report: Facts) -> Section:
    """The nearest neighbours of a few sentences, before and after."""
    table = [["sentence", "model", "nearest"]]
    by_model = report["neighbours"]
    for rows in zip(*(entry["rows"] for entry in by_model), strict=True):
        texts = [rows[0]["text"], *[""] * (len(rows) - 1)]
        for text, entry, row in zip(texts, by_model, rows, strict=True):
            table.append([text, entry["model"], _nearest(row["near"])])
    text = "Among 60 bundled sentences of 12 themes, by cosine."
    return Section("Nearest neighbours", text, tables=[table])


def _nearest(found: Sequence[Facts]) -> str:
    return "; ".join(f"{each['text']} ({each['cosine']:.2f})" for each in found)


def proofs(report: Facts) -> Section:
    """The proofs that the run passed."""
    table = [["proof", "at the end of", "margin", "what is measured"]]
    for proof in report["proofs"]:
        margin = f"{proof['margin']:.1e}"
        table.append([proof["name"], proof["stage"], margin, proof["detail"]])
    text = (
        "By behaviour, on this model, at the moment each property was made. A proof that fails "
        "stops the conversion."
    )
    return Section("Proofs", text, tables=[table])


def run_facts(report: Facts) -> Section:
    """The machine, the versions and the recipe."""
    run = report["run"]
    facts = {"report made": report["made"], **run["machine"], **run["versions"]}
    rows = [["", ""], *([key, str(value)] for key, value in facts.items())]
    recipe = [["recipe", ""], *([key, value] for key, value in _flat(run["recipe"]))]
    return Section("What it was run with", "", tables=[rows, recipe])


def _flat(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """The knobs of a nested recipe by their paths, such as `mntp.steps`."""
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _flat(inner, f"{path}{key}.")
        else:
            yield f"{path}{key}", str(inner)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
