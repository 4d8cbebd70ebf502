"""The defects of the first implementation (llm2vec 0.2.3), D1 to D18: what is right here instead.

Each docstring names its defect and what it was. What the defect would have shown is in the test, where it can be.
"""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import DECODERS
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import AutoModel, Qwen2Config, Qwen2Model

from llm2vec import LLM2Vec
from llm2vec.backbone.adapter_chain import find_chain
from llm2vec.backbone.loading import load_decoder, load_tokenizer
from llm2vec.backbone.lora import add_adapters
from llm2vec.backbone.source import Source
from llm2vec.backbone.switch import make_bidirectional, save_model
from llm2vec.corpus.tagged import TaggedSentence
from llm2vec.corpus.text_store import store_texts
from llm2vec.corpus.token_store import store_tokens
from llm2vec.corpus.triples import store_triples
from llm2vec.encoder.batching import is_packed
from llm2vec.encoder.settings import Settings
from llm2vec.encoder.tokenization import Tokens, shortened
from llm2vec.evaluation.probe import probe, read_split
from llm2vec.evaluation.tagger import Tagger, save_probe
from llm2vec.legacy.import_chain import import_encoder
from llm2vec.recipe.knobs import MntpRecipe, PairsRecipe, SimcseRecipe
from llm2vec.runtime.progress import Silent
from llm2vec.training.contrastive import ContrastiveLoss, contrastive_batch, contrastive_loss
from llm2vec.training.mntp import Masking, collate, mntp_loss, mntp_task
from llm2vec.training.simcse import simcse_task
from llm2vec.training.stage import train_and_merge

FAMILIES = ("qwen3", "gpt2", "gemma3")
POOLINGS = ("mean", "weighted_mean", "last", "first")
TEXTS = [
    "The mill by the river has stood empty for years.",
    "Yes.",
    "Rain is expected in the north, while the south stays dry and warm until the weekend.",
    "Two trains left at nine.",
]
SEPARATOR = "!@#$%^&*()"
PROMPT = "Retrieve texts about the weather:"

ROUNDING = 1e-5
"""Of a float32 vector computed in a batch of another shape, relative to its length."""
ROUNDING_BFLOAT16 = 2e-2
"""The same in bfloat16, whose numbers have 8 bits: a few roundings of 1/256 in each of the layers."""
ROUNDING_LOSS = 1e-4
"""Of a float32 loss, relative, from products of other shapes."""


def distance(ours, theirs):
    ours, theirs = np.asarray(ours.detach()), np.asarray(theirs.detach())
    lengths = np.linalg.norm(theirs, axis=-1).clip(1e-9)
    return float((np.linalg.norm(ours - theirs, axis=-1) / lengths).max())


def body(name="qwen3", **loading):
    """A bidirectional body in float32."""
    model = load_decoder(DECODERS / name, head=False, dtype=torch.float32, **loading).eval()
    make_bidirectional(model)
    return model


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(DECODERS / "qwen3")


@pytest.fixture(scope="module")
def opened():
    """An encoder of each tiny family."""
    return {name: LLM2Vec.from_pretrained(DECODERS / name) for name in FAMILIES}


def changed(encoder, **changes):
    """Another encoder on the same weights."""
    return LLM2Vec(encoder.model, encoder.tokenizer, settings=encoder.settings.changed(**changes))


def by_hand(encoder, text, pooling="mean", *, prompt=""):
    """A vector from the model's states of one unpadded row; what follows the prompt is found by decoding."""
    ids = encoder.tokenizer(prompt + text)["input_ids"]
    own = next(
        start
        for start in range(len(ids))
        if len(encoder.tokenizer.decode(ids[: start + 1])) > len(prompt)
    )
    with torch.inference_mode():
        states_TD = encoder.model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[
            0, own:
        ]
    weight_T = (
        torch.arange(1.0, len(states_TD) + 1)
        if pooling == "weighted_mean"
        else torch.ones(len(states_TD))
    )
    return weight_T @ states_TD / weight_T.sum()


# --- D1


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_state_of_a_qwen2_sees_the_last_token_with_and_without_padding(attention, tmp_path):
    """D1: Qwen2 stayed causal under eager and SDPA attention."""
    shutil.copytree(DECODERS / "qwen3", tmp_path / "qwen2")
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    torch.manual_seed(0)
    Qwen2Model(Qwen2Config(vocab_size=6144, num_key_value_heads=2, **shape)).save_pretrained(
        tmp_path / "qwen2"
    )
    LLM2Vec.from_pretrained(tmp_path / "qwen2", attention=attention).save(tmp_path / "encoder")
    plain = AutoModel.from_pretrained(
        tmp_path / "encoder", attn_implementation=attention, dtype=torch.float32
    ).eval()
    first, second = torch.tensor([[5, 6, 7, 8, 1, 1]]), torch.tensor([[5, 6, 7, 9, 1, 1]])
    for padding in (0, 2):
        mask_BT = torch.ones(1, 4 + padding).long()
        mask_BT[:, 4:] = 0
        with torch.inference_mode():
            before, after = (
                plain(input_ids=ids[:, : 4 + padding], attention_mask=mask_BT).last_hidden_state[
                    0, :3
                ]
                for ids in (first, second)
            )
        assert (before - after).abs().amax(dim=1).min() > 1e-4, (
            "causal states would be the same to the bit"
        )


# --- D2


def with_start_token(tokenizer_of="qwen3"):
    """A tokenizer of its own that begins every text with its start token."""
    made = load_tokenizer(DECODERS / tokenizer_of)
    start = str(made.bos_token)
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, made.bos_token_id)]
    )
    return made


@pytest.mark.parametrize("pooling", ["mean", "weighted_mean"])
def test_simcse_pools_a_texts_own_tokens_whatever_they_are_padded_to(pooling, tmp_path):
    """D2: without a separator in the text, SimCSE pooled the whole padded row, start token and all."""
    model, tokenizer = body(), with_start_token()
    model.set_attn_implementation("sdpa")  # padded rows
    alone = []
    for text in TEXTS:
        with torch.inference_mode():
            states_TD = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, 1:]
        weight_T = torch.arange(1.0, len(states_TD) + 1) ** (pooling == "weighted_mean")
        alone.append(weight_T @ states_TD / weight_T.sum())
    expected = float(contrastive_loss(torch.stack(alone), torch.stack(alone), scale=20.0))
    settings = Settings(max_length=32, pooling=pooling)
    store = store_texts(tokenizer, TEXTS, tmp_path / "texts", settings=settings)
    changes = {"log_every": 1, "lora": {"dropout": 0.0}, "precision": "float32"}
    recipe = SimcseRecipe(steps=1, batch_size=len(TEXTS), max_length=32, **changes)
    task = simcse_task(model, tokenizer, store, recipe, pooling=pooling, seed=0)
    # no dropout at all: both views are the same
    _, log = train_and_merge(
        model, task, recipe, folder=tmp_path / "run", seed=0, progress=Silent()
    )
    assert log[0]["loss"] == pytest.approx(expected, rel=ROUNDING_LOSS)


@pytest.mark.parametrize("pooling", ["mean", "weighted_mean"])
def test_tokenize_and_forward_need_no_separator_to_tell_texts_from_padding(pooling, opened):
    """D2: the same for any code that called `tokenize` and `forward`."""
    for encoder in opened.values():
        encoder = changed(encoder, pooling=pooling)
        with torch.inference_mode():
            together = encoder(encoder.tokenize(TEXTS))
        assert (
            distance(together, torch.stack([by_hand(encoder, text, pooling) for text in TEXTS]))
            < ROUNDING
        )


# --- D3; whole runs of two processes against one are in tests/test_conversion.py and tests/test_supervised.py


@pytest.fixture
def alone_in_a_group(tmp_path):
    """This process as the only one of a group."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("stage", ["MNTP", "contrastive"])
def test_every_trained_gradient_passes_through_what_shares_it_between_processes(
    stage, tokenizer, alone_in_a_group
):
    """D3: the loss called the model inside the wrapper, so that gradients never reached the other processes."""
    model = load_decoder(DECODERS / "qwen3", head=stage == "MNTP", dtype=torch.float32)
    make_bidirectional(model)
    adapted = add_adapters(model, MntpRecipe())
    wrapped = nn.parallel.DistributedDataParallel(adapted)
    shared = 0

    def count(_, bucket):
        nonlocal shared
        shared += bucket.buffer().numel()
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    wrapped.register_comm_hook(None, count)
    ids = tokenizer(TEXTS)["input_ids"]
    if stage == "MNTP":
        masking = Masking(probability=0.5, whole=False, mask_id=9, vocabulary=4000, special=(0, 1))
        rows, seeds = [[np.array(row)] for row in ids], [(0, number) for number in range(len(ids))]
        batch, loss = collate(rows, seeds, masking, packed=is_packed(model), pad_id=1), mntp_loss
    else:
        pairs = [(Tokens(row, 0, len(row)),) * 2 for row in ids]
        batch, loss = (
            contrastive_batch(pairs, packed=is_packed(model), pad_id=1),
            ContrastiveLoss(20.0, "mean"),
        )
    batch.pop("tokens")
    loss(wrapped, batch, None).backward()
    assert (
        shared == sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad) > 0
    )


# --- D4

AFTER_A_JOINT = (
    "the",
    "weather",
    "mill",
    "river",
    "train",
    "xylophone",
    "internationalization",
    "don't",
    "naïve",
    "河",
)


@pytest.mark.parametrize("name", FAMILIES)
def test_pooled_are_the_texts_own_tokens_where_it_tokenises_otherwise_behind_a_prompt(name, opened):
    """D4: their number was guessed from the text tokenised alone."""
    encoder = opened[name]
    guessed_wrong = 0
    for text in AFTER_A_JOINT:
        features = encoder.tokenize([[PROMPT, text]])
        ids, own = features["input_ids"][0], features["embed_mask"][0].bool()
        assert encoder.tokenizer.decode(ids[own]).strip() == text
        assert encoder.tokenizer.decode(ids[~own]).strip() == PROMPT
        assert (
            distance(
                encoder.encode([PROMPT, text, 0])[0], by_hand(encoder, text, prompt=PROMPT + " ")
            )
            < ROUNDING
        )
        guessed_wrong += len(encoder.tokenizer(text)["input_ids"]) != int(own.sum())
    assert guessed_wrong >= 3, "these texts would not show the defect"


def test_a_cut_text_pools_what_is_left_of_it_and_nothing_of_its_prompt(opened, tmp_path):
    """D4: after truncation the guess reached back into the instruction, in training and in encoding."""
    encoder = changed(opened["qwen3"], max_length=32)
    text = "the river " * 40
    prompt_tokens = len(encoder.tokenizer(PROMPT)["input_ids"])
    (found,) = encoder.tokens([text], prompts=[PROMPT + " "])
    assert (len(found.ids), found.first, found.end) == (32, prompt_tokens, 32)
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"query": text, "positive": text, "negative": text})
    )
    pairs = PairsRecipe(source=str(tmp_path / "rows.jsonl"), prompts={"rows": PROMPT})
    triples = store_triples(encoder.tokenizer, pairs, tmp_path / "t", settings=encoder.settings)
    trained = triples(0, 0)
    assert (len(trained[0].ids), trained[0].first, trained[0].end) == (32, prompt_tokens, 32)


# --- D5


class Counted:
    """A tokenizer that counts its calls."""

    def __init__(self, tokenizer):
        self.tokenizer, self.calls = tokenizer, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.tokenizer(*args, **kwargs)

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


@pytest.mark.parametrize(
    "text", ["这是一个没有空格的长文档" * 90, "word\t  two\n\n" * 300, "x" * 3000]
)
def test_a_long_text_keeps_its_beginning_to_the_letter_with_or_without_spaces(text, opened):
    """D5: shortening counted words at spaces: a text without any became the empty string, others lost line breaks."""
    encoder = changed(opened["qwen3"], doc_max_length=20)
    counted = Counted(encoder.tokenizer)
    (short,) = shortened(counted, [text], most=20)
    assert counted.calls == 1, "0.2.3 tokenised a text again for each cut"
    assert short
    assert text.startswith(short)
    assert 15 <= len(encoder.tokenizer(short)["input_ids"]) <= 20
    assert encoder.encode(text).norm() > 0
    assert distance(encoder.encode(text), encoder.encode(short)) < ROUNDING


# --- D6


def untied(folder):
    """A tiny qwen3 whose LM head has weights of its own, as those of Llama 3 have."""
    shutil.copytree(DECODERS / "qwen3", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].flip(1).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model = load_decoder(folder, head=True, dtype=torch.float32)
    make_bidirectional(model)
    return model


@pytest.mark.parametrize("train_head", [False, True])
def test_the_lm_head_is_frozen_or_trained_and_kept(train_head, tokenizer, corpus, tmp_path):
    """D6: MNTP trained the whole LM head of untied models, and threw it away."""
    model = untied(tmp_path / "untied")
    head = model.lm_head.weight.detach().clone()
    query = model.model.layers[0].self_attn.q_proj.weight.detach().clone()
    store = store_tokens(
        tokenizer, corpus.read_text().splitlines(), tmp_path / "tokens", max_length=None
    )
    changes = {
        "steps": 2,
        "batch_size": 4,
        "max_length": 32,
        "eval_blocks": 2,
        "learning_rate": 1e-2,
    }
    recipe = MntpRecipe(**changes, train_head=train_head)
    task = mntp_task(model, tokenizer, store, recipe, seed=0)
    after, _ = train_and_merge(
        model, task, recipe, folder=tmp_path / "run", seed=0, progress=Silent()
    )
    assert not torch.equal(after.model.layers[0].self_attn.q_proj.weight, query)
    assert torch.equal(after.lm_head.weight, head) != train_head
    save_model(after, tmp_path / "saved")
    kept = load_file(tmp_path / "saved" / "model.safetensors")["lm_head.weight"]
    assert torch.equal(kept, after.lm_head.weight)


def test_what_trains_beside_a_frozen_head_is_adapters_alone(tokenizer, corpus, tmp_path):
    """D6: half a billion weights of Llama 3 had gradients and optimiser state."""
    model = untied(tmp_path / "untied")
    trained = set()
    model.lm_head.register_forward_hook(
        lambda *_: trained.update(
            name for name, weight in model.named_parameters() if weight.requires_grad
        )
    )
    store = store_tokens(
        tokenizer, corpus.read_text().splitlines(), tmp_path / "tokens", max_length=None
    )
    recipe = MntpRecipe(steps=1, batch_size=2, max_length=32, eval_blocks=2)
    task = mntp_task(model, tokenizer, store, recipe, seed=0)
    train_and_merge(model, task, recipe, folder=tmp_path / "run", seed=0, progress=Silent())
    assert trained
    assert all("lora" in name for name in trained)


# --- D7


def test_one_string_is_one_text_and_no_texts_are_no_vectors(encoder):
    """D7: `encode("hello")` gave a vector for each letter, `encode([])` an IndexError."""
    assert encoder.encode("hello").shape == (encoder.dimension,)
    torch.testing.assert_close(encoder.encode("hello"), encoder.encode(["hello"])[0])
    assert encoder.encode([]).shape == (0, encoder.dimension)
    assert encoder.encode([], convert_to_numpy=True).shape == (0, encoder.dimension)
    assert encoder.encode([PROMPT, "hello", 0]).shape == (1, encoder.dimension), "as in 0.2.3"


# --- D8


@pytest.mark.parametrize("pooling", POOLINGS)
def test_an_empty_text_has_the_same_vector_alone_and_beside_any_other(pooling, opened):
    """D8: it was pooled over its padded row, and moved with its batch."""
    for encoder in opened.values():
        encoder = changed(encoder, pooling=pooling)
        for empty, others in (("", TEXTS), (["", ""], [["", text] for text in TEXTS])):
            assert float(encoder.encode([empty, *others])[0].norm()) == 0
        assert float(encoder.encode("").norm()) == 0
        prompted = encoder.encode([[PROMPT, ""], *([PROMPT, text] for text in TEXTS)])[0]
        assert torch.equal(prompted, encoder.encode([PROMPT, "", 0])[0])
        framed = changed(encoder, template="Question: {text} end")
        assert distance(framed.encode(["", *TEXTS])[0], framed.encode("")) < ROUNDING


@pytest.mark.parametrize("others", [[], TEXTS])
@pytest.mark.parametrize("name", FAMILIES)
def test_an_empty_text_goes_through_tokenize_and_forward_too(name, others, opened):
    """D8: the same for any code that called them."""
    encoder = opened[name]
    with torch.inference_mode():
        found = encoder(encoder.tokenize(["", *others]))
    assert found.shape == (1 + len(others), encoder.dimension)
    assert float(found[0].norm()) == 0
    assert not others or distance(found[1:], encoder.encode(others)) < ROUNDING


# --- D9


def test_texts_are_joined_to_their_prompts_in_training_as_in_encoding_on_both_sides_of_a_symmetric_task(
    opened, tmp_path
):
    """D9: training joined by "; ", evaluation by ": ", and symmetric tasks' positives never got their prompt."""
    row = dict(zip(("anchor", "positive", "negative"), TEXTS, strict=False))
    for name in ("quora", "nq"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    given = {"prompts": {"quora": [PROMPT], "nq": [PROMPT]}, "both_sides": ["quora"]}
    for separator in (" ", "\n"):
        encoder = changed(opened["qwen3"], separator=separator, max_length=64)
        pairs = PairsRecipe.model_validate({"source": str(tmp_path), **given})
        folder = tmp_path / f"stored-{ord(separator)}"
        triples = store_triples(encoder.tokenizer, pairs, folder, settings=encoder.settings)
        for number, each in enumerate(triples.data_sets):
            prompted = (True, each.name == "quora", each.name == "quora")
            for found, text, has_prompt in zip(triples(number, 0), TEXTS, prompted, strict=False):
                features = encoder.tokenize([[PROMPT if has_prompt else "", text]])
                assert found.ids == features["input_ids"][0].tolist()
                own = features["embed_mask"][0].nonzero().flatten().tolist()
                assert list(range(found.first, found.end)) == own
                wanted = encoder.encode(text, prompt=PROMPT if has_prompt else None)
                assert distance(encoder.encode_tokens([found])[0], wanted) < ROUNDING


# --- D10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scaled_similarities_a_tenth_apart_are_told_apart_in_half_precision(dtype):
    """D10: 40 + 0.1 was 40, since cosines times 50 were bfloat16."""
    anchor_BD = torch.tensor([[1.0, 0.0]]).to(dtype)
    pair_BD = torch.tensor([[0.802, 0.597], [0.800, 0.600]]).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = contrastive_loss(anchor_BD, pair_BD[:1], scale=50.0, negative_ND=pair_BD[1:])
    exact_BD = torch.nn.functional.normalize(pair_BD.double(), dim=-1)
    scores_2 = 50 * exact_BD @ anchor_BD.double()[0]
    expected = float(torch.log1p(torch.exp(scores_2[1] - scores_2[0])))
    coarse_2 = scores_2.bfloat16().double()
    assert abs(float(torch.log1p(torch.exp(coarse_2[1] - coarse_2[0]))) - expected) > 1e-3, (
        "would not show it"
    )
    assert float(found) == pytest.approx(expected, abs=1e-4)


# --- D11

SENTENCES = [
    TaggedSentence(("Dogs", "bark", "."), ("NOUN", "VERB", "PUNCT")),
    TaggedSentence(("Run",), ("VERB",)),
]


def test_words_are_read_without_dropout_also_from_a_model_in_training():
    """D11: the word task was tested with dropout on."""
    encoder = LLM2Vec.from_pretrained(DECODERS / "gpt2")  # its dropout is 0.1
    expected = torch.cat([words.vectors_WD for words in encoder.words(TEXTS)])
    probed = read_split(encoder, SENTENCES).vectors
    encoder.train()
    found = torch.cat([words.vectors_WD for words in encoder.words(TEXTS)])
    assert distance(found, expected) < ROUNDING
    for reading, vectors_LND in read_split(encoder, SENTENCES).vectors.items():
        assert distance(vectors_LND, probed[reading]) < ROUNDING
    assert encoder.model.training


def test_sentences_are_encoded_without_dropout_also_by_a_model_in_training():
    """D11, for sentences."""
    encoder = LLM2Vec.from_pretrained(DECODERS / "gpt2")
    expected = encoder.encode(TEXTS)
    encoder.train()
    assert distance(encoder.encode(TEXTS), expected) < ROUNDING
    assert encoder.model.training


@pytest.mark.parametrize("reading", ["own", "before"])
def test_the_first_word_has_a_vector_and_a_label_without_a_start_token(reading, opened):
    """D11: read one token earlier, it was left out where the tokenizer adds no start token."""
    encoder = opened["qwen3"]
    assert encoder.words(["the mill"], reading=reading)[0].vectors_WD.norm(dim=1).min() > 0
    alone = [
        TaggedSentence(("the",), ("DET",)),
        TaggedSentence(("standing",), ("VERB",)),
    ] * 20  # a token each
    found = probe(encoder, alone, alone, reading=reading, seeds=1)
    assert (found.accuracy, found.unseen) == (1.0, 0)


def test_a_probe_is_kept_without_pickles_and_knows_its_encoder(tmp_path):
    """D11: the classifier was a pickle that torch 2.6 refuses, and one configuration named another model's."""
    source = str(DECODERS / "qwen3")
    found = probe(LLM2Vec.from_pretrained(source), SENTENCES * 20, SENTENCES, seeds=1)
    save_probe(found, tmp_path / "probe", encoder=source)
    assert {path.suffix for path in (tmp_path / "probe").iterdir()} == {".json", ".safetensors"}
    tagger = Tagger.open(tmp_path / "probe")
    assert (tmp_path / "probe" / tagger.facts.encoder).resolve() == DECODERS / "qwen3"
    assert [span.label for span in tagger.tag(["Dogs bark ."])[0]] == ["NOUN", "VERB", "PUNCT"]


# --- D12


def named(folder, name):
    """A copy of the tiny qwen3 whose configuration says that it is another model."""
    shutil.copytree(DECODERS / "qwen3", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "_name_or_path": name}))
    return folder


def test_a_template_stays_with_its_encoder_under_any_name(tmp_path):
    """D12: templates were looked up by the model's exact name each time; local copies had none, silently."""
    wrapped = LLM2Vec.from_pretrained(named(tmp_path / "copy", "Qwen/Qwen2-1.5B-Instruct"))
    assert wrapped.settings.template == "<|im_start|>user\n{text}<|im_end|>"
    assert (
        distance(wrapped.encode(TEXTS), LLM2Vec.from_pretrained(DECODERS / "qwen3").encode(TEXTS))
        > 0.01
    )
    with pytest.warns(UserWarning, match="sentence-transformers does not wrap texts"):
        wrapped.save(tmp_path / "saved")
    (tmp_path / "saved").rename(tmp_path / "renamed")
    config = json.loads((tmp_path / "renamed" / "config.json").read_text())
    (tmp_path / "renamed" / "config.json").write_text(
        json.dumps({**config, "_name_or_path": "someone/else"})
    )
    again = LLM2Vec.from_pretrained(tmp_path / "renamed")
    assert again.settings.template == wrapped.settings.template
    assert distance(again.encode(TEXTS), wrapped.encode(TEXTS)) < ROUNDING


def test_a_saved_encoder_knows_whether_it_is_bidirectional(tmp_path):
    """D12: `llm2vec_config.json` did not say."""
    for wanted in (True, False):
        made = LLM2Vec.from_pretrained(DECODERS / "qwen3", enable_bidirectional=wanted)
        made.save(tmp_path / str(wanted))
        again = LLM2Vec.from_pretrained(tmp_path / str(wanted))
        assert (again.switch is not None) == again.settings.bidirectional == wanted
        assert distance(again.encode(TEXTS), made.encode(TEXTS)) < ROUNDING


def adapter(folder, *, seed):
    """An adapter of the tiny qwen3 with an effect."""
    torch.manual_seed(seed)
    model = load_decoder(DECODERS / "qwen3", head=False, dtype=torch.float32)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False
    )
    get_peft_model(model, config).save_pretrained(folder)
    return folder


def test_an_imported_encoder_says_what_was_merged_in_which_order(tmp_path):
    """D12: nothing recorded the chain of adapters."""
    mntp, simcse = (
        adapter(tmp_path / name, seed=seed)
        for seed, name in enumerate(("tiny-mntp", "tiny-unsup-simcse"))
    )
    import_encoder(find_chain(Source(DECODERS / "qwen3"), [simcse, mntp]), tmp_path / "out")
    told = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert [each["source"] for each in told["imported"]] == [
        str(DECODERS / "qwen3"),
        str(mntp),
        str(simcse),
    ]
    assert all(each["fingerprint"] for each in told["imported"])
    assert (
        json.loads((tmp_path / "out" / "llm2vec_config.json").read_text())["bidirectional"] is True
    )


# --- D13


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub's cache filled by hand: an encoder and an adapter, each with two revisions; nothing is downloaded."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for number, (revision, length) in enumerate((("main", 64), ("v2", 128))):
        snapshot = tmp_path / "models--tiny--encoder" / "snapshots" / (str(number) * 40)
        shutil.copytree(DECODERS / FAMILIES[number], snapshot)
        (snapshot / "llm2vec_config.json").write_text(
            json.dumps({"pooling_mode": "mean", "max_length": length})
        )
        (tmp_path / "models--tiny--encoder" / "refs").mkdir(exist_ok=True)
        (tmp_path / "models--tiny--encoder" / "refs" / revision).write_text(str(number) * 40)
    repository = tmp_path / "models--tiny--adapter"
    (repository / "refs").mkdir(parents=True)
    for number, (revision, length) in enumerate((("main", 32), ("r2", 16)), start=2):
        snapshot = repository / "snapshots" / (str(number) * 40)
        shutil.copytree(adapter(tmp_path / f"adapter-{revision}", seed=number), snapshot)
        settings = {"pooling_mode": "weighted_mean", "max_length": length}
        (snapshot / "llm2vec_config.json").write_text(json.dumps(settings))
        (repository / "refs" / revision).write_text(str(number) * 40)
    return tmp_path


def test_settings_weights_and_tokenizer_are_those_of_the_named_revision_in_the_named_cache(hub):
    """D13: the settings of hub ids were ignored, and their revision, cache and token dropped half-way."""
    for revision, family, length in ((None, "qwen3", 64), ("v2", "gpt2", 128)):
        found = LLM2Vec.from_pretrained("tiny/encoder", revision=revision, cache_dir=str(hub))
        assert (found.settings.max_length, found.model.config.model_type) == (length, family)
        expected = LLM2Vec.from_pretrained(DECODERS / family).encode(TEXTS)
        assert distance(found.encode(TEXTS), expected) < ROUNDING


def test_an_adapters_settings_are_read_from_the_hub_too(hub):
    """D13, for adapters: the last settings of a chain hold."""
    found = LLM2Vec.from_pretrained(DECODERS / "qwen3", "tiny/adapter", cache_dir=str(hub))
    assert (found.settings.pooling, found.settings.max_length) == ("weighted_mean", 32)


def test_a_revision_of_the_base_is_not_looked_for_in_its_adapters(hub):
    """D13: `revision` belongs to the model that is named first."""
    (hub / "models--tiny--encoder" / "refs" / "v3").write_text("0" * 40)
    found = LLM2Vec.from_pretrained(
        "tiny/encoder", "tiny/adapter", revision="v3", cache_dir=str(hub)
    )
    assert found.settings.max_length == 32


def test_the_revision_of_an_adapter_that_is_named_first_is_its_own(hub):
    """D13: and not that of the base which it names."""
    for revision, length in (("main", 32), ("r2", 16)):
        found = LLM2Vec.from_pretrained("tiny/adapter", revision=revision, cache_dir=str(hub))
        expected = LLM2Vec.from_pretrained(
            DECODERS / "qwen3", hub / f"adapter-{revision}", pooling_mode="weighted_mean"
        )
        assert found.settings.max_length == length
        assert distance(found.encode(TEXTS[:2]), expected.encode(TEXTS[:2])) < ROUNDING


# --- D14


@pytest.mark.parametrize(
    "text", [f"One half {SEPARATOR} another half", f"{SEPARATOR}{SEPARATOR}", f"a {SEPARATOR}"]
)
def test_a_text_that_holds_the_old_separator_is_pooled_whole(text, opened):
    """D14: what stood behind it, or behind the second one, was cut off."""
    encoder = opened["qwen3"]
    assert distance(encoder.encode([text])[0], by_hand(encoder, text)) < ROUNDING
    expected = by_hand(encoder, text, prompt=PROMPT + " ")
    assert distance(encoder.encode([[PROMPT, text]])[0], expected) < ROUNDING
    with torch.inference_mode():
        joined = encoder(encoder.tokenize([f"{PROMPT} {SEPARATOR}{text}"]))[0]
    assert distance(joined, expected) < ROUNDING


# --- D15


@pytest.mark.parametrize("start_token", [False, True])
def test_pooling_at_the_start_token_needs_no_start_token_and_minds_no_second_one(start_token):
    """D15: `bos_token` looked for the token's id: absent, repeated or equal to the padding it broke."""
    tokenizer = with_start_token() if start_token else load_tokenizer(DECODERS / "qwen3")
    tokenizer.pad_token = tokenizer.bos_token
    encoder = LLM2Vec(body(), tokenizer, pooling_mode="bos_token")
    texts = [*TEXTS, f"A text with {tokenizer.bos_token} in its middle."]
    together = encoder.encode(texts)
    for text, found in zip(texts, together, strict=True):
        with torch.inference_mode():
            states_TD = encoder.model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        assert distance(found, states_TD[0]) < ROUNDING


def test_saving_leaves_the_live_encoder_as_it_is(tmp_path):
    """D15: `save(merge_before_save=True)` changed the model in memory."""
    encoder = LLM2Vec.from_pretrained(DECODERS / "qwen3", adapter(tmp_path / "adapter", seed=0))
    model, vectors = encoder.model, encoder.encode(TEXTS)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    for number in (1, 2):
        encoder.save(tmp_path / f"saved-{number}", merge_before_save=True)
        assert encoder.model is model
        assert model.state_dict().keys() == weights.keys()
        assert all(
            torch.equal(weight, weights[name]) for name, weight in model.state_dict().items()
        )
        assert torch.equal(encoder.encode(TEXTS), vectors)
        assert (
            distance(LLM2Vec.from_pretrained(tmp_path / f"saved-{number}").encode(TEXTS), vectors)
            < ROUNDING
        )


def test_adapters_are_merged_in_float32_and_rounded_once(tmp_path):
    """D15: merging in bfloat16 rounded the weights after each adapter."""
    chain = [adapter(tmp_path / f"adapter-{seed}", seed=seed) for seed in (0, 1)]
    name = "layers.0.self_attn.q_proj"
    base = load_decoder(DECODERS / "qwen3", head=False, dtype=torch.bfloat16).state_dict()[
        f"{name}.weight"
    ]
    exact, rounded_each_time = base.float(), base
    for folder in chain:
        saved = load_file(folder / "adapter_model.safetensors")
        up, down = (saved[f"base_model.model.{name}.lora_{side}.weight"] for side in "BA")
        exact = exact + 2.0 * up @ down  # alpha / r = 2
        rounded_each_time = rounded_each_time + (2.0 * up @ down).bfloat16()
    assert not torch.equal(exact.bfloat16(), rounded_each_time), (
        "these adapters would not show the defect"
    )
    merged = LLM2Vec.from_pretrained(DECODERS / "qwen3", chain, dtype="bfloat16").model
    assert torch.equal(merged.state_dict()[f"{name}.weight"], exact.bfloat16())


# --- D16


@pytest.mark.parametrize(
    ("dtype", "allowed"), [("float32", ROUNDING), ("bfloat16", ROUNDING_BFLOAT16)]
)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_vector_moves_with_its_batch_by_no_more_than_rounding(name, dtype, allowed):
    """D16: left padding shifted positions, and in half precision vectors changed with the batch size."""
    encoder = LLM2Vec.from_pretrained(DECODERS / name, dtype=dtype)
    texts = TEXTS + [text * 4 for text in TEXTS]
    for padded in (False, True):
        if padded:
            encoder.model.set_attn_implementation("sdpa")
        alone = torch.stack([encoder.encode(text) for text in texts])
        for size in (2, 3, 8, None):
            assert distance(encoder.encode(texts, batch_size=size), alone) < allowed, (padded, size)


# --- D17


@pytest.mark.parametrize("choice", ["blank", "mask"])
def test_mntp_leaves_no_mask_token_behind(choice, tokenizer, corpus, tmp_path):
    """D17: `_` stayed a special token of the saved tokenizer; an added mask token was random and never saved."""
    model = load_decoder(DECODERS / "qwen3", head=True, dtype=torch.float32)
    make_bidirectional(model)
    texts = ["snake_case_name", "_", "a _ b", "__init__"]
    special, ids = list(tokenizer.all_special_tokens), tokenizer(texts)["input_ids"]
    embeddings = model.get_input_embeddings().weight.detach().clone()
    rows_seen = []
    model.lm_head.register_forward_hook(
        lambda *_: rows_seen.append(model.get_input_embeddings().weight.detach())
    )
    store = store_tokens(
        tokenizer, corpus.read_text().splitlines(), tmp_path / "tokens", max_length=None
    )
    recipe = MntpRecipe(steps=1, batch_size=2, max_length=32, eval_blocks=2, mask_token=choice)
    task = mntp_task(model, tokenizer, store, recipe, seed=0)
    after, _ = train_and_merge(
        model, task, recipe, folder=tmp_path / "run", seed=0, progress=Silent()
    )
    assert torch.equal(after.get_input_embeddings().weight, embeddings)
    added = rows_seen[0][len(embeddings) :]
    assert len(added) == (choice == "mask")
    torch.testing.assert_close(added, embeddings.mean(0).expand_as(added))
    LLM2Vec(after.model, tokenizer, settings=Settings(max_length=64)).save(tmp_path / "saved")
    again = LLM2Vec.from_pretrained(tmp_path / "saved").tokenizer
    assert again.all_special_tokens == special
    assert again.mask_token is None
    assert again(texts)["input_ids"] == ids
    assert again.decode(ids[0], skip_special_tokens=True) == texts[0]


# --- D18


@pytest.mark.parametrize(("whole", "visible"), [(False, 0.1), (True, 0.0)])
def test_targets_that_stand_unmasked_are_a_tenth_as_in_bert_or_none(whole, visible):
    """D18: a kept target is seen by the state that predicts it; the choice is the recipe's: `masking: all` has none."""
    ids_N = np.random.default_rng(0).integers(2, 6000, size=50_000)
    chosen = Masking(probability=0.2, whole=whole, mask_id=0, vocabulary=6000, special=(0, 1))
    masked, places, targets = chosen([ids_N], seed=(0,))
    share = float(np.mean(np.array(masked[0])[places + 1] == targets))
    assert share == pytest.approx(visible, abs=0.01 if visible else 0)
