"""What is printed: on terminals that lack characters, with brackets in names, and lines to paste into a shell."""

import json
import shlex
import shutil
import subprocess
import sys
from io import BytesIO, StringIO, TextIOWrapper

import pytest
import typer
from conftest import DECODERS

from llm2vec.cli import console
from llm2vec.cli.console import as_python, one_line, pasted, table
from llm2vec.cli.main import app

TEXT = "naïve café ✓ 🙂"


def latin():
    return TextIOWrapper(BytesIO(), encoding="latin1", errors="strict", write_through=True)


def test_json_says_the_same_in_an_encoding_that_lacks_its_characters():
    for file, escaped in ((StringIO(), False), (latin(), True)):
        line = one_line({"text": TEXT}, file)
        file.write(line)
        assert json.loads(line)["text"] == TEXT
        assert ("\\u" in line) == escaped
    assert one_line("café", latin()) == '"café"'


PRINTING = """
import sys
from llm2vec.cli.main import main
sys.stdin.reconfigure(encoding="utf8")
sys.stdout.reconfigure(encoding=sys.argv.pop(1))
main()
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin1", "utf8"])
def test_texts_that_a_terminal_cannot_show_are_encoded_and_printed_all_the_same(encoding):
    command = [sys.executable, "-c", PRINTING, encoding, "encode", str(DECODERS / "gpt2")]
    done = subprocess.run(command, input=f"{TEXT}\n".encode(), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout.decode(encoding))["text"] == TEXT


def test_a_table_is_shown_where_the_terminal_lacks_a_character(monkeypatch):
    stdout = latin()
    monkeypatch.setattr(sys, "stdout", stdout)
    with pytest.raises(UnicodeEncodeError):
        table("", ["label", "value"], [["✓", "1"]])
    console.escape_unknown_characters()
    table("", ["label", "value"], [["✓", "1"]])
    assert b"\\u2713" in stdout.buffer.getvalue()


def test_brackets_and_colons_in_names_are_printed_as_they_are(capsys):
    table("", ["label", "value"], [["[bold]", ":smile:"], ["[/PAD]", "1"]])
    console.people.print("[red] is a folder")
    said = capsys.readouterr()
    assert all(name in said.out for name in ("[bold]", ":smile:", "[/PAD]"))
    assert "[red] is a folder" in said.err


def test_lines_to_paste_read_a_path_with_blanks_as_one(tmp_path):
    path = tmp_path / "my 'best' run"
    assert shlex.split(f"llm2vec encode {pasted(path)} x") == ["llm2vec", "encode", str(path), "x"]
    assert eval(as_python(path)) == str(path)


@pytest.mark.filterwarnings("ignore")
def test_the_line_that_convert_prints_can_be_pasted(corpus, tmp_path, capsys):
    program = typer.main.get_command(app)
    out, decoder = tmp_path / "my encoder", shutil.copytree(DECODERS / "gpt2", tmp_path / "a b")
    convert = ["convert", str(decoder), "--corpus", str(corpus), "--out", str(out)]
    for each in ("mntp.steps=0", "simcse.steps=0", "encoder.max_length=64"):
        convert += ["--set", each]
    program.main(args=convert, standalone_mode=False)
    line = capsys.readouterr().out.partition("or llm2vec ")[2]
    program.main(args=shlex.split(line), standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["text"] == "some text"
