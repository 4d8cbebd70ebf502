"""On a local Ray cluster of two actors: the vectors of one process, and nothing lost where an actor is killed."""

import os
import signal
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import DECODERS
from pyarrow import parquet
from typer.testing import CliRunner

from llm2vec import Encoder
from llm2vec.backbone.source import Source
from llm2vec.bulk.cluster import ClusterJob, run_on_ray
from llm2vec.bulk.manifest import read_manifest
from llm2vec.bulk.rows import Input
from llm2vec.bulk.run import encode_to_folder
from llm2vec.bulk.shards import shard_files
from llm2vec.bulk.vectors import VectorOptions
from llm2vec.cli.main import app
from llm2vec.corpus.data_files import DataFile
from llm2vec.errors import RunError, UsageError

MODEL = str(DECODERS / "gpt2")
BATCH = 1e-5
"""Float32 vectors of one text in batches of other shapes, whose sums have another order."""

ROWS = 4000
MARK = "LLM2VEC_TEST_OF_RAY"


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A cluster of this machine alone, for two actors, with little memory for objects."""
    ray = pytest.importorskip("ray", reason="needs ray: pip install 'llm2vec-next[ray]'")
    monkeypatch.setenv(MARK, str(tmp_path))
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else a busy machine leaves them no time
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    ray.init("local", num_cpus=2, object_store_memory=100 * 2**20, **options)
    yield ray
    ray.shutdown()


@pytest.fixture
def source(tmp_path):
    lines = [
        f"The cat number {number} sat down {'again ' * (number % 9)}." for number in range(ROWS)
    ]
    lines[7] = "\udcff"
    place = tmp_path / "a.txt"
    place.write_bytes("\n".join(lines).encode("utf8", "surrogateescape") + b"\n")
    return str(place)


def job(source, out, **options):
    given = Input(source)
    return ClusterJob(
        Source(MODEL), VectorOptions(**options), "float32", given, out, MODEL, shard_rows=50
    )


def kill_an_actor(tmp_path, ended):
    """Kill the first actor that has finished a shard."""
    out = tmp_path / "out"
    while not ended.wait(0.02):
        if not out.is_dir() or len(shard_files(out)) < 3:
            continue
        for process in Path("/proc").iterdir():
            if process.name.isdigit() and is_actor(process, str(tmp_path)):
                os.kill(int(process.name), signal.SIGKILL)
                return True
    return False


def is_actor(process, mark):
    try:
        command = (process / "cmdline").read_bytes()
        environment = (process / "environ").read_bytes()
    except OSError:
        return False
    return (
        b"ray::" in command and b"PartActor" in command and f"{MARK}={mark}".encode() in environment
    )


def test_two_actors_of_which_one_is_killed_make_what_one_process_makes(cluster, source, tmp_path):
    ended, killed = threading.Event(), []
    thread = threading.Thread(target=lambda: killed.append(kill_an_actor(tmp_path, ended)))
    thread.start()
    try:
        summary = run_on_ray(job(source, tmp_path / "out", normalize=True), actors=2)
    finally:
        ended.set()
        thread.join()
    assert killed == [True]
    assert (summary.rows, summary.vectors, summary.rejected) == (ROWS, ROWS - 1, 1)
    assert (summary.shards, summary.finished) == (ROWS // 50, True)
    tiny = Encoder.from_pretrained(MODEL)
    plain = encode_to_folder(tiny, source, tmp_path / "plain", normalize=True, shard_rows=50)
    assert (plain.vectors, plain.rejected, plain.tokens) == (ROWS - 1, 1, summary.tokens)
    ours, exact = (tables(tmp_path / name) for name in ("out", "plain"))
    assert ours.column("row") == exact.column("row")
    found, wanted = (np.array(each.column("vector").to_pylist()) for each in (ours, exact))
    np.testing.assert_allclose(found, wanted, atol=BATCH)
    first, second = (tmp_path / name / "rejected.jsonl" for name in ("out", "plain"))
    assert first.read_text() == second.read_text()
    manifests = [read_manifest(tmp_path / name) for name in ("out", "plain")]
    assert manifests[0].finished == manifests[1].finished
    assert manifests[0].settings == manifests[1].settings
    with pytest.raises(RunError, match="setting normalize was True and is False"):
        run_on_ray(job(source, tmp_path / "out"), actors=1)


def tables(folder):
    return pa.concat_tables(parquet.read_table(path) for path in shard_files(folder).values())


def test_what_actors_cannot_share_is_refused(tmp_path, source):
    pipe = Input(DataFile("a pipe", "jsonl", None))
    asked = ClusterJob(Source(MODEL), VectorOptions(), "auto", pipe, tmp_path / "o", MODEL)
    with pytest.raises(UsageError, match="give a file, not a pipe"):
        run_on_ray(asked, actors=1)
    with pytest.raises(UsageError, match="--actors 0"):
        run_on_ray(job(source, tmp_path / "o"), actors=0)
    command = ["encode", MODEL, "--file", source, "--out", str(tmp_path / "o")]
    for wrong, said in (
        (["--engine", "ray", "--shard", "1/2"], "leave --shard out"),
        (["--engine", "ray", "--devices", "cpu,cpu"], "leave --devices out"),
        (["--actors", "2"], "--actors needs --engine ray"),
    ):
        assert said in str(CliRunner().invoke(app, [*command, *wrong]).exception)
