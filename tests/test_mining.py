"""Hard negatives: against a naive computation, resumed from the vectors that are there, read by the supervised stage."""

import json

import numpy as np
import pytest
from conftest import DECODERS

from llm2vec import Encoder
from llm2vec.corpus.triples import check_triples
from llm2vec.errors import CorpusError, RunError, UsageError
from llm2vec.recipe.knobs import CorpusRecipe, PairsRecipe
from llm2vec.training.mining import Limits, mine

SUBJECTS = ("The old miller", "A tired nurse", "My brother", "The youngest pupil")
VERBS = ("opened", "painted", "sold", "forgot", "mended")
THINGS = ("the green door", "a heavy box", "two red boats")
PROMPT = "Find the same: "


@pytest.fixture(scope="module")
def tiny():
    return Encoder.from_pretrained(DECODERS / "qwen3", dtype="float32")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Sixty pairs; one anchor has two positives, and one positive is another row's anchor."""
    rows = []
    for who in SUBJECTS:
        for did in VERBS:
            for thing in THINGS:
                rows.append(
                    {"query": f"{who} {did} {thing}.", "positive": f"{thing}, {did} by {who}"}
                )
    rows.append({"query": rows[0]["query"], "positive": "The mill has a door."})
    rows.append({"query": rows[5]["query"], "positive": rows[7]["query"]})
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def naive(encoder, path, *, texts=(), negatives=1, prompt="", skip=0, allowed=lambda *_: True):
    """Each pair's negatives by loops over all candidates."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    pool = list(dict.fromkeys([*texts, *(row["positive"] for row in rows)]))
    unit = dict(zip(pool, encoder.encode(pool, normalize=True).numpy(), strict=True))
    found = {}
    for row in rows:
        anchor = encoder.encode(row["query"], prompt=prompt, normalize=True).numpy()
        right = [each["positive"] for each in rows if each["query"] == row["query"]]
        scores = {text: float(anchor @ unit[text]) for text in pool}
        least = min(scores[text] for text in right)
        wrong = [text for text in pool if text not in right and text != row["query"]]
        wrong = sorted((t for t in wrong if allowed(scores[t], least)), key=lambda t: -scores[t])
        kept = wrong[skip : skip + negatives]
        if len(kept) == negatives:
            found[row["query"], row["positive"]] = kept
    return found


def read(path):
    rows = [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]
    return {(row["anchor"], row["positive"]): row["negative"] for row in rows}


WAYS = {
    "the nearest of all": ({"share": None}, {}),
    "a share of the positive's score": (
        {"share": 0.9, "negatives": 2, "depth": 62},
        {"negatives": 2, "allowed": lambda score, right: score <= 0.9 * right},
    ),
    "a margin and a highest score": (
        {"share": None, "margin": 0.05, "max_score": 0.9, "depth": 62},
        {"allowed": lambda score, right: score <= right - 0.05 and score <= 0.9},
    ),
    "nearest ones passed over": (
        {"share": None, "skip": 3, "negatives": 2},
        {"skip": 3, "negatives": 2},
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_negatives_are_those_of_a_naive_search(way, tiny, pairs, tmp_path):
    limits, plain = WAYS[way]
    mined = mine(tiny, str(pairs), tmp_path / "mined.jsonl", limits=Limits(**limits), prompt=PROMPT)
    expected = naive(tiny, pairs, prompt=PROMPT, **plain)
    assert read(tmp_path / "mined.jsonl") == expected
    assert (mined.rows, mined.pairs) == (len(expected), 62)
    assert mined.rows > 10


def test_negatives_come_from_a_corpus_too_and_the_supervised_stage_reads_them(
    tiny, pairs, tmp_path
):
    texts = [f"{who} never {did} {thing}." for who in SUBJECTS for did in VERBS for thing in THINGS]
    (tmp_path / "texts.txt").write_text("".join(text + "\n" for text in texts))
    corpus = CorpusRecipe(source=str(tmp_path / "texts.txt"))
    out = tmp_path / "mined.jsonl"
    limits = Limits(share=None, negatives=2)
    mined = mine(tiny, str(pairs), out, corpus=corpus, limits=limits)
    expected = naive(tiny, pairs, texts=texts, negatives=2)
    assert read(out) == expected
    assert any({*negatives} & {*texts} for negatives in expected.values())
    assert mined.candidates == 60 + 2 + 60
    row = json.loads(out.read_text().splitlines()[0])
    both = tiny.encode([row["anchor"], row["positive"], *row["negative"]], normalize=True).numpy()
    np.testing.assert_allclose(row["scores"], both[1:] @ both[0], atol=1e-4)
    check_triples(PairsRecipe(source=str(out), negatives=2), step_rows=8)
    random = Limits(share=None, negatives=2, sampling="random", depth=30)
    mine(tiny, str(pairs), out, corpus=corpus, limits=random)
    drawn = read(out)
    assert drawn.keys() == expected.keys()
    assert drawn != expected
    mine(tiny, str(pairs), out, corpus=corpus, limits=random)
    assert read(out) == drawn


def test_vectors_that_are_there_are_not_made_again(tiny, pairs, tmp_path, monkeypatch):
    out = tmp_path / "mined.jsonl"
    mine(tiny, str(pairs), out)
    first = read(out)
    out.unlink()
    monkeypatch.setattr(Encoder, "encode_tokens", None)
    monkeypatch.setattr(Encoder, "embed", None)
    mine(tiny, str(pairs), out)
    assert read(out) == first
    other = tmp_path / "other.jsonl"
    other.write_text(pairs.read_text() + json.dumps({"query": "New", "positive": "Old"}) + "\n")
    with pytest.raises(RunError, match="holds something else"):
        mine(tiny, str(other), out)


def test_limits_that_leave_nothing_or_contradict_each_other_are_refused(tiny, pairs, tmp_path):
    out = tmp_path / "mined.jsonl"
    with pytest.raises(CorpusError, match="none of 62 pairs has enough negatives \\(1\\)"):
        mine(tiny, str(pairs), out, limits=Limits(max_score=-0.99))
    with pytest.raises(UsageError, match="do not go together"):
        mine(tiny, str(pairs), out, limits=Limits(skip=5, depth=3))
    assert not out.exists()
    (tmp_path / "labels.jsonl").write_text(json.dumps({"text": "a", "label": "b"}) + "\n")
    with pytest.raises(CorpusError, match="texts with labels"):
        mine(tiny, str(tmp_path / "labels.jsonl"), tmp_path / "l.jsonl")


def test_nothing_that_is_read_is_written_over(tiny, pairs, tmp_path):
    before = pairs.read_bytes()
    with pytest.raises(UsageError, match="this file is read"):
        mine(tiny, str(pairs), pairs)
    texts = tmp_path / "texts.txt"
    texts.write_text("A text.\n")
    with pytest.raises(UsageError, match="this file is read"):
        mine(tiny, str(pairs), texts, corpus=CorpusRecipe(source=str(tmp_path / "*.txt")))
    with pytest.raises(UsageError, match="this is a folder"):
        mine(tiny, str(pairs), tmp_path)
    assert pairs.read_bytes() == before
    assert texts.read_text() == "A text.\n"
    assert not list(tmp_path.glob("*.vectors"))
