"""Labelled sentences from column files as they are found, and entities in every scheme."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm2vec.corpus.data_files import data_file
from llm2vec.corpus.tagged import TaggedSentence, entities, has_scheme, read_tagged, read_words
from llm2vec.errors import CorpusError


def tagged(folder, text, *, name="a.txt", **options):
    (folder / name).write_text(text, encoding="utf8")
    return read_tagged(folder / name, **options)


def test_comments_before_a_sentence_are_no_words(tmp_path):
    text = (
        "# id 5239d808-f300\tdomain=en\nParis _ _ B-LOC\n. _ _ O\n\n"
        "# id 17 domain=en\nRome _ _ B-LOC\n\n"
        "# text = Oslo # 1\n# newdoc\nOslo _ _ B-LOC\n"
    )
    assert [each.words for each in tagged(tmp_path, text)] == [("Paris", "."), ("Rome",), ("Oslo",)]


def test_lines_between_documents_are_no_words(tmp_path):
    text = (
        "#begin document (bc/cctv); part 000\na 0 0 The DT\na 0 1 end NN\n\na 0 0 Yes UH\n"
        "#end document\n\n-DOCSTART- -X- O O\n\n"
    )
    found = tagged(tmp_path, text, word_column="3")
    assert found == [
        TaggedSentence(("The", "end"), ("DT", "NN")),
        TaggedSentence(("Yes",), ("UH",)),
    ]


def test_a_hash_is_a_word_in_a_sentence_and_at_its_start(tmp_path):
    text = "We O\n# O\n#winning B-TAG\n\n#winning B-TAG\nagain O\n\n# O\n1 O\n"
    assert [each.words for each in tagged(tmp_path, text)] == [
        ("We", "#", "#winning"),
        ("#winning", "again"),
        ("#", "1"),
    ]


def test_a_line_with_other_columns_inside_a_sentence_is_an_error(tmp_path):
    with pytest.raises(CorpusError, match="line 2: 4 columns, but the lines around it have 2"):
        tagged(tmp_path, "We O\n# a comment here\nwon O\n")


def test_words_are_read_from_the_column_that_is_said(tmp_path):
    germeval = "#\thttp://de.example [2009-10-17]\n1\tAufgrund\tO\tO\n2\tBerlin\tB-LOC\tO\n"
    wanted = [TaggedSentence(("Aufgrund", "Berlin"), ("O", "B-LOC"))]
    assert tagged(tmp_path, germeval, word_column="1", column="2") == wanted
    conllu = "\t".join(["1", "Dogs", "dog", "NOUN", *"______"])
    assert tagged(tmp_path, conllu, name="a.conllu", word_column="lemma") == [
        TaggedSentence(("dog",), ("NOUN",))
    ]
    rows = json.dumps({"words": ["a"], "tags": ["X"]})
    assert tagged(tmp_path, rows, name="a.jsonl", word_column="words") == [
        TaggedSentence(("a",), ("X",))
    ]
    pq.write_table(pa.table({"words": [["a"]], "tags": [["X"]]}), tmp_path / "a.parquet")
    assert read_tagged(tmp_path / "a.parquet", word_column="words") == [
        TaggedSentence(("a",), ("X",))
    ]
    with pytest.raises(CorpusError, match="there is no column 7, only 4"):
        tagged(tmp_path, germeval, word_column="7")
    with pytest.raises(CorpusError, match="have numbers, not names"):
        tagged(tmp_path, germeval, word_column="form")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1 The DT\n2 end NN\n\n1 Yes UH\n", "counts 1, 2, 3"),
        ("0 The DT\n1 end NN\n", "counts 1, 2, 3"),
        ("d1 The DT\nd1 end NN\n\nd2 So RB\nd2 what WP\n", "is the same in each line"),
        ("The DT\nend NN\n", None),
        ("Yes UH\n\nNo UH\n", None),
        ("1 CD\n\n1 CD\n", None),
    ],
)
def test_a_first_column_that_cannot_be_the_words_is_noted(text, said, tmp_path):
    notes = []
    tagged(tmp_path, text, on_note=notes.append)
    assert [said in note for note in notes] == ([True] if said else [])
    tagged(tmp_path, text, word_column="0", on_note=notes.append)
    assert len(notes) == (said is not None), "what was asked for is not noted"


def test_the_case_of_an_ending_and_compression_mean_nothing(tmp_path):
    conllu = "\t".join(["1", "Dogs", "dog", "NOUN", *"______"])
    wanted = [TaggedSentence(("Dogs",), ("NOUN",))]
    assert tagged(tmp_path, conllu, name="A.CONLLU") == wanted
    (tmp_path / "b.conllu.gz").write_bytes(gzip.compress(conllu.encode()))
    assert read_tagged(tmp_path / "b.conllu.gz") == wanted


def test_words_alone_are_read_whatever_the_labels_are(tmp_path):
    (tmp_path / "a.conll").write_bytes(b"1 caf\xe9\n2 au\n\n1 lait\n")
    found = list(read_words(data_file(tmp_path / "a.conll"), word_column="1"))
    assert [row.words for row in found] == [("caf\ufffd", "au"), ("lait",)]
    assert [(row.text, row.replaced) for row in found] == [("caf\ufffd au", 1), ("lait", 0)]
    with pytest.raises(CorpusError, match="line 1: not UTF-8"):
        read_tagged(tmp_path / "a.conll")


@pytest.mark.parametrize("scheme", ["B I E S", "B M E S", "B M E W", "B I L U"])
def test_entities_of_one_and_more_words_are_read_in_every_scheme_of_borders(scheme):
    begin, inside, end, single = (f"{prefix}-LOC" for prefix in scheme.split())
    tags = [begin, inside, end, begin, end, single, single, "O", begin, inside, inside, end]
    assert has_scheme(set(tags))
    assert sorted(entities(tags)) == [
        (0, 3, "LOC"),
        (3, 5, "LOC"),
        (5, 6, "LOC"),
        (6, 7, "LOC"),
        (8, 12, "LOC"),
    ]
