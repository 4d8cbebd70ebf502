"""What a command reads: every row counts, wherever it comes from; and tags of raw and of tokenised texts."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import DECODERS

from llm2vec.cli.inputs import TextSource, given_texts
from llm2vec.corpus.tagged import TaggedSentence
from llm2vec.errors import CorpusError, UsageError
from llm2vec.evaluation.probe import probe
from llm2vec.evaluation.subjects import open_encoder
from llm2vec.evaluation.tagger import Tagger, save_probe


def stdin(data=b""):
    return io.TextIOWrapper(io.BytesIO(data))


def texts(source=None, *, data=b"", arguments=None):
    return given_texts(arguments, source or TextSource(), stdin=stdin(data)).texts


def test_standard_input_is_read_like_a_file(tmp_path):
    data = "\ufefféin\r\n\r\n drei\u2028 \r\n".encode()
    (tmp_path / "a.txt").write_bytes(data)
    wanted = ["éin", "", " drei\u2028 "]
    assert texts(data=data) == texts(TextSource(str(tmp_path / "a.txt"))) == wanted
    rows = b'{"body": "a"}\n{"body": null}\n'
    assert texts(TextSource(column="body", as_format="jsonl"), data=rows) == ["a", ""]


def test_what_is_not_unicode_is_counted_and_noted(capsys):
    given = given_texts(["caf\udce9", "b"], TextSource(), stdin=stdin())
    assert given.texts == ["caf\ufffd", "b"]
    assert given.tally.replaced == 1
    assert "1 of 2 rows" in capsys.readouterr().err
    assert texts(data=b"caf\xe9\n") == ["caf\ufffd"]


def test_empty_rows_are_counted():
    tally = given_texts(None, TextSource(), stdin=stdin(b"a\n\n \nb\n")).tally
    assert (tally.rows, tally.empty) == (4, 2)


def test_what_cannot_be_read_is_one_clear_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": 7}\n')
    with pytest.raises(CorpusError, match="line 2: column 'text' holds int, not text"):
        texts(TextSource(str(tmp_path / "a.jsonl")))
    with pytest.raises(CorpusError, match="standard input holds no row"):
        texts()
    with pytest.raises(UsageError, match="--format text: there is txt, jsonl"):
        texts(TextSource(as_format="text"), data=b"a\n")
    with pytest.raises(UsageError, match="not from both"):
        texts(TextSource("a.txt"), arguments=["a"])


def words_of(source, data=b""):
    rows = given_texts(None, source, stdin=stdin(data)).rows
    return [(row.text, row.words) for row in rows]


def test_texts_may_come_tokenised(tmp_path):
    tokenised = [("New York , now", ("New", "York", ",", "now")), ("Yes", ("Yes",))]
    source = TextSource(words=True, tokenized=True)
    assert words_of(source, b"New York  , now\nYes\n") == tokenised
    rows = [{"id": "7", "tokens": list(words)} for _, words in tokenised]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert words_of(TextSource(str(tmp_path / "a.jsonl"), "tokens", words=True)) == tokenised
    lines = "\n\n".join("\n".join(f"x {word}" for word in words) for _, words in tokenised)
    (tmp_path / "a.conll").write_text(lines)
    source = TextSource(str(tmp_path / "a.conll"), words=True, word_column="1")
    assert words_of(source) == tokenised
    source = TextSource(as_format="columns", words=True, word_column="1")
    assert words_of(source, lines.encode()) == tokenised
    with pytest.raises(CorpusError, match="holds list, not text"):
        texts(TextSource(str(tmp_path / "a.jsonl"), "tokens"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A probe that knows animals and verbs from each other."""
    folder = tmp_path_factory.mktemp("probe") / "probe"
    train = [
        TaggedSentence((noun, verb), ("N", "V"))
        for noun in ("Dogs", "Cats")
        for verb in ("run", "eat")
    ]
    source = str(DECODERS / "qwen3")
    save_probe(probe(open_encoder(source), train, train, seeds=1), folder, encoder=source)
    return folder


def test_spans_are_of_the_text_as_it_was_given(saved):
    text = "  Dogs   run\u2028\u2028Cats  "
    (spans,) = Tagger.open(saved).tag([text])
    assert [text[span.start : span.end] for span in spans] == ["Dogs", "run", "Cats"]
    assert [span.text for span in spans] == ["Dogs", "run", "Cats"]


def test_every_word_of_a_tokenised_text_has_its_tag(saved):
    tagger = Tagger.open(saved)
    raw, given = tagger.read(["Dogs run", ["Dogs", "run"]])
    assert raw == given
    (odd,) = tagger.read([["Dogs run", "", "eat"]])
    assert odd.words == ("Dogs run", "", "eat")
    assert odd.tags[1] is None
    assert [span.text for span in odd.spans] == ["Dogs run", "eat"]


def test_the_commands_give_a_row_for_every_row(saved, tmp_path):
    (tmp_path / "A.TXT").write_bytes(b"\xef\xbb\xbf Dogs run\r\n\r\nCats eat\r\n")
    program = [sys.executable, "-m", "llm2vec"]
    command = ["encode", "bundled", "--file", tmp_path / "A.TXT", "--out", tmp_path / "v.npy"]
    done = subprocess.run([*program, *command, "--json"], capture_output=True, text=True)
    counts = {"texts": 3, "empty": 1, "replaced": 0}
    assert json.loads(done.stdout) == {"out": str(tmp_path / "v.npy"), "dimension": 192, **counts}
    vectors = np.load(tmp_path / "v.npy")
    from llm2vec import LLM2Vec

    wanted = LLM2Vec.from_pretrained("bundled").encode([" Dogs run", "", "Cats eat"])
    np.testing.assert_allclose(vectors, wanted.numpy(), atol=1e-5)
    command = ["tag", "--probe", saved, "--file", tmp_path / "A.TXT"]
    done = subprocess.run([*program, *command], capture_output=True, text=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.stderr.splitlines()[-1] == "4 spans in 3 texts (1 empty)"
    assert [row["text"] for row in found] == [" Dogs run", "", "Cats eat"]
    assert [[span["start"] for span in row["spans"]] for row in found] == [[1, 6], [], [0, 5]]
