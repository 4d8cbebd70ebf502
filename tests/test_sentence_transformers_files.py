"""Folders of sentence-transformers, today's format and older ones: read as they say, or refused."""

import json
import warnings

import numpy as np
import pytest
from conftest import DECODERS
from sentence_transformers import SentenceTransformer
from tokenizers.processors import TemplateProcessing
from typer.testing import CliRunner

from llm2vec import Encoder, LLM2Vec
from llm2vec.backbone.loading import load_tokenizer
from llm2vec.cli.main import app
from llm2vec.encoder.settings import Settings
from llm2vec.errors import LLM2VecError, ModelError, UsageError

TEXTS = ["The mill by the river has stood empty for years.", "Yes.", "Two trains left at nine."]
CLOSE = {"atol": 1e-5, "rtol": 1e-4}
MODULE = "sentence_transformers.models."


def with_special_tokens(tokenizer, *, before=True, after=True):
    """The tokenizer with a start token, an end token, or both."""
    token, index = tokenizer.eos_token, tokenizer.eos_token_id
    pieces = [token] * before + ["$A"] + [token] * after
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=" ".join(pieces), special_tokens=[(token, index)]
    )
    return tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A bidirectional model and its tokenizer with special tokens, and nothing that says how to pool."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    encoder = Encoder.from_pretrained(DECODERS / "qwen3")
    Encoder(encoder.model, with_special_tokens(encoder.tokenizer)).save(folder)
    for file in ("llm2vec_config.json", "modules.json", "config_sentence_transformers.json"):
        (folder / file).unlink()
    return folder


@pytest.fixture
def foreign(saved, tmp_path):
    """Writes a folder of sentence-transformers from its modules' configurations."""

    def write(modules, *, transformer=None, model=None, package=MODULE):
        folder = tmp_path / "foreign"
        folder.mkdir()
        for file in saved.iterdir():
            if file.is_file():
                (folder / file.name).symlink_to(file)
        rows = []
        for index, (kind, config) in enumerate({"Transformer": None, **modules}.items()):
            path = "" if config is None else f"{index}_{kind}"
            rows.append(
                {"idx": index, "name": str(index), "path": path, "type": f"{package}{kind}"}
            )
            if config is not None:
                (folder / path).mkdir()
                (folder / path / "config.json").write_text(json.dumps(config))
        (folder / "modules.json").write_text(json.dumps(rows))
        for name, values in (
            ("sentence_bert_config.json", transformer or {"max_seq_length": 512}),
            ("config_sentence_transformers.json", model),
        ):
            (folder / name).unlink(missing_ok=True)
            if values is not None:
                (folder / name).write_text(json.dumps(values))
        return folder

    return write


def older(mode, **more):
    """A pooling as it was written before it had a name."""
    flags = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens")
    flags += ("weightedmean_tokens", "lasttoken")
    return {
        "word_embedding_dimension": 64,
        **{f"pooling_mode_{flag}": flag == mode for flag in flags},
        **more,
    }


def both(folder, **call):
    """What sentence-transformers and we make of the texts."""
    opened = SentenceTransformer(str(folder), device="cpu")
    theirs = opened.encode(TEXTS, show_progress_bar=False, **call)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = Encoder.from_pretrained(folder).encode(TEXTS, convert_to_numpy=True, **call)
    return ours, theirs


POOLINGS = {
    "cls_token": "first",
    "mean_tokens": "mean",
    "weightedmean_tokens": "weighted_mean",
    "lasttoken": "last",
}


@pytest.mark.parametrize(("mode", "pooling"), POOLINGS.items())
@pytest.mark.parametrize("normalize", [False, True])
def test_the_older_flags_name_the_pooling(mode, pooling, normalize, foreign):
    modules = {"Pooling": older(mode), **({"Normalize": {}} if normalize else {})}
    folder = foreign(modules)
    settings = Encoder.from_pretrained(folder).settings
    assert (settings.pooling, settings.normalize) == (pooling, normalize)
    np.testing.assert_allclose(*both(folder), **CLOSE)


@pytest.mark.parametrize("mode", ["cls", "mean", "weightedmean", "lasttoken"])
def test_todays_name_of_the_pooling_is_read_too(mode, foreign):
    folder = foreign(
        {"Pooling": {"embedding_dimension": 64, "pooling_mode": mode}},
        package="sentence_transformers.sentence_transformer.modules.",
    )
    assert mode == "cls" or Encoder.from_pretrained(folder).settings.pooling != "first"
    np.testing.assert_allclose(*both(folder), **CLOSE)


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("mode", ["mean_tokens", "lasttoken"])
@pytest.mark.parametrize("prompt", ["Find it: ", "query:", "Given a question,\nfind its answer\n"])
def test_prompts_are_taken_to_the_letter_and_counted_as_sentence_transformers_counts(
    mode, include_prompt, prompt, foreign
):
    folder = foreign(
        {"Pooling": older(mode, include_prompt=include_prompt)},
        model={"prompts": {"query": prompt, "document": ""}, "default_prompt_name": None},
    )
    for name in (None, "query", "document"):
        np.testing.assert_allclose(*both(folder, prompt_name=name), **CLOSE)
    np.testing.assert_allclose(*both(folder, prompt="Another one: "), **CLOSE)


def test_a_default_prompt_is_the_default(foreign):
    folder = foreign(
        {"Pooling": older("mean_tokens", include_prompt=False)},
        model={"prompts": {"query": "Find it: "}, "default_prompt_name": "query"},
    )
    plain, prompted = both(folder), both(folder, prompt_name="query")
    np.testing.assert_allclose(*plain, **CLOSE)
    np.testing.assert_array_equal(plain[0], prompted[0])
    np.testing.assert_allclose(*both(folder, prompt=""), **CLOSE)


@pytest.mark.parametrize("longest", [{"max_seq_length": 5}, {}])
def test_the_longest_sequence_is_theirs_or_the_tokenizers(longest, foreign, saved):
    folder = foreign(
        {"Pooling": older("mean_tokens")}, transformer={**longest, "do_lower_case": False}
    )
    named = json.loads((saved / "tokenizer_config.json").read_text())["model_max_length"]
    assert Encoder.from_pretrained(folder).settings.max_length == (
        longest.get("max_seq_length", named)
    )
    np.testing.assert_allclose(*both(folder), **CLOSE)


def test_a_causal_embedder_stays_causal(saved, foreign, tmp_path):
    folder = foreign({"Pooling": older("lasttoken")})
    config = json.loads((saved / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**config, "is_causal": True}))
    encoder = Encoder.from_pretrained(folder)
    assert (encoder.settings.bidirectional, encoder.switch) == (False, None)
    np.testing.assert_allclose(*both(folder), **CLOSE)


def test_a_folder_that_sentence_transformers_saved_again_is_read_as_before(tmp_path):
    encoder = Encoder.from_pretrained(DECODERS / "qwen3", prompts={"query": "Find it:\n"})
    tokenizer = with_special_tokens(encoder.tokenizer)
    settings = Settings(prompts={"query": "Find it:"}, separator="\n", max_length=40)
    Encoder(encoder.model, tokenizer, settings=settings).save(tmp_path / "ours")
    SentenceTransformer(str(tmp_path / "ours"), device="cpu").save(str(tmp_path / "theirs"))
    assert not (tmp_path / "theirs" / "llm2vec_config.json").exists()
    ours, theirs = (Encoder.from_pretrained(tmp_path / name) for name in ("ours", "theirs"))
    assert theirs.settings.max_length == 40
    for name in (None, "query"):
        np.testing.assert_allclose(
            theirs.encode(TEXTS, prompt_name=name), ours.encode(TEXTS, prompt_name=name), **CLOSE
        )


REFUSED = {
    "dense": ({"Pooling": older("mean_tokens"), "Dense": {"in_features": 64}}, "module .*Dense"),
    "max": ({"Pooling": older("max_tokens")}, "pooling 'max' is not read here"),
    "root": ({"Pooling": older("mean_sqrt_len_tokens")}, "pooling 'mean_sqrt_len_tokens' is not"),
    "two": (
        {"Pooling": older("mean_tokens", pooling_mode_cls_token=True)},
        "pooling 'cls,mean' is not read here",
    ),
    "several": (
        {"Pooling": {"pooling_mode": ["cls", "mean"]}},
        "pooling 'cls,mean' is not read here",
    ),
    "cls after a prompt": (
        {"Pooling": older("cls_token", include_prompt=False)},
        "'cls' with include_prompt false",
    ),
    "weights after a prompt": (
        {"Pooling": older("weightedmean_tokens", include_prompt=False)},
        "'weightedmean' with include_prompt false",
    ),
    "order": ({"Normalize": {}, "Pooling": older("mean_tokens")}, "in the order"),
    "no pooling": ({}, "a Transformer and a Pooling among them"),
    "word weights": (
        {
            "WordWeights": {"word_weights": {"the": 0.2}, "unknown_word_weight": 1},
            "Pooling": older("mean_tokens"),
        },
        "weights its words one by one",
    ),
    "stop words": (
        {
            "WordWeights": {"word_weights": {"the": 0.0}, "unknown_word_weight": 1},
            "Pooling": older("mean_tokens"),
        },
        "weights its words one by one",
    ),
}


@pytest.mark.parametrize(("modules", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_done_here_is_refused(modules, said, foreign):
    with pytest.raises(ModelError, match=said):
        Encoder.from_pretrained(foreign(modules))


def test_other_ways_to_read_texts_and_modules_of_others_are_refused(foreign):
    folder = foreign({"Pooling": older("mean_tokens")})
    for asked in (
        {"do_lower_case": True},
        {"query_length": 32},
        {"transformer_task": "fill-mask"},
    ):
        said = next(iter(asked)) if "transformer_task" not in asked else "fill-mask"
        values = {"max_seq_length": 512, **asked}
        (folder / "sentence_bert_config.json").write_text(json.dumps(values))
        with pytest.raises(ModelError, match=f"asks for {said}"):
            Encoder.from_pretrained(folder)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 512}))
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "custom_st.Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match="module custom_st.Transformer, which is not read here"):
        Encoder.from_pretrained(folder)


def test_a_template_is_never_guessed_for_a_folder_that_says_how_it_is_read(foreign, saved):
    folder = foreign({"Pooling": older("mean_tokens")})
    config = json.loads((saved / "config.json").read_text())
    (folder / "config.json").unlink()
    name = "Qwen/Qwen2-1.5B-Instruct"
    (folder / "config.json").write_text(json.dumps({**config, "_name_or_path": name}))
    assert Encoder.from_pretrained(folder).settings.template is None


# --- what cannot be written


@pytest.mark.parametrize(
    ("before", "after", "settings", "said"),
    [
        (True, False, {"pooling": "weighted_mean"}, "begins every text with a special token"),
        (False, True, {"pooling": "weighted_mean"}, "ends every text with a special token"),
        (False, True, {"pooling": "weighted_mean", "normalize": True}, None),
        (False, False, {"pooling": "weighted_mean"}, None),
        (
            False,
            False,
            {"pooling": "weighted_mean", "prompts": {"query": "Find it:"}},
            "no weighted_mean that leaves out a prompt",
        ),
        (False, False, {"pooling": "weighted_mean", "prompts": {"document": ""}}, None),
        (True, True, {"pooling": "weighted_mean", "skip_prompt": False}, None),
        (True, True, {"pooling": "mean", "prompts": {"document": "", "query": " "}}, None),
        (True, True, {"pooling": "mean", "prompts": {"query": "Find it:"}}, None),
        (
            True,
            True,
            {"pooling": "mean", "prompts": {"query": "Find it:"}, "separator": " "},
            "has other tokens alone",
        ),
        (True, True, {"pooling": "last", "prompts": {"query": "Find it:"}, "separator": " "}, None),
        (True, True, {"pooling": "first", "prompts": {"document": ""}}, None),
        (True, True, {"pooling": "mean", "pool_special": True}, None),
        (True, False, {"pooling": "mean", "skip_prompt": False, "pool_special": False}, None),
    ],
)
def test_what_others_read_differently_is_said_and_all_else_reads_the_same(
    before, after, settings, said, tmp_path
):
    encoder = Encoder.from_pretrained(DECODERS / "qwen3")
    tokenizer = with_special_tokens(load_tokenizer(DECODERS / "qwen3"), before=before, after=after)
    own = Settings(**{"separator": "\n", **settings})
    encoder = Encoder(encoder.model, tokenizer, settings=own)
    if said is not None:
        with pytest.warns(UserWarning, match=said):
            encoder.save(tmp_path / "saved")
        return
    encoder.save(tmp_path / "saved")
    opened = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    for name in (None, *encoder.settings.prompts):
        normalize = name is not None and bool(encoder.settings.prompts[name].strip())
        theirs = opened.encode(TEXTS, prompt_name=name, normalize_embeddings=normalize)
        ours = encoder.encode(TEXTS, prompt_name=name, normalize=normalize or None)
        np.testing.assert_allclose(theirs, ours, **CLOSE)


@pytest.fixture
def decoder(tmp_path):
    """A decoder whose tokenizer begins every text with a start token."""
    folder = tmp_path / "decoder"
    folder.mkdir()
    for file in (DECODERS / "qwen3").iterdir():
        (folder / file.name).symlink_to(file)
    tokenizer = with_special_tokens(load_tokenizer(folder), after=False)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    tokenizer.save_pretrained(folder)
    return folder


FAST = ["mntp.steps=1", "simcse.steps=0", "mntp.max_length=16", "mntp.batch_size=2"]
FAST += ["encoder.max_length=64"]


def converted(decoder, corpus, out, *sets):
    asked = ["convert", str(decoder), "--corpus", str(corpus), "--out", str(out)]
    for each in (*FAST, *sets):
        asked += ["--set", each]
    return CliRunner().invoke(app, asked)


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["encoder.pooling=weighted_mean"], "begins every text with a special token"),
        (
            ["encoder.prompts={query: 'Find it:'}", "encoder.separator=' '"],
            "has other tokens alone",
        ),
    ],
)
def test_convert_says_before_it_trains_what_the_folder_could_not_say(
    sets, said, decoder, corpus, tmp_path
):
    done = converted(decoder, corpus, tmp_path / "out", *sets)
    assert isinstance(done.exception, UsageError)
    assert said in str(done.exception)
    assert not list(tmp_path.glob("out*/*-*"))


def test_convert_with_an_empty_prompt_ends_well(decoder, corpus, tmp_path):
    done = converted(
        decoder, corpus, tmp_path / "out", "encoder.prompts={document: '', query: 'Find it:'}"
    )
    assert done.exception is None, done.exception
    opened = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    encoder = Encoder.from_pretrained(tmp_path / "out")
    for name in (None, "document"):
        np.testing.assert_allclose(
            opened.encode(TEXTS, prompt_name=name), encoder.encode(TEXTS, prompt_name=name), **CLOSE
        )


def test_a_saved_folder_without_our_settings_is_read_from_theirs(tmp_path):
    drop_in = LLM2Vec.from_pretrained(DECODERS / "qwen3")
    tokenizer = with_special_tokens(drop_in.tokenizer)
    LLM2Vec(drop_in.model, tokenizer).save(tmp_path / "saved", save_config=False)
    again = Encoder.from_pretrained(tmp_path / "saved")
    assert not again.settings.pools_special
    np.testing.assert_allclose(
        again.encode(TEXTS), LLM2Vec(drop_in.model, tokenizer).encode(TEXTS), **CLOSE
    )


def test_settings_that_do_not_exist_are_refused_with_the_file(tmp_path):
    encoder = Encoder.from_pretrained(DECODERS / "qwen3")
    encoder.save(tmp_path / "saved")
    path = tmp_path / "saved" / "llm2vec_config.json"
    path.write_text(json.dumps({"poling": "mean"}))
    with pytest.raises(LLM2VecError, match=r"llm2vec_config.json: there is no setting 'poling'"):
        Encoder.from_pretrained(tmp_path / "saved")
