"""What `make gpu-check` runs on a device runs here on the processor, and fails where something does not hold."""

import importlib.util
import subprocess
import sys
from dataclasses import replace

import torch
from conftest import DECODERS, ROOT
from test_varlen import kernel

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
        "attention | yes | llm2vec_packed |",
        "one step of mntp",
        "simcse",
        "supervised",
    ):
        assert line in done.stdout


def script_of(monkeypatch):
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_check", script)
    spec.loader.exec_module(script)
    return script


def test_vectors_that_are_not_those_of_the_padded_computation_are_noticed(monkeypatch):
    script = script_of(monkeypatch)
    exact = script.padded
    monkeypatch.setattr(script, "padded", lambda *given: exact(*given) + 2e-4 * torch.ones(1))
    lines = {line.what: line for line in script.loading(str(DECODERS / "qwen3"), "cpu", "float32")}
    assert not lines["float32: vectors against the padded computation"].holds
    assert lines["float32: ignores padding"].holds


def test_each_kernel_is_tried_and_the_used_attention_is_named(monkeypatch, encoder):
    stand_in = replace(kernel(), title="a right one")
    wrong = replace(kernel(ignores_borders=True), title="a wrong one")
    monkeypatch.setattr("llm2vec.backbone.varlen.kernels_for", lambda device: [wrong, stand_in])
    wrong_line, right_line, used = script_of(monkeypatch).kernels(encoder, "float32")
    assert (wrong_line.what, right_line.what) == ("float32: a wrong one", "float32: a right one")
    assert wrong_line.number.startswith("NOT proven")
    assert right_line.number.startswith("proven")
    assert used.number == encoder.model.config._attn_implementation == "llm2vec_packed"
