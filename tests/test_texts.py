"""Corpora from files: every format gives the same texts, and bad ones say what to do."""

import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm2vec.corpus.texts import corpus_fingerprint, read_texts, text_rows
from llm2vec.errors import CorpusError
from llm2vec.recipe.knobs import CorpusRecipe

TEXTS = ["One text.", "Ein zweiter, älterer.", "第三の文。"]


def texts(source, **options):
    return list(read_texts(CorpusRecipe(source=str(source), **options)))


@pytest.fixture
def corpus(tmp_path):
    """The same three texts in every format."""
    (tmp_path / "a.txt").write_text("\n".join(TEXTS) + "\n\n   \n", encoding="utf8")
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in TEXTS)
    )
    (tmp_path / "a.csv").write_text(
        'id,text\n1,One text.\n2,"Ein zweiter, älterer."\n3,第三の文。\n', encoding="utf8"
    )
    pq.write_table(pa.table({"text": TEXTS, "n": [1, 2, 3]}), tmp_path / "a.parquet")
    with gzip.open(tmp_path / "b.txt.gz", "wt", encoding="utf8") as file:
        file.write("\n".join(TEXTS))
    with lzma.open(tmp_path / "c.jsonl.xz", "wt") as file:
        file.write("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return tmp_path


@pytest.mark.parametrize(
    "name", ["a.txt", "a.jsonl", "a.csv", "a.parquet", "b.txt.gz", "c.jsonl.xz"]
)
def test_every_format_gives_the_same_texts_without_the_empty_ones(corpus, name):
    assert texts(corpus / name) == TEXTS


def test_a_folder_and_a_glob_read_all_their_files(corpus):
    assert texts(corpus) == TEXTS * 6
    assert texts(f"{corpus}/a.*") == TEXTS * 4


def test_a_whole_file_can_be_one_text(corpus):
    assert texts(corpus / "a.txt", unit="document") == ["\n".join(TEXTS)]


def test_reading_stops_at_max_texts(corpus):
    assert texts(corpus, max_texts=4) == [*TEXTS, TEXTS[0]]


def test_a_column_is_found_named_or_asked_for(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"title": "T", "body": "B"}))
    assert texts(rows, column="body") == ["B"]
    with pytest.raises(CorpusError, match="which column.*title, body.*--column"):
        texts(rows)
    with pytest.raises(CorpusError, match="no column 'text'; there are: title, body"):
        texts(rows, column="text")
    rows.write_text(json.dumps({"title": "T", "n": 3}))
    assert texts(rows) == ["T"]
    with pytest.raises(CorpusError, match="holds int, not text"):
        texts(rows, column="n")


def test_a_corpus_in_another_encoding_names_its_line_and_the_cure(tmp_path):
    (tmp_path / "latin.txt").write_bytes("gut\nschön\n".encode("latin1"))
    with pytest.raises(CorpusError, match="line 2: not UTF-8.*iconv.*1 of 2 rows"):
        texts(tmp_path / "latin.txt")


def test_a_few_bytes_that_are_not_utf8_are_replaced_and_noted(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine\n" * 150 + b"caf\xe9\n")
    notes = []
    found = list(read_texts(CorpusRecipe(source=str(tmp_path / "a.txt")), on_note=notes.append))
    assert found == ["fine"] * 150 + ["caf\ufffd"]
    assert len(notes) == 1
    assert "1 of 151 rows" in notes[0]
    assert notes[0].endswith("a.txt, line 151")


def test_a_first_line_that_is_a_row_is_not_taken_for_names(tmp_path):
    (tmp_path / "a.csv").write_text("1;hello world\n2;good day\n")
    with pytest.raises(CorpusError, match="named '1', 'hello world', which looks like a row"):
        texts(tmp_path / "a.csv")
    assert texts(tmp_path / "a.csv", column="hello world") == ["good day"]
    (tmp_path / "b.csv").write_text(",text\n0,hello\n")
    assert texts(tmp_path / "b.csv") == ["hello"]


@pytest.mark.parametrize("first", ["Hello big world.", "a dog runs through the field"])
def test_a_first_line_that_is_a_sentence_is_not_taken_for_the_name_of_the_only_column(
    first, tmp_path
):
    (tmp_path / "a.csv").write_text(f"{first}\nAnother line here.\n")
    with pytest.raises(CorpusError, match=f"named '{first}', which looks like a row"):
        list(read_texts(CorpusRecipe(source=str(tmp_path / "a.csv"))))
    named = CorpusRecipe(source=str(tmp_path / "a.csv"), column=first)
    assert list(read_texts(named)) == ["Another line here."]


def test_the_column_is_decided_once_for_a_file(tmp_path):
    """Row by row, a row without a body gave its address to the training."""
    rows = [{"url": "http://a", "body": "A"}, {"url": "http://b", "body": None}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(CorpusError, match="which column.*url, body.*--column"):
        texts(tmp_path / "a.jsonl")
    assert texts(tmp_path / "a.jsonl", column="body") == ["A"]
    with pytest.raises(CorpusError, match="no column 'bodi'; there are: url, body"):
        texts(tmp_path / "a.jsonl", column="bodi")
    late = [*[{"n": 1, "body": "A"}] * 150, {"title": "T"}]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, late)))
    with pytest.raises(CorpusError, match="line 151: there is no column 'body'; there are: title"):
        texts(tmp_path / "b.jsonl")
    pq.write_table(
        pa.table({"n": [1], "body": pa.array([None], pa.string())}), tmp_path / "c.parquet"
    )
    assert [row.text for row in text_rows(str(tmp_path / "c.parquet"))] == [""]


def test_a_csv_file_with_another_delimiter_is_not_one_text_a_line(tmp_path):
    (tmp_path / "a.csv").write_text("id;text\n1;hello world\n")
    assert texts(tmp_path / "a.csv") == ["hello world"]
    (tmp_path / "b.csv").write_text("id\tbody\n1\thello world\n")
    assert texts(tmp_path / "b.csv") == ["hello world"]
    (tmp_path / "c.csv").write_text("text|more;x\na|b;c\n")
    assert texts(tmp_path / "c.csv", delimiter="|") == ["a"]


def test_a_file_of_any_name_can_be_read_when_its_format_is_said(tmp_path):
    (tmp_path / "rows.data").write_text('{"text": "a"}\n')
    assert texts(tmp_path / "rows.data", format="jsonl") == ["a"]
    assert texts(tmp_path / "rows.data", format="txt") == ['{"text": "a"}']
    with pytest.raises(CorpusError, match=r"cannot read \.data.*--format"):
        texts(tmp_path / "rows.data")
    with_format = corpus_fingerprint(str(tmp_path / "rows.data"), as_format="txt")
    (tmp_path / "rows.data").write_text("other")
    assert corpus_fingerprint(str(tmp_path / "rows.data"), as_format="txt") != with_format


def test_every_row_to_encode_stays_as_it_is_and_where_it_is(tmp_path):
    (tmp_path / "a.txt").write_text("  two spaces \n\n\t\nlast")
    found = list(text_rows(str(tmp_path / "a.txt")))
    assert [(row.index, row.text) for row in found] == [
        (0, "  two spaces "),
        (1, ""),
        (2, "\t"),
        (3, "last"),
    ]
    (tmp_path / "b.jsonl").write_text('{"text": null}\n{"text": 3}\n{"text": "x"}\n')
    found = list(text_rows(str(tmp_path / "b.jsonl")))
    assert [row.problem for row in found] == [None, "column 'text' holds int, not text", None]
    together = list(text_rows(str(tmp_path / "*.*")))
    assert [row.index for row in together] == list(range(7))


def test_an_empty_corpus_is_an_error(tmp_path):
    (tmp_path / "empty.txt").write_text("\n  \n")
    with pytest.raises(CorpusError, match="no text"):
        texts(tmp_path / "empty.txt")


@pytest.mark.parametrize("name", ["absent.txt", "nowhere/*.txt"])
def test_a_corpus_that_is_not_there_is_an_error(tmp_path, name):
    with pytest.raises(CorpusError, match="does not exist"):
        texts(tmp_path / name)


def test_a_file_of_an_unknown_kind_is_an_error(tmp_path):
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(CorpusError, match=r"cannot read \.docx"):
        texts(tmp_path / "a.docx")


def test_broken_json_names_its_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(CorpusError, match="line 2: not JSON"):
        texts(tmp_path / "a.jsonl")


def test_the_fingerprint_follows_the_contents(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = corpus_fingerprint(str(path))
    assert corpus_fingerprint(str(path)) == before
    path.write_text("two")
    assert corpus_fingerprint(str(path)) != before
