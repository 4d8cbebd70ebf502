"""Tokens: which of them are a text's own, and a corpus of them on disk."""

import pytest
import torch
from conftest import DECODERS
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import dna
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from llm2vec import Encoder
from llm2vec.backbone.loading import load_tokenizer
from llm2vec.backbone.source import BUNDLED_FOLDER
from llm2vec.corpus.token_store import store_tokens
from llm2vec.encoder.settings import Settings
from llm2vec.encoder.templates import read_template
from llm2vec.encoder.tokenization import (
    Borders,
    Tokens,
    borders,
    encoder_tokens,
    forget_truncation,
    is_token_prefix,
    pooled_part,
    separator_for,
    shortened,
    tokenize,
    untruncated,
)
from llm2vec.errors import CorpusError, ModelError, UsageError

TOKENIZER = load_tokenizer(BUNDLED_FOLDER)
BORDERED = load_tokenizer(BUNDLED_FOLDER)
"""The same with a start and an end token."""
BORDERED.backend_tokenizer.post_processor = TemplateProcessing(
    single="<|endoftext|> $A <|endoftext|>",
    special_tokens=[("<|endoftext|>", BORDERED.eos_token_id)],
)
PLAIN = st.text(
    alphabet=st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30
)


@given(prompt=PLAIN, text=PLAIN)
def test_the_texts_own_tokens_hold_the_whole_text_and_next_to_nothing_of_the_prompt(prompt, text):
    (tokens,) = tokenize(TOKENIZER, [text], max_length=512, prompts=[prompt])
    own = TOKENIZER.decode(tokens.ids[tokens.first : tokens.end])
    before = TOKENIZER.decode(tokens.ids[: tokens.first])
    assert TOKENIZER.decode(tokens.ids) == prompt + text
    if (
        "\ufffd" not in own + before
    ):  # a character cut into bytes at the border shows no text on either side
        assert own.endswith(text)
        assert prompt.startswith(before)


@pytest.mark.parametrize("prompt", ["Find a match:", "Find a match: ", "Find a match:\n"])
def test_a_prompt_that_ends_in_a_space_takes_no_token_of_the_text(prompt):
    (with_prompt,) = tokenize(TOKENIZER, ["green doors"], max_length=512, prompts=[prompt])
    own = TOKENIZER.decode(with_prompt.ids[with_prompt.first : with_prompt.end])
    assert own.strip() == "green doors"


def test_a_long_text_is_cut_on_the_right_and_keeps_its_beginning():
    whole = tokenize(TOKENIZER, ["one two three four five six seven"], max_length=512)[0]
    cut = tokenize(TOKENIZER, ["one two three four five six seven"], max_length=4)[0]
    assert cut.ids == whole.ids[:4]
    assert (cut.first, cut.end) == (0, 4)


def test_a_prompt_that_leaves_no_room_is_an_error():
    with pytest.raises(UsageError, match="fills all 4 tokens"):
        tokenize(TOKENIZER, ["text"], max_length=4, prompts=["a very long prompt that never ends "])


def test_an_empty_text_behind_a_prompt_ends_where_the_prompt_does():
    (row,) = tokenize(BORDERED, [""], max_length=64, prompts=["Find it: "])
    assert row.first == row.end == len(row.ids) - 1


def test_an_empty_text_has_no_tokens_of_its_own():
    assert [each.first == each.end for each in tokenize(TOKENIZER, ["", "a"], max_length=8)] == [
        True,
        False,
    ]


def test_a_separator_keeps_prompt_and_text_in_tokens_of_their_own():
    separator = separator_for(TOKENIZER, ["Find it:", "Answer: "])
    alone, joined = TOKENIZER(["Find it:" + separator, "Find it:" + separator + "Some text"])[
        "input_ids"
    ]
    assert joined[: len(alone)] == alone
    assert is_token_prefix(TOKENIZER, "Find it:\n")
    assert not is_token_prefix(TOKENIZER, "Find it: ")
    assert is_token_prefix(BORDERED, "Find it:\n"), "an end token is not the prompt's"
    assert (separator, separator_for(TOKENIZER, [])) == ("\n", " ")


def test_borders_are_measured():
    edges = borders(TOKENIZER)
    assert (edges.before, edges.after) == (0, 0)


@pytest.mark.parametrize("before", [None, "<s>"])
@pytest.mark.parametrize("after", [None, "</s>"])
def test_borders_are_measured_on_what_the_tokenizer_can_read(before, after):
    """A tokenizer of DNA has no token for `a`, on which they were once measured."""
    tokenizer = dna(before=before, after=after)
    assert borders(tokenizer) == Borders(before=bool(before), after=bool(after))
    for prompt in (None, "GG"):
        (tokens,) = tokenize(
            tokenizer, ["CAT"], max_length=512, prompts=None if prompt is None else [prompt]
        )
        assert tokenizer.convert_ids_to_tokens(tokens.ids[tokens.first : tokens.end]) == list("CAT")
        assert tokenizer.decode(tokens.ids, skip_special_tokens=True).replace(" ", "") == (
            f"{prompt or ''}CAT"
        )


def test_a_vector_of_dna_is_the_mean_over_its_letters():
    model = Encoder.from_pretrained(DECODERS / "qwen3").model
    tokenizer = dna()
    encoder = Encoder(model, tokenizer)
    ids = tokenizer("GATTACA", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        states_TD = model(input_ids=ids).last_hidden_state[0]
    assert len(states_TD) == 9
    torch.testing.assert_close(encoder.encode("GATTACA"), states_TD[1:-1].mean(0))


def test_a_vocabulary_that_reads_nothing_is_an_error():
    empty = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE(vocab={}, merges=[])))
    with pytest.raises(ModelError, match="no text has a token"):
        borders(empty)


@given(text=PLAIN, prompt=st.none() | PLAIN, max_length=st.integers(3, 12))
def test_rows_are_cut_as_the_tokenizer_itself_would_cut_them(text, prompt, max_length):
    for tokenizer in (TOKENIZER, BORDERED):
        ids = tokenizer((prompt or "") + text, truncation=True, max_length=max_length)["input_ids"]
        try:
            (tokens,) = tokenize(
                tokenizer, [text], max_length=max_length, prompts=prompt and [prompt]
            )
        except UsageError:
            continue  # the prompt fills the row
        assert tokens.ids == ids


@pytest.mark.parametrize(
    ("skip_prompt", "pool_special", "pooled"),
    [
        (True, False, (2, 4)),
        (True, True, (2, 5)),
        (False, False, (1, 4)),
        (False, True, (0, 5)),
    ],
)
def test_prompts_and_special_tokens_are_pooled_as_the_settings_say(
    skip_prompt, pool_special, pooled
):
    """A start token, a prompt of one token, a text of two, and an end token."""
    own, edges = Tokens([0, 5, 6, 7, 1], first=2, end=4), Borders(before=1, after=1)
    found = pooled_part(own, edges, skip_prompt=skip_prompt, pool_special=pool_special)
    assert found == Tokens(own.ids, *pooled)
    (row,) = tokenize(
        BORDERED,
        ["green doors"],
        max_length=64,
        prompts=["Find it:\n"],
        skip_prompt=skip_prompt,
        pool_special=pool_special,
    )
    prompt = len(TOKENIZER("Find it:\n")["input_ids"])
    first = 1 + prompt if skip_prompt else 1 - pool_special
    assert (row.first, row.end) == (first, len(row.ids) - 1 + pool_special)


def test_a_border_by_prompts_stands_after_as_many_tokens_as_each_prompt_has_alone():
    prompts = ["Find it: ", "Look: ", "Find it: "]
    texts = ["one two three", "four five six", "seven eight nine"]
    rows = tokenize(BORDERED, texts, max_length=64, prompts=prompts, boundary="prompt")
    assert [row.first for row in rows] == [
        1 + len(TOKENIZER(prompt)["input_ids"]) for prompt in prompts
    ]


def test_a_shortened_text_keeps_its_first_tokens_and_no_half_of_a_character():
    texts = ["one two three four five six", "one two", "", "one two three", "one two\u9f98"]
    assert len(TOKENIZER("one two\u9f98")["input_ids"]) > 3
    found = shortened(BORDERED, texts, most=3)
    assert found == ["one two three", "one two", "", "one two three", "one two"]


def test_a_template_stands_around_the_prompt_and_the_text_which_loses_its_last_blanks():
    settings = Settings(template="user: {text} [end]", max_length=64, doc_max_length=3)
    texts = ["one two three four", "five "]
    for prompts in (None, ["Find it:\n", "Look:\n"]):
        rows = encoder_tokens(TOKENIZER, texts, settings=settings, prompts=prompts)
        wanted = ["one two three", "five"]
        for row, text, prompt in zip(rows, wanted, prompts or ("", ""), strict=True):
            assert TOKENIZER.decode(row.ids) == f"user: {prompt}{text} [end]"
            assert TOKENIZER.decode(row.ids[row.first : row.end]).strip() == f"{text} [end]"


def test_a_tokenizer_gives_what_is_asked_for_and_nothing_else():
    assert set(untruncated(TOKENIZER, ["a text"])) == {"input_ids"}
    asked = untruncated(TOKENIZER, ["a text"], return_offsets_mapping=True)
    assert set(asked) == {"input_ids", "offset_mapping"}
    assert untruncated(TOKENIZER, [])["input_ids"] == []


def test_a_tokenizer_that_others_have_set_to_cut_and_to_pad_does_neither():
    tokenizer = load_tokenizer(BUNDLED_FOLDER)
    tokenizer.model_max_length = 4
    texts = ["one two three four five six", "one"]
    tokenizer(texts, truncation=True, max_length=2, padding="max_length")
    backend = tokenizer.backend_tokenizer
    assert backend.truncation["max_length"] == backend.padding["length"] == 2
    assert untruncated(tokenizer, texts)["input_ids"] == TOKENIZER(texts)["input_ids"]
    tokenizer(texts, truncation=True, max_length=2, padding="max_length")
    forget_truncation(tokenizer)
    assert (backend.truncation, backend.padding) == (None, None)


def test_a_prompt_may_fill_a_row_whose_text_is_empty():
    prompt = "a very long prompt that never ends "
    (tokens,) = tokenize(TOKENIZER, [""], max_length=4, prompts=[prompt])
    assert tokens == Tokens(TOKENIZER(prompt)["input_ids"][:4], first=4, end=4)


def test_another_number_of_prompts_than_of_texts_is_an_error():
    with pytest.raises(ValueError, match="shorter|longer"):
        tokenize(TOKENIZER, ["a", "b"], max_length=8, prompts=["Find it: "])


def test_a_chat_template_loses_its_start_token_only_where_the_tokenizer_adds_one():
    message = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    for before, expected in (("<s>", "{text}"), (None, "<s>{text}")):
        tokenizer = dna(before=before)
        tokenizer.chat_template = message
        assert read_template("chat", tokenizer) == expected


def test_a_stored_corpus_gives_the_tokenizers_ids_back(tmp_path):
    texts = ["One text.", "", "Another, longer text.", "x"]
    store = store_tokens(TOKENIZER, texts, tmp_path / "store", max_length=None, min_tokens=2)
    expected = [ids for ids in TOKENIZER(texts)["input_ids"] if len(ids) >= 2]
    assert [store[index].tolist() for index in range(len(store))] == expected
    assert store.tokens == sum(map(len, expected))


def test_a_corpus_without_a_usable_text_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(CorpusError, match="none of the 2 texts has 3 tokens"):
        store_tokens(TOKENIZER, ["a", "b"], tmp_path / "store", max_length=None, min_tokens=3)
    assert list(tmp_path.iterdir()) == []
