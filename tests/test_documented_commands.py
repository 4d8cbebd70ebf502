"""Every command that README, docs and `--help` show is one that works.

A shell reads each line, as it would a reader's, and the program runs what comes of it, in a folder that holds what the
lines name. Hub ids are small folders of the same name there. What needs the hub itself, or serves until it is stopped,
is parsed and not run.
"""

import json
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pyarrow
import pytest
import typer
from conftest import DECODERS, ROOT
from pyarrow import parquet
from typer.core import TyperGroup

from llm2vec.cli.main import app
from llm2vec.report import measure
from llm2vec.report.measure import bundled_words

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAM = typer.main.get_command(app)
SMALL = ("mntp.steps=1", "mntp.batch_size=2", "mntp.max_length=32", "mntp.eval_blocks=2")
SMALL += ("simcse.steps=1", "simcse.batch_size=2", "simcse.max_length=16", "encoder.max_length=64")
SMALL += ("corpus.self_texts=6", "corpus.self_tokens=24")
UNTRAINED = ("mntp.steps=0", "simcse.steps=0", "encoder.max_length=64")
NOT_RUN = re.compile(
    r"--mteb|meta-llama/|McGill-NLP/|hub:|model\.gguf|llm2vec serve|s3://|--public|--hours"
    r"|--engine"
)
PLACEHOLDER = re.compile(r"\b(FILE|DECODER|BASE|ADAPTER|FOLDER|M|T)\b|\.\.\.")

RECORD = """#!/bin/sh
printf '%s\\0' "$@" > "$RECORD.argv"
if [ -p /dev/stdin ]; then cat > "$RECORD.stdin"; fi
"""
"""A program of our name that writes down how it was called."""


def blocks(page):
    """The lines of fenced blocks that call the program, and those that are printed as such by `--help`."""
    fenced = re.findall(r"```(?:console|bash|sh)?\n(.*?)```", page.read_text(), re.DOTALL)
    whole = [re.sub(r"\\\n\s*", "", block) for block in fenced]  # lines that go on in the next one
    lines = (line.strip().removeprefix("$ ") for block in whole for line in block.splitlines())
    return [line for line in lines if re.match(r"(cat \S+ \| )?llm2vec ", line)]


def commands_in(group):
    """The commands of a group that `--help` shows, and those of the groups within it."""
    for command in group.commands.values():
        if not command.hidden:
            yield command
            yield from commands_in(command) if isinstance(command, TyperGroup) else ()


def in_help():
    """The examples of each command's help, before a terminal wraps them."""
    found = []
    for command in commands_in(PROGRAM):
        found += re.findall(r"`((?:cat \S+ \| )?llm2vec [^`]*)`", command.epilog or "")
    return found


def in_sentences(page):
    """Commands within sentences."""
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    found = (" ".join(each.split()) for each in re.findall(r"`([^`]*)`", prose))
    return [each for each in found if re.match(r"(torchrun .* -m )?llm2vec ", each)]


SHOWN = [line for page in PAGES if page.name != "cli.md" for line in blocks(page)] + in_help()
RUN = list(dict.fromkeys(each for each in SHOWN if not NOT_RUN.search(each)))
PARSED = [each for each in SHOWN if NOT_RUN.search(each)]
PARSED += [each for page in PAGES for each in in_sentences(page)]


def read_by_a_shell(line, folder):
    """The arguments and the standard input that a shell gives the program, for a line in a folder."""
    program = folder / "bin" / "llm2vec"
    program.parent.mkdir(exist_ok=True)
    program.write_text(RECORD)
    program.chmod(0o755)
    record = folder / "record"
    environment = {"PATH": f"{program.parent}:/usr/bin:/bin", "RECORD": str(record)}
    subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, check=True, stdin=subprocess.DEVNULL
    )
    stdin = Path(f"{record}.stdin")
    text = stdin.read_text() if stdin.exists() else ""
    stdin.unlink(missing_ok=True)
    return Path(f"{record}.argv").read_text().split("\0")[:-1], text


def run(argv, stdin=""):
    """Run the program in this process."""
    before, sys.stdin = sys.stdin, TextIOWrapper(BytesIO(stdin.encode()), encoding="utf8")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            PROGRAM.main(args=argv, prog_name="llm2vec", standalone_mode=False)
    finally:
        sys.stdin = before


def with_sets(argv, sets):
    return [*argv, *(part for each in sets for part in ("--set", each))]


def write_data(folder):
    """The files that the lines name."""
    animals = ("cat", "dog", "cow", "hen", "pig", "rat", "ape", "bee", "elk", "fox", "owl", "yak")
    texts = [f"The {animal} sleeps near the old bridge." for animal in animals]
    for name in ("texts.txt", "openstax.txt"):
        (folder / name).write_text("".join(text + "\n" for text in texts))
    (folder / "queries.txt").write_text("".join(text + "\n" for text in texts[:2]))
    columns = {"id": list(range(len(texts))), "body": texts}
    parquet.write_table(pyarrow.table(columns), folder / "big.parquet")
    (folder / "data").mkdir()
    rows = "".join(json.dumps({"body": text}) + "\n" for text in texts)
    (folder / "data" / "rows.jsonl").write_text(rows)
    for name in ("train", "test"):
        words = [("The", "DET", "O"), ("{}", "NOUN", "B-PER"), ("sleeps", "VERB", "O")]
        conllu, columns, labelled = "", "", ""
        for animal in animals:
            for index, (word, tag, entity) in enumerate(words, start=1):
                word = word.format(animal)
                conllu += "\t".join([str(index), word, "_", tag, *"______"]) + "\n"
                columns += f"{word} {entity}\n"
            conllu, columns = conllu + "\n", columns + "\n"
            for label in ("sleeps", "runs"):
                labelled += json.dumps({"text": f"The {animal} {label}.", "label": label}) + "\n"
        (folder / f"{name}.conllu").write_text(conllu)
        (folder / f"{name}.txt").write_text(columns)
        (folder / f"{name}.jsonl").write_text(labelled)
    pairs = [f"{score}\t{text}\t{texts[-score]}\n" for score, text in enumerate(texts[:6])]
    nli = [
        {"anchor": text, "positive": f"Here {text.lower()}", "negative": f"No {other.lower()}"}
        for text in texts
        for other in texts[:6]
    ]
    (folder / "nli.jsonl").write_text("".join(json.dumps(row) + "\n" for row in nli))
    for name in ("pairs.tsv", "stsb.test.tsv"):
        (folder / name).write_text("".join(pairs))


def write_configs(folder):
    """Configuration files of version 0.2.3 under the names that the lines have for them."""
    common = {"model_name_or_path": "decoder", "max_steps": 1, "output_dir": "encoder"}
    mntp = {"train_file": "texts.txt", "max_seq_length": 16, "mask_token_type": "blank"}
    simcse = {"dataset_name": "Wiki1M", "dataset_file_path": "texts.txt", "simcse_dropout": 0.3}
    for name, values in (("mntp", mntp), ("simcse", simcse)):
        file = folder / "train_configs" / name / "Mistral.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({**common, **values}))
    shutil.copy(folder / "train_configs" / "mntp" / "Mistral.json", folder / "FILE.json")
    task = {"model_name_or_path": "decoder", "task": "pos_tags", "bidirectional": True}
    (folder / "pos_tags.json").write_text(json.dumps(task))


def write_models(folder):
    """A decoder, and others under the names of models on the hub."""
    for name in (
        "decoder",
        "Qwen/Qwen3-0.6B",
        "bert-base-cased",
        ".decoders/smollm2-135m",
        "sentence-transformers/all-MiniLM-L6-v2",
    ):
        shutil.copytree(DECODERS / "qwen3", folder / name)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A folder with everything that the lines name but an encoder."""
    folder = tmp_path_factory.mktemp("bare")
    write_data(folder)
    write_configs(folder)
    write_models(folder)
    return folder


@pytest.fixture(scope="module")
def project(bare, tmp_path_factory):
    """The same with an encoder, its stages, and a probe."""
    folder = tmp_path_factory.mktemp("project") / "here"
    shutil.copytree(bare, folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        convert = ["convert", "decoder", "--corpus", "texts.txt", "--keep-stages"]
        run(with_sets(convert, (*SMALL, "simcse.steps=0")))
        bulk = ["encode", "encoder", "--file", "big.parquet", "--text-column", "body"]
        run([*bulk, "--id-column", "id", "--out", "vectors"])
        run(
            [
                "probe",
                "encoder",
                "--train",
                "train.conllu",
                "--test",
                "test.conllu",
                "--save",
                "pos",
            ]
        )
        small = ["--method", "full", "--epochs", "1"]
        for kind, file in (("tagger", "train.conllu"), ("classifier", "train.jsonl")):
            run(["train", kind, "decoder", "--train", file, "--out", kind, *small])
    return folder


def test_lines_are_found_in_the_readme_in_docs_and_in_the_help_of_each_command():
    assert len(RUN) > 15
    shown = {line.partition("llm2vec ")[2].split()[0] for line in SHOWN}
    assert shown >= {name for name, each in PROGRAM.commands.items() if not each.hidden}
    assert len(PARSED) > 10


@pytest.mark.parametrize("line", RUN)
def test_a_line_works_as_it_is_shown(line, request, tmp_path, monkeypatch, capsys):
    makes_an_encoder = re.search(r"llm2vec (convert|legacy train) ", line)
    folder = request.getfixturevalue("project")
    if makes_an_encoder:
        folder = tmp_path / "here"
        shutil.copytree(request.getfixturevalue("bare"), folder)
        if "encoder.stages" in line:
            stages = request.getfixturevalue("project") / "encoder.stages"
            shutil.copytree(stages, folder / "encoder.stages")
    argv, stdin = read_by_a_shell(line, folder)
    few = [replace(task, train=task.train[:40], test=task.test[:20]) for task in bundled_words()]
    monkeypatch.setattr(measure, "bundled_words", lambda: few[:1])
    monkeypatch.chdir(folder)
    run(with_sets(argv, UNTRAINED) if makes_an_encoder else argv, stdin)
    said = capsys.readouterr()
    assert said.out or "--out" in line or said.err
    if makes_an_encoder:
        made = folder / argv[argv.index("--out") + 1] if "--out" in argv else folder / "encoder"
        assert (made / "provenance.json").is_file()


@pytest.mark.parametrize("line", list(dict.fromkeys(PARSED)))
def test_a_line_that_needs_the_hub_or_stands_for_others_is_understood(line, tmp_path):
    words = PLACEHOLDER.sub("x", line.partition("llm2vec ")[2])
    argv, _ = read_by_a_shell(f"llm2vec {words}", tmp_path)
    command, depth = PROGRAM, 0
    while isinstance(command, TyperGroup):
        command = command.commands[argv[depth]]
        depth += 1
    if argv[depth:]:
        command.make_context(argv[depth - 1], argv[depth:])


def test_the_scripts_that_docs_name_are_there():
    named = {
        name
        for page in PAGES
        for name in re.findall(r"python (\S+\.py)\b", page.read_text())
        if "experiments/" not in name and "_eval" not in name
    }
    assert named
    assert not [name for name in named if not (ROOT / name).is_file()]
