"""Several processes give what one gives, in order; one that dies is started again, and nothing is lost."""

import copy
import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import DECODERS
from pyarrow import parquet
from typer.testing import CliRunner

from llm2vec import Encoder
from llm2vec.bulk.rows import Input
from llm2vec.bulk.run import encode_to_folder, run
from llm2vec.bulk.shards import shard_files
from llm2vec.bulk.vectors import VectorOptions, VectorTask
from llm2vec.bulk.workers import BulkOpening, Workers
from llm2vec.cli.main import app
from llm2vec.errors import RunError, UsageError
from llm2vec.runtime.hardware import devices_named
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
    return Workers(BulkOpening(MODEL, VectorOptions(**options), "float32"), ["cpu"] * count)


def kill(processes):
    process = processes._workers[0].process
    os.kill(process.pid, signal.SIGKILL)
    process.join()


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
                kill(both.processes)

    summary = run(
        task, tiny, Input(source), tmp_path / "out", shard_rows=7, progress=Kills(), workers=both
    )
    assert (summary.vectors, summary.finished) == (200, True)
    check(tmp_path / "out", tiny)
    assert both.processes.restarted == 1
    assert not any(worker.process for worker in both.processes._workers)
    assert encode_to_folder(tiny, source, tmp_path / "out", shard_rows=7).resumed == 29


def test_rows_that_kill_every_process_are_named(tiny, source, tmp_path):
    one = workers(1)
    ended = threading.Event()

    def kill():
        while not ended.wait(0.02):
            for worker in one.processes._workers:
                if worker.process is not None and worker.process.is_alive():
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


def test_encode_on_two_devices_gives_the_same_vectors_by_processes_that_are_kept():
    texts = TEXTS * 4
    with Encoder.from_pretrained(MODEL, prompts={"q": "Ask:"}, pooling="weighted_mean") as tiny:
        here = tiny.encode(texts, prompt_name="q", normalize=True)

        def there():
            return tiny.encode(texts, prompt_name="q", normalize=True, devices=["cpu", "cpu"])

        torch.testing.assert_close(there(), here, atol=BATCH, rtol=0)
        processes = tiny._pool.processes
        ids = [worker.process.pid for worker in processes._workers]
        kill(processes)
        torch.testing.assert_close(there(), here, atol=BATCH, rtol=0)
        assert tiny._pool.processes is processes
        assert processes.restarted == 1
        assert processes._workers[1].process.pid == ids[1]
        assert copy.deepcopy(tiny)._pool.processes is None
        with torch.no_grad():
            tiny.model.wte.weight *= 1.5
        assert tiny._pool._opened(tiny, ["cpu", "cpu"]) is not processes
        folder = tiny._pool._folder.name
    assert tiny._pool.processes is None
    assert not Path(folder).exists()


def test_devices_are_named_or_refused():
    assert devices_named("cpu,cpu") == ["cpu", "cpu"]
    with pytest.raises(UsageError, match="there is no 'cuda:9'"):
        devices_named("cpu,cuda:9")


def test_processes_on_the_command_line(tiny, source, tmp_path):
    command = ["encode", MODEL, "--file", source, "--out", str(tmp_path / "out")]
    command += ["--devices", "cpu,cpu", "--shard-rows", "50", "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["vectors"] == 200
    check(tmp_path / "out", tiny)
