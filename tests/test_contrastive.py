"""Which texts of a batch are no negatives: known duplicates, by a plain loop over the texts themselves."""

import numpy as np
import pytest
import torch
from conftest import DECODERS

from llm2vec import LLM2Vec
from llm2vec.encoder.batching import is_packed
from llm2vec.training.contrastive import ContrastiveLoss, contrastive_batch

SCALE = 20.0
ROUNDING = 1e-3
"""Of a float32 loss of about 1 from vectors that were computed in batches of other shapes."""

MILL, TRAINS, RAIN, YES, BOATS = (
    "The mill has stood empty.",
    "Two trains left at nine.",
    "Rain is expected in the north.",
    "Yes.",
    "He painted two red boats.",
)

BATCHES = {
    "a line that the corpus repeats": [(MILL, MILL), (TRAINS, TRAINS), (MILL, MILL), (RAIN, RAIN)],
    "one line alone": [(MILL, MILL)] * 3,
    "one answer to two questions": [(MILL, YES), (TRAINS, YES), (RAIN, BOATS)],
    "one question with two answers": [(MILL, YES), (MILL, BOATS), (RAIN, TRAINS)],
    "an answer that is a question": [(MILL, YES), (RAIN, MILL), (TRAINS, BOATS)],
    "a negative that is another's answer": [(MILL, YES, RAIN), (TRAINS, BOATS, YES)],
    "a negative that is the question": [(MILL, YES, MILL), (TRAINS, BOATS, RAIN)],
    "a negative that is its own answer": [(MILL, YES, YES), (TRAINS, BOATS, RAIN)],
    "a negative that a second row has as an answer": [(MILL, YES, BOATS), (MILL, BOATS, RAIN)],
    "nothing twice": [(MILL, YES, RAIN), (TRAINS, BOATS, "No.")],
}


@pytest.fixture(scope="module")
def tiny():
    return LLM2Vec.from_pretrained(DECODERS / "qwen3", dtype="float32")


def plain_loss(rows, vectors):
    """Cross-entropy in a loop: candidate by candidate, those left out that are an answer to the same question."""
    candidates = [row[1] for row in rows] + [negative for row in rows for negative in row[2:]]
    losses = []
    for place, (question, *_) in enumerate(rows):
        answers = {row[1] for row in rows if row[0] == question} | {question}
        right, total = None, 0.0
        for number, candidate in enumerate(candidates):
            if number != place and candidate in answers:
                continue
            score = np.exp(SCALE * float(vectors[question] @ vectors[candidate]))
            total += score
            if number == place:
                right = score
        losses.append(-np.log(right / total))
    return float(np.mean(losses))


def batch_loss(encoder, rows, *, prompt=""):
    """The stage's loss; `prompt` stands before the anchors."""
    joined = []
    for anchor, *others in rows:
        joined.append(
            encoder.tokens([anchor], prompts=[prompt])
            + [encoder.tokens([each])[0] for each in others]
        )
    batch = contrastive_batch(
        joined, packed=is_packed(encoder.model), pad_id=int(encoder.tokenizer.pad_token_id)
    )
    batch.pop("tokens")
    with torch.no_grad():
        return float(ContrastiveLoss(SCALE, "mean")(encoder.model, batch, None))


@pytest.mark.parametrize("name", BATCHES)
def test_what_is_known_to_belong_to_a_text_is_never_its_negative(name, tiny):
    rows = BATCHES[name]
    texts = sorted({text for row in rows for text in row})
    vectors = dict(zip(texts, tiny.encode(texts, normalize=True), strict=True))
    assert batch_loss(tiny, rows) == pytest.approx(
        plain_loss(rows, vectors), rel=ROUNDING, abs=1e-6
    )


def test_a_text_behind_a_prompt_is_the_same_text(tiny):
    encoder = LLM2Vec(tiny.model, tiny.tokenizer, settings=tiny.settings.changed(separator="\n"))
    rows = BATCHES["an answer that is a question"]
    answers = encoder.encode([row[1] for row in rows], normalize=True)
    asked = encoder.encode([row[0] for row in rows], prompt="Find it:", normalize=True)
    scores = asked @ answers.T * SCALE
    whole = float(torch.nn.functional.cross_entropy(scores, torch.arange(3)))
    scores[0, 1] = -torch.inf  # the first question is the second answer
    expected = float(torch.nn.functional.cross_entropy(scores, torch.arange(3)))
    assert whole > expected + 0.1, "this would not show it"
    found = batch_loss(encoder, rows, prompt="Find it:\n")
    assert found == pytest.approx(expected, rel=ROUNDING)
