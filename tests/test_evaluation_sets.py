"""The bundled evaluation sets are sound, and the script that says so notices when they are not."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "src" / "llm2vec" / "assets" / "evaluation"

Row = dict[str, Any]


def _load_script() -> ModuleType:
    path = ROOT / "scripts" / "check_evaluation_sets.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sets = _load_script()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a copy of the bundled folder that a test may break."""
    return Path(shutil.copytree(FOLDER, tmp_path / "evaluation"))


def change(path: Path, edit: Callable[[list[Row]], object]) -> None:
    """Apply `edit` to the rows of a jsonl file, in place."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    edit(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def change_row(path: Path, number: int = 0, **fields: object) -> None:
    """Set fields of one row of a jsonl file."""
    change(path, lambda rows: rows[number].update(fields))


def problems(folder: Path) -> list[str]:
    """Return what the check says about a folder."""
    found: list[str] = sets.check(sets.read(folder))
    return found


def only(folder: Path, *parts: str) -> None:
    """Expect exactly one problem, whose message has all of `parts`."""
    found = problems(folder)
    assert len(found) == 1, found
    for part in parts:
        assert part in found[0]


def test_the_bundled_sets_have_no_problems() -> None:
    assert problems(FOLDER) == []


def test_the_script_exits_with_0_and_prints_the_table_on_sound_sets(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert sets.main([str(FOLDER)]) == 0
    printed = capsys.readouterr()
    assert "DET 4 PRON 5 SCONJ" in printed.out
    assert "no problems" in printed.out
    assert printed.err == ""


def test_the_script_exits_with_1_and_names_the_problem_on_broken_sets(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_row(copy / "pairs.jsonl", score=7.5)
    assert sets.main([str(copy)]) == 1
    assert "score 7.5 is outside 0 to 5" in capsys.readouterr().err


def test_a_missing_file_is_reported_without_a_traceback(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "future.jsonl").unlink()
    assert sets.main([str(copy)]) == 1
    assert "future.jsonl" in capsys.readouterr().err


def test_a_line_that_is_not_json_is_reported_with_its_number(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (copy / "pairs.jsonl").open("a", encoding="utf-8") as file:
        file.write("not json\n")
    assert sets.main([str(copy)]) == 1
    assert "pairs.jsonl, line 276" in capsys.readouterr().err


def test_a_family_in_both_splits_is_reported(copy: Path) -> None:
    change_row(copy / "words.test.jsonl", family="that-cake")
    only(copy, "family 'that-cake' is in train and in test")


def test_a_sentence_in_both_splits_is_reported(copy: Path) -> None:
    def move(rows: list[Row]) -> None:
        rows.append({**rows[0], "id": "copied-1", "family": "copied"})

    change(copy / "words.train.jsonl", move)
    train = (copy / "words.train.jsonl").read_text(encoding="utf-8").splitlines()
    test = (copy / "words.test.jsonl").read_text(encoding="utf-8")
    (copy / "words.test.jsonl").write_text(test + train.pop() + "\n", encoding="utf-8")
    (copy / "words.train.jsonl").write_text("\n".join(train) + "\n", encoding="utf-8")
    found = problems(copy)
    assert any("copied-1: the same sentence as that-cake-1" in problem for problem in found)
    assert any("copied-1 (test) and that-cake-1 (train) share 100%" in p for p in found)


def test_a_reworded_train_sentence_in_test_is_reported_as_leakage(copy: Path) -> None:
    tokens = ["Some", "fast", "car", "passed", "them", "near", "a", "bridge", "."]
    change_row(
        copy / "words.test.jsonl",
        -1,
        tokens=tokens,
        pos=["DET", "ADJ", "NOUN", "VERB", "PRON", "ADP", "DET", "NOUN", "PUNCT"],
        chunks=["B-NP", "I-NP", "I-NP", "B-VP", "B-NP", "B-PP", "B-NP", "I-NP", "O"],
        entities=["O"] * len(tokens),
    )
    found = problems(copy)
    assert any("fast-car-1 (train) share 100%" in problem for problem in found)


def test_a_repeated_id_is_reported(copy: Path) -> None:
    change(copy / "words.train.jsonl", lambda rows: rows[1].update(id=rows[0]["id"]))
    only(copy, "words.train", "id 'that-cake-1' occurs 2 times")


@pytest.mark.parametrize(
    ("field", "labels", "message"),
    [
        ("pos", ["DET", "NOUN", "VERB", "ADJ", "PERIOD"], "'PERIOD' is not a UPOS tag"),
        ("chunks", ["B-NP", "I-NP", "B-XP", "B-ADJP", "O"], "'B-XP' at 2 is no chunk label"),
        ("chunks", ["B-NP", "I-NP", "I-VP", "B-ADJP", "O"], "'I-VP' at 2 follows 'I-NP'"),
        ("chunks", ["I-NP", "I-NP", "B-VP", "B-ADJP", "O"], "'I-NP' at 0 follows 'O'"),
        ("entities", ["O", "I-PER", "O", "O", "O"], "'I-PER' at 1 follows 'O'"),
        ("entities", ["O", "B-GPE", "O", "O", "O"], "'B-GPE' at 1 is no entity label"),
        ("pos", ["DET", "NOUN", "VERB", "ADJ"], "columns of different or no length"),
        ("tokens", "That cake is delicious .", "'tokens' is not a list of texts"),
        ("tokens", ["That cake", "is", "so", "delicious", "."], "contains a space"),
    ],
)
def test_a_wrong_label_or_column_is_reported(
    copy: Path, field: str, labels: object, message: str
) -> None:
    change_row(copy / "words.train.jsonl", 0, **{field: labels})
    found = problems(copy)
    assert any(p.startswith("words.train: that-cake-1: ") and message in p for p in found), found


def test_a_row_without_a_family_is_reported(copy: Path) -> None:
    change(copy / "words.test.jsonl", lambda rows: rows[0].pop("family"))
    only(copy, "words.test", "'family'")


def test_too_few_sentences_or_a_lopsided_split_is_reported(copy: Path) -> None:
    change(copy / "words.test.jsonl", lambda rows: rows.clear())
    found = problems(copy)
    assert any("at least 400 are needed" in problem for problem in found)
    assert any("100% of the sentences are in train" in problem for problem in found)


def test_an_ambiguous_word_that_loses_a_label_in_one_split_is_reported(copy: Path) -> None:
    def drop(rows: list[Row]) -> None:
        rows[:] = [row for row in rows if row["id"] != "like-rain-3"]

    change(copy / "words.test.jsonl", drop)
    only(copy, "words.test", "'like' never has the pos label SCONJ")


def test_her_must_occur_alone_and_before_a_noun_in_each_split(copy: Path) -> None:
    def drop(rows: list[Row]) -> None:
        rows[:] = [row for row in rows if "her" not in row["tokens"]]

    change(copy / "words.test.jsonl", drop)
    assert any("'her' never has the phrase label alone" in p for p in problems(copy))


@pytest.mark.parametrize(
    ("score", "message"),
    [(-0.5, "outside 0 to 5"), (5.5, "outside 0 to 5"), ("3", "not a number")],
)
def test_a_score_outside_the_scale_is_reported(copy: Path, score: object, message: str) -> None:
    change_row(copy / "pairs.jsonl", score=score)
    only(copy, "pairs: pair-001", message)


def test_scores_that_leave_a_band_almost_empty_are_reported(copy: Path) -> None:
    def flatten(rows: list[Row]) -> None:
        for row in rows:
            row["score"] = 0 if row["score"] < 3 else 5

    change(copy / "pairs.jsonl", flatten)
    found = problems(copy)
    assert [problem for problem in found if "scores are in 2 to 3" in problem]


def test_a_pair_given_twice_even_if_turned_round_is_reported(copy: Path) -> None:
    def turn(rows: list[Row]) -> None:
        rows[1].update(text1=rows[0]["text2"], text2=rows[0]["text1"].upper())

    change(copy / "pairs.jsonl", turn)
    only(copy, "pair-002", "the same pair as pair-001")


def test_a_pair_of_one_sentence_with_itself_is_reported(copy: Path) -> None:
    change(copy / "pairs.jsonl", lambda rows: rows[0].update(text2=rows[0]["text1"]))
    only(copy, "pair-001", "both texts are the same sentence")


def test_a_pair_of_very_short_texts_is_reported(copy: Path) -> None:
    change_row(copy / "pairs.jsonl", text1="Too short.")
    only(copy, "pair-001", "has 2 words; 5 to 25 are allowed")


def test_too_few_pairs_are_reported(copy: Path) -> None:
    change(copy / "pairs.jsonl", lambda rows: rows.__delitem__(slice(200, None)))
    assert any("200 pairs; at least 250" in problem for problem in problems(copy))


def test_a_triple_whose_endings_are_equal_is_reported(copy: Path) -> None:
    change(copy / "future.jsonl", lambda rows: rows[0].update(different=rows[0]["text"]))
    only(copy, "future-01", "two of the three endings are the same")


def test_a_triple_that_repeats_its_start_in_an_ending_is_reported(copy: Path) -> None:
    change_row(copy / "future.jsonl", text="She took the bat and hit the ball.")
    only(copy, "future-01", "write the ending only")


def test_two_triples_with_one_start_are_reported(copy: Path) -> None:
    change(copy / "future.jsonl", lambda rows: rows[1].update(start=rows[0]["start"]))
    only(copy, "future-02", "the same start as future-01")


def test_a_repeated_or_missing_neighbour_sentence_is_reported(copy: Path) -> None:
    path = copy / "neighbours.txt"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([lines[1], *lines[1:-1]]) + "\n", encoding="utf-8")
    found = problems(copy)
    assert any("occurs more than once" in problem for problem in found)
    assert any("59 lines; at least 60" in problem for problem in found)
