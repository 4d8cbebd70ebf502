"""Parts of texts: each vector is the mean of its tokens' states in the whole text; in bulk they are the same."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import DECODERS
from pyarrow import parquet
from typer.testing import CliRunner

from llm2vec import Encoder
from llm2vec.bulk.parts import PartOptions, PartTask
from llm2vec.bulk.rows import Input
from llm2vec.bulk.run import encode_to_folder, run
from llm2vec.bulk.search import Shards
from llm2vec.bulk.shards import shard_files
from llm2vec.cli.main import app
from llm2vec.encoder.int8 import int8_copy
from llm2vec.encoder.word_boundaries import find_sentences
from llm2vec.errors import RunError, UsageError

BATCH = 1e-5
"""Float32 states of one text in batches of other shapes, whose sums have another order."""

TEXTS = ["It rained all day. We stayed in!", "A caf\u00e9 \U0001f408 is open.", "", "No."]


@pytest.fixture(scope="module")
def tiny():
    return Encoder.from_pretrained(DECODERS / "qwen3")


def states_of(encoder, text):
    """Offsets and states of a text's tokens, by a plain call."""
    read = encoder.tokenizer(text, return_offsets_mapping=True, return_tensors="pt")
    with torch.inference_mode():
        states_TD = encoder.model(input_ids=read["input_ids"], use_cache=False)[0][0]
    return read["offset_mapping"][0].tolist(), states_TD.float()


def read(folder):
    return pa.concat_tables(parquet.read_table(path) for path in shard_files(folder).values())


def test_a_chunk_is_the_mean_of_its_tokens_in_the_whole_text(tiny):
    text, spans = TEXTS[0], [(19, 32), (0, 18), (3, 25), (3, 4)]
    [found] = tiny.chunks(text, [spans])
    assert found.texts == ("We stayed in!", "It rained all day.", text[3:25], "r")
    offsets, states_TD = states_of(tiny, text)
    for (start, end), vector_D in zip(spans, found.vectors_CD, strict=True):
        inside = [n for n, (a, b) in enumerate(offsets) if b > start and a < end]
        torch.testing.assert_close(vector_D, states_TD[inside].mean(0), atol=BATCH, rtol=0)


def test_texts_are_cut_into_sentences_words_or_tokens(tiny):
    sentences = tiny.chunks(TEXTS)
    assert sentences[0].texts == ("It rained all day.", "We stayed in!")
    assert [len(each.texts) for each in sentences] == [2, 1, 0, 1]
    by_words = tiny.chunks(TEXTS, unit="word")
    for chunk, words in zip(by_words, tiny.words(TEXTS), strict=True):
        assert chunk.texts == words.words
        torch.testing.assert_close(chunk.vectors_CD, words.vectors_WD, atol=BATCH, rtol=0)
    [by_tokens] = tiny.chunks(TEXTS[0], unit="token")
    offsets, states_TD = states_of(tiny, TEXTS[0])
    assert list(map(list, by_tokens.offsets)) == offsets
    torch.testing.assert_close(by_tokens.vectors_CD, states_TD, atol=BATCH, rtol=0)


def test_a_sentence_beyond_the_longest_sequence_has_the_zero_vector(tiny):
    text = "It rained all day. " * 20
    [cut] = tiny.chunks(text, max_length=12)
    assert len(cut.texts) == 20
    assert not cut.vectors_CD[-1].any()
    [whole] = tiny.chunks(text)
    assert whole.vectors_CD[-1].any()


def test_spans_outside_a_text_are_refused(tiny):
    with pytest.raises(UsageError, match="the span 2 to 9 is not within its text of 3 characters"):
        tiny.chunks("No.", [[(2, 9)]])
    with pytest.raises(UsageError, match="spans for 1 texts, but 2 texts"):
        tiny.chunks(["No.", "Yes."], [[(0, 1)]])


def test_sentences_are_counted_in_characters_whatever_their_script():
    text = "\U0001f408 sleeps. \u732b\u304c\u7720\u308b\u3002\u72ac\u3082\u7720\u308b\u3002"
    assert [text[a:b] for a, b in find_sentences(text)] == [
        "\U0001f408 sleeps.",
        "\u732b\u304c\u7720\u308b\u3002",
        "\u72ac\u3082\u7720\u308b\u3002",
    ]


@pytest.mark.parametrize("unit", ["word", "sentence", "token"])
def test_parts_in_bulk_are_those_of_the_encoder(unit, tiny, tmp_path):
    rows = [json.dumps({"id": n, "text": text}) for n, text in enumerate(TEXTS)]
    (tmp_path / "a.jsonl").write_text("\n".join([*rows, "{broken"]) + "\n")
    task, given = (
        PartTask(tiny, PartOptions(unit)),
        Input(str(tmp_path / "a.jsonl"), id_column="id"),
    )
    summary = run(task, tiny, given, tmp_path / "out", shard_rows=2)
    wanted = tiny.chunks(TEXTS, unit=unit)
    table = read(tmp_path / "out")
    assert (summary.rows, summary.vectors, summary.rejected) == (5, table.num_rows, 1)
    assert table.column(unit).to_pylist() == [text for each in wanted for text in each.texts]
    pairs = list(
        zip(table.column("start").to_pylist(), table.column("end").to_pylist(), strict=True)
    )
    assert pairs == [tuple(pair) for each in wanted for pair in each.offsets]
    owners = [number for number, each in enumerate(wanted) for _ in each.texts]
    assert table.column("id").to_pylist() == owners
    vectors = np.array(table.column("vector").to_pylist(), dtype="float32")
    np.testing.assert_allclose(vectors, torch.cat([each.vectors_CD for each in wanted]), atol=BATCH)
    with pytest.raises(RunError, match=f"holds {unit}s; search needs a vector for each text"):
        Shards(tmp_path / "out")


def test_words_on_the_command_line(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(TEXTS) + "\n")
    command = ["words", DECODERS / "qwen3", "--file", tmp_path / "a.txt", "--out", tmp_path / "out"]
    command += ["--unit", "sentence", "--store", "float16", "--json"]
    done = CliRunner().invoke(app, [str(each) for each in command])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["vectors"] == 4
    assert read(tmp_path / "out").column("sentence").to_pylist()[1] == "We stayed in!"
    done = CliRunner().invoke(app, [*map(str, command[:6]), "--unit", "page"])
    assert isinstance(done.exception, UsageError)


def test_int8_is_near_and_is_another_setting(tiny, tmp_path):
    (tmp_path / "a.txt").write_text("The cat sleeps.\nIt rained all day.\n")
    source, out = str(tmp_path / "a.txt"), tmp_path / "out"
    encode_to_folder(tiny, source, out, int8=True)
    wanted = tiny.encode(["The cat sleeps.", "It rained all day."])
    found = torch.tensor(read(out).column("vector").to_pylist())
    cosine = torch.nn.functional.cosine_similarity(found, wanted)
    assert not torch.equal(found, wanted)
    assert cosine.min() > 0.95
    with pytest.raises(RunError, match="setting int8 was True and is False"):
        encode_to_folder(tiny, source, out)
    assert type(int8_copy(tiny).model.layers[0].mlp.up_proj) is not torch.nn.Linear
    assert type(tiny.model.layers[0].mlp.up_proj) is torch.nn.Linear
    with pytest.raises(UsageError, match="int8 needs an encoder in float32 on a CPU"):
        int8_copy(Encoder.from_pretrained(DECODERS / "qwen3", dtype="bfloat16"))
