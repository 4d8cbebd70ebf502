"""What `make gpu-check` runs on a device runs here on the processor, and fails where something does not hold."""

import importlib.util
import subprocess
import sys

import torch
from conftest import DECODERS, ROOT

SCRIPT = ROOT / "benchmarks" / "gpu_check.py"


def test_everything_holds_on_the_processor():
    command = [sys.executable, SCRIPT, "--device", "cpu", "--dtypes", "float32"]
    done = subprocess.run(
        [*command, "--model", DECODERS / "qwen3"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "NO" not in done.stdout
    for line in (
        "ignores padding",
        "padded computation",
        "one step of mntp",
        "simcse",
        "supervised",
    ):
        assert line in done.stdout


def test_vectors_that_are_not_those_of_the_padded_computation_are_noticed(monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_check", script)
    spec.loader.exec_module(script)
    exact = script.padded
    monkeypatch.setattr(script, "padded", lambda *given: exact(*given) + 2e-4 * torch.ones(1))
    lines = {line.what: line for line in script.loading(str(DECODERS / "qwen3"), "cpu", "float32")}
    assert not lines["float32: vectors against the padded computation"].holds
    assert lines["float32: ignores padding"].holds
