"""Reading labelled sentences, entities out of labels, and the probe itself."""

import json

import numpy as np
import pytest
import torch
from conftest import DECODERS

from llm2vec import LLM2Vec
from llm2vec.corpus.tagged import TaggedSentence, entities, read_tagged
from llm2vec.errors import CorpusError, ModelError
from llm2vec.evaluation import probe as probing
from llm2vec.evaluation.analysis import BUNDLED_SETS
from llm2vec.evaluation.bootstrap import interval
from llm2vec.evaluation.probe import probe
from llm2vec.evaluation.state_cache import encoder_fingerprint
from llm2vec.evaluation.subjects import open_encoder
from llm2vec.evaluation.tagger import Tagger, save_probe
from llm2vec.evaluation.word_metrics import floors, resampled_values, value


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("B-A I-A O B-A", {(0, 2, "A"), (3, 4, "A")}),
        ("I-A I-A B-A O", {(0, 2, "A"), (2, 3, "A")}),
        ("B-A E-A S-B O", {(0, 2, "A"), (2, 3, "B")}),
        ("B-A L-A U-B U-B", {(0, 2, "A"), (2, 3, "B"), (3, 4, "B")}),
        ("I-A I-B O I-B", {(0, 1, "A"), (1, 2, "B"), (3, 4, "B")}),
        ("O O", set()),
        ("S-A I-A", {(0, 1, "A"), (1, 2, "A")}),
        ("B I O B", {(0, 2, ""), (3, 4, "")}),
    ],
)
def test_entities_are_read_in_every_scheme(tags, found):
    assert entities(tags.split()) == found


def test_the_three_kinds_of_files_say_the_same(tmp_path):
    wanted = [
        TaggedSentence(("He", "left"), ("PRON", "VERB")),
        TaggedSentence(("Stop",), ("VERB",)),
    ]
    (tmp_path / "a.txt").write_text("He x PRON\nleft y VERB\n\n\nStop z VERB\n")
    rows = [
        ("1", "He", "PRON"),
        ("2-3", "left it", "X"),
        ("2", "left", "VERB"),
        ("2.1", "was", "X"),
    ]
    lines = ["\t".join([number, word, "_", tag, *"______"]) for number, word, tag in rows]
    (tmp_path / "a.conllu").write_text(
        "# text\n" + "\n".join(lines) + "\n\n" + "\t".join(["1", "Stop", "_", "VERB", *"______"])
    )
    objects = [{"tokens": each.words, "pos": each.tags} for each in wanted]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, objects)))
    assert read_tagged(tmp_path / "a.txt") == wanted
    assert read_tagged(tmp_path / "a.txt", column="2") == wanted
    assert read_tagged(tmp_path / "a.conllu") == wanted
    assert read_tagged(tmp_path / "a.jsonl", column="pos") == wanted


@pytest.mark.parametrize(
    ("name", "text", "column", "said"),
    [
        ("a.txt", "a b\nc\n", None, "1 columns, but the lines around it have 2"),
        ("a.txt", "a b\n", "5", "no column 5"),
        ("a.txt", "a b\n", "pos", "have numbers, not names"),
        ("a.txt", "\n\n", None, "holds no sentence"),
        ("a.txt", "", None, "holds no sentence"),
        ("a.conllu", "1\ta\n", None, "10 columns"),
        ("a.conllu", "", "tense", "no column 'tense'"),
        ("a.jsonl", '{"tokens": ["a"], "tags": []}', None, "1 tokens but 0 labels"),
        ("a.jsonl", '{"words": ["a"]}', None, "there is no field 'tags'; the row has words"),
        ("a.jsonl", "{", None, "not JSON"),
        ("a.jsonl", "[1]", None, "line 1: not a JSON object"),
        ("a.jsonl", '{"tokens": ["a"], "tags": null}', None, "line 1: 'tags' must be a list"),
        (
            "a.jsonl",
            '{"tokens": "ab", "tags": ["x", "y"]}',
            None,
            "line 1: 'tokens' must be a list",
        ),
        (
            "a.txt",
            "a b\n\na b\na b\nc\n",
            None,
            "line 5: 1 columns, but the lines around it have 2",
        ),
    ],
)
def test_a_wrong_file_is_one_clear_line(name, text, column, said, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(CorpusError, match=said):
        read_tagged(tmp_path / name, column=column)


def test_a_file_is_utf8_with_or_without_a_mark_and_lines_end_at_line_feeds_alone(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffa\u00a0b  X\r\nc Y\r\n".encode())
    assert read_tagged(tmp_path / "a.txt") == [TaggedSentence(("a\u00a0b", "c"), ("X", "Y"))]
    (tmp_path / "a.tsv").write_bytes("\ufeffa\u2028b\tX\r\nc\tY\r\n".encode())
    assert read_tagged(tmp_path / "a.tsv") == [TaggedSentence(("a\u2028b", "c"), ("X", "Y"))]
    (tmp_path / "a.jsonl").write_text('{"tokens": ["a\u2028b"], "tags": ["X"]}\n')
    assert read_tagged(tmp_path / "a.jsonl") == [TaggedSentence(("a\u2028b",), ("X",))]
    (tmp_path / "latin.txt").write_bytes("caf\xe9 X\n".encode("latin1"))
    with pytest.raises(CorpusError, match="not UTF-8"):
        read_tagged(tmp_path / "latin.txt")


def test_the_shared_files_of_every_kind_are_read(shared):
    word = shared / "data" / "word"
    counts = {"conll2000/test.txt": 2012, "ud_ewt/en_ewt-ud-dev.conllu": 2001}
    counts |= {
        "wnut17/wnut17train.conll": 3394,
        "wnut17/emerging.dev.conll": 1009,
        "wnut17/emerging.test.annotated": 1287,
    }
    for name, count in counts.items():
        assert len(read_tagged(word / name)) == count
    kinds = {
        kind
        for each in read_tagged(word / "wnut17/emerging.test.annotated")
        for *_, kind in entities(each.tags)
    }
    assert kinds == {"corporation", "creative-work", "group", "location", "person", "product"}


@pytest.fixture(scope="module")
def sets():
    return [
        read_tagged(BUNDLED_SETS / f"words.{part}.jsonl", column="pos")
        for part in ("train", "test")
    ]


def test_a_probe_beats_the_most_frequent_label_by_far_and_has_an_interval(encoder, sets):
    found = probe(encoder, *sets, seeds=2)
    assert found.low < found.value < found.high
    assert found.value > 0.5
    assert set(found.by_reading) == {"own", "before"}
    assert found.reading == max(found.by_reading, key=found.by_reading.get)
    assert found.value == pytest.approx(found.accuracy)
    assert found.by_label["NOUN"]["f1"] > 0.5


def test_a_probe_is_the_same_each_time(encoder, sets):
    short = [each[:60] for each in sets]
    assert probe(encoder, *short, seeds=1) == probe(encoder, *short, seeds=1)


def test_each_layer_has_a_value_and_the_last_is_the_probes_own(encoder, sets):
    found = probe(encoder, *sets, seeds=1, reading="own", layer="all")
    assert len(found.by_layer) == encoder.model.config.num_hidden_layers + 1
    assert found.by_layer[-1] == pytest.approx(found.value)


@pytest.mark.parametrize("layer", [0, 1, -2])
def test_one_layer_is_probed_as_among_all_and_a_saved_probe_reads_it(layer, sets, tmp_path):
    source = str(DECODERS / "qwen3")
    encoder, short = open_encoder(source), [each[:80] for each in sets]
    every = probe(encoder, *short, seeds=1, reading="own", layer="all")
    found = probe(encoder, *short, seeds=1, reading="own", layer=layer)
    assert found.value == pytest.approx(every.by_layer[layer], abs=1e-6)
    assert (found.layer, found.by_layer, every.layer) == (layer, (), -1)
    save_probe(found, tmp_path / "probe", encoder=source)
    spans = Tagger.open(tmp_path / "probe").tag(["The old man left ."])[0]
    words = encoder.words([["The", "old", "man", "left", "."]], layer=layer)[0]
    assert [span.label for span in spans] == [
        found.labels[n] for n in found.classifier(words.vectors_WD).tolist()
    ]
    whole = encoder.words([["The", "old", "man", "left", "."]])[0]
    assert not torch.allclose(words.vectors_WD, whole.vectors_WD, atol=1e-2)


def test_a_probe_saved_before_layers_could_be_chosen_reads_the_last(sets, tmp_path):
    source = str(DECODERS / "qwen3")
    save_probe(
        probe(open_encoder(source), *(e[:40] for e in sets), seeds=1),
        tmp_path / "probe",
        encoder=source,
    )
    facts = json.loads((tmp_path / "probe" / "probe.json").read_text())
    assert facts.pop("layer") == -1
    (tmp_path / "probe" / "probe.json").write_text(json.dumps(facts))
    assert Tagger.open(tmp_path / "probe").facts.layer == -1


def test_a_causal_baseline_can_be_probed(sets):
    uni = LLM2Vec.from_pretrained("bundled", enable_bidirectional=False)
    assert probe(uni, *sets, seeds=1).value > 0.5


def test_labels_that_training_never_saw_count_as_wrong(encoder):
    train = [TaggedSentence(("one", "cat"), ("NUM", "NOUN"))] * 20
    found = probe(encoder, train, [TaggedSentence(("one", "cat"), ("NUM", "VERB"))], seeds=1)
    assert (found.unseen, found.value) == (1, 0.5)


def test_equal_numbers_are_one_label_in_whatever_form_a_file_has_them(encoder, tmp_path):
    forms = {"whole": [0, 1], "fraction": [0.0, 1.0], "text": ["0", "1"], "written": ["0.0", "1.0"]}
    read = {}
    for name, tags in forms.items():
        row = json.dumps({"tokens": ["one", "cat"], "tags": tags}) + "\n"
        (tmp_path / f"{name}.jsonl").write_text(row * 20)
        (tmp_path / f"{name}.txt").write_text(f"one {tags[0]}\ncat {tags[1]}\n\n" * 20)
        for kind in ("jsonl", "txt"):
            read[name, kind] = read_tagged(tmp_path / f"{name}.{kind}")
            assert read[name, kind][0].tags == ("0", "1"), (name, kind)
    found = probe(encoder, read["whole", "jsonl"], read["fraction", "jsonl"], seeds=1)
    assert (found.value, found.unseen) == (1.0, 0)


@pytest.mark.parametrize(
    ("metric", "tags", "said"),
    [
        (
            "accuracy",
            ("1", "0"),
            r"no label of the test sentences \(0, 1\) occurs in .* \(B-A, O\)",
        ),
        ("entity-f1", ("B-B", "O"), r"no label of the test sentences \(B-B\) occurs"),
        ("entity-f1", ("O", "O"), "the test sentences have no entity"),
        ("entity-f1", ("NOUN", "O"), "NOUN, O follow no scheme"),
    ],
)
def test_a_test_set_on_which_nothing_can_be_right_is_refused_before_anything_is_read(
    metric, tags, said
):
    train, test = [[TaggedSentence(("one", "cat"), given)] * 9 for given in (("B-A", "O"), tags)]
    with pytest.raises(CorpusError, match=said):
        probe(None, train, test, metric=metric)  # no encoder is needed to see that
    if metric == "accuracy":
        with pytest.raises(CorpusError, match="no label of the development sentences"):
            probe(None, train, train, dev=test)


def test_entities_are_scored_whole(encoder):
    train = [TaggedSentence(("New", "York", "sleeps"), ("B-LOC", "I-LOC", "O"))] * 20
    found = probe(encoder, train, train[:2], metric="entity-f1", seeds=1)
    assert found.value == 1.0
    assert found.by_label == {"LOC": {"precision": 1.0, "recall": 1.0, "f1": 1.0, "count": 2.0}}


def test_entities_are_learned_in_one_scheme_and_tested_in_another(encoder):
    train = [TaggedSentence(("New", "York", "sleeps"), ("I-LOC", "I-LOC", "O"))] * 20
    test = [TaggedSentence(("New", "York", "sleeps"), ("B-LOC", "E-LOC", "O"))]
    found = probe(encoder, train, test, metric="entity-f1", seeds=1)
    assert (found.value, found.precision, found.recall, found.unseen) == (1.0, 1.0, 1.0, 0)
    test = [TaggedSentence(("New", "York", "sleeps"), ("B-LOC", "E-LOC", "S-PER"))]
    found = probe(encoder, train, test, metric="entity-f1", seeds=1)
    assert (found.precision, found.recall, found.unseen) == (1.0, 0.5, 1)


def test_labels_without_a_scheme_have_no_entities(encoder):
    train = [TaggedSentence(("one", "cat"), ("NUM", "NOUN"))] * 20
    with pytest.raises(CorpusError, match="NOUN, NUM follow no scheme such as BIO"):
        probe(encoder, train, train, metric="entity-f1")


def test_one_training_sentence_is_too_few_without_others_to_choose_on(encoder):
    one = [TaggedSentence(("one", "cat"), ("NUM", "NOUN"))]
    with pytest.raises(CorpusError, match="1 training sentence is too few"):
        probe(encoder, one, one)
    assert probe(encoder, one, one, dev=one, seeds=1).value == 1.0


def test_words_that_cannot_be_read_are_counted(encoder):
    train = [TaggedSentence(("one", "cat", ""), ("NUM", "NOUN", "NUM"))] * 20
    long = TaggedSentence(tuple("ab" * 600), ("NUM", "NOUN") * 600)
    found = probe(encoder, train, [long, train[0]], seeds=1)
    assert found.unread > 600
    assert probe(encoder, train, train[:3], seeds=1).unread == 3


def test_one_label_is_too_few(encoder):
    with pytest.raises(CorpusError, match="two labels or more"):
        probe(encoder, [TaggedSentence(("a",), ("X",))] * 10, [TaggedSentence(("a",), ("X",))])


def test_floors_are_what_counting_words_gives():
    train = [TaggedSentence(("the", "cat", "runs"), ("DET", "NOUN", "VERB"))] * 2 + [
        TaggedSentence(("runs",), ("NOUN",))
    ]
    test = [TaggedSentence(("The", "runs", "dog"), ("DET", "VERB", "NOUN"))]
    assert floors(train, test, "accuracy") == {
        "majority": pytest.approx(1 / 3),
        "word identity": 1.0,
    }


def test_the_classifier_finds_what_a_long_optimisation_finds(encoder, sets):
    """Against full-batch logistic regression of the same vectors: no more than two points apart."""
    from sklearn.linear_model import LogisticRegression

    found = probe(encoder, *sets, dev=sets[1], seeds=1, reading="own")
    vectors, tags = [], []
    for part in sets:
        words = encoder.words([sentence.words for sentence in part])
        vectors.append(torch.cat([each.vectors_WD for each in words]).numpy())
        tags.append([tag for sentence in part for tag in sentence.tags])
    deviation = vectors[0].std(0)
    classifier = LogisticRegression(C=0.05, max_iter=500).fit(vectors[0] / deviation, tags[0])
    assert found.value == pytest.approx(classifier.score(vectors[1] / deviation, tags[1]), abs=0.02)


def test_a_saved_probe_labels_raw_text_with_offsets(tmp_path):
    train = [
        TaggedSentence(
            ("Anna", "lives", "in", "New", "York"), ("B-PER", "O", "O", "B-LOC", "I-LOC")
        )
    ] * 20
    source = str(DECODERS / "qwen3")
    save_probe(
        probe(open_encoder(source), train, train[:2], seeds=1), tmp_path / "probe", encoder=source
    )
    text = "  Anna lives in New York"
    spans = Tagger.open(tmp_path / "probe").tag([text, ""])
    assert [(span.label, text[span.start : span.end]) for span in spans[0]] == [
        ("PER", "Anna"),
        ("LOC", "New York"),
    ]
    assert spans[1] == []


@pytest.mark.parametrize("labels", [("NOUN", "VERB"), ("B-X", "I-X")])
def test_words_beyond_the_longest_sequence_get_no_label(labels, tmp_path):
    source = str(DECODERS / "qwen3")
    save_probe(
        probe(
            open_encoder(source),
            [TaggedSentence(("a", "b"), labels)] * 9,
            [TaggedSentence(("a", "b"), labels)],
        ),
        tmp_path / "p",
        encoder=source,
    )
    text = "a b " * 2000
    spans = Tagger.open(tmp_path / "p").tag([text])[0]
    assert 0 < spans[-1].end <= 4 * 512


def test_labels_without_a_scheme_are_given_to_every_word(tmp_path):
    train = [TaggedSentence(("Dogs", "bark", "."), ("NOUN", "VERB", "PUNCT"))] * 20
    source = str(DECODERS / "qwen3")
    save_probe(
        probe(open_encoder(source), train, train[:2], seeds=1), tmp_path / "probe", encoder=source
    )
    assert [span.label for span in Tagger.open(tmp_path / "probe").tag(["Dogs bark ."])[0]] == [
        "NOUN",
        "VERB",
        "PUNCT",
    ]


def test_what_counts_words_has_none_to_probe():
    with pytest.raises(ModelError, match="no states to read"):
        open_encoder("tfidf")


def test_a_folder_without_a_probe_says_how_to_make_one(tmp_path):
    with pytest.raises(ModelError, match="probe ... --save"):
        Tagger.open(tmp_path)


def test_any_encoder_can_be_a_baseline(tmp_path, sets):
    """A BERT of random weights with word pieces: what matters is that its vectors are those of `AutoModel`."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = sorted({word.lower() for sentence in sets[0] for word in sentence.words})
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n"
    )
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    tokenizer.save_pretrained(tmp_path / "bert")
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(tmp_path / "bert")
    baseline = open_encoder(f"auto:{tmp_path / 'bert'}")
    model = BertModel.from_pretrained(tmp_path / "bert").eval()
    with torch.no_grad():
        states_TD = model(**tokenizer("the cat", return_tensors="pt")).last_hidden_state[0]
    found = baseline.words([["the", "cat"], ["a", "much", "longer", "sentence"]])[0]
    assert torch.allclose(found.vectors_WD, states_TD[1:3], atol=1e-5)
    with torch.no_grad():
        states_TD = model(
            **tokenizer("the cat", return_tensors="pt"), output_hidden_states=True
        ).hidden_states[1][0]
    found = baseline.words([["the", "cat"], ["a", "much", "longer", "sentence"]], layer=1)[0]
    assert torch.allclose(found.vectors_WD, states_TD[1:3], atol=1e-5)
    assert probe(baseline, *(part[:50] for part in sets), seeds=1).value > 0.2


def test_a_data_set_of_the_hub_is_read_by_its_label_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "tags": datasets.List(datasets.ClassLabel(names=["O", "B-X"])),
        }
    )
    rows = datasets.Dataset.from_dict({"tokens": [["a", "b"]], "tags": [[0, 1]]}, features=features)
    rows.to_parquet(tmp_path / "train.parquet")
    assert read_tagged(f"hub:{tmp_path}") == [TaggedSentence(("a", "b"), ("O", "B-X"))]
    with pytest.raises(CorpusError, match="no column 'pos'"):
        read_tagged(f"hub:{tmp_path}", column="pos")


def test_a_data_set_of_the_hub_may_have_configurations(tmp_path):
    datasets = pytest.importorskip("datasets")
    for name in ("one", "two"):
        rows = {"tokens": [[name, "b"]], "tags": [["X", "Y"]]}
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / f"{name}.parquet")
    listed = "".join(
        f"- config_name: {name}\n  data_files: {name}.parquet\n" for name in ("one", "two")
    )
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{listed}---\n")
    assert read_tagged(f"hub:{tmp_path}:two") == [TaggedSentence(("two", "b"), ("X", "Y"))]
    with pytest.raises(CorpusError, match="cannot load the data set"):
        read_tagged(f"hub:{tmp_path}")


def test_an_interval_narrows_with_more_sentences():
    few = np.array([[[1, 2, 2], [2, 2, 2], [0, 2, 2]]])
    wide, narrow = (
        interval(resampled_values(few)),
        interval(resampled_values(np.tile(few, (1, 50, 1)))),
    )
    assert value(few[0]) == 0.5
    assert wide[1] - wide[0] > 3 * (narrow[1] - narrow[0])


def test_kept_states_serve_other_labels_and_never_another_model(
    encoder, sets, tmp_path, monkeypatch
):
    short, calls = [each[:60] for each in sets], []
    read = probing.word_states
    monkeypatch.setattr(
        probing, "word_states", lambda *args, **options: calls.append(1) or read(*args, **options)
    )
    plain = probe(encoder, *short, seeds=1)
    assert len(calls) == 3
    assert probe(encoder, *short, seeds=1, states=tmp_path / "states") == plain
    assert len(calls) == 6
    assert probe(encoder, *short, seeds=1, states=tmp_path / "states") == plain
    other = [
        [TaggedSentence(each.words, tuple(tag[0] for tag in each.tags)) for each in part]
        for part in short
    ]
    assert probe(encoder, *other, seeds=1, states=tmp_path / "states").value != plain.value
    assert len(calls) == 6
    for changed in ({"layer": 1}, {"merge": "first"}, {"reading": "before"}):
        assert probe(encoder, *short, seeds=1, states=tmp_path / "states", **changed) == probe(
            encoder, *short, seeds=1, **changed
        )
    causal = LLM2Vec.from_pretrained("bundled", enable_bidirectional=False)
    calls.clear()
    assert probe(causal, *short, seeds=1, states=tmp_path / "states") == probe(
        causal, *short, seeds=1
    )
    assert len(calls) == 6


def test_one_number_of_one_weight_changes_the_fingerprint():
    model = open_encoder(str(DECODERS / "gpt2")).model
    before = encoder_fingerprint(model)
    assert before == encoder_fingerprint(open_encoder(str(DECODERS / "gpt2")).model)
    with torch.no_grad():
        next(iter(model.parameters()))[3, 5] += 1e-4
    assert encoder_fingerprint(model) != before


def test_a_tagger_notices_another_encoder_in_its_encoders_place(sets, tmp_path):
    encoder = open_encoder(str(DECODERS / "qwen3"))
    encoder.save(tmp_path / "encoder")
    found = probe(encoder, *(each[:40] for each in sets), seeds=1)
    save_probe(found, tmp_path / "probe", encoder=str(tmp_path / "encoder"), model=encoder)
    assert Tagger.open(tmp_path / "probe").tag(["a cat"])
    with torch.no_grad():
        for weight in encoder.model.parameters():
            weight.mul_(1.01)
    encoder.save(tmp_path / "encoder")
    with pytest.raises(ModelError, match="is not the encoder that"):
        Tagger.open(tmp_path / "probe")
