"""Other people's code, unchanged, with this package where the first implementation was."""

import json
import types
from importlib import import_module

import pytest
import torch
from conftest import DECODERS
from llm2vec.dataset.utils import load_dataset
from llm2vec.loss.utils import load_loss
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from llm2vec import LLM2Vec
from llm2vec.backbone.source import BUNDLED_FOLDER
from llm2vec.errors import UsageError


def sees_the_future(model, **inputs):
    """Whether an earlier state moves when the last token changes."""
    ids_BT = torch.tensor([[5, 6, 7, 8]])
    other_BT = torch.tensor([[5, 6, 7, 9]])
    with torch.no_grad():
        one, other = (model(input_ids=ids, **inputs)[0][0, 0] for ids in (ids_BT, other_BT))
    return (one - other).abs().max() > 1e-5


@pytest.mark.filterwarnings("ignore")  # what GLiNER's own imports warn of is not ours
def test_gliner_reads_a_decoder_through_our_classes():
    encoder = pytest.importorskip("gliner.modeling.encoder")
    config = types.SimpleNamespace(
        encoder_config=None,
        labels_encoder_config=None,
        vocab_size=-1,
        _attn_implementation=None,
        fuse_layers=False,
    )
    made = encoder.Transformer(str(BUNDLED_FOLDER), config, from_pretrained=True)
    assert type(made.model).__name__ == "LlamaBiModel"
    ids_BT = torch.tensor([[5, 6, 7, 8]])
    ours = LLM2Vec.from_pretrained("bundled").model
    with torch.no_grad():
        theirs_BTD = made(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT))
        wanted_BTD = ours(input_ids=ids_BT).last_hidden_state
    assert torch.allclose(
        theirs_BTD.float(), wanted_BTD, atol=0.15
    )  # GLiNER keeps the weights' bfloat16
    assert sees_the_future(made.model.float())


def test_the_model_classes_of_each_family_are_bidirectional_and_any_other_can_be_made_so():
    from transformers import AutoConfig, Qwen3Model

    from llm2vec import models

    for name in ("Llama", "Mistral", "Gemma", "Qwen2"):
        shape = {
            "vocab_size": 32,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "head_dim": 8,
        }
        config = AutoConfig.for_model(
            name.lower(), **shape, num_attention_heads=4, num_key_value_heads=2
        )
        assert sees_the_future(getattr(models, f"{name}BiModel")(config).eval())
        with_head = getattr(models, f"{name}BiForMNTP")(config).eval()
        assert sees_the_future(with_head.get_model_for_peft())
    made = models.bidirectional(Qwen3Model)
    assert made.__name__ == "Qwen3BiModel"
    assert sees_the_future(made.from_pretrained(DECODERS / "qwen3").eval())


@pytest.mark.filterwarnings("ignore")
def test_mtebs_own_wrapper_runs_a_local_task():
    mteb = pytest.importorskip("mteb")
    from datasets import Dataset, DatasetDict
    from mteb.abstasks import AbsTaskSTS
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models.model_implementations.llm2vec_models import LLM2VecModel, _loader
    from mteb.types import OutputDType

    from llm2vec.evaluation.analysis import bundled_pairs

    class Pairs(AbsTaskSTS):
        metadata = TaskMetadata(
            name="BundledPairs",
            description="graded pairs",
            dataset={"path": "local/pairs", "revision": "1"},
            type="STS",
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="cosine_spearman",
            reference=None,
            date=None,
            domains=None,
            task_subtypes=None,
            license=None,
            annotations_creators=None,
            dialect=None,
            sample_creation=None,
            bibtex_citation="",
        )
        min_score, max_score = 0, 5

        def load_data(self, *args, **kwargs):
            score, first, second = zip(*bundled_pairs(), strict=True)
            rows = {"sentence1": list(first), "sentence2": list(second), "score": list(score)}
            self.dataset, self.data_loaded = DatasetDict({"test": Dataset.from_dict(rows)}), True

    registered = {"device_map": "auto", "torch_dtype": OutputDType.FLOAT32}  # as its entries say
    load = _loader(LLM2VecModel, base_model_name_or_path=str(DECODERS / "qwen3"), **registered)
    wrapped = load(revision="of the hub", device="cpu")
    found = mteb.evaluate(wrapped, Pairs(), cache=None, co2_tracker=False)
    score = found.task_results[0].get_score()
    assert 0 < score < 1
    ours = LLM2Vec.from_pretrained(DECODERS / "qwen3")
    pairs = [["", text] for text in ("One text.", "Another text.")]
    assert torch.allclose(
        wrapped.model.encode(pairs), ours.encode(["One text.", "Another text."]), atol=1e-5
    )


def test_e5_comes_in_blocks_of_one_data_set_with_its_instructions(tmp_path):
    for name in ("nq", "quora_duplicates"):
        rows = [{"query": f"q{n}", "positive": f"p{n}", "negative": f"n{n}"} for n in range(10)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_dataset("E5", file_path=str(tmp_path), effective_batch_size=4)
    names = [sample.guid.split("-")[0] for sample in found]
    assert len(found) == 16
    assert all(len(set(names[start : start + 4])) == 1 for start in range(0, 16, 4))
    one = next(sample for sample in found if sample.guid.startswith("nq"))
    assert one.texts[0].startswith(
        "Given a question, retrieve Wikipedia passages that answer the question; !@#$%^&*()q"
    )
    assert one.texts[1].startswith("!@#$%^&*()p")
    two = {sample.texts[0].split(";")[0] for sample in found if sample.guid.startswith("quora")}
    assert len(two) == 2


def test_wiki1m_is_a_text_with_itself(tmp_path):
    (tmp_path / "wiki.txt").write_text("One line.\n\nAnother.\n")
    found = load_dataset("Wiki1M", file_path=str(tmp_path / "wiki.txt"))
    assert [sample.texts for sample in found] == [
        ["One line.", "One line."],
        ["Another.", "Another."],
    ]
    with pytest.raises(UsageError, match="does not exist"):
        load_dataset("Wiki1M")


def test_the_named_loss_is_ours():
    anchor, positive, negative = torch.randn(
        3, 4, 8, generator=torch.Generator().manual_seed(0)
    ).unbind(0)
    found = load_loss("HardNegativeNLLLoss", scale=50.0)(anchor, positive, negative)
    candidates = torch.nn.functional.normalize(torch.cat([positive, negative]), dim=-1)
    scores = 50 * torch.nn.functional.normalize(anchor, dim=-1) @ candidates.T
    assert torch.allclose(
        found, torch.nn.functional.cross_entropy(scores, torch.arange(4)), atol=1e-5
    )
    with pytest.raises(UsageError, match="no loss"):
        load_loss("Triplet")
    assert load_loss("HardNegativeNLLLoss")(anchor, positive) > 0
    with pytest.raises(UsageError, match="compares by cosine"):
        load_loss("HardNegativeNLLLoss", similarity_fct=torch.mm)


def test_the_paths_that_others_import_are_there():
    for path, names in {
        "llm2vec": "LLM2Vec __version__",
        "llm2vec.llm2vec": "LLM2Vec",
        "llm2vec.models.bidirectional_llama": "LlamaBiModel LlamaBiForMNTP",
        "llm2vec.models.bidirectional_mistral": "MistralBiModel MistralBiForMNTP",
        "llm2vec.models.bidirectional_gemma": "GemmaBiModel GemmaBiForMNTP",
        "llm2vec.models.bidirectional_qwen2": "Qwen2BiModel Qwen2BiForMNTP",
        "llm2vec.dataset": "E5Data Wiki1M",
        "llm2vec.dataset.dataset": "DataSample TrainSample Dataset",
        "llm2vec.loss": "HardNegativeNLLLoss",
        "llm2vec.loss.loss_utils": "cos_sim",
        "llm2vec.experiment_utils": "generate_experiment_id",
    }.items():
        module = import_module(path)
        assert all(hasattr(module, name) for name in names.split()), path


class Collator:
    """Rows to features, as the first implementation's training scripts do it."""

    def __init__(self, model):
        self.model = model

    def __call__(self, rows):
        columns = zip(*(row.texts for row in rows), strict=True)
        return [
            self.model.tokenize([self.model.prepare_for_tokenization(text) for text in texts])
            for texts in columns
        ]


class Contrastive(Trainer):
    """A trainer after those of the first implementation: it calls the encoder, and saves with the encoder's `save`."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return load_loss("HardNegativeNLLLoss", scale=50.0)(
            *(model(features) for features in inputs)
        )

    def _save(self, output_dir=None, state_dict=None):
        self.model.save(output_dir or self.args.output_dir)
        self.processing_class.save_pretrained(output_dir or self.args.output_dir)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_script_trains_an_adapter_on_the_inner_model_and_saves_checkpoints(
    checkpointing, tmp_path
):
    rows = [
        {"query": f"Where is dog {n}?", "positive": f"Dog {n} is here.", "negative": "A cat."}
        for n in range(12)
    ]
    (tmp_path / "nq.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    encoder = LLM2Vec.from_pretrained(DECODERS / "qwen3", max_length=64, attention_dropout=0.1)
    before = encoder.encode("A dog.")
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], lora_dropout=0.05)
    encoder.model = get_peft_model(encoder.model, lora)
    if checkpointing:
        encoder.model.enable_input_require_grads()
    arguments = {
        "max_steps": 2,
        "save_steps": 1,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "seed": 0,
        "report_to": [],
    }
    trainer = Contrastive(
        model=encoder,
        args=TrainingArguments(
            tmp_path / "run",
            per_device_train_batch_size=4,
            remove_unused_columns=False,
            save_only_model=True,
            use_cpu=True,
            gradient_checkpointing=checkpointing,
            **arguments,
        ),
        train_dataset=load_dataset("E5", file_path=str(tmp_path), effective_batch_size=4),
        data_collator=Collator(encoder),
        processing_class=encoder.tokenizer,
    )
    trainer.train()
    trainer.save_model()
    assert (tmp_path / "run" / "checkpoint-1").is_dir(), "saving beside checkpoints leaves them"
    after = encoder.encode("A dog.")
    assert (after - before).abs().max() > 1e-3
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-2"):
        assert torch.allclose(LLM2Vec.from_pretrained(folder).encode("A dog."), after, atol=1e-4)
    assert torch.allclose(
        LLM2Vec.from_pretrained(DECODERS / "qwen3", folder).encode("A dog."), after, atol=1e-4
    )
