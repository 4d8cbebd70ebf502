"""Corpora from files: every format gives the same texts, and bad ones say what to do."""

import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm2vec.corpus.texts import corpus_fingerprint, read_texts
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


def test_text_that_is_not_utf8_names_its_line_and_the_cure(tmp_path):
    (tmp_path / "latin.txt").write_bytes("gut\nschön\n".encode("latin1"))
    with pytest.raises(CorpusError, match="line 2: not UTF-8.*iconv"):
        texts(tmp_path / "latin.txt")


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
