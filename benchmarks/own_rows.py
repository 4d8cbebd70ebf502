"""Rows of short texts for the benchmarks of bulk encoding, each another one."""

import random
from pathlib import Path

import pyarrow
from pyarrow import parquet

WHO = ("the miller", "a nurse", "my brother", "the pupil", "nobody", "our neighbour", "the captain")
DID = ("opened", "painted", "sold", "forgot", "mended", "carried", "described", "measured")
WHAT = ("the green door", "a heavy box", "two red boats", "the broken clock", "an old letter")
WHEN = ("before the rain came", "in the morning", "when the train had left", "twice a year")
BLOCK = 50_000


REPORTS = 10_000_000
"""Reports have numbers of eight digits in no order: otherwise later texts would have more tokens."""


def texts(count: int, *, start: int) -> list[str]:
    """Sentences of about 20 tokens, whichever they are."""
    chance = random.Random(start)
    parts = (WHO, DID, WHAT, WHEN)
    found = []
    for number in range(start, start + count):
        who, did, what, when = (chance.choice(part) for part in parts)
        report = REPORTS + number * 7_654_321 % REPORTS
        found.append(f"{who} {did} {what} {when}, said report {report}")
    return found


def write_rows(place: Path, rows: int) -> None:
    """A Parquet file with the columns `id` and `body`, written in constant memory."""
    schema = pyarrow.schema([("id", pyarrow.int64()), ("body", pyarrow.string())])
    with parquet.ParquetWriter(place, schema) as writer:
        for start in range(0, rows, BLOCK):
            count = min(BLOCK, rows - start)
            columns = {"id": range(start, start + count), "body": texts(count, start=start)}
            arrays = {name: list(values) for name, values in columns.items()}
            writer.write_table(pyarrow.table(arrays, schema=schema))
