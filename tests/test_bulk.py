"""Encoding to a folder: every row once, whatever happens on the way, and the vectors that `encode` gives."""

import errno
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import DECODERS
from pyarrow import parquet

from llm2vec import Encoder
from llm2vec.bulk import rows as reading
from llm2vec.bulk.rows import Input
from llm2vec.bulk.run import Part, encode_to_folder, run
from llm2vec.bulk.shards import ShardWriter, shard_files
from llm2vec.bulk.storing import comparable, keep
from llm2vec.bulk.threads import Behind, ahead
from llm2vec.bulk.vectors import VectorOptions, VectorTask
from llm2vec.corpus.data_files import DataFile
from llm2vec.errors import CorpusError, LLM2VecError, RunError, UsageError
from llm2vec.runtime.progress import Recorder

BATCH = 1e-5
"""Float32 vectors of one text in batches of other shapes, whose sums have another order."""

TEXTS = [
    f"The {animal} number {number} came in {'and sat down ' * (number % 7)}at last."
    for number in range(60)
    for animal in ("cat", "dog")
]


@pytest.fixture(scope="module")
def tiny():
    return Encoder.from_pretrained(DECODERS / "gpt2")


@pytest.fixture
def table(tmp_path):
    """A Parquet file of texts with ids of two kinds."""
    place = tmp_path / "texts.parquet"
    numbers = range(len(TEXTS))
    columns = {"id": [10 * number for number in numbers], "name": [f"n{n}" for n in numbers]}
    parquet.write_table(pa.table({**columns, "body": TEXTS}), place)
    return place


def read(folder):
    """All rows of all shards."""
    return pa.concat_tables(parquet.read_table(path) for path in shard_files(folder).values())


def vectors(folder):
    return np.array(read(folder).column("vector").to_pylist(), dtype="float32")


def rejected(folder):
    return [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]


def lines_of(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


# --- what comes out


def test_a_folder_has_the_vectors_of_encode_with_ids_and_texts(tiny, table, tmp_path):
    out = tmp_path / "out"
    summary = encode_to_folder(tiny, str(table), out, column="body", id_column="id", shard_rows=50)
    assert (summary.rows, summary.vectors, summary.shards, summary.finished) == (120, 120, 3, True)
    found = read(out)
    assert found.column("id").to_pylist() == [10 * number for number in range(120)]
    assert found.column("row").to_pylist() == list(range(120))
    assert found.column("text").to_pylist() == TEXTS
    assert found.schema.field("vector").type == pa.list_(pa.float32(), tiny.dimension)
    wanted = tiny.encode(TEXTS, convert_to_numpy=True)
    np.testing.assert_allclose(vectors(out), wanted, atol=BATCH)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["finished"]["rows"] == 120
    assert manifest["settings"]["normalize"] is False


def test_texts_can_be_left_out_and_ids_are_text_where_the_file_has_text(tiny, table, tmp_path):
    out = tmp_path / "out"
    encode_to_folder(tiny, str(table), out, column="body", id_column="name", keep_text=False)
    assert read(out).schema.names == ["row", "id", "vector"]
    assert read(out).column("id").to_pylist()[:2] == ["n0", "n1"]


def write_as(form, place, texts):
    """Texts in a file or files of some form; what a command is given to read them."""
    half = len(texts) // 2
    if form == "txt":
        (place / "a.txt").write_text("\n".join(texts) + "\n")
    elif form == "csv":
        (place / "a.csv").write_text("text,n\n" + "".join(f'"{text}",1\n' for text in texts))
    elif form == "parquet":
        parquet.write_table(pa.table({"text": texts}), place / "a.parquet")
    elif form == "jsonl.gz":
        (place / "a.jsonl.gz").write_bytes(gzip.compress(lines_of(texts)))
    else:
        (place / "a.jsonl").write_bytes(lines_of(texts[:half]))
        (place / "b.jsonl").write_bytes(lines_of(texts[half:]))
    if form == "stdin":
        return DataFile("standard input", "jsonl", io.BytesIO(lines_of(texts)))
    if form == "remote":
        import fsspec

        with fsspec.open("memory://bulk/a.jsonl", "wb") as file:
            file.write(lines_of(texts))
        return "memory://bulk/a.jsonl"
    ways = {"glob": place / "*.jsonl", "folder": place}
    return str(ways.get(form, place / f"a.{form}"))


FORMS = ["txt", "csv", "parquet", "jsonl.gz", "glob", "folder", "stdin", "remote"]


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_the_same_whatever_way_they_arrive(form, tiny, tmp_path):
    (tmp_path / "in").mkdir()
    given = Input(write_as(form, tmp_path / "in", TEXTS[:20]))
    task = VectorTask(tiny, VectorOptions())
    run(task, tiny, given, tmp_path / "out", shard_rows=8)
    assert read(tmp_path / "out").column("text").to_pylist() == TEXTS[:20]
    wanted = tiny.encode(TEXTS[:20], convert_to_numpy=True)
    np.testing.assert_allclose(vectors(tmp_path / "out"), wanted, atol=BATCH)


def test_bad_rows_are_listed_and_stop_nothing(tiny, tmp_path):
    rows = [b'{"id": 1, "text": "good"}', b'{"id": 2, "text": 7}', b"{broken"]
    rows += [b'{"id": 4, "text": "\xff"}', b'{"text": "no id"}', b'{"id": 6, "text": null}']
    rows += [b'{"id": 7, "text": "cut of']  # the file ends in the middle of a row
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(rows))
    out = tmp_path / "out"
    summary = encode_to_folder(tiny, str(tmp_path / "a.jsonl"), out, id_column="id", shard_rows=3)
    counts = (summary.rows, summary.vectors, summary.rejected, summary.empty)
    assert counts == (7, 2, 5, 1)
    assert read(out).column("id").to_pylist() == [1, 6]
    assert read(out).column("row").to_pylist() == [0, 5]
    reasons = {each["row"]: each["reason"] for each in rejected(out)}
    said = ["not text", "not JSON", "not UTF-8", "no column 'id'", "not JSON"]
    for row, part in zip([1, 2, 3, 4, 6], said, strict=True):
        assert part in reasons[row]
    assert rejected(out)[-1]["location"].endswith("a.jsonl, line 7")


def test_an_id_that_is_no_number_where_others_are_is_rejected(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_FIRST_ROWS", 2)
    rows = [{"id": each, "text": "a"} for each in (1, 2, "x", 2**70, None, 6)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    encode_to_folder(tiny, str(tmp_path / "a.jsonl"), tmp_path / "out", id_column="id")
    assert read(tmp_path / "out").column("id").to_pylist() == [1, 2, 6]
    assert [each["row"] for each in rejected(tmp_path / "out")] == [2, 3, 4]


def test_each_row_may_have_its_own_prompt(tiny, tmp_path):
    prompts = ["Find: ", None, "too long " * 400, "Name:"]
    rows = [{"text": "a cat", "ask": prompt} for prompt in prompts]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    source = str(tmp_path / "a.jsonl")
    encode_to_folder(tiny, source, out, prompt_column="ask", prompt="Say: ")
    wanted = [
        tiny.encode("a cat", prompt=prompt).numpy() for prompt in ("Find: ", "Say: ", "Name:")
    ]
    np.testing.assert_allclose(vectors(out), wanted, atol=BATCH)
    assert "fills all" in rejected(out)[0]["reason"]
    with pytest.raises(UsageError, match="fills all"):
        encode_to_folder(tiny, source, tmp_path / "two", prompt=prompts[2])


@pytest.mark.parametrize("vectors_in", ["parquet", "npy"])
@pytest.mark.parametrize("store", ["float32", "float16", "int8", "binary"])
def test_vectors_are_kept_as_asked_for(store, vectors_in, tiny, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(TEXTS[:20]) + "\n")
    out = tmp_path / "out"
    options = {"store": store, "dimensions": 32, "normalize": True, "vectors_in": vectors_in}
    encode_to_folder(tiny, str(tmp_path / "a.txt"), out, shard_rows=8, **options)
    found = read(out)
    if vectors_in == "npy":
        numbers = np.concatenate(
            [np.load(path.with_suffix(".npy")) for path in shard_files(out).values()]
        )
        assert "vector" not in found.schema.names
    else:
        numbers = np.array(found.column("vector").to_pylist())
    wanted = tiny.encode(TEXTS[:20])[:, :32]
    wanted = torch.nn.functional.normalize(wanted, dim=-1).numpy()
    if store == "binary":
        np.testing.assert_array_equal(numbers, np.packbits(wanted > 0, axis=-1))
    elif store == "int8":
        scale = np.array(found.column("scale").to_pylist())
        np.testing.assert_allclose(numbers * scale[:, None], wanted, atol=0.5 * scale.max() + BATCH)
    else:
        np.testing.assert_allclose(numbers, wanted, atol={"float32": BATCH, "float16": 1e-3}[store])


def test_kept_vectors_compare_as_the_whole_ones_do():
    embedding = np.random.default_rng(0).normal(size=(50, 40)).astype("float32")
    embedding[3] = 0
    for store, least in (("float16", 0.9999), ("int8", 0.999), ("binary", 0.6)):
        again = comparable(keep(embedding, store=store).numbers_BD, store=store, dimension=40)
        norms = np.linalg.norm(again, axis=1) * np.linalg.norm(embedding, axis=1)
        cosine = (again * embedding).sum(1) / np.maximum(norms, 1e-9)
        assert np.delete(cosine, 3).min() > least
        assert np.isfinite(again).all()


def test_more_dimensions_than_there_are_is_refused(tiny, table, tmp_path):
    with pytest.raises(UsageError, match="--dimensions 65: this encoder's vectors have"):
        encode_to_folder(
            tiny, str(table), tmp_path / "out", column="body", dimensions=tiny.dimension + 1
        )
    with pytest.raises(UsageError, match="--shard-rows 0"):
        encode_to_folder(tiny, str(table), tmp_path / "out", column="body", shard_rows=0)


def test_identical_texts_go_through_the_model_once(tiny, tmp_path):
    (tmp_path / "a.txt").write_text("the same text\n" * 50 + "another\n")
    summary = encode_to_folder(tiny, str(tmp_path / "a.txt"), tmp_path / "out")
    assert summary.tokens == sum(
        len(each.ids) for each in tiny.tokens(["the same text", "another"])
    )
    assert len(np.unique(vectors(tmp_path / "out"), axis=0)) == 2


def test_long_texts_are_cut_or_read_in_windows(tmp_path):
    short = Encoder.from_pretrained(DECODERS / "gpt2", max_length=16)
    text = "one two three four five six seven eight nine ten " * 3
    (tmp_path / "a.txt").write_text(f"{text}\nshort\n")
    source = str(tmp_path / "a.txt")
    encode_to_folder(short, source, tmp_path / "cut", prompt="Say:")
    encode_to_folder(short, source, tmp_path / "windows", prompt="Say:", long="window")
    wanted = short.encode([text, "short"], prompt="Say:", convert_to_numpy=True)
    np.testing.assert_allclose(vectors(tmp_path / "cut"), wanted, atol=BATCH)
    [whole] = short.tokens([text], prompts=["Say: "], max_length=10_000)
    before, own = whole.ids[: whole.first], whole.ids[whole.first : whole.end]
    room = 16 - len(before)
    total = torch.zeros(short.dimension)
    for start in range(0, len(own), room):
        piece = own[start : start + room]
        with torch.inference_mode():
            states = short.model(input_ids=torch.tensor([before + piece]), use_cache=False)[0][0]
        total += states[len(before) :].sum(0)
    found = vectors(tmp_path / "windows")
    np.testing.assert_allclose(found[0], (total / len(own)).numpy(), atol=BATCH)
    np.testing.assert_allclose(found[1], wanted[1], atol=BATCH)


def test_equal_texts_have_equal_bits_where_that_is_asked_for(tiny, tmp_path):
    alone, among = tmp_path / "alone.txt", tmp_path / "among.txt"
    alone.write_text(f"{TEXTS[7]}\n")
    among.write_text("\n".join(TEXTS[:40]) + "\n")
    for source in (alone, among):
        encode_to_folder(tiny, str(source), tmp_path / source.stem, deterministic=True)
    assert (vectors(tmp_path / "alone")[0] == vectors(tmp_path / "among")[7]).all()
    wanted = tiny.encode(TEXTS[:40], convert_to_numpy=True)
    np.testing.assert_allclose(vectors(tmp_path / "among"), wanted, atol=BATCH)


# --- killed, and gone on with


def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_shards(tiny, table, tmp_path):
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    options = {"column": "body", "id_column": "id", "shard_rows": 20}
    encode_to_folder(tiny, str(table), whole, **options)

    class Stops(Recorder):
        def advance(self, count, /, **numbers):
            super().advance(count, **numbers)
            if self.done > 60:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_to_folder(tiny, str(table), parted, progress=Stops(), **options)
    assert 0 < len(shard_files(parted)) < 6
    assert not list(parted.glob(".part-*"))
    summary = encode_to_folder(tiny, str(table), parted, **options)
    assert 0 < summary.resumed < 6
    assert read(parted) == read(whole)


@pytest.mark.parametrize("killed_with", [0, 2])
def test_killed_by_the_system_it_goes_on(killed_with, tiny, table, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "llm2vec", "encode", str(DECODERS / "gpt2"), "--out", str(out)]
    command += ["--file", str(table), "--column", "body", "--shard-rows", "1"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (out / "manifest.json").is_file():
        time.sleep(0.005)
    while process.poll() is None and len(shard_files(out)) < killed_with:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    summary = encode_to_folder(tiny, str(table), out, column="body", shard_rows=1)
    assert killed_with <= summary.resumed < 120
    assert read(out).column("row").to_pylist() == list(range(120))
    np.testing.assert_allclose(vectors(out), tiny.encode(TEXTS, convert_to_numpy=True), atol=BATCH)
    assert not list(out.glob(".part-*"))


def test_parts_of_an_array_job_make_the_whole(tiny, table, tmp_path):
    out, given = tmp_path / "out", Input(str(table), "body")
    task = VectorTask(tiny, VectorOptions())
    first = run(task, tiny, given, out, shard_rows=20, part=Part(2, 4))
    assert (first.shards, first.finished) == (2, False)
    last = [run(task, tiny, given, out, shard_rows=20, part=Part(n, 4)) for n in (1, 3, 4)][-1]
    assert (last.shards, last.rows, last.finished) == (6, 120, True)
    assert read(out).column("row").to_pylist() == list(range(120))
    with pytest.raises(UsageError, match="--shard 5/4"):
        run(task, tiny, given, out, part=Part(5, 4))


def test_what_has_changed_is_refused_by_name(tiny, table, tmp_path):
    out = tmp_path / "out"
    encode_to_folder(tiny, str(table), out, column="body", shard_rows=50)
    again = {"column": "body", "shard_rows": 50}
    with pytest.raises(RunError, match="setting normalize was False and is True"):
        encode_to_folder(tiny, str(table), out, normalize=True, **again)
    with pytest.raises(RunError, match="setting shard_rows was 50 and is 40"):
        encode_to_folder(tiny, str(table), out, column="body", shard_rows=40)
    with pytest.raises(RunError, match="input's id_column was None and is 'id'"):
        encode_to_folder(tiny, str(table), out, id_column="id", **again)
    with pytest.raises(RunError, match="the model was .*gpt2, and .*qwen3 is another one"):
        encode_to_folder(Encoder.from_pretrained(DECODERS / "qwen3"), str(table), out, **again)
    parquet.write_table(pa.table({"body": TEXTS[1:]}), table)
    with pytest.raises(RunError, match="holds something else"):
        encode_to_folder(tiny, str(table), out, **again)
    assert len(shard_files(out)) == 3


def test_another_stream_is_noticed_by_its_rows(tiny, tmp_path):
    task, out = VectorTask(tiny, VectorOptions()), tmp_path / "out"

    def stream(texts):
        return Input(DataFile("standard input", "jsonl", io.BytesIO(lines_of(texts))))

    run(task, tiny, stream(TEXTS), out, shard_rows=50)
    assert run(task, tiny, stream(TEXTS), out, shard_rows=50).resumed == 3
    changed = [*TEXTS[:70], "another", *TEXTS[71:]]
    with pytest.raises(RunError, match="its rows 50 to 99 are not those of the finished shard"):
        run(task, tiny, stream(changed), out, shard_rows=50)


def test_a_folder_of_somebody_elses_is_refused_and_left_alone(tiny, table, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years")
    with pytest.raises(RunError, match=r"holds thesis.txt and no manifest.json"):
        encode_to_folder(tiny, str(table), tmp_path / "out", column="body")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years"
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_a_damaged_shard_is_named(tiny, table, tmp_path):
    out = tmp_path / "out"
    encode_to_folder(tiny, str(table), out, column="body", shard_rows=50)
    place = shard_files(out)[1]
    place.write_bytes(place.read_bytes()[:100])
    with pytest.raises(RunError, match=r"part-000001.parquet is damaged .* remove it"):
        encode_to_folder(tiny, str(table), out, column="body", shard_rows=50)
    place.unlink()
    assert encode_to_folder(tiny, str(table), out, column="body", shard_rows=50).finished


def test_a_file_cut_short_says_where_and_keeps_what_is_finished(tiny, tmp_path):
    texts = [f"{number} {os.urandom(300).hex()}" for number in range(400)]
    whole = gzip.compress(lines_of(texts))
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) - 4000])
    out = tmp_path / "out"
    with pytest.raises(CorpusError, match=r"a.jsonl.gz is damaged or cut short"):
        encode_to_folder(tiny, str(tmp_path / "a.jsonl.gz"), out, shard_rows=100)
    assert list(shard_files(out)) == [0, 1, 2]


def test_a_disk_that_fills_up_is_said_and_the_run_goes_on_afterwards(
    tiny, table, tmp_path, monkeypatch
):
    out, options = tmp_path / "out", {"column": "body", "shard_rows": 10}
    add, calls = ShardWriter._add, []

    def full(self, made):
        calls.append(made)
        if len(calls) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(self, made)

    with monkeypatch.context() as patched:
        patched.setattr(ShardWriter, "_add", full)
        with pytest.raises(RunError, match="no space left while writing .*part-000004"):
            encode_to_folder(tiny, str(table), out, **options)
    assert list(shard_files(out)) == [0, 1, 2, 3]  # and none after the one that failed
    assert encode_to_folder(tiny, str(table), out, **options).resumed == 4
    assert read(out).column("row").to_pylist() == list(range(120))


def test_a_slow_pipe_is_read_as_it_comes(tiny, tmp_path):
    reader, writer = os.pipe()

    def drip():
        with os.fdopen(writer, "wb", buffering=0) as pipe:
            for text in TEXTS[:6]:
                line = lines_of([text])
                pipe.write(line[:9])
                time.sleep(0.02)
                pipe.write(line[9:])

    thread = threading.Thread(target=drip)
    thread.start()
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        given = Input(DataFile("a pipe", "jsonl", pipe))
        run(VectorTask(tiny, VectorOptions()), tiny, given, tmp_path / "out", shard_rows=2)
    thread.join()
    assert read(tmp_path / "out").column("text").to_pylist() == TEXTS[:6]


def test_memory_that_runs_out_halves_the_batch_and_nothing_else_does(tiny, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("\n".join(TEXTS) + "\n")
    asked, encode_tokens = [], Encoder.encode_tokens

    def small(self, tokens, *, max_tokens, **options):
        asked.append(max_tokens)
        if max_tokens > 300:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")
        return encode_tokens(self, tokens, max_tokens=max_tokens, **options)

    monkeypatch.setattr(Encoder, "encode_tokens", small)
    heard = Recorder()
    encode_to_folder(tiny, str(tmp_path / "a.txt"), tmp_path / "out", shard_rows=60, progress=heard)
    assert asked == [1024, 512, 256, 256]
    assert heard.done == len(TEXTS)
    assert heard.notes[-1] == "out of memory; from here on 256 tokens in a batch"
    monkeypatch.setattr(
        Encoder, "encode_tokens", lambda *_, **__: torch.zeros(2, 3) @ torch.zeros(2)
    )
    with pytest.raises(RuntimeError, match="size mismatch"):
        encode_to_folder(tiny, str(tmp_path / "a.txt"), tmp_path / "two")


# --- threads


def test_what_is_made_ahead_comes_in_order_with_its_error():
    def items():
        yield from range(5)
        raise CorpusError("damaged")

    made = ahead(items(), most=2)
    assert [next(made) for _ in range(5)] == list(range(5))
    with pytest.raises(CorpusError, match="damaged"):
        next(made)


def test_no_more_waits_than_was_asked_for():
    made = []
    items = ahead((made.append(n) or n for n in range(100)), most=2)
    assert next(items) == 0
    time.sleep(0.3)
    assert len(made) <= 5
    items.close()


def test_nothing_is_done_behind_after_an_error():
    done = []

    def fails():
        raise RunError("full")

    def give(*works, then=None):
        with Behind(most=5) as behind:
            for work in works:
                behind.do(work)
            if then is not None:
                raise then

    with pytest.raises(RunError, match="full"):
        give(fails, lambda: done.append(1))
    assert done == []
    with pytest.raises(KeyError):
        give(lambda: done.append(2), then=KeyError())
    assert done == [2]


def test_every_error_is_one_of_ours(tiny, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(CorpusError, match="holds no row"):
        encode_to_folder(tiny, str(tmp_path / "empty.txt"), tmp_path / "out")
    with pytest.raises(LLM2VecError, match="does not exist"):
        encode_to_folder(tiny, str(tmp_path / "nowhere.txt"), tmp_path / "two")
