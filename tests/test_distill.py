"""Distillation: its losses by plain loops, a real run from a teacher of another width, and teachers that are refused."""

import json
import warnings

import numpy as np
import pyarrow
import pytest
import torch
from conftest import DECODERS
from pyarrow import parquet
from safetensors.torch import load_file
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from transformers import AutoTokenizer

from llm2vec import Encoder, Recipe, convert
from llm2vec.backbone.lora import PROJECTION
from llm2vec.cli.distill import _recipe
from llm2vec.errors import CorpusError, ModelError, RunError, UsageError
from llm2vec.runtime.progress import Recorder, Silent
from llm2vec.training import teacher as teachers
from llm2vec.training.distill import cosine_loss, relational_loss, scores_loss

WIDTH = 24
SUBJECTS = ("The old miller", "A tired nurse", "My brother", "The youngest pupil", "Nobody")
VERBS = ("opened", "painted", "sold", "forgot", "mended", "carried")
THINGS = ("the green door", "a heavy box", "two red boats", "the broken clock")
TEXTS = [f"{a} {b} {c}." for a in SUBJECTS for b in VERBS for c in THINGS]


def taught(text):
    """A vector that depends on the words of a text and not on their order."""
    random = [np.random.default_rng(sum(map(ord, word))) for word in text.split()]
    return np.mean([each.normal(size=WIDTH) for each in random], axis=0).astype(np.float32)


def write_vectors(path, texts, vectors, **columns):
    column = pyarrow.array([list(map(float, vector)) for vector in vectors])
    parquet.write_table(pyarrow.table({"vector": column, **columns}), path)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The texts, a file of pairs, and the teacher's vectors of the texts."""
    folder = tmp_path_factory.mktemp("distill")
    (folder / "texts.txt").write_text("".join(text + "\n" for text in TEXTS))
    pairs = [{"query": a, "positive": b} for a, b in zip(TEXTS[::2], TEXTS[1::2], strict=True)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    write_vectors(folder / "v.parquet", TEXTS, map(taught, TEXTS), text=pyarrow.array(TEXTS))
    return folder


def recipe(folder, *, teacher="v.parquet", corpus="texts.txt", **distill):
    knobs = {"steps": 12, "batch_size": 16, "max_length": 32, "learning_rate": 2e-3, **distill}
    knobs["teacher"] = str(folder / teacher)
    return Recipe.read(
        {
            "decoder": str(DECODERS / "qwen3"),
            "corpus": {"source": str(folder / corpus)},
            "mntp": {"steps": 0},
            "simcse": {"steps": 0},
            "distill": knobs,
            "encoder": {"max_length": 64},
        }
    )


def test_the_losses_are_those_of_plain_loops():
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=(5, 7)), random.normal(size=(5, 3))
    as_tensors = torch.tensor(student), torch.tensor(teacher)

    def cosine(vectors, i, j):
        a, b = vectors[i], vectors[j]
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    squares, divergence = [], []
    for i in range(5):
        others = [j for j in range(5) if j != i]
        squares += [(cosine(student, i, j) - cosine(teacher, i, j)) ** 2 for j in others]
        shares = [np.exp([20 * cosine(v, i, j) for j in others]) for v in (student, teacher)]
        mine, theirs = (each / each.sum() for each in shares)
        divergence.append(sum(theirs * np.log(theirs / mine)))
    assert float(relational_loss(*as_tensors)) == pytest.approx(np.mean(squares))
    assert float(scores_loss(*as_tensors, scale=20.0)) == pytest.approx(np.mean(divergence))
    same = [1 - cosine(np.stack([a, b]), 0, 1) for a, b in zip(student, student[::-1], strict=True)]
    flipped = as_tensors[0].flip(0)
    assert float(cosine_loss(as_tensors[0], flipped)) == pytest.approx(np.mean(same))


def agreement(encoder):
    """Spearman correlation of the encoder's and the teacher's cosines."""
    vectors = encoder.encode(TEXTS, normalize=True).numpy()
    unit = np.stack([taught(text) / np.linalg.norm(taught(text)) for text in TEXTS])
    upper = np.triu_indices(len(TEXTS), k=1)
    return spearmanr((vectors @ vectors.T)[upper], (unit @ unit.T)[upper]).statistic


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_student_comes_nearer_to_its_teacher_and_keeps_no_projection(method, folder, tmp_path):
    chosen = recipe(folder, method=method, mse=0.5, relational=1.0, part_tokens=64)
    done = convert(chosen, tmp_path / "out")
    before = Encoder.from_pretrained(DECODERS / "qwen3")
    after = Encoder.from_pretrained(tmp_path / "out")
    assert agreement(after) > agreement(before) + 0.1
    assert not [
        name for name in load_file(tmp_path / "out" / "model.safetensors") if PROJECTION in name
    ]
    stage = done.provenance["stages"][-1]
    assert stage["stage"] == "distill"
    assert stage["corpus"]["teacher_width"] == WIDTH
    assert {"distill.teacher", "corpus"} == set(done.provenance["corpora"])


class Interrupted(Recorder):
    """Stops a run in the middle of its third step."""

    def advance(self, count, /, **numbers):
        super().advance(count, **numbers)
        if self.tasks[-1] == "distill" and self.done == 3:
            raise KeyboardInterrupt


def test_an_interrupted_run_ends_with_the_weights_of_a_whole_one(folder, tmp_path, monkeypatch):
    chosen = recipe(folder, steps=5, save_every=2, learning_rate=1e-3)
    convert(chosen, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        convert(chosen, tmp_path / "cut", progress=Interrupted())
    listener = Recorder()
    convert(chosen, tmp_path / "cut", progress=listener)
    assert listener.tasks == ["distill"]
    found = load_file(tmp_path / "cut" / "model.safetensors")
    for name, weight in load_file(tmp_path / "whole" / "model.safetensors").items():
        torch.testing.assert_close(found[name], weight, atol=1e-6, rtol=1e-4)
    write_vectors(folder / "other.parquet", TEXTS, [taught(text) + 1 for text in TEXTS])
    with pytest.raises(RunError, match=r"distill.teacher"):
        convert(recipe(folder, steps=5, teacher="other.parquet"), tmp_path / "cut")


def test_pairs_are_learnt_from_together_with_a_model_as_teacher(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(teachers, "_BLOCK", 50)
    static_model(tmp_path / "static").save(str(tmp_path / "static"))
    chosen = recipe(folder, steps=2, pairs=str(folder / "pairs.jsonl"))
    values = chosen.to_dict()
    values["distill"]["teacher"] = str(tmp_path / "static")
    done = convert(Recipe.read(values), tmp_path / "out")
    facts = done.provenance["stages"][-1]["corpus"]
    assert (facts["read"], facts["texts_in_a_row"], facts["teacher_width"]) == (120, 2, 8)
    assert "distill.pairs" in done.provenance["corpora"]


def static_model(folder, *, broken=False):
    """A model of another tokenizer, with random vectors of words."""
    tokenizer = AutoTokenizer.from_pretrained(DECODERS / "gpt2")
    weights = np.random.default_rng(0).normal(size=(len(tokenizer), 8)).astype(np.float32)
    if broken:
        weights[tokenizer(" box").input_ids[0]] = np.nan
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)])


def vectors_of(name, folder, tmp_path, progress=None):
    lines = tmp_path / "texts.jsonl"
    lines.write_text("".join(json.dumps(text) + "\n" for text in TEXTS))
    return teachers.teacher_vectors(
        str(name),
        lines,
        tmp_path / "blocks",
        count=len(TEXTS),
        trust_remote_code=False,
        progress=progress or Silent(),
    )


def test_vectors_are_those_of_the_model_and_a_cut_run_computes_only_the_missing_ones(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(teachers, "_BLOCK", 50)
    static_model(tmp_path).save(str(tmp_path / "static"))
    expected = SentenceTransformer(str(tmp_path / "static")).encode(TEXTS)
    vectors_of(tmp_path / "static", folder, tmp_path)
    (tmp_path / "blocks" / "000002.npy").unlink()
    listener = Recorder()
    found = vectors_of(tmp_path / "static", folder, tmp_path, listener)
    assert listener.done == len(TEXTS) == len(found)
    np.testing.assert_allclose(np.stack([found[i] for i in range(120)]), expected, atol=1e-6)
    copied = vectors_of(folder / "v.parquet", folder, tmp_path_of(tmp_path))
    np.testing.assert_allclose(copied[119], taught(TEXTS[119]), atol=1e-6)


def tmp_path_of(tmp_path):
    (tmp_path / "second").mkdir()
    return tmp_path / "second"


def test_teachers_that_do_not_fit_are_refused_by_name(folder, tmp_path):
    vectors = [taught(text) for text in TEXTS]
    broken = [*vectors[:7], np.full(WIDTH, np.nan), *vectors[8:]]
    shifted = pyarrow.array([*TEXTS[1:], TEXTS[0]])
    (tmp_path / "not.parquet").write_text("no")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        static_model(tmp_path, broken=True).save(str(tmp_path / "static"))
    refused = [
        (write_vectors(tmp_path / "a.parquet", TEXTS, broken), ModelError, "for text 8 of the"),
        (write_vectors(tmp_path / "b.parquet", TEXTS, vectors[1:]), CorpusError, "119 vectors"),
        (
            write_vectors(tmp_path / "c.parquet", TEXTS, vectors, text=shifted),
            CorpusError,
            "row 1 is the vector of another text",
        ),
        (
            write_vectors(tmp_path / "d.parquet", TEXTS, [*vectors[:-1], [1.0]]),
            CorpusError,
            "not all have one length",
        ),
        (
            write_vectors(
                tmp_path / "e.parquet", TEXTS, vectors, other=pyarrow.array([[1.0]] * 120)
            ),
            CorpusError,
            "one column with lists of floating-point numbers; it has: vector, other",
        ),
        (tmp_path / "not.parquet", CorpusError, "is not Parquet"),
        (tmp_path / "nothing", ModelError, "there is no folder"),
        (tmp_path / "static", ModelError, "not a number"),
    ]
    for name, kind, words in refused:
        with pytest.raises(kind, match=words):
            vectors_of(name, folder, tmp_path)
    for knobs, words in (
        ({"teacher": None}, "need a teacher"),
        ({"teacher": "x", "cosine": 0, "scores": 0}, "has to have a weight above 0"),
    ):
        with pytest.raises(UsageError, match=words):
            Recipe.read({"distill": {"steps": 1, **knobs}})
    with pytest.raises(CorpusError, match="batch_size is 500, but the corpus has only 120"):
        convert(recipe(folder, batch_size=500), tmp_path / "out")


def test_a_recipe_says_what_the_options_of_the_command_leave_open():
    decoder = str(DECODERS / "qwen3")
    named = {"teacher": "t", "method": "full", "cosine": 0.0, "mse": 2.0, "steps": 40}
    found = _recipe(decoder, {"distill": named}, trust_remote_code=False).distill
    assert (found.method, found.cosine, found.mse, found.scores) == ("full", 0.0, 2.0, 1.0)
    assert (found.steps, found.warmup_steps, found.learning_rate) == (40, 4, 5e-5)
    bare = {"distill": {"teacher": "t"}}
    found = _recipe(decoder, bare, trust_remote_code=False).distill
    assert (found.steps, found.method, found.learning_rate) == (500, "lora", 5e-4)
