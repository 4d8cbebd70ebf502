"""Beside an installed first implementation, which has the same import name: told once, and not imported."""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import llm2vec
from llm2vec.runtime.first_implementation import warn_of_first_implementation

METADATA = "Metadata-Version: 2.1\nName: llm2vec\nVersion: {version}\n"

TOLD = "llm2vec 0.2.3, the first implementation, is installed beside llm2vec-next"


def installed(folder, version):
    """A folder of installed distributions with one of that version."""
    place = folder / f"llm2vec-{version}.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text(METADATA.format(version=version))
    return folder


def test_the_first_implementation_is_told_with_the_command_that_helps(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(installed(tmp_path, "0.2.3"))
    with pytest.warns(UserWarning, match=f"{TOLD}.*pip uninstall llm2vec llm2vec-next"):
        warn_of_first_implementation()


def test_a_version_of_this_program_under_that_name_is_no_reason_to_warn(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(installed(tmp_path, "1.0.0"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_first_implementation()


def test_mixed_files_are_told_once_and_ours_are_imported(tmp_path):
    shutil.copytree(Path(llm2vec.__file__).parent, installed(tmp_path, "0.2.3") / "llm2vec")
    (tmp_path / "llm2vec" / "experiment_utils.py").write_text("raise SystemExit('theirs')")
    code = "import llm2vec, llm2vec.experiment_utils, llm2vec.errors"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(TOLD) == 1
