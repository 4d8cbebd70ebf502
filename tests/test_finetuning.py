"""Taggers and classifiers: trained, stopped, resumed, saved, and opened by plain transformers."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import DECODERS
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    TrainerControl,
    TrainerState,
)

from llm2vec.corpus.tagged import TaggedSentence, read_tagged
from llm2vec.errors import CorpusError, ModelError, RunError, UsageError
from llm2vec.evaluation.analysis import BUNDLED_SETS
from llm2vec.finetuning.calibration import calibration_error, fitted_temperature, probabilities
from llm2vec.finetuning.data import LabelledTexts, read_labelled_texts
from llm2vec.finetuning.examples import sentence_examples, text_examples
from llm2vec.finetuning.finetune import train_classifier, train_tagger
from llm2vec.finetuning.folder import TextClassifier, open_tagger
from llm2vec.finetuning.labels import Labels
from llm2vec.finetuning.network import LabelNetwork, Reading
from llm2vec.finetuning.page import write_page
from llm2vec.finetuning.recipe import FinetuneRecipe
from llm2vec.finetuning.start import open_start
from llm2vec.finetuning.tagger import broken
from llm2vec.finetuning.task import label_loss, logits_of
from llm2vec.runtime.progress import Recorder
from llm2vec.training.early_stopping import EarlyStopping

DECODER = str(DECODERS / "qwen3")
FAST = FinetuneRecipe(
    epochs=2, batch_size=16, method="full", learning_rate=2e-3, precision="float32"
)
ALIKE = 1e-4
"""Logits in float32 that differ by rounding alone."""

PLACES = [
    (f"The {animal} sleeps near the old {thing}.", animal)
    for animal in ("cat", "dog", "horse")
    for thing in ("door", "river", "bridge", "garden", "church", "window", "table", "road")
]


@pytest.fixture(scope="module")
def sentences():
    train = read_tagged(BUNDLED_SETS / "words.train.jsonl", column="pos")[:120]
    test = read_tagged(BUNDLED_SETS / "words.test.jsonl", column="pos")[:40]
    return train, test


@pytest.fixture(scope="module")
def tagger(sentences, tmp_path_factory):
    out = tmp_path_factory.mktemp("tagger") / "out"
    recipe = FAST.model_copy(update={"epochs": 5})
    return train_tagger(DECODER, *sentences, out=out, recipe=recipe)


def texts_of(pairs, several=False):
    labels = tuple((label,) for _, label in pairs)
    return LabelledTexts(tuple(text for text, _ in pairs), labels, several, empty=0)


def test_a_tagger_learns_more_than_the_most_frequent_label(tagger, sentences):
    tags = [tag for each in sentences[1] for tag in each.tags]
    most = max(tags.count(tag) for tag in set(tags)) / len(tags)
    assert tagger.development.accuracy > most + 0.1
    assert tagger.development.metric == "macro-f1"
    assert not list(tagger.folder.parent.glob("*.finetuning"))


def test_plain_transformers_gives_the_same_labels_as_ours(tagger, sentences):
    assert tagger.plain, tagger.why_not
    model = AutoModelForTokenClassification.from_pretrained(str(tagger.folder)).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(tagger.folder))
    ours = open_tagger(tagger.folder)
    assert model.config.is_causal is False
    for sentence in sentences[1][:5]:
        encoded = tokenizer(
            " ".join(sentence.words), return_tensors="pt", return_offsets_mapping=True
        )
        offsets = encoded.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            best = model(**encoded).logits[0].argmax(-1).tolist()
        [read] = ours.read([sentence.words])
        last = {end: label for (_, end), label in zip(offsets, best, strict=True)}
        plain = [model.config.id2label[last[span.end]] for span in read.spans]
        assert plain == list(read.tags)


def test_a_killed_run_goes_on_to_the_same_labels(tagger, sentences, tmp_path):
    class Killed(Exception):
        pass

    class Killing(Recorder):
        def advance(self, count, /, **numbers):
            super().advance(count, **numbers)
            if self.done >= 20:
                raise Killed

    recipe = FAST.model_copy(update={"epochs": 5, "save_every": 10})
    with pytest.raises(Killed):
        train_tagger(DECODER, *sentences, out=tmp_path / "out", recipe=recipe, progress=Killing())
    with pytest.raises(RunError, match="another recipe"):
        train_tagger(DECODER, *sentences, out=tmp_path / "out", recipe=FAST)
    found = train_tagger(DECODER, *sentences, out=tmp_path / "out", recipe=recipe)
    assert found.steps == tagger.steps
    assert found.development.value == pytest.approx(tagger.development.value, abs=1e-6)


def test_training_stops_when_the_score_no_longer_rises(sentences, tmp_path):
    recipe = FAST.model_copy(update={"epochs": 20, "patience": 1, "learning_rate": 1e-12})
    found = train_tagger(DECODER, *sentences, out=tmp_path / "out", recipe=recipe)
    assert found.steps[0] == 10  # one evaluation after the first
    assert found.steps[1] == 0


def test_a_causal_decoder_stays_causal_and_is_read_at_the_last_token(sentences, tmp_path):
    found = train_tagger(f"uni:{DECODER}", *sentences, out=tmp_path / "out", recipe=FAST)
    ours = open_tagger(found.folder)
    assert ours.encoder.settings.bidirectional is False
    assert ours.facts.merge == "last"
    one, other = (ours.encoder.words(f"The old man {end}")[0].vectors_WD for end in ("ran", "sat"))
    assert torch.allclose(one[:3], other[:3], atol=ALIKE)


def test_a_tagger_reads_first_tokens_where_it_is_told_to(sentences, tmp_path):
    recipe = FAST.model_copy(update={"epochs": 1, "read_at": "first"})
    found = train_tagger(DECODER, *sentences, out=tmp_path / "out", recipe=recipe)
    assert open_tagger(found.folder).facts.merge == "first"
    assert 'aggregation_strategy="first"' in (found.folder / "README.md").read_text("utf8")


def test_words_read_one_token_earlier_keep_a_folder_of_our_own(sentences, tmp_path):
    found = train_tagger(DECODER, *sentences, out=tmp_path / "out", recipe=FAST, reading="before")
    assert not found.plain
    assert "one token earlier" in found.why_not
    assert open_tagger(found.folder).tag(["The man ran."])[0][0].text == "The"


def test_any_encoder_of_transformers_can_be_trained(sentences, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(DECODER)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
    )
    BertModel(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    found = train_tagger(f"auto:{tmp_path / 'bert'}", *sentences, out=tmp_path / "out", recipe=FAST)
    assert found.plain, found.why_not
    assert open_tagger(found.folder).facts.merge == "first"
    assert open_tagger(found.folder).tag(["The man ran."])[0]


def test_adapters_are_merged_into_plain_weights(sentences, tmp_path):
    recipe = FAST.model_copy(update={"method": "lora", "epochs": 1})
    found = train_tagger(DECODER, *sentences, out=tmp_path / "out", recipe=recipe)
    assert found.plain, found.why_not
    assert not list(found.folder.glob("adapter*"))


def test_a_classifier_opens_as_one_of_transformers(tmp_path):
    train, test = texts_of(PLACES[::2]), texts_of(PLACES[1::2])
    recipe = FAST.model_copy(update={"epochs": 30, "batch_size": 4})
    found = train_classifier(DECODER, train, test, out=tmp_path / "out", recipe=recipe)
    assert found.plain, found.why_not
    assert found.development.accuracy > 0.5
    model = AutoModelForSequenceClassification.from_pretrained(str(found.folder)).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(found.folder))
    for text, ours in zip(
        test.texts, TextClassifier.open(found.folder).classify(test.texts), strict=True
    ):
        with torch.no_grad():
            best = int(model(**tokenizer(text, return_tensors="pt")).logits.argmax())
        assert (model.config.id2label[best],) == ours.labels
        assert sum(ours.scores.values()) == pytest.approx(1)


def test_a_pooled_classifier_says_why_transformers_cannot_open_it(tmp_path):
    train, test = texts_of(PLACES[::2]), texts_of(PLACES[1::2])
    found = train_classifier(
        DECODER, train, test, out=tmp_path / "out", recipe=FAST, pooling="mean"
    )
    assert not found.plain
    assert "pooled by mean" in found.why_not
    first, empty = TextClassifier.open(found.folder).classify([test.texts[0], ""])
    assert first.labels
    assert empty.labels == ()
    with pytest.raises(ModelError, match="llm2vec classify"):
        open_tagger(found.folder)


def test_texts_may_have_several_labels(tmp_path):
    rows = [
        {"text": text, "labels": [animal, "door"] if "door" in text else [animal]}
        for text, animal in PLACES
    ]
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    data = read_labelled_texts(file)
    assert data.several
    recipe = FAST.model_copy(update={"epochs": 30, "batch_size": 8, "patience": 30})
    found = train_classifier(DECODER, data, data, out=tmp_path / "out", recipe=recipe)
    assert found.development.accuracy > 0.8
    [guess] = TextClassifier.open(found.folder).classify([PLACES[0][0]])
    assert set(guess.labels) == {"cat", "door"}


def test_packed_rows_give_the_logits_of_texts_alone(sentences):
    start = open_start(DECODER)
    labels = Labels.of((tag for each in sentences[0] for tag in each.tags), "train")
    torch.manual_seed(0)
    network = LabelNetwork(
        start.model, len(labels.names), reading=Reading(), bias=True, dropout=0.0
    )
    read = sentence_examples(
        start.tokenizer, sentences[1][:6], labels, max_length=64, reading="own", merge="first"
    )
    examples = [each.example for each in read]
    pad_id = int(start.tokenizer.pad_token_id)
    packed = logits_of(network, examples, packed=True, pad_id=pad_id)
    alone = [logits_of(network, [each], packed=False, pad_id=pad_id) for each in examples]
    assert np.allclose(packed, np.concatenate(alone), atol=ALIKE)


def test_weights_of_labels_are_those_of_the_loss_by_hand():
    labels = Labels.of(["a", "a", "a", "b"], "train")
    assert labels.balanced_weights() == pytest.approx([4 / 6, 2.0])
    logits = torch.tensor([[1.0, 0.0], [0.5, 2.0], [0.0, 0.0]])
    batch = {"labels": torch.tensor([0, 1, -100]), "tokens": 3}
    loss = label_loss(torch.tensor([0.5, 2.0]))(lambda: logits, batch, None)
    log = torch.log_softmax(logits, -1)
    assert float(loss) == pytest.approx(float(-(0.5 * log[0, 0] + 2 * log[1, 1]) / 2))


def test_a_label_that_continues_nothing_is_counted_and_begins_an_entity(tmp_path):
    assert broken(["O", "I-PER", "I-PER", "B-LOC", "I-LOC", "I-ORG"]) == 2
    rows = [TaggedSentence(("Anna", "lives", "here"), ("I-PER", "O", "O"))] * 8
    progress = Recorder()
    train_tagger(DECODER, rows, rows, out=tmp_path / "out", recipe=FAST, progress=progress)
    assert any("8 labels continue" in note for note in progress.notes)


def test_labels_that_cannot_be_learned_are_an_error(sentences, tmp_path):
    same = [TaggedSentence(("He", "left"), ("X", "X"))] * 4
    with pytest.raises(CorpusError, match="one label only"):
        train_tagger(DECODER, same, same, out=tmp_path / "out", recipe=FAST)
    with pytest.raises(CorpusError, match="no label of the development file"):
        train_tagger(DECODER, sentences[0], same, out=tmp_path / "out", recipe=FAST)
    other = [replace(sentences[1][0], tags=("NEW", *sentences[1][0].tags[1:]))]
    found = train_tagger(DECODER, sentences[0][:20], other, out=tmp_path / "out", recipe=FAST)
    assert found.development.unseen == 1
    with pytest.raises(RunError, match="exists already"):
        train_tagger(DECODER, *sentences, out=tmp_path / "out", recipe=FAST)


def test_words_beyond_the_longest_text_have_no_label(sentences):
    start = open_start(DECODER)
    labels = Labels.of((tag for each in sentences[0] for tag in each.tags), "train")
    long = TaggedSentence(("dog",) * 30, ("NOUN",) * 30)
    [read] = sentence_examples(
        start.tokenizer, [long], labels, max_length=10, reading="own", merge="first"
    )
    assert sum(read.has_tokens) == len(read.example.read) < 30
    empty = TaggedSentence((), ())
    assert not sentence_examples(
        start.tokenizer, [empty], labels, max_length=10, reading="own", merge="first"
    )
    [nothing] = text_examples(start.tokenizer, [""], [0], max_length=10)
    assert not nothing.ids


def test_a_temperature_makes_sure_logits_trustworthy():
    random = np.random.default_rng(0)
    labels = random.integers(2, size=4000)
    right = random.random(4000) < 0.75
    logits = np.zeros((4000, 2))
    logits[np.arange(4000), np.where(right, labels, 1 - labels)] = 8.0
    temperature = fitted_temperature(logits, labels)
    assert temperature == pytest.approx(8 / np.log(3), rel=0.05)
    assert calibration_error(probabilities(logits), labels) == pytest.approx(0.25, abs=0.02)
    assert calibration_error(probabilities(logits, temperature=temperature), labels) < 0.02


def test_the_page_shows_labels_confusions_and_errors(tagger):
    text = write_page(tagger.folder).read_text()
    for title in ("In short", "Labels", "Confusion", "Calibration", "Hardest errors"):
        assert title in text
    assert "NOUN" in text
    assert "<script" not in text
    assert "first token" not in text, "the columns of the map are labels"


def test_a_folder_that_is_not_of_a_run_is_left_alone(sentences, tmp_path):
    thesis = tmp_path / "out.finetuning" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    with pytest.raises(RunError, match=r"thesis\.txt, which is not of a fine-tuning"):
        train_tagger(DECODER, *sentences, out=tmp_path / "out", recipe=FAST)
    assert thesis.read_text() == "years of work"


def test_a_file_that_came_into_the_runs_folder_stays(sentences, tmp_path):
    class Writing(Recorder):
        def start(self, task, *, total):
            super().start(task, total=total)
            (tmp_path / "out.finetuning" / "notes.txt").write_text("keep")

    recipe = FAST.model_copy(update={"epochs": 1})
    train_tagger(DECODER, *sentences, out=tmp_path / "out", recipe=recipe, progress=Writing())
    assert [each.name for each in (tmp_path / "out.finetuning").iterdir()] == ["notes.txt"]


def test_a_resumed_run_stops_where_the_first_one_did(tmp_path):
    def judged(stopping, step, score):
        state, control = TrainerState(global_step=step), TrainerControl()
        stopping.on_log(None, state, control, {"eval_score": score}, model=torch.nn.Linear(1, 1))
        return control.should_training_stop

    stopping = EarlyStopping(tmp_path, patience=1)
    assert not judged(stopping, 10, 0.5)
    assert judged(stopping, 20, 0.4)
    resumed = EarlyStopping(tmp_path, patience=1)
    assert not judged(resumed, 10, 0.5)
    assert judged(resumed, 20, 0.4)
    assert resumed.best == stopping.best


def test_texts_longer_than_the_model_reads_are_refused_before_anything_is_made(sentences, tmp_path):
    recipe = FAST.model_copy(update={"max_length": 100_000})
    with pytest.raises(UsageError, match="max_length is 100000, but the decoder has"):
        train_tagger(DECODER, *sentences, out=tmp_path / "out", recipe=recipe)
    assert not list(tmp_path.iterdir())
    empty = LabelledTexts(("",), (("cat",),), several=False, empty=0)
    with pytest.raises(CorpusError, match="the development data holds no text"):
        train_classifier(DECODER, texts_of(PLACES), empty, out=tmp_path / "out", recipe=FAST)
