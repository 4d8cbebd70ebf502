"""The report's parts in order: the facts of a run as sentences, figures and tables. `page` sets them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llm2vec.report.figures import PALETTE, Bar, bars, cells, curves, histograms, ranking

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """A part of the report: what it is about, figures, tables with a heading row, points."""

    title: str
    text: str
    figures: Sequence[str] = ()
    tables: Sequence[Sequence[Sequence[str]]] = field(default_factory=tuple)
    points: Sequence[str] = ()

    @property
    def paragraphs(self) -> list[str]:
        """The text's paragraphs."""
        return [each for each in self.text.split("\n") if each]


def sections(report: Facts) -> list[Section]:
    """The report's parts in order."""
    found = [_verdict_section(report), _summary(report), _words(report)]
    found += [_sentences(report), _training(report)]
    if report["efficiency"]:
        found.append(_efficiency(report))
    return [
        *found,
        _future(report),
        _layers(report),
        _neighbours(report),
        _proofs(report),
        _made_with(report),
    ]


def _verdict_section(report: Facts) -> Section:
    """The verdict in three sentences, and everything that was measured in one picture a task."""
    entries = [*report["words"], *report["sentences"]]
    points = [
        _gains("Words", report["words"]),
        _gains("Sentences", report["sentences"]),
        _not_reached(entries),
    ]
    figures = [
        ranking(f"{entry['task']}, {entry['metric']} x 100", _ranked(entry)) for entry in entries
    ]
    return Section("In short", "", figures, points=[each for each in points if each])


def _gains(kind: str, entries: Sequence[Facts]) -> str:
    """What the last stage gained over the causal decoder, task by task; empty without tasks."""
    parts = [_gain(entry) for entry in entries]
    if not parts:
        return ""
    return f"{kind}, {_stages(entries[0])[-1]} against the causal decoder: {'; '.join(parts)}."


def _gain(entry: Facts) -> str:
    rows = {row["model"]: row for row in entry["rows"]}
    last = _stages(entry)[-1]
    change = next(
        each for each in entry["changes"] if (each["before"], each["after"]) == ("Uni", last)
    )
    kind = f"a clear {_verdict(change)}" if change["clear"] else "no clear change"
    values = f"{_hundred(rows['Uni']['value'])} to {_hundred(rows[last]['value'])}"
    return f"{entry['task']} {values}, {kind} ({_signed(change)}, 95% {_range(change)})"


def _not_reached(entries: Sequence[Facts]) -> str:
    """Which of the encoders and floors that it was compared with the last stage does not reach."""
    better = []
    for entry in entries:
        rows = {row["model"]: row for row in entry["rows"]}
        value = rows[_stages(entry)[-1]]["value"]
        for row in entry["rows"]:
            if row["baseline"] and row["value"] > value:
                better.append(f"{row['model']} in {entry['task']} ({_hundred(row['value'])})")
    if not better:
        return "Nothing that it was compared with does better."
    return f"It does not reach {', '.join(better)}."


def _ranked(entry: Facts) -> list[Bar]:
    """The decoder and the stages in order, then in grey what they are compared with."""
    others = [row for row in entry["rows"] if row["baseline"]]
    found = _stage_bars(entry)
    found += [Bar(row["model"], row["value"], row["low"], row["high"]) for row in others]
    floors = entry.get("floors", {})
    return found + [Bar(name, value, value, value) for name, value in floors.items()]


def _summary(report: Facts) -> Section:
    points = []
    for entry in report["words"]:
        stages = _stages(entry)
        points += [_change(entry, "Uni", each) for each in dict.fromkeys([*stages[:2], stages[-1]])]
    for entry in report["sentences"]:
        stages = _stages(entry)
        points += [_change(entry, "Uni", each) for each in dict.fromkeys([stages[0], stages[-1]])]
        points.append(_change(entry, "Uni, weighted mean", stages[-1]))
    text = (
        f"The decoder {report['decoder']}, read causally (Uni) and after each step of what was done: every token "
        "attends to every other (Bi), masked next-token prediction (MNTP), contrastive learning without labels "
        "(SimCSE) and with them (supervised). A model's name lists the steps behind it.\nIntervals are 95%, "
        "over the test data. For a paired difference the same test items are drawn for both models; where its interval "
        "leaves out 0 the change is called clear, even if the two models' own intervals overlap. The bundled sets are "
        "small: use your own to decide anything."
    )
    return Section("Changes", text, points=[point for point in points if point])


def _stages(entry: Facts) -> list[str]:
    """The stages that were measured, in order, without the causal decoder."""
    return [str(row["model"]) for row in entry["rows"] if not row["baseline"]][1:]


def _change(entry: Facts, before: str, after: str) -> str:
    """A change in a sentence; empty where it was not measured."""
    found = [
        each for each in entry["changes"] if (each["before"], each["after"]) == (before, after)
    ]
    if not found:
        return ""
    rows = {row["model"]: row for row in entry["rows"]}
    one, other, change = rows[before], rows[after], found[0]
    apart = other["low"] > one["high"] or other["high"] < one["low"]
    verdict = f"{'a clear' if change['clear'] else 'no clear'} {_verdict(change)}"
    return (
        f"{entry['task'].capitalize()} ({entry['metric']}), {before} to {after}: {_hundred(one['value'])} to "
        f"{_hundred(other['value'])} ({_signed(change)}, 95% of the paired difference {_range(change)}): {verdict}; "
        f"their intervals {'do not overlap' if apart else 'overlap'}."
    )


def _verdict(change: Facts) -> str:
    """Whether the paired difference leaves 0 out, and on which side."""
    if not change["clear"]:
        return "change"
    return "gain" if change["value"] > 0 else "loss"


def _changes(entry: Facts) -> list[list[str]]:
    """The table of changes; the values themselves stand in the table before it."""
    rows = [
        [
            f"{each['before']} to {each['after']}",
            _signed(each),
            _range(each),
            _verdict(each) if each["clear"] else "no",
        ]
        for each in entry["changes"]
    ]
    return [[f"{entry['task']}, changes", "change", "95%, paired", "clear"], *rows]


def _words(report: Facts) -> Section:
    figures, tables = [], []
    for entry in report["words"]:
        levels = {row["model"]: row["value"] for row in entry["rows"] if row["baseline"]}
        title = f"{entry['task']}, {entry['metric']} x 100"
        figures.append(bars(title, _stage_bars(entry), lines=levels))
        tables += [_word_table(entry), _changes(entry)]
    about = "; ".join(sorted({entry["data"] for entry in report["words"]}))
    text = (
        "A linear classifier on frozen word vectors, three seeds (paper, section 3.1). "
        f"Data: {about}. Dashed lines are other encoders. A word is read from its own tokens (own) "
        "or from the states one token earlier (before), whichever did better on sentences kept out "
        "of training. The axes do not begin at 0."
    )
    return Section("Words", text, figures, tables)


def _stage_bars(entry: Facts) -> list[Bar]:
    """The decoder and the stages in order, each in a colour of its own."""
    own = [row for row in entry["rows"] if not row["baseline"]]
    return [
        Bar(row["model"], row["value"], row["low"], row["high"], PALETTE[index % len(PALETTE)])
        for index, row in enumerate(own)
    ]


def _word_table(entry: Facts) -> list[list[str]]:
    table = [[entry["task"], f"{entry['metric']} x 100", "95%", "read from"]]
    for row in entry["rows"]:
        table.append([row["model"], _hundred(row["value"]), _range(row), row["reading"]])
    for name, value in entry["floors"].items():
        table.append([name, _hundred(value), "", ""])
    return table


def _sentences(report: Facts) -> Section:
    tables = []
    for entry in report["sentences"]:
        rows = ([row["model"], _hundred(row["value"]), _range(row)] for row in entry["rows"])
        tables += [[[entry["task"], f"{entry['metric']} x 100", "95%"], *rows], _changes(entry)]
    spread = [["vectors", "anisotropy", "uniformity", "alignment"]]
    for row in report["geometry"]:
        spread.append(
            [
                row["model"],
                *(f"{row[key]:.3f}" for key in ("anisotropy", "uniformity", "alignment")),
            ]
        )
    about = "; ".join(sorted({entry["data"] for entry in report["sentences"]}))
    text = (
        f"Spearman correlation of cosines with graded similarity. Data: {about}. tf-idf counts words; random weights "
        "are the same architecture, untrained.\nAnisotropy: mean cosine of different texts, 0 if they are spread out. "
        "Uniformity: lower is more evenly spread. Alignment: squared distance of texts that mean the same, lower is "
        "nearer."
    )
    return Section("Sentences", text, (), [*tables, spread])


def _training(report: Facts) -> Section:
    figures, table = [], [["", "first", "last"]]
    for stage, metrics in report["training"].items():
        name = _stage(stage)
        losses = _points(metrics, "loss")
        held_out = _points(metrics, "eval_loss")
        accuracy = _points(metrics, "eval_accuracy")
        series = {"training": (losses, PALETTE[1]), "held out": (held_out, PALETTE[2])}
        figures.append(curves(f"{name}, loss", series))
        line = {"held out": (accuracy, PALETTE[2])}
        figures.append(curves(f"{name}, masked tokens right, %", line, percent=True))
        table += _first_and_last(f"{name}, masked accuracy held out", accuracy, ".1%")
        if held_out:
            table += _first_and_last(f"{name}, held-out loss", held_out, ".3f")
        else:
            table += _first_and_last(f"{name}, training loss", losses, ".3f")
    return Section("Training", "", [each for each in figures if each], [table])


def _first_and_last(
    name: str, points: Sequence[tuple[float, float]], shape: str
) -> list[list[str]]:
    """A row with the first and the last value; none where there are no points."""
    if not points:
        return []
    return [[name, format(points[0][1], shape), format(points[-1][1], shape)]]


def _points(metrics: Sequence[Facts], key: str) -> list[tuple[float, float]]:
    """The steps at which a metric was logged, and its values."""
    return [(line["step"], line[key]) for line in metrics if key in line]


def _stage(name: str) -> str:
    plain = name.rpartition("-")[2]
    return {"mntp": "MNTP", "simcse": "SimCSE"}.get(plain, plain)


def _efficiency(report: Facts) -> Section:
    rows = report["efficiency"]
    figures = []
    for stage in dict.fromkeys(row["stage"] for row in rows):
        for index, task in enumerate(rows[0]["scores"]):
            points = [(row["step"], row["scores"][task]) for row in rows if row["stage"] == stage]
            figures.append(
                curves(
                    f"{_stage(stage)}, {task} x 100",
                    {task: (points, PALETTE[index + 1])},
                    percent=True,
                )
            )
    table = [["stage", "step", *rows[0]["scores"]]]
    table += [
        [_stage(row["stage"]), str(row["step"]), *map(_hundred, row["scores"].values())]
        for row in rows
    ]
    text = "Scores of the encoders kept along the way (keep_every), read from own tokens (paper, section 5)."
    return Section("Sample efficiency", text, figures, [table])


def _future(report: Facts) -> Section:
    values = [
        value
        for row in report["future"]
        for kind in ("paraphrase", "different")
        for value in row[kind]
    ]
    names, bounds = ("paraphrased ending", "other sense"), (min(values), max(values))
    figures = [
        histograms(row["model"], row["paraphrase"], row["different"], names=names, bounds=bounds)
        for row in report["future"]
    ]
    head = ["future tokens", "paraphrased ending", "other sense", "gap", "paraphrase is nearer"]
    rows = [
        [
            row["model"],
            _mean(row["paraphrase"]),
            _mean(row["different"]),
            f"{row['gap']:.3f}",
            f"{row['right']:.0%}",
        ]
        for row in report["future"]
    ]
    text = (
        "Do the states of a beginning tell of its ending? Cosine of a shared beginning, pooled alone, before two "
        "endings: one that says the same in other words, and one of another sense (paper, section 4.1; 15 bins). A "
        "causal "
        "model cannot tell: its cosines are all 1."
    )
    return Section("Future tokens", text, figures, [[head, *rows]])


def _layers(report: Facts) -> Section:
    rows = report["layers"]["cosine_LT"]
    names = ["emb", *(str(index) for index in range(1, len(rows)))]
    figure = cells("cosine of causal and bidirectional states", rows, names=names)
    means = report["layers"]["by_layer"]
    step = max(1, (len(means) - 1) // 8)
    picked = sorted({*range(0, len(means), step), len(means) - 1})
    table = [
        ["layer", *(names[index] for index in picked)],
        ["mean cosine", *(f"{means[index]:.2f}" for index in picked)],
    ]
    text = (
        "The decoder's own states with and without its causal mask, nothing trained, layer by layer and token by "
        "token; the stronger the colour, the nearer. Where they stay near, as in Mistral-7B in the paper (section "
        "4.2), a model needs less MNTP."
    )
    return Section("Causal against bidirectional states", text, [figure], [table])


def _neighbours(report: Facts) -> Section:
    rows = [["sentence", "model", "nearest"]]
    for number in range(len(report["neighbours"][0]["rows"]) if report["neighbours"] else 0):
        for index, entry in enumerate(report["neighbours"]):
            line = entry["rows"][number]
            said = "; ".join(f"{each['text']} ({each['cosine']:.2f})" for each in line["near"])
            rows.append([line["text"] if index == 0 else "", entry["model"], said])
    return Section(
        "Nearest neighbours", "Among 60 bundled sentences of 12 themes, by cosine.", (), [rows]
    )


def _proofs(report: Facts) -> Section:
    rows = [["proof", "at the end of", "margin", "what is measured"]]
    rows += [
        [each["name"], each["stage"], f"{each['margin']:.1e}", each["detail"]]
        for each in report["proofs"]
    ]
    text = "By behaviour, on this model, at the moment each property was made. A proof that fails stops the conversion."
    return Section("Proofs", text, (), [rows])


def _made_with(report: Facts) -> Section:
    run = report["run"]
    facts = {"report made": report["made"], **run["machine"], **run["versions"]}
    rows = [["", ""], *([key, str(value)] for key, value in facts.items())]
    recipe = [["recipe", ""], *(list(pair) for pair in _flat(run["recipe"]))]
    return Section("What it was run with", "", (), [rows, recipe])


def _flat(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _flat(inner, f"{path}{key}.")
        else:
            yield f"{path}{key}", str(inner)


def _hundred(value: float) -> str:
    return f"{100 * value:z.1f}"


def _signed(change: Facts) -> str:
    return f"{100 * change['value']:+z.1f}"


def _range(row: Facts) -> str:
    return f"{_hundred(row['low'])} to {_hundred(row['high'])}"


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.3f}"
