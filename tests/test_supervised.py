"""The supervised stage: triples as they are read, batches of one data set, the loss by its definition, a real run."""

import json
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from conftest import DECODERS
from safetensors.torch import load_file
from torch import nn

from llm2vec import LLM2Vec, Recipe, convert
from llm2vec.backbone.loading import load_decoder, load_tokenizer
from llm2vec.backbone.switch import make_bidirectional
from llm2vec.corpus.triples import check_triples, store_triples
from llm2vec.encoder.batching import is_packed
from llm2vec.encoder.settings import Settings
from llm2vec.errors import CorpusError, RunError, UsageError
from llm2vec.recipe.files import merged
from llm2vec.recipe.knobs import PairsRecipe, SupervisedRecipe
from llm2vec.runtime.progress import Recorder, Silent
from llm2vec.training.contrastive import ContrastiveLoss, contrastive_batch, contrastive_loss
from llm2vec.training.stage import train_and_merge
from llm2vec.training.supervised import BlockSampler, supervised_task

SAME_VECTOR = 1e-5
"""Of float32 vectors of length about 1, computed in batches of different shapes."""


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(DECODERS / "qwen3")


def active_and_passive():
    """Triples whose negative shares more words with the anchor than the positive does."""
    people = (
        "The old miller",
        "A tired nurse",
        "My brother",
        "The youngest pupil",
        "Nobody",
        "Her aunt",
    )
    verbs = (
        ("opened", "opened"),
        ("painted", "painted"),
        ("took", "taken"),
        ("sold", "sold"),
        ("drew", "drawn"),
    )
    things = (
        "the green door",
        "a heavy box",
        "two red boats",
        "the broken clock",
        "some new shoes",
    )
    for person in people:
        for number, (did, done) in enumerate(verbs):
            for place, thing in enumerate(things):
                other = verbs[(number + 1) % len(verbs)][0], things[(place + 2) % len(things)]
                yield {
                    "anchor": f"{person} {did} {thing}.",
                    "positive": f"{thing.capitalize()}, {done} by {person.lower()}.",
                    "negative": f"{person} {other[0]} {other[1]}.",
                }


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(letter, count):
    return [
        {"query": f"{letter} {n} asks", "positive": f"{letter} {n} is", "negative": f"no {n}"}
        for n in range(count)
    ]


def stored(tokenizer, folder, *, separator=" ", template=None, max_length=48, **pairs):
    pairs = PairsRecipe.model_validate(pairs)
    settings = Settings(max_length=max_length, separator=separator, template=template)
    return store_triples(tokenizer, pairs, folder, settings=settings)


@pytest.mark.parametrize("negatives", [0, 5, 10])
def test_the_loss_is_cross_entropy_over_all_positives_and_all_negatives(negatives):
    random = torch.Generator().manual_seed(0)
    anchor, positive = torch.randn(5, 7, generator=random), torch.randn(5, 7, generator=random)
    negative = torch.randn(negatives, 7, generator=random)
    total = 0.0
    for row in range(5):
        cosines = [
            float(torch.cosine_similarity(anchor[row], other, dim=0))
            for other in [*positive, *negative]
        ]
        scores = np.exp(50.0 * np.array(cosines))
        total -= np.log(scores[row] / scores.sum())
    found = contrastive_loss(
        anchor, positive, scale=50.0, negative_ND=negative if negatives else None
    )
    assert float(found) == pytest.approx(total / 5, rel=1e-4)


def test_the_loss_is_float32_where_everything_else_is_half_precision():
    anchor, positive = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = contrastive_loss(anchor, positive, scale=50.0, negative_ND=positive.flip(1))
    assert torch.equal(
        inside, contrastive_loss(anchor, positive, scale=50.0, negative_ND=positive.flip(1))
    )


def test_the_batch_loss_is_that_of_the_encoders_own_vectors(tokenizer, tmp_path):
    source = write(tmp_path / "nli.jsonl", list(active_and_passive())[:6])
    triples = stored(
        tokenizer, tmp_path / "t", source=str(source), prompts={"nli": "Find the same event:"}
    )
    model = load_decoder(DECODERS / "qwen3", head=False, dtype=torch.float32)
    make_bidirectional(model)
    rows = [triples(0, row) for row in range(6)]
    seen = []

    class Watched(nn.Module):
        def forward(self, **inputs):
            seen.append(inputs)
            return model(**inputs)

    batch = contrastive_batch(rows, packed=is_packed(model), pad_id=int(tokenizer.pad_token_id))
    assert batch.pop("tokens") == sum(len(text.ids) for row in rows for text in row)
    with torch.no_grad():
        loss = ContrastiveLoss(50.0, "mean")(Watched(), batch, None)
    assert len(seen) == 1
    encoder = LLM2Vec(model, tokenizer, settings=Settings(max_length=48))
    events = list(active_and_passive())[:6]
    prompts = {"anchor": "Find the same event:"}
    anchor, positive, negative = (
        encoder.encode([event[side] for event in events], prompt=prompts.get(side))
        for side in ("anchor", "positive", "negative")
    )
    expected = contrastive_loss(anchor, positive, scale=50.0, negative_ND=negative)
    torch.testing.assert_close(loss, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("template", [None, "<< {text} >>"])
@pytest.mark.parametrize("name", ["qwen3", "gpt2", "gemma3"])
def test_prompts_and_templates_are_joined_as_in_encoding_and_what_stands_before_is_not_pooled(
    name, template, tmp_path
):
    tokenizer = load_tokenizer(DECODERS / name)
    source = write(tmp_path / "nli.jsonl", list(active_and_passive())[:4])
    prompts = ["Find what follows:", "Find the same:"]
    given = {"source": str(source), "prompts": {"nli": prompts}}
    triples = stored(tokenizer, tmp_path / "t", separator="\n", template=template, **given)
    model = load_decoder(DECODERS / name, head=False, dtype=torch.float32)
    make_bidirectional(model)
    encoder = LLM2Vec(
        model, tokenizer, settings=Settings(separator="\n", max_length=48, template=template)
    )
    for number, event in enumerate(list(active_and_passive())[:4]):
        anchor, positive, negative = triples(0, number)
        own = tokenizer.decode(
            anchor.ids[anchor.first : anchor.end], clean_up_tokenization_spaces=False
        )
        assert own.strip() == event["anchor"] + (" >>" if template else "")
        plain = encoder.encode_tokens([anchor, positive, negative])
        for vector, text, prompt in zip(
            plain, event.values(), (prompts[number % 2], None, None), strict=True
        ):
            torch.testing.assert_close(
                vector, encoder.encode(text, prompt=prompt), atol=SAME_VECTOR, rtol=1e-4
            )


def test_both_sides_of_a_symmetric_task_get_the_prompt(tokenizer, tmp_path):
    for name in ("quora", "nq"):
        write(tmp_path / f"{name}.jsonl", active_and_passive())
    given = {"prompts": {"quora": "Find it:", "nq": "Find it:"}, "both_sides": ["quora"]}
    triples = stored(tokenizer, tmp_path / "t", source=str(tmp_path), **given)
    prompted = {
        each.name: ["Find it:" in tokenizer.decode(text.ids) for text in triples(place, 3)]
        for place, each in enumerate(triples.data_sets)
    }
    assert prompted == {"nq": [True, False, False], "quora": [True, True, True]}


def test_a_batch_holds_one_data_set_and_an_epoch_each_row_once():
    sizes = (37, 8, 21)
    draw = BlockSampler(sizes, size=8, seed=5)
    assert draw.samples == 32 + 8 + 16
    epochs = [
        [draw(epoch * draw.samples + sample) for sample in range(draw.samples)]
        for epoch in range(2)
    ]
    for drawn in epochs:
        blocks = [drawn[start : start + 8] for start in range(0, draw.samples, 8)]
        assert all(len({data_set for data_set, _ in block}) == 1 for block in blocks)
        assert len(set(drawn)) == draw.samples
        assert all(row < sizes[data_set] for data_set, row in drawn)
    assert epochs[0] != epochs[1]
    assert [block[0] for block in epochs[0][::8]] != sorted(block[0] for block in epochs[0][::8])


def test_the_order_is_a_function_of_seed_and_sample_so_that_a_resumed_run_sees_the_same():
    make = partial(BlockSampler, (30, 20), size=10)
    whole = [make(seed=1)(sample) for sample in range(130)]
    resumed = make(seed=1)
    assert [resumed(sample) for sample in range(70, 130)] == whole[70:]
    assert [resumed(sample) for sample in range(70)] == whole[:70]
    assert [make(seed=2)(sample) for sample in range(130)] != whole


def test_names_lists_and_missing_negatives_are_understood(tokenizer, tmp_path):
    write(tmp_path / "pairs.jsonl", [{"anchor": "one", "positive": "two"}] * 2)
    write(
        tmp_path / "lists.jsonl",
        [{"query": "one", "positive": "two", "negative": ["three", "four", "five"]}] * 3,
    )
    write(
        tmp_path / "single.jsonl",
        [{"query": "one", "positive": "two", "negative": "three", "id": 7}],
    )
    triples = stored(tokenizer, tmp_path / "t", source=str(tmp_path / "*.jsonl"))
    assert [(each.name, each.rows, each.negatives) for each in triples.data_sets] == [
        ("lists", 3, 1),
        ("pairs", 2, 0),
        ("single", 1, 1),
    ]
    assert [tokenizer.decode(text.ids) for text in triples(0, 2)] == ["one", "two", "three"]
    assert [tokenizer.decode(text.ids) for text in triples(1, 1)] == ["one", "two"]
    both = stored(tokenizer, tmp_path / "b", source=str(tmp_path / "lists.jsonl"), negatives=2)
    assert [tokenizer.decode(text.ids) for text in both(0, 0)] == ["one", "two", "three", "four"]
    none = stored(tokenizer, tmp_path / "n", source=str(tmp_path / "lists.jsonl"), negatives=0)
    assert none.data_sets[0].negatives == 0


def test_rows_with_an_empty_text_are_left_out_and_counted(tokenizer, tmp_path):
    rows = rows_of("a", 5)
    rows[1]["positive"] = "  "
    rows[3]["negative"] = ""
    rows[4]["positive"] += "\ud83d"  # half of a character
    triples = stored(tokenizer, tmp_path / "t", source=str(write(tmp_path / "a.jsonl", rows)))
    wrapped = stored(
        tokenizer, tmp_path / "w", source=str(tmp_path / "a.jsonl"), template="<< {text} >>"
    )
    assert wrapped.data_sets[0].skipped == 2
    assert wrapped.data_sets[0].replaced == 1
    assert (triples.data_sets[0].rows, triples.data_sets[0].skipped) == (3, 2)
    assert [tokenizer.decode(triples(0, row)[0].ids) for row in range(3)] == [
        "a 0 asks",
        "a 2 asks",
        "a 4 asks",
    ]


GOOD = {"query": "a", "positive": "b", "negative": "c"}


@pytest.mark.parametrize(
    ("rows", "pairs", "error", "words"),
    [
        (
            [GOOD, {"query": "a", "answer": "b"}],
            {},
            CorpusError,
            r"a.jsonl, line 2: there is no field 'positive'.*answer",
        ),
        (
            [{"text": "a"}],
            {},
            CorpusError,
            r"line 1: there is no field 'positive'.*; there are: text",
        ),
        (
            [GOOD, {"query": 3, "positive": "b"}],
            {},
            CorpusError,
            r"line 2: field 'query' holds int, not text",
        ),
        ([], {}, CorpusError, r"a.jsonl holds no rows"),
        (
            [GOOD] * 7,
            {},
            CorpusError,
            r"a has 7 rows .*, fewer than the 8 of a step.*supervised.batch_size",
        ),
        (
            [GOOD] * 8,
            {"prompts": {"b": "x"}},
            UsageError,
            r"prompt is given for 'b'.*there are: a",
        ),
        ([GOOD] * 8, {"both_sides": ["a"]}, UsageError, r"both_sides: 'a' has no prompt"),
    ],
)
def test_what_is_wrong_with_triples_is_one_clear_line(rows, pairs, error, words, tmp_path):
    write(tmp_path / "a.jsonl", rows)
    with pytest.raises(error, match=words):
        check_triples(PairsRecipe.model_validate({"source": str(tmp_path), **pairs}), step_rows=8)


def test_steps_without_triples_and_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(UsageError, match="set supervised.corpus.source"):
        Recipe.read({"supervised": {"steps": 3}})
    (tmp_path / "rows.txt").write_text("a\n")
    for source, words in (
        ("rows.txt", "can: .jsonl"),
        ("nowhere.jsonl", "does not exist"),
        ("", "holds no .jsonl"),
    ):
        with pytest.raises(CorpusError, match=words):
            check_triples(PairsRecipe(source=str(tmp_path / source)), step_rows=2)


def trained(tokenizer, source, folder):
    """Losses of fifteen steps; how many unseen anchors are nearer to their positives, before and after."""
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    held_out, kept = rows[::5][:300], [row for place, row in enumerate(rows) if place % 5]
    recipe = SupervisedRecipe.model_validate(
        {
            "steps": 15,
            "batch_size": 16,
            "max_length": 48,
            "method": "full",
            "learning_rate": 1e-3,
            "warmup_steps": 0,
        }
        | {
            "log_every": 1,
            "precision": "float32",
            "corpus": {"source": str(write(folder / "kept.jsonl", kept))},
        }
    )
    settings = Settings(max_length=48, separator=" ")
    triples = store_triples(tokenizer, recipe.corpus, folder / "t", settings=settings)
    model = load_decoder(DECODERS / "qwen3", head=False, dtype=torch.float32)
    make_bidirectional(model)
    shares = [share_of_right_ones(LLM2Vec(model, tokenizer), held_out)]
    task = supervised_task(model, tokenizer, triples, recipe, pooling="mean", seed=3)
    model, log = train_and_merge(
        model, task, recipe, folder=folder / "run", seed=3, progress=Silent()
    )
    shares.append(share_of_right_ones(LLM2Vec(model, tokenizer), held_out))
    return [line["loss"] for line in log if "loss" in line], shares


def share_of_right_ones(encoder, rows):
    anchor, positive, negative = (
        encoder.encode([row[side] for row in rows], normalize=True)
        for side in ("anchor", "positive", "negative")
    )
    return float(((anchor * positive).sum(1) > (anchor * negative).sum(1)).float().mean())


def test_fifteen_steps_bring_anchors_nearer_to_their_positives(tokenizer, tmp_path):
    losses, (before, after) = trained(
        tokenizer, write(tmp_path / "all.jsonl", active_and_passive()), tmp_path
    )
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert after > before + 0.1


def test_fifteen_steps_on_snli_bring_anchors_nearer_to_what_they_entail(
    tokenizer, shared, tmp_path
):
    losses, (before, after) = trained(
        tokenizer, shared / "data/sent/nli/snli_triplets.dev.jsonl", tmp_path
    )
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert after > before + 0.03


def conversion(corpus, triples, **supervised):
    given = {
        "steps": 4,
        "batch_size": 8,
        "max_length": 48,
        "warmup_steps": 0,
        "learning_rate": 1e-3,
        "save_every": 2,
    }
    given["precision"] = "float32"  # on every processor
    pairs = {"source": str(triples), "prompts": {"events": "Find the same event:"}}
    return Recipe.read(
        {
            "decoder": str(DECODERS / "qwen3"),
            "corpus": {"source": str(corpus)},
            "mntp": {"steps": 2, "batch_size": 4, "max_length": 48, "eval_blocks": 2},
            "simcse": {"steps": 0},
            "supervised": {**given, "corpus": pairs, **supervised},
            "encoder": {"max_length": 128},
        }
    )


def test_a_conversion_ends_with_the_supervised_stage_and_its_folder_opens(corpus, tmp_path):
    rows = list(active_and_passive())
    rows[4]["anchor"] = ""
    chosen = conversion(corpus, write(tmp_path / "events.jsonl", rows))
    listener = Recorder()
    done = convert(chosen, tmp_path / "out", keep_stages=True, progress=listener)
    assert list(done.stages) == ["0-bi", "1-mntp", "3-supervised"]
    stage = done.provenance["stages"][-1]
    assert (stage["stage"], stage["corpus"]["data_sets"][0]["skipped"]) == ("supervised", 1)
    assert set(done.provenance["corpora"]) == {"corpus", "supervised.corpus"}
    assert "events: 1 of 150 rows are left out, because a text of theirs is empty" in listener.notes
    encoder = LLM2Vec.from_pretrained(tmp_path / "out")
    assert encoder.settings.separator == "\n"
    assert encoder.encode("A text.", prompt="Find the same event:").isfinite().all()
    write(tmp_path / "events.jsonl", rows[:-1])
    with pytest.raises(RunError, match="the texts of the corpus"):
        convert(chosen, tmp_path / "out")


class Interrupted(Recorder):
    """Stops a run in the middle of its third supervised step."""

    def advance(self, count, /, **numbers):
        super().advance(count, **numbers)
        if self.tasks[-1] == "supervised" and self.done == 3:
            raise KeyboardInterrupt


def test_an_interrupted_run_ends_with_the_weights_of_a_whole_one(corpus, tmp_path):
    chosen = conversion(corpus, write(tmp_path / "events.jsonl", active_and_passive()))
    convert(chosen, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        convert(chosen, tmp_path / "cut", progress=Interrupted())
    assert (tmp_path / "cut.stages" / "3-supervised.work" / "checkpoint-2" / "complete").exists()
    listener = Recorder()
    convert(chosen, tmp_path / "cut", progress=listener)
    assert "1-mntp is finished already" in listener.notes
    assert "reading triples" not in listener.tasks
    same_weights(tmp_path / "cut", tmp_path / "whole", atol=1e-6)


COMMAND = """
import sys, json
from llm2vec import Recipe, convert
convert(Recipe.read(json.loads(sys.argv[1])), sys.argv[2])
"""


def test_two_processes_that_read_in_parts_share_candidates_and_gradients(corpus, tmp_path):
    repeated = list(active_and_passive())[:6] * 8  # so that each process has texts of the other's
    triples = write(tmp_path / "events.jsonl", repeated)
    plain = {"steps": 2, "lora": {"dropout": 0.0}}
    alone = Recipe.read(
        merged(conversion(corpus, triples, **plain).to_dict(), {"mntp": {"steps": 0}})
    )
    convert(alone, tmp_path / "one")
    in_parts = {"batch_size": 4, "part_tokens": 60}
    shared_out = Recipe.read(merged(alone.to_dict(), {"supervised": in_parts}))
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--no-python",
        sys.executable,
    ]
    subprocess.run(
        [*launch, "-c", COMMAND, json.dumps(shared_out.to_dict()), str(tmp_path / "two")],
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    same_weights(tmp_path / "two", tmp_path / "one", atol=1e-4)


def same_weights(folder, expected, *, atol):
    weights = load_file(folder / "model.safetensors")
    for name, weight in load_file(expected / "model.safetensors").items():
        torch.testing.assert_close(weights[name], weight, atol=atol, rtol=1e-3, msg=name)
