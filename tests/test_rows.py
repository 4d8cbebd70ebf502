"""The reader of rows: the same rows whatever way the bytes arrive, one by one, each with its place."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import threading
import tracemalloc

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llm2vec.corpus.data_files import DataFile, data_file, find_files
from llm2vec.corpus.lines import read_lines
from llm2vec.corpus.rows import open_table, read_rows, read_table
from llm2vec.corpus.texts import corpus_fingerprint
from llm2vec.errors import CorpusError, UsageError

COMPRESSED = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd.compress,
}

OF_ANOTHER_KIND = (
    b"\xff\xfe",
    b"\xfe\xff",
    b"\x00\x00\xfe\xff",
    b"\x1f\x8b",
    b"BZh",
    b"\xfd7zXZ",
    b"\x28\xb5\x2f",
)
"""What bytes begin with that are compressed already, or say that they are not UTF-8."""

LINE = st.text(
    st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=8
).filter(lambda line: not line.endswith("\r") and not line.startswith("\ufeff"))


class Pipe(io.RawIOBase):
    """Bytes that come a few at a time and cannot be read again, as from another program."""

    def __init__(self, data, size):
        self._data, self._size = data, size

    def readable(self):
        return True

    def readinto(self, buffer):
        block = self._data[: min(self._size, len(buffer))]
        self._data = self._data[len(block) :]
        buffer[: len(block)] = block
        return len(block)


def stream(data, *, size=3, kind="txt"):
    return DataFile("standard input", kind, io.BufferedReader(Pipe(data, size)))


def lines_of(file):
    return [line.text for line in read_lines(file)]


def texts_of(source):
    return [row.values["text"] for row in read_rows(source)]


def naive(data):
    """What the lines of any bytes are, read whole: bytes that are not UTF-8 are U+FFFD each."""
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf8", "surrogateescape")
    text = "".join("\ufffd" if "\ud800" <= each <= "\udfff" else each for each in text)
    lines = text.split("\n")
    lines = lines if lines[-1] else lines[:-1]
    return [line.removesuffix("\r") for line in lines]


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=60), size=st.integers(1, 20))
def test_any_bytes_are_the_same_lines_from_a_path_a_stream_and_every_compression(
    data, size, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("bytes")
    assume(not data.startswith(OF_ANOTHER_KIND))
    (folder / "a.txt").write_bytes(data)
    wanted = naive(data)
    assert lines_of(data_file(folder / "a.txt")) == wanted
    assert lines_of(stream(data, size=size)) == wanted
    for ending, compress in COMPRESSED.items():
        (folder / f"a.txt.{ending}").write_bytes(compress(data))
        assert lines_of(data_file(folder / f"a.txt.{ending}")) == wanted
        assert lines_of(stream(compress(data), size=size)) == wanted


@settings(max_examples=60, deadline=None)
@given(lines=st.lists(LINE, min_size=1, max_size=5), ended=st.booleans())
def test_texts_are_the_same_with_a_mark_with_windows_line_ends_and_in_utf_16(lines, ended):
    lines = lines if ended or lines[-1] else [*lines, "x"]
    plain = "\n".join(lines) + ("\n" if ended else "")
    assume(not plain.startswith("\0"))  # after UTF-16's mark it is the mark of UTF-32
    windows = plain.replace("\n", "\r\n")
    assert lines_of(stream(plain.encode())) == lines
    assert lines_of(stream(windows.encode())) == lines
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        assert lines_of(stream(windows.encode(encoding))) == lines
    marked = b"\xfe\xff" + plain.encode("utf-16-be")
    assert lines_of(stream(marked)) == lines


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(LINE.filter(lambda text: "\r" not in text and "\0" not in text), max_size=5))
def test_every_format_gives_the_same_rows(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    objects = [{"id": 1, "text": text} for text in texts]
    (folder / "a.txt").write_text("".join(text + "\n" for text in texts), "utf8", newline="")
    (folder / "a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in objects))
    with (folder / "a.csv").open("w", encoding="utf8", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *([1, text] for text in texts)])
    with (folder / "b.csv").open("w", encoding="utf8", newline="") as file:
        csv.writer(file, delimiter=";").writerows([["id", "text"], *([1, each] for each in texts)])
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), folder / "a.parquet")
    for name in ("a.txt", "a.jsonl", "a.csv", "b.csv", "a.parquet"):
        assert texts_of(folder / name) == texts, name


@pytest.mark.parametrize("ending", COMPRESSED)
def test_a_compressed_file_of_several_parts_is_read_to_its_end(ending, tmp_path):
    compress = COMPRESSED[ending]
    (tmp_path / f"a.txt.{ending}").write_bytes(compress(b"one\n") + compress(b"two\n"))
    assert texts_of(tmp_path / f"a.txt.{ending}") == ["one", "two"]


@pytest.mark.parametrize("ending", COMPRESSED)
def test_a_compressed_file_that_is_cut_short_is_an_error(ending, tmp_path):
    whole = COMPRESSED[ending](os.urandom(5000).hex().encode())
    (tmp_path / f"a.txt.{ending}").write_bytes(whole[:-20])
    with pytest.raises(CorpusError, match=rf"a\.txt\.{ending} is damaged or cut short"):
        texts_of(tmp_path / f"a.txt.{ending}")


def test_a_file_that_is_not_compressed_as_its_name_says_is_an_error(tmp_path):
    (tmp_path / "a.txt.gz").write_text("plain text")
    with pytest.raises(CorpusError, match="not compressed by gzip, as its name says"):
        texts_of(tmp_path / "a.txt.gz")


def test_the_case_of_endings_means_nothing(tmp_path):
    (tmp_path / "B.TXT").write_text("b\n")
    (tmp_path / "C.JSONL.GZ").write_bytes(gzip.compress(b'{"text": "c"}\n'))
    assert [texts_of(file) for file in find_files(str(tmp_path))] == [["b"], ["c"]]


def test_a_pipe_with_a_name_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(
        target=lambda: (tmp_path / "pipe").write_bytes(b"a\nb\n"), daemon=True
    )
    writer.start()
    (file,) = find_files(str(tmp_path / "pipe"), as_format="txt")
    assert texts_of(file) == ["a", "b"]
    writer.join()


def test_a_remote_file_is_read_like_one_here():
    system = fsspec.filesystem("memory")
    system.pipe("/rows/a.jsonl.zst", zstd.compress(b'{"text": "a"}\n'))
    system.pipe("/rows/b.txt", b"b\r\n")
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": ["c"]}), sink)
    system.pipe("/rows/c.parquet", sink.getvalue())
    for source in ("memory://rows", "memory://rows/*"):
        found = find_files(source)
        assert [text for file in found for text in texts_of(file)] == ["a", "b", "c"]
        assert found[0].name == "memory:///rows/a.jsonl.zst"
    first = corpus_fingerprint("memory://rows")
    system.pipe("/rows/b.txt", b"other")
    assert corpus_fingerprint("memory://rows") != first
    with pytest.raises(CorpusError, match="memory://rows/x.txt does not exist"):
        find_files("memory://rows/x.txt")
    with pytest.raises(CorpusError, match="cannot be read"):
        texts_of("memory://rows/x.txt")
    with pytest.raises(UsageError, match="nosuch://x cannot be opened"):
        find_files("nosuch://x")


def test_a_bad_row_says_so_and_does_not_stop_the_others(tmp_path):
    deep = "[" * 100_000
    lines = ['{"text": "a"}', "{", "[1]", "", f'{{"n": {"9" * 5000}}}', deep, '{"text": "b"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    rows = list(read_rows(tmp_path / "a.jsonl"))
    assert [row.location.rpartition(", ")[2] for row in rows] == [
        f"line {number}" for number in (1, 2, 3, 5, 6, 7)
    ]
    assert [row.values.get("text") for row in rows if row.problem is None] == ["a", "b"]
    problems = [row.problem for row in rows if row.problem]
    assert problems[1] == "not a JSON object"
    assert all(problem.startswith("not JSON (") for problem in (problems[0], *problems[2:]))
    (tmp_path / "a.csv").write_text('id,text\n1,a\n2\n3,"b"x\n4,c\n5,"d\n')
    rows = list(read_rows(tmp_path / "a.csv"))
    assert [row.problem is None for row in rows] == [True, False, False, True, False]
    assert rows[1].problem == "1 cells, but the heading has 2: id, text"
    assert rows[4].problem == "not CSV (unexpected end of data)"
    with pytest.raises(CorpusError, match="line 3: 1 cells"):
        read_table(tmp_path / "a.csv")


def test_a_row_of_several_lines_is_named_by_its_first(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'text\r\n"a\r\n\r\nb"\r\nc\r\n')
    rows = list(read_rows(tmp_path / "a.csv"))
    assert [(row.location[-6:], row.values["text"]) for row in rows] == [
        ("line 2", "a\n\nb"),
        ("line 5", "c"),
    ]


def test_what_is_not_unicode_is_replaced_and_counted_in_every_format(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 \xff\nfine\n")
    (tmp_path / "a.jsonl").write_text(
        '{"text": "a\\ud83d", "tags": ["\\udc00"]}\n{"text": "\\ud83d\\ude00"}\n'
    )
    (tmp_path / "a.csv").write_bytes(b"text,id\ncaf\xe9,1\nfine,2\n")
    blobs = pa.array([b"caf\xe9", b"fine"], pa.binary())
    unchecked = pa.StringArray.from_buffers(2, *blobs.buffers()[1:])
    pq.write_table(pa.table({"text": unchecked, "n": [1, 2]}), tmp_path / "a.parquet")
    for name, count, text in (
        ("a.txt", 2, "caf\ufffd \ufffd"),
        ("a.jsonl", 2, "a\ufffd"),
        ("a.csv", 1, "caf\ufffd"),
        ("a.parquet", 1, "caf\ufffd"),
    ):
        first, second = read_rows(tmp_path / name)
        assert (first.values["text"], first.replaced, second.replaced) == (text, count, 0), name
    first, second = read_rows(tmp_path / "a.jsonl")
    assert first.values["tags"] == ["\ufffd"]
    assert second.values["text"] == "\U0001f600"
    with pytest.raises(CorpusError, match=r"a\.jsonl, line 1: not UTF-8, or half of a surrogate"):
        read_table(tmp_path / "a.jsonl")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_of_a_csv_file_is_told_by_its_first_lines(delimiter, tmp_path):
    rows = [["id", "text"], ["1", "hello, world; and | so on"], ["2", 'a\n"b"']]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    assert texts_of(tmp_path / "a.csv") == [rows[1][1], rows[2][1]]


def test_a_delimiter_that_cannot_be_told_is_asked_for_and_one_that_is_given_is_taken(tmp_path):
    (tmp_path / "a.csv").write_text("a;b,c\n1;2,3\n")
    with pytest.raises(CorpusError, match=r"a\.csv: the delimiter may be ',' or ';'.*--delimiter"):
        open_table(tmp_path / "a.csv")
    assert list(open_table(tmp_path / "a.csv", delimiter=";").columns) == ["a", "b,c"]
    with pytest.raises(UsageError, match="must be one character"):
        open_table(tmp_path / "a.csv", delimiter="::")
    (tmp_path / "b.csv").write_text("text\nno delimiter here\n")
    assert texts_of(tmp_path / "b.csv") == ["no delimiter here"]
    (tmp_path / "c.csv").write_text("text,text\na,b\n")
    with pytest.raises(CorpusError, match="line 1: two columns are named 'text'"):
        open_table(tmp_path / "c.csv")


def test_quotes_mean_nothing_in_a_tsv_file(tmp_path):
    (tmp_path / "a.tsv").write_text('id\ttext\n1\t"an open quote\n2\tb\n')
    assert texts_of(tmp_path / "a.tsv") == ['"an open quote', "b"]


def test_a_table_knows_what_its_columns_hold(tmp_path):
    rows = [{"n": 1, "a": None, "t": ["x"]}, {"a": "text", "n": None}, {"m": 1}, {"m": "x"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    kinds = {"n": "int", "a": "text", "t": "words", "m": "different things"}
    assert open_table(tmp_path / "a.jsonl").columns == kinds
    table = {"a": ["x"], "w": [["x", "y"]], "n": [1], "c": pa.array(["x"]).dictionary_encode()}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    kinds = {"a": "text", "w": "words", "n": "int64", "c": "text"}
    assert open_table(tmp_path / "a.parquet").columns == kinds
    (tmp_path / "a.csv").write_text("id,text,empty\n1,a,\n2.5,b,\n")
    assert open_table(tmp_path / "a.csv").columns == {
        "id": "number",
        "text": "text",
        "empty": "nothing",
    }


def test_a_file_that_is_not_parquet_is_one_clear_line(tmp_path):
    (tmp_path / "a.parquet").write_text("text")
    with pytest.raises(CorpusError, match=r"a\.parquet is not Parquet"):
        open_table(tmp_path / "a.parquet")


def test_rows_of_a_parquet_file_come_from_a_stream_too():
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": ["a", "b"]}), sink)
    assert texts_of(stream(sink.getvalue(), kind="parquet")) == ["a", "b"]
    assert texts_of(stream(gzip.compress(sink.getvalue()), kind="parquet")) == ["a", "b"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl.gz", "a.csv", "a.parquet"])
def test_rows_stream_in_constant_memory(name, tmp_path):
    texts = (f"text {number} " + "x" * 200 for number in range(20_000))
    if name == "a.parquet":
        batches = pa.RecordBatch.from_pydict({"text": list(texts)})
        with pq.ParquetWriter(tmp_path / name, batches.schema) as writer:
            writer.write_batch(batches, row_group_size=2000)
    else:
        opener = gzip.open if name.endswith("gz") else open
        with opener(tmp_path / name, "wt") as file:
            file.write("text\n" * (name == "a.csv"))
            for text in texts:
                file.write((json.dumps({"text": text}) if "jsonl" in name else text) + "\n")
    tracemalloc.start()
    assert sum(1 for _ in read_rows(tmp_path / name)) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000, "the file holds four million characters"
