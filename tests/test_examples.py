"""The examples run as they are printed in their first lines."""

import runpy

import pytest
from conftest import DECODERS, ROOT

DECODER = str(DECODERS / "qwen3")


def run(name, *arguments):
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"](*map(str, arguments))


def test_search_finds_the_line_that_is_asked_for_word_by_word(tmp_path, capsys):
    lines = tmp_path / "lines.txt"
    lines.write_text("A cobbler repairs shoes.\n\nThe train leaves at nine.\nIt rains.\n")
    run("search", DECODER, lines, "A cobbler repairs shoes.")
    best, *_ = capsys.readouterr().out.splitlines()
    assert best == "1.000  A cobbler repairs shoes."


def test_word_senses_compares_every_pair_of_texts(capsys):
    texts = ["The bank lends money.", "He sat on the bank.", "The bank lends money."]
    run("word_senses", DECODER, "bank", *texts)
    cosines = [float(line.split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert len(cosines) == 3
    assert cosines[1] == pytest.approx(1.0, abs=1e-3)
    assert max(cosines[0], cosines[2]) < 1


def test_convert_makes_an_encoder_that_others_open(tmp_path, capsys):
    corpus = tmp_path / "texts.txt"
    corpus.write_text("".join(f"The cat {n} sat near the old bridge.\n" for n in range(200)))
    run("convert", DECODER, corpus, tmp_path / "encoder", "4")
    assert -1 <= float(capsys.readouterr().out) <= 1
    assert (tmp_path / "encoder" / "modules.json").is_file()
