"""Run the tests with the lowest version that pyproject.toml declares of everything that it names.

    python scripts/lowest.py [--torch VERSION] [--processes N] [TEST ...]

What a declared package needs itself comes in its newest version, as pip would choose it today. torch is the one that
constraints.txt names, since another is gigabytes on many machines; `--torch lowest` takes the lowest. Where two floors
cannot be installed together, the one that is too low is named and nothing is tested: declare the version that comes.
"""

import argparse
import re
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".venv-lowest"
PYTHON = FOLDER / "bin" / "python"
PINS = ROOT / "constraints.txt"
LOWEST = FOLDER / "lowest.txt"
INSTALLED = FOLDER / "installed.txt"

EXTRA = "dev"
"""The extra that brings all others that tests need."""

TESTS = (
    "test_adapters",
    "test_batching",
    "test_blame",
    "test_bulk",
    "test_bulk_readers",
    "test_bulk_search",
    "test_chunks",
    "test_cli",
    "test_conversion",
    "test_custom_code",
    "test_drop_in",
    "test_encoder",
    "test_export",
    "test_export_gguf",
    "test_export_servers",
    "test_finetuning",
    "test_gguf",
    "test_inputs",
    "test_knobs",
    "test_mntp",
    "test_mteb",
    "test_nothing_lost",
    "test_padding_token",
    "test_peft_adapters",
    "test_pooling",
    "test_positions",
    "test_probe",
    "test_proofs",
    "test_push",
    "test_quantized",
    "test_recipe",
    "test_reference",
    "test_report",
    "test_rows",
    "test_scores",
    "test_sentence_transformers_files",
    "test_sentences",
    "test_serve",
    "test_serve_folders",
    "test_simcse",
    "test_supervised",
    "test_tagged",
    "test_texts",
    "test_threads",
    "test_tokens",
    "test_train",
    "test_train_supervised",
    "test_trainer",
    "test_word_metrics",
    "test_words",
    "test_wrappers",
)
"""What is run: what a person does with each command and class, and each declared package at work."""


def main() -> None:
    """Make the environment, unless it is there, and run the tests in it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch", default=pinned("torch"), help="a version, or `lowest`")
    parser.add_argument("--processes", default="2", help="processes that run tests at once")
    parser.add_argument("tests", nargs="*", default=[f"tests/{name}.py" for name in TESTS])
    chosen = parser.parse_args()
    resolve(chosen.torch)
    if too_low := list(unreached(exempt=set() if chosen.torch == "lowest" else {"torch"})):
        sys.exit("these floors are lower than what can be installed:\n" + "\n".join(too_low))
    install()
    how = ["-q", "-n", chosen.processes, "--dist", "loadfile"]
    command = [PYTHON, "-m", "pytest", *how, *chosen.tests]
    sys.exit(subprocess.run(command, cwd=ROOT).returncode)


def pinned(name: str) -> str:
    """The version of a package in constraints.txt."""
    pins = (line.partition("==") for line in PINS.read_text().splitlines())
    return next(version for found, _, version in pins if found == name)


def resolve(torch: str) -> None:
    """Write the version of each package to `LOWEST`."""
    if not PYTHON.exists():
        venv.create(FOLDER, with_pip=True)
        pip("--constraint", PINS, "uv")
    fixed = FOLDER / "torch.txt"
    fixed.write_text("" if torch == "lowest" else f"torch=={torch}\n")
    command = ["uv", "pip", "compile", "--quiet", "--resolution", "lowest-direct", "--upgrade"]
    command += [
        "--no-header",
        "--constraint",
        fixed,
        "--extra",
        EXTRA,
        "--output-file",
        LOWEST,
        "pyproject.toml",
    ]
    subprocess.run([PYTHON, "-m", *command], cwd=ROOT, check=True)


def unreached(*, exempt: set[str]) -> Iterator[str]:
    """Declared packages whose floor is not the version that comes, a line each."""
    lines = (line.split(";")[0].strip() for line in LOWEST.read_text().splitlines())
    comes = dict(line.split("==") for line in lines if "==" in line)
    for name, floor in floors():
        if name in comes and name not in exempt and numbers(floor) != numbers(comes[name]):
            yield f"{name}: {floor} is declared, {comes[name]} comes"


def floors() -> Iterator[tuple[str, str]]:
    """Each package that pyproject.toml declares, extras included, and its lowest version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for group in (project["dependencies"], *project["optional-dependencies"].values()):
        for declared in group:
            if found := re.match(r"([\w.-]+?)(?:\[.*\])?>=([\d.]+)", declared):
                yield re.sub(r"[-_.]+", "-", found[1]).lower(), found[2]


def numbers(version: str) -> list[int]:
    """A version without the zeros at its end, which mean nothing."""
    return [int(part) for part in re.sub(r"(\.0+)+$", "", version).split(".")]


def install() -> None:
    """Bring the environment to the versions of `LOWEST`."""
    if INSTALLED.exists() and INSTALLED.read_text() == LOWEST.read_text():
        return
    pip(
        "--constraint", LOWEST, "torch"
    )  # alone, so that a build without CUDA that is there is kept
    # by uv, since pip takes many minutes to find what is resolved already
    command = ["uv", "pip", "install", "--quiet", "--python", PYTHON, "--constraint", LOWEST]
    subprocess.run([PYTHON, "-m", *command, "--editable", f".[{EXTRA}]"], cwd=ROOT, check=True)
    INSTALLED.write_text(LOWEST.read_text())


def pip(*arguments: str | Path) -> None:
    """Install into the environment."""
    subprocess.run([PYTHON, "-m", "pip", "install", "--quiet", *arguments], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
