"""The sections about what was gained: the verdict, the changes, words and sentences."""

from collections.abc import Sequence

from llm2vec.report.figures import PALETTE, Bar, bars, ranking
from llm2vec.report.section import Facts, Section, hundredths
from llm2vec.report.task_facts import UNI, UNTRAINED, Change, ModelScore, TaskFacts, read_tasks

_WEIGHTED = "Uni, weighted mean"
_GEOMETRY = ("anisotropy", "uniformity", "alignment")


def verdict(report: Facts) -> Section:
    """The verdict in three sentences, and one picture of all models for each task."""
    words, sentences = read_tasks(report["words"]), read_tasks(report["sentences"])
    tasks = [*words, *sentences]
    compared = f"{_better_models(tasks)} {_untrained_is_as_good(sentences)}".strip()
    points = [_gains("Words", words), _gains("Sentences", sentences), compared]
    figures = [ranking(task.title, _ranked_bars(task)) for task in tasks]
    return Section("In short", "", figures, points=[point for point in points if point])


def _gains(kind: str, tasks: Sequence[TaskFacts]) -> str:
    """What the last stage gained over the causal decoder, by task; empty without tasks."""
    if not tasks:
        return ""
    gains = "; ".join(_gain(task) for task in tasks)
    return f"{kind}, {tasks[0].stages[-1]} against the causal decoder: {gains}."


def _gain(task: TaskFacts) -> str:
    last = task.stages[-1]
    change = task.change(UNI, last)
    values = " to ".join(hundredths(task.score_of(model).value) for model in (UNI, last))
    if change is None:
        return f"{task.task} {values}"
    return f"{task.task} {values}, {change.verdict} ({change.signed}, 95% {change.interval})"


def _better_models(tasks: Sequence[TaskFacts]) -> str:
    """The encoders and floors that the last stage does not reach."""
    better = []
    for task in tasks:
        value = task.score_of(task.stages[-1]).value
        for score in task.baselines:
            if score.value > value:
                better.append(f"{score.model} in {task.task} ({hundredths(score.value)})")
    if not better:
        return "Nothing that it was compared with does better."
    return f"It does not reach {', '.join(better)}."


def _untrained_is_as_good(tasks: Sequence[TaskFacts]) -> str:
    """Where an untrained prompt does as well as the conversion; empty if nowhere."""
    found = []
    for task in tasks:
        best = _least_change(task)
        if best is not None and not (best.clear and best.value > 0):
            found.append(f"{task.task} ({best.before}: {best.signed}, {best.interval})")
    if not found:
        return ""
    return (
        "The conversion does not beat its own decoder asked by an untrained prompt in "
        f"{'; '.join(found)}: train longer, or use the prompt."
    )


def _least_change(task: TaskFacts) -> Change | None:
    """The change from the best untrained reading of the decoder; None if none was measured."""
    changes = [task.change(each, task.stages[-1]) for each in UNTRAINED]
    measured = [each for each in changes if each is not None]
    return min(measured, key=lambda each: each.value, default=None)


def _ranked_bars(task: TaskFacts) -> list[Bar]:
    """The decoder and the stages in order, then in grey what they are compared with."""
    found = _run_bars(task)
    found += [_bar(score) for score in task.baselines]
    found += [Bar(name, value, value, value) for name, value in task.floors.items()]
    return found


def _run_bars(task: TaskFacts) -> list[Bar]:
    """The decoder and the stages in order, each in a colour of its own."""
    colors = [PALETTE[index % len(PALETTE)] for index in range(len(task.of_run))]
    return [_bar(score, color) for score, color in zip(task.of_run, colors, strict=True)]


def _bar(score: ModelScore, color: str | None = None) -> Bar:
    return Bar(score.model, score.value, score.low, score.high, color)


def changes(report: Facts) -> Section:
    """The changes from the causal decoder to the stages, in sentences."""
    points = []
    for task in read_tasks(report["words"]):
        first, last = task.stages[:2], task.stages[-1]
        points += _change_sentences(task, [(UNI, stage) for stage in [*first, last]])
    for task in read_tasks(report["sentences"]):
        first, last = task.stages[:1], task.stages[-1]
        pairs = [(UNI, stage) for stage in [*first, last]]
        points += _change_sentences(task, [*pairs, (_WEIGHTED, last)])
    text = (
        f"The decoder {report['decoder']}, read causally (Uni) and after each stage: every token "
        "attends to every other (Bi), masked next-token prediction (MNTP), contrastive learning "
        "without labels (SimCSE) and with them (supervised). A model's name lists its stages.\n"
        "Intervals are 95%, over the test data. For a paired difference both models are measured "
        "on the same resamples of the test items. If its interval leaves out 0, the change is "
        "called clear, even if the intervals of the two models overlap. The bundled sets are "
        "small: use your own to decide anything."
    )
    return Section("Changes", text, points=points)


def _change_sentences(task: TaskFacts, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Each change that was measured in a sentence, once."""
    found = [task.change(before, after) for before, after in dict.fromkeys(pairs)]
    return [task.sentence(change) for change in found if change is not None]


def words(report: Facts) -> Section:
    """The word tasks: a figure and two tables each."""
    tasks = read_tasks(report["words"])
    figures, tables = [], []
    for task in tasks:
        levels = {score.model: score.value for score in task.baselines}
        figures.append(bars(task.title, _run_bars(task), lines=levels))
        tables += [_word_table(task), _change_table(task)]
    text = (
        "A linear classifier on frozen word vectors, three seeds (paper, section 3.1). "
        f"Data: {_data(tasks)}. Dashed lines are other encoders. A word is read from its own "
        "tokens (own) or from the states one token earlier (before), whichever did better on "
        "sentences kept out of training. The axes do not begin at 0."
    )
    return Section("Words", text, figures, tables)


def _word_table(task: TaskFacts) -> list[list[str]]:
    table = [[task.task, f"{task.metric} x 100", "95%", "read from"]]
    for score in task.scores:
        table.append([score.model, hundredths(score.value), score.interval, score.reading])
    for name, value in task.floors.items():
        table.append([name, hundredths(value), "", ""])
    return table


def _change_table(task: TaskFacts) -> list[list[str]]:
    """The changes; the table before this one holds the values."""
    table = [[f"{task.task}, changes", "change", "95%, paired", "clear"]]
    for change in task.changes:
        models = f"{change.before} to {change.after}"
        clear = change.kind if change.clear else "no"
        table.append([models, change.signed, change.interval, clear])
    return table


def sentences(report: Facts) -> Section:
    """The sentence tasks: two tables each, and how the vectors are spread."""
    tasks = read_tasks(report["sentences"])
    tables = []
    for task in tasks:
        tables += [_sentence_table(task), _change_table(task)]
    tables.append(_geometry_table(report["geometry"]))
    text = (
        f"Spearman correlation of cosines with graded similarity. Data: {_data(tasks)}. tf-idf "
        "counts words; random weights are the same architecture, untrained; prompt asks the causal "
        "decoder for the text in one word and reads its last state (Jiang et al. 2023); echo gives "
        "it the text twice and pools the second copy (Springer et al. 2024).\n"
        "Anisotropy: mean cosine of different texts, 0 if they are spread out. Uniformity: lower "
        "is more evenly spread. Alignment: squared distance of texts that mean the same, lower is "
        "nearer."
    )
    return Section("Sentences", text, tables=tables)


def _sentence_table(task: TaskFacts) -> list[list[str]]:
    table = [[task.task, f"{task.metric} x 100", "95%"]]
    for score in task.scores:
        table.append([score.model, hundredths(score.value), score.interval])
    return table


def _geometry_table(rows: Sequence[Facts]) -> list[list[str]]:
    table = [["vectors", *_GEOMETRY]]
    for row in rows:
        table.append([row["model"], *(f"{row[key]:.3f}" for key in _GEOMETRY)])
    return table


def _data(tasks: Sequence[TaskFacts]) -> str:
    """The data of all tasks, each once."""
    return "; ".join(sorted({task.data for task in tasks}))
