"""Several processes give what one gives, in order; one that dies is started again, and nothing is lost."""

import json
import os
import signal
import threading

import numpy as np
import pyarrow as pa
import pytest
from conftest import DECODERS
from pyarrow import parquet
from typer.testing import CliRunner

from llm2vec import Encoder
from llm2vec.bulk.rows import Input
from llm2vec.bulk.run import encode_to_folder, run
from llm2vec.bulk.shards import shard_files
from llm2vec.bulk.vectors import VectorOptions, VectorTask
from llm2vec.bulk.workers import Opening, Workers, devices_named
from llm2vec.cli.main import app
from llm2vec.errors import RunError, UsageError
from llm2vec.runtime.progress import Recorder

MODEL = str(DECODERS / "gpt2")
BATCH = 1e-5
"""Float32 vectors of one text in batches of other shapes, whose sums have another order."""

TEXTS = [f"The cat number {number} sat down {'again ' * (number % 9)}." for number in range(200)]


@pytest.fixture(scope="module")
def tiny():
    return Encoder.from_pretrained(MODEL)


@pytest.fixture
def source(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(TEXTS) + "\n")
    return str(tmp_path / "a.txt")


def read(folder):
    return pa.concat_tables(parquet.read_table(path) for path in shard_files(folder).values())


def workers(count, **options):
    return Workers(Opening(MODEL, VectorOptions(**options), "float32"), ["cpu"] * count)


def check(out, tiny):
    assert read(out).column("row").to_pylist() == list(range(len(TEXTS)))
    found = np.array(read(out).column("vector").to_pylist(), dtype="float32")
    np.testing.assert_allclose(found, tiny.encode(TEXTS, convert_to_numpy=True), atol=BATCH)


def test_two_processes_of_which_one_is_killed_lose_nothing(tiny, source, tmp_path):
    both, task = workers(2), VectorTask(tiny, VectorOptions())

    class Kills(Recorder):
        def advance(self, count, /, **numbers):
            super().advance(count, **numbers)
            if len(self.numbers) == 3:
                os.kill(both._workers[0].process.pid, signal.SIGKILL)
                both._workers[0].process.join()

    summary = run(
        task, tiny, Input(source), tmp_path / "out", shard_rows=7, progress=Kills(), workers=both
    )
    assert (summary.vectors, summary.finished) == (200, True)
    check(tmp_path / "out", tiny)
    assert both.restarted == 1
    assert not any(worker.process.is_alive() for worker in both._workers)
    assert encode_to_folder(tiny, source, tmp_path / "out", shard_rows=7).resumed == 29


def test_rows_that_kill_every_process_are_named(tiny, source, tmp_path):
    one = workers(1)
    ended = threading.Event()

    def kill():
        while not ended.wait(0.02):
            for worker in one._workers:
                if worker.process.is_alive():
                    worker.process.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        with pytest.raises(RunError, match="ended 2 times at the 200 rows from row 0 on"):
            run(VectorTask(tiny, VectorOptions()), tiny, Input(source), tmp_path / "o", workers=one)
    finally:
        ended.set()
        thread.join()


def test_an_error_in_a_process_is_the_error_of_the_run(tiny, source, tmp_path):
    one = workers(1, prompt="long " * 600)
    task = VectorTask(tiny, VectorOptions())
    with pytest.raises(UsageError, match="fills all"):
        run(task, tiny, Input(source), tmp_path / "out", workers=one)


def test_devices_are_named_or_refused():
    assert devices_named("cpu,cpu") == ["cpu", "cpu"]
    with pytest.raises(UsageError, match="there is no 'cuda:9' here"):
        devices_named("cpu,cuda:9")


def test_processes_on_the_command_line(tiny, source, tmp_path):
    command = ["encode", MODEL, "--file", source, "--out", str(tmp_path / "out")]
    command += ["--devices", "cpu,cpu", "--shard-rows", "50", "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["vectors"] == 200
    check(tmp_path / "out", tiny)
