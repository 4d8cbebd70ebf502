"""Data of pairs: what columns mean, scores and labels, weights, the E5 folder, what is wrong with rows, and their losses."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DECODERS
from test_supervised import write

from llm2vec.backbone.loading import load_tokenizer
from llm2vec.corpus.pairs import pair_sets
from llm2vec.corpus.triples import PairTokens, check_triples, store_triples
from llm2vec.encoder.settings import Settings
from llm2vec.encoder.tokenization import Tokens
from llm2vec.errors import CorpusError, UsageError
from llm2vec.recipe.e5 import E5_PROMPTS
from llm2vec.recipe.files import to_yaml
from llm2vec.recipe.knobs import PairsRecipe, Recipe
from llm2vec.runtime.progress import Recorder
from llm2vec.training.contrastive import Identities, contrastive_loss
from llm2vec.training.pair_loss import PairLoss, pair_batch
from llm2vec.training.supervised import BlockSampler, _Source, note_rows


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(DECODERS / "qwen3")


def recipe(**data):
    return PairsRecipe.model_validate({"data": [data]})


def texts_of(row):
    return [each.text for each in row.texts]


def test_columns_mean_what_the_mapping_says(tmp_path):
    (tmp_path / "qa.csv").write_text(
        "question,answer,bad,worse,topic\nq1,a1,b1,c1,7\nq2,a2,b2,,7.0\n"
    )
    data = {
        "file": str(tmp_path / "qa.csv"),
        "anchor": "question",
        "positive": "answer",
        "negatives": "bad",
        "id": "topic",
        "prompts": "Find it:",
        "positive_prompts": ["Text:", "Page:"],
    }
    [found] = pair_sets(recipe(**data))
    rows = list(found.rows())
    assert found.kind == "ranked"
    assert [texts_of(row) for row in rows] == [["q1", "a1", "b1"], ["q2", "a2", "b2"]]
    assert [[each.prompt for each in row.texts] for row in rows] == [
        ["Find it:", "Text:", "Text:"],
        ["Find it:", "Page:", "Page:"],
    ]
    assert [row.group for row in rows] == ["7", "7"]
    assert "question" in to_yaml(Recipe.read({"supervised": {"corpus": {"data": [data]}}}))


def test_negatives_are_any_number_in_a_list_or_in_numbered_columns(tmp_path):
    row = {"anchor": "a", "positive": "b", "negative_1": "c", "negative_2": ["d", "e"]}
    write(tmp_path / "a.jsonl", [row, {"anchor": "a", "positive": "b"}])
    [found] = pair_sets(recipe(file=str(tmp_path / "a.jsonl")))
    assert [texts_of(each) for each in found.rows()] == [["a", "b", "c", "d", "e"], ["a", "b"]]


@pytest.mark.parametrize(
    ("name", "text", "kind", "score", "group"),
    [
        ("sts.tsv", "4.5\tone\ttwo\n1\tthree\tfour\n", "scored", 4.5, None),
        ("same.tsv", "5\tone\tone\n1\tthree\tfour\n", "scored", 5.0, None),
        ("named.tsv", "score\ttext1\ttext2\n4.5\tone\ttwo\n", "scored", 4.5, None),
        ("sts.csv", "sentence1,sentence2,score\none,two,4.5\n", "scored", 4.5, None),
        ("twins.csv", "text1,text2,label\none,two,1\n", "scored", 1.0, None),
        ("topics.csv", "text,label\none,3\n", "labelled", 0.0, "3"),
        (
            "mined.jsonl",
            '{"query": "one", "positive": "two", "negative": "x", "score": 1}\n',
            "ranked",
            0.0,
            None,
        ),
    ],
)
def test_the_kind_of_a_data_set_is_seen_by_its_columns(name, text, kind, score, group, tmp_path):
    (tmp_path / name).write_text(text)
    [found] = pair_sets(recipe(file=str(tmp_path / name)))
    row = next(found.rows())
    assert (found.kind, row.score, row.group, row.texts[0].text) == (kind, score, group, "one")


def test_the_folder_of_e5_brings_its_prompts_and_sampling_ratios(tmp_path):
    row = {"query": "a", "positive": "b", "negative": "c"}
    for name in ("allnli", "eli5_question_answer", "mine"):
        write(tmp_path / f"{name}.jsonl", [row] * 3)
    nli, eli5, mine = pair_sets(PairsRecipe(source=str(tmp_path), layout="e5", weights={"mine": 2}))
    prompts = [row.texts[0].prompt for row in nli.rows()]
    assert prompts == [*E5_PROMPTS["allnli"], E5_PROMPTS["allnli"][0]]
    assert [each.data.weight for each in (nli, eli5, mine)] == [1.0, 0.1, 2.0]
    assert not next(mine.rows()).texts[0].prompt


def test_an_epoch_has_the_share_of_a_data_set_that_its_weight_says():
    draw = BlockSampler((40, 40, 40), size=4, seed=0, weights=(0.5, 1.0, 2.0))
    drawn = [draw(sample) for sample in range(draw.samples)]
    counts = [[row for number, row in drawn if number == data_set] for data_set in range(3)]
    assert [len(rows) for rows in counts] == [20, 40, 80]
    assert all(counts[2].count(row) == 2 for row in range(40))


def test_a_labelled_text_is_paired_with_another_of_its_label(tokenizer, tmp_path):
    rows = [{"text": f"{label} {n}", "label": label} for n in range(4) for label in "xyz"]
    path = write(tmp_path / "topics.jsonl", rows)
    triples = store_triples(tokenizer, recipe(file=str(path)), tmp_path / "t", settings=Settings())
    source = _Source(triples, size=4, seed=1)
    positives = set()
    for sample in range(5 * source.samples):
        (anchor, positive), group, _ = source.row(sample)
        one, other = (tokenizer.decode(each.ids) for each in (anchor, positive))
        assert one != other
        assert one[0] == other[0]
        assert group != 0
        positives.add((one, other))
    assert len(positives) > 12
    assert triples.data_sets[0].groups == 3


BAD = [
    (
        {"a": [{"text1": "a", "text2": "b", "score": "high"}]},
        {},
        {},
        r"line 1: 'high' is not a number",
    ),
    ({"a": [{"text1": "a", "text2": "b", "score": float("nan")}]}, {}, {}, r"line 1: .* ranked"),
    (
        {"a": [{"text1": "a", "text2": "b", "score": 2}, {"text1": "a", "text2": "b", "score": 6}]},
        {"score_range": [0, 5]},
        {},
        r"line 2: 'score' is 6, outside of the score range 0 to 5",
    ),
    (
        {"a": [{"text1": "a", "text2": "b", "score": 3}]},
        {},
        {"scores": (-1.0, 1.0)},
        r"line 1: the score 3 is outside of -1 to 1, which supervised.scored_loss needs",
    ),
    ({"a": [{"text1": "a", "text2": "b", "score": 1}] * 4}, {}, {}, "the same score"),
    ({"a": [{"text": "a", "label": "x"}] * 4}, {}, {}, "the same label"),
    (
        {"a": [{"text": "a", "label": "x"}, {"text": "a"}]},
        {},
        {},
        r"line 2: there is no field 'label'",
    ),
    (
        {"a": [{"anchor": "a", "positive": "b"}]},
        {"negatives": ["bad"]},
        {},
        r"line 1: .*no field 'bad'",
    ),
]


@pytest.mark.parametrize(("files", "data", "options", "words"), BAD)
def test_what_is_wrong_with_a_row_is_said_with_its_line(files, data, options, words, tmp_path):
    path = write(tmp_path / "a.jsonl", files["a"])
    with pytest.raises(CorpusError, match=words):
        check_triples(recipe(file=str(path), **data), step_rows=2, **options)


def test_a_weight_for_a_file_that_is_not_there_is_refused(tmp_path):
    write(tmp_path / "a.jsonl", [{"anchor": "a", "positive": "b"}])
    with pytest.raises(UsageError, match="a weight is given for 'b'"):
        pair_sets(PairsRecipe(source=str(tmp_path), weights={"b": 2}))


def test_doubtful_rows_are_counted_and_said(tokenizer, tmp_path):
    good = {"anchor": "a", "positive": "b", "negative": "c"}
    rows = [
        good,
        good,
        {**good, "negative": "b"},
        {**good, "positive": "a"},
        {**good, "anchor": " "},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    triples = store_triples(tokenizer, recipe(file=str(path)), tmp_path / "t", settings=Settings())
    [found] = triples.data_sets
    counts = (
        found.rows,
        found.skipped,
        found.repeated,
        found.equal_positives,
        found.equal_negatives,
    )
    assert counts == (4, 1, 2, 1, 1)
    listener = Recorder()
    note_rows(found, listener)
    said = "\n".join(listener.notes)
    assert "a: 4 ranked rows with up to 1 negatives, 1 tokens a text, at most 1" in said
    assert "2 of 5 rows repeat an earlier one" in said


def vectors(rows, width=6):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(3))


def cosines(anchor, other):
    return torch.cosine_similarity(anchor, other, dim=1).double().numpy()


def test_cosent_punishes_each_pair_that_is_nearer_than_a_pair_of_a_higher_score():
    scores = torch.tensor([0.0, 1.0, 0.5, 1.0])
    found = PairLoss("mean", 50.0).of_vectors(vectors(8), {"rows": 4, "scores": scores})
    near = 20 * cosines(vectors(8)[:4], vectors(8)[4:])
    worse = [near[i] - near[j] for i in range(4) for j in range(4) if scores[i] < scores[j]]
    assert float(found) == pytest.approx(np.log(1 + np.exp(worse).sum()), rel=1e-5)


def test_other_losses_of_scores_go_by_their_names():
    scores = torch.tensor([0.0, 1.0, 0.0, 1.0])
    batch = {"rows": 4, "scores": scores}
    names = ("cosent", "angle", "cosine", "online_contrastive")
    found = [float(PairLoss("mean", 50.0, name).of_vectors(vectors(8), batch)) for name in names]
    assert len(set(found)) == 4
    squared = (cosines(vectors(8)[:4], vectors(8)[4:]) - scores.numpy()) ** 2
    assert found[2] == pytest.approx(squared.mean(), rel=1e-5)


def ranked(texts, groups=(0, 0)):
    """Two rows of an anchor, a positive and a negative, each a text of one token."""
    tokens = [Tokens([number], 0, 1) for number in texts]
    rows = [(tokens[:3], groups[0], 0.0), (tokens[3:], groups[1], 0.0)]
    return pair_batch([PairTokens(*row) for row in rows], scored=False, packed=False, pad_id=0)


def test_shorter_vectors_are_trained_beside_the_whole_ones():
    batch = ranked([1, 2, 3, 4, 5, 6])
    losses = [PairLoss("mean", 9.0).of_vectors(vectors(6)[:, :width], batch) for width in (2, 3, 6)]
    found = PairLoss("mean", 9.0, dimensions=(2, 3)).of_vectors(vectors(6), batch)
    assert float(found) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-6)


def test_positives_of_anchors_about_the_same_are_no_negatives():
    apart = PairLoss("mean", 9.0).of_vectors(vectors(6), ranked([1, 2, 3, 4, 5, 6], (7, 8)))
    alike = PairLoss("mean", 9.0).of_vectors(vectors(6), ranked([1, 2, 3, 4, 5, 6], (7, 7)))
    near = (
        9
        * torch.nn.functional.normalize(vectors(6), dim=1)
        @ torch.nn.functional.normalize(vectors(6), dim=1).T
    )
    expected = [near[row, [2 + row, 4, 5]].logsumexp(0) - near[row, 2 + row] for row in range(2)]
    assert float(alike) == pytest.approx(float(sum(expected)) / 2, rel=1e-5)
    assert float(apart) > float(alike)


def test_equal_anchors_and_equal_negatives_are_masked_by_their_text():
    same_anchor = PairLoss("mean", 9.0).of_vectors(vectors(6), ranked([1, 2, 3, 1, 5, 6]))
    same_group = PairLoss("mean", 9.0).of_vectors(vectors(6), ranked([1, 2, 3, 4, 5, 6], (7, 7)))
    assert float(same_anchor) == pytest.approx(float(same_group))


@pytest.mark.parametrize("margin", [-0.2, 0.0, 0.3])
def test_texts_nearer_than_the_positive_by_a_margin_are_no_negatives(margin):
    anchor, positive, negative = vectors(3), vectors(6)[3:], vectors(9)[6:]
    found = contrastive_loss(anchor, positive, scale=5.0, negative_ND=negative, margin=margin)
    losses = []
    for row in range(3):
        near = cosines(anchor[row : row + 1], torch.cat([positive, negative]))
        kept = [near[i] for i in range(6) if i == row or near[i] <= near[row] + margin]
        losses.append(np.log(np.exp(5 * np.array(kept)).sum()) - 5 * near[row])
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-5)


def test_identities_without_groups_are_as_before():
    numbers = torch.tensor([1, 2]), torch.tensor([3, 4]), torch.tensor([], dtype=torch.long)
    with_zeros = Identities(*numbers, group_B=torch.zeros(2, dtype=torch.long))
    losses = [
        contrastive_loss(vectors(2), vectors(4)[2:], scale=5.0, identities=each)
        for each in (Identities(*numbers), with_zeros)
    ]
    assert torch.equal(*losses)


PROCESSES = 2
SHARED = """
import sys
sys.path.insert(0, sys.argv[1])
import torch.distributed as dist
import test_pairs as t

dist.init_process_group("gloo")
t.write_gradients(sys.argv[2], dist.get_rank())
dist.destroy_process_group()
"""


def shared_rows():
    """Eight rows with other numbers of negatives each, none of them in the second half's first rows."""
    generator = torch.Generator().manual_seed(5)
    counts = (2, 0, 1, 3, 0, 0, 0, 0)
    rows = []
    for number, count in enumerate(counts):
        texts = [Tokens([10 * number + place], 0, 1) for place in range(2 + count)]
        rows.append(PairTokens(texts, number % 3, float(number % 4)))
    vectors = [torch.randn(len(row.texts), 6, generator=generator) for row in rows]
    return rows, vectors


def losses_and_gradients(rows, vectors, weight):
    """The losses of a layer's vectors, ranked, with margin and dimensions, and scored; its gradients."""
    found = []
    for scored in (False, True):
        loss = PairLoss("mean", 9.0, margin=0.4, dimensions=(2,))
        own = [each[:2] for each in vectors] if scored else vectors
        kept = [PairTokens(row.texts[:2], row.group, row.score) for row in rows] if scored else rows
        ordered = [each[0] for each in own] + [each[1] for each in own]
        ordered += [vector for each in own for vector in each[2:]]
        batch = pair_batch(kept, scored=scored, packed=False, pad_id=0)
        value = loss.of_vectors(torch.stack(ordered) @ weight, batch)
        found += [value, *torch.autograd.grad(value, weight)]
    return found


def layer():
    return torch.eye(6).requires_grad_()


def write_gradients(folder, rank):
    """What one of the processes computes on its half of the rows."""
    rows, vectors = shared_rows()
    half = slice(4 * rank, 4 * rank + 4)
    found = losses_and_gradients(rows[half], vectors[half], layer())
    torch.save([each.detach() for each in found], f"{folder}/{rank}.pt")


def test_two_processes_have_the_loss_and_the_gradients_of_one(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(PROCESSES)]
    script = tmp_path / "script.py"
    script.write_text(SHARED)
    done = subprocess.run(
        [*launch, str(script), str(Path(__file__).parent), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    whole = losses_and_gradients(*shared_rows(), layer())
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]
    for one, *halves in zip(whole, *parts, strict=True):
        # Data-parallel training takes the mean over the processes, of losses and of gradients.
        torch.testing.assert_close(torch.stack(halves).mean(0), one.detach(), atol=1e-5, rtol=1e-5)
