"""Word vectors against a plain loop, and words of every kind of text."""

import unicodedata

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from uniseg import wordbreak

from llm2vec.encoder.word_boundaries import find_words
from llm2vec.errors import UsageError

TEXTS = [
    "The unbelievable miller's dog, Rex, barked.",
    "x",
    "No.",
    "Antidisestablishmentarianism   is\tlong",
]


@pytest.mark.parametrize("merge", ["mean", "first", "last"])
@pytest.mark.parametrize("reading", ["own", "before"])
def test_a_words_vector_is_that_of_its_tokens_by_a_plain_loop(encoder, reading, merge):
    found = encoder.words(TEXTS, reading=reading, merge=merge)
    for text, words in zip(TEXTS, found, strict=True):
        assert [text[start:end] for start, end in words.offsets] == list(words.words)
        encoded = encoder.tokenizer(text, return_offsets_mapping=True)
        with torch.inference_mode():
            states_TD = encoder.model(
                input_ids=torch.tensor([encoded["input_ids"]]), use_cache=False
            )[0][0]
        for (start, end), vector in zip(words.offsets, words.vectors_WD, strict=True):
            own = [
                i
                for i, (first, last) in enumerate(encoded["offset_mapping"])
                if first < end and last > start
            ]
            own = {"mean": own, "first": own[:1], "last": own[-1:]}[merge]
            places = own if reading == "own" else [max(place - 1, 0) for place in own]
            torch.testing.assert_close(vector, states_TD[places].mean(0), atol=1e-4, rtol=1e-4)


def test_given_words_are_taken_as_they_are(encoder):
    (found,) = encoder.words([["New York", "is", "", "big"]])
    assert found.words == ("New York", "is", "", "big")
    assert not found.vectors_WD[2].any(), "a word without a token has the zero vector"
    assert found.vectors_WD[[0, 1, 3]].norm(dim=1).min() > 0


def test_words_beyond_the_longest_sequence_have_the_zero_vector(encoder):
    (found,) = encoder.words(["word " * 600])
    lengths_W = found.vectors_WD.norm(dim=1)
    assert lengths_W[:400].min() > 0
    assert lengths_W[-1] == 0


def test_no_texts_and_empty_texts_have_no_words(encoder):
    assert encoder.words([]) == []
    assert [len(each.words) for each in encoder.words(["", " "])] == [0, 0]


@settings(max_examples=20, deadline=None)
@given(texts=st.lists(st.text(max_size=30), max_size=4))
def test_any_text_is_read_and_batches_do_not_matter(encoder, texts):
    together = encoder.words(texts)
    for text, found in zip(texts, together, strict=True):
        (alone,) = encoder.words([text])
        torch.testing.assert_close(found.vectors_WD, alone.vectors_WD, atol=1e-4, rtol=1e-4)


def test_a_single_text_is_one_text_and_what_there_is_not_is_said(encoder):
    alone, listed = encoder.words("New York"), encoder.words(["New York"])
    assert [each.words for each in alone] == [("New", "York")]
    assert torch.equal(alone[0].vectors_WD, listed[0].vectors_WD)
    with pytest.raises(UsageError, match="reading is 'after'; choose one of own, before"):
        encoder.words(["a"], reading="after")
    with pytest.raises(UsageError, match="merge is 'max'; choose one of mean, first, last"):
        encoder.words(["a"], merge="max")
    with pytest.raises(UsageError, match="layer is 'all'; give a number"):
        encoder.words(["a"], layer="all")
    with pytest.raises(UsageError, match="there is no layer 99"):
        encoder.words(["a"], layer=99)


def cut(text):
    return [text[start:end] for start, end in find_words(text)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("हिन्दी में दो शब्द", ["हिन्दी", "में", "दो", "शब्द"]),
        (unicodedata.normalize("NFD", "café Müller"), ["cafe\u0301", "Mu\u0308ller"]),
        (
            "l'homme don\u2019t, 3.14 (1,000)",
            ["l'homme", "don\u2019t", ",", "3.14", "(", "1,000", ")"],
        ),
        ("我喜欢北京的烤鸭。", ["我", "喜欢", "北京", "的", "烤鸭", "。"]),
        ("私は東京に行く", ["私", "は", "東京", "に", "行く"]),
        ("ผมชอบกินข้าวผัดมาก", ["ผม", "ชอบ", "กิน", "ข้าว", "ผัด", "มาก"]),
        ("ខ្ញុំស្រលាញ់ប្រទេសកម្ពុជា", ["ខ្ញុំ", "ស្រលាញ់", "ប្រទេស", "កម្ពុជា"]),
        ("안녕하세요 세계", ["안녕하세요", "세계"]),
        (
            "\U0001f469\u200d\U0001f467 \U0001d4b3 \U0001f1e9\U0001f1ea!",
            ["\U0001f469\u200d\U0001f467", "\U0001d4b3", "\U0001f1e9\U0001f1ea", "!"],
        ),
        ("a\u200bb \x00\u2028\ufeff c", ["a", "b", "c"]),
        ("half \ud83d pair", ["half", "\ud83d", "pair"]),
        ("", []),
    ],
)
def test_words_are_cut_by_the_rules_of_unicode_and_by_dictionaries(text, words):
    assert cut(text) == words


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(
        st.one_of(
            st.characters(
                max_codepoint=0x97F, exclude_categories=["Cn"], exclude_characters="\u00b8"
            ),
            st.sampled_from(
                "'\u2019.,:;_-\u00ad\u0301\u200d \u3000\u30ab\u30bf\u0939\u0928\u094d\u0926\U0001f600\U0001d4b3"
            ),
        ),
        max_size=12,
    )
)
def test_words_are_those_of_another_implementation_of_the_rules(text):
    """Where no dictionary is asked; unassigned characters and U+00B8 differ between versions of Unicode."""
    invisible = ("Cc", "Cf", "Zs", "Zl", "Zp")
    others = []
    for piece in wordbreak.words(text):
        while piece and unicodedata.category(piece[0]) in invisible:
            piece = piece[1:]
        others += [piece] if piece else []
    assert cut(text) == others


def test_text_that_is_not_unicode_is_read_as_replacement_characters(encoder):
    for broken, sound in (("a \ud83d b", "a \ufffd b"), ("caf\udce9", "caf\ufffd")):
        assert torch.equal(encoder.encode([broken]), encoder.encode([sound]))
        (found,), (wanted,) = encoder.words([broken]), encoder.words([sound])
        assert found.words == wanted.words
        assert torch.equal(found.vectors_WD, wanted.vectors_WD)
        prompted = encoder.encode([broken], prompt="\ud83d:")
        assert torch.equal(prompted, encoder.encode([sound], prompt="\ufffd:"))
    (given,) = encoder.words([["a", "\ud83d"]])
    assert given.words == ("a", "\ufffd")
