"""The command `report`: one page that shows what a conversion gained."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm2vec.cli.console import ProgressDisplay, answer, people
from llm2vec.cli.inputs import labelled_sentences
from llm2vec.cli.options import Json, LabelColumn, TrustRemoteCode, WordColumn, WordMetric
from llm2vec.cli.words import word_metric
from llm2vec.errors import UsageError

if TYPE_CHECKING:
    from llm2vec.evaluation.word_metrics import Metric
    from llm2vec.report.measure import WordTask


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Examples:\n\n`llm2vec report encoder`\n\n"
        "`llm2vec report encoder --baseline auto:bert-base-cased --train train.conllu "
        "--test test.conllu`"
    )(report)


def report(
    run: Annotated[Path, typer.Argument(help="Encoder folder that `llm2vec convert` made.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for report.html, .md and .json. By default RUN itself."),
    ] = None,
    decoder: Annotated[
        str | None,
        typer.Option(help="Decoder that was converted, if it is no longer where RUN says."),
    ] = None,
    baseline: Annotated[
        list[str] | None, typer.Option(help="Another encoder to compare with; repeatable.")
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(help="Labelled sentences to train on, instead of the bundled ones."),
    ] = None,
    test: Annotated[
        str | None, typer.Option(help="Labelled sentences to measure on, with --train.")
    ] = None,
    column: LabelColumn = None,
    word_column: WordColumn = None,
    metric: WordMetric = "accuracy",
    sts: Annotated[
        Path | None,
        typer.Option(help="Pairs of texts with graded similarity, instead of the bundled ones."),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Measure a finished conversion against its decoder and write a page: figures, tables, proofs.

    Stages are measured where they were kept (`convert --keep-stages`).
    """
    words_metric = word_metric(metric)
    if (train is None) != (test is None):
        raise UsageError("--train and --test go together")
    from llm2vec.report.html import report_folder, write_report

    report_folder(out or run)
    words = None
    if train is not None and test is not None:
        words = [_word_task(train, test, column, word_column, words_metric)]
    from llm2vec.report.measure import SentenceTask, measure

    sentences = None if sts is None else [SentenceTask(sts.stem, sts, str(sts))]
    display = ProgressDisplay()
    try:
        facts = measure(
            run,
            decoder=decoder,
            baselines=baseline or (),
            words=words,
            sentences=sentences,
            progress=display,
            trust_remote_code=trust_remote_code,
        )
    finally:
        display.close()
    page = write_report(facts, out or run)
    if json:
        answer(facts)
    people.print(f"{page} is ready, with report.md and report.json beside it")


def _word_task(
    train: str, test: str, column: str | None, word_column: str | None, metric: "Metric"
) -> "WordTask":
    """The user's labelled sentences as a task of the report."""
    to_train = labelled_sentences(train, column, word_column, split="train")
    to_test = labelled_sentences(test, column, word_column, split="test")
    from llm2vec.report.measure import WordTask

    data = f"{train}: {len(to_train)} sentences to train on, {len(to_test)} to test on"
    return WordTask(column or "labels", to_train, to_test, metric, data)
