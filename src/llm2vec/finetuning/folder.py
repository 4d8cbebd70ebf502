"""The folder of a tagger or a classifier: written, read back, and opened.

Where transformers has a class that computes the same, the folder opens with plain transformers
(`pipeline`, `AutoModelForTokenClassification`). It opens with `open_tagger` and `TextClassifier` in
any case; `labels.json` says how words or texts are read.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm2vec.backbone.loading import quiet
from llm2vec.backbone.switch import save_model
from llm2vec.encoder.encoder import Encoder
from llm2vec.errors import ModelError, RunError
from llm2vec.evaluation.linear_classifier import Classifier
from llm2vec.evaluation.subjects import open_encoder
from llm2vec.evaluation.tagger import Facts, Tagger
from llm2vec.finetuning.calibration import probabilities
from llm2vec.finetuning.card import card
from llm2vec.finetuning.examples import Example
from llm2vec.finetuning.metrics import Outcome
from llm2vec.finetuning.network import LabelNetwork
from llm2vec.finetuning.plain import CLASSES, Kind, plain_model
from llm2vec.finetuning.task import logits_of
from llm2vec.runtime.files import atomic_folder, read_json, write_json

LABELS_FILE, METRICS_FILE = "labels.json", "metrics.json"
_WEIGHTS = "labels.safetensors"

_ALIKE = 1e-3
"""Largest difference of logits that rounding explains in float32, relative to the largest logit."""


@dataclass(frozen=True)
class Made:
    """A trained network, and what its folder says of it.

    Attributes:
        kind: A tagger or a classifier.
        prefix: `uni:`, `auto:` or nothing: how the body is opened again.
        network: The network, merged.
        tokenizer: Its tokenizer.
        labels: The labels by number.
        facts: How it reads, and how it was made.
        outcome: What it reached on the development data.
        examples: A few examples, which every way of opening the folder must label alike.
        trust_remote_code: Whether code that comes with the model may run.
    """

    kind: Kind
    prefix: str
    network: LabelNetwork
    tokenizer: PreTrainedTokenizerBase
    labels: tuple[str, ...]
    facts: Mapping[str, Any]
    outcome: Outcome
    examples: Sequence[Example]
    trust_remote_code: bool = False


def write_folder(made: Made, out: Path) -> None:
    """Write the folder, open it again, and compare.

    Raises:
        RunError: What was written gives other logits when it is read back.
    """
    body: PreTrainedModel = made.network.body  # type: ignore[assignment]  # adapters are merged
    plain = _plain(made, body)
    with atomic_folder(out) as partial:
        why_not = _write_model(made, body, plain, partial)
        made.tokenizer.save_pretrained(str(partial))
        linear = made.network.linear
        bias = torch.zeros(len(made.labels)) if linear.bias is None else linear.bias.detach()
        save_file({"weight": linear.weight.detach().contiguous(), "bias": bias}, partial / _WEIGHTS)
        values = {
            "kind": made.kind,
            "encoder": made.prefix,
            "labels": list(made.labels),
            "temperature": made.outcome.temperature,
            "why_not_plain": why_not,
            **made.facts,
        }
        write_json(partial / LABELS_FILE, values)
        write_json(partial / METRICS_FILE, made.outcome.to_dict())
        text = card(out.name, made.kind, values, made.outcome, why_not=why_not)
        (partial / "README.md").write_text(text, encoding="utf8")
        _check_ours(made, partial)


def _plain(made: Made, body: PreTrainedModel) -> PreTrainedModel | str:
    """The network as a model of transformers, or why there is none."""
    if made.facts.get("reading") == "before":
        return "words are read one token earlier, which transformers' models cannot express"
    pooling = made.facts.get("pooling", "last")
    if pooling != "last":
        return f"texts are pooled by {pooling}, where transformers' classifiers read the last token"
    names = dict(enumerate(made.labels))
    changes: dict[str, Any] = {
        "id2label": names,
        "label2id": {name: number for number, name in names.items()},
        "pad_token_id": made.tokenizer.pad_token_id,
    }
    if made.kind == "classifier":
        several = made.facts["several"]
        kind = "multi_label_classification" if several else "single_label_classification"
        changes["problem_type"] = kind
    return plain_model(made.kind, body, made.network.linear, changes)


def _write_model(
    made: Made, body: PreTrainedModel, plain: PreTrainedModel | str, folder: Path
) -> str:
    """Write the model with labels if plain transformers gives its logits, else the body alone."""
    why_not = plain if isinstance(plain, str) else ""
    if isinstance(plain, PreTrainedModel):
        save_model(plain, folder)
        with quiet():
            opened = CLASSES[made.kind].from_pretrained(str(folder), dtype=torch.float32).eval()
        apart = _apart(_our_logits(made), _plain_logits(opened, made))
        if apart <= _ALIKE:
            return ""
        why_not = f"{type(plain).__name__} gives other logits (apart by {apart:.1g})"
        for file in folder.iterdir():
            file.unlink()
    save_model(body, folder)
    return why_not


def _our_logits(made: Made) -> np.ndarray:
    """Logits of the examples, in rows of their own."""
    pad_id = int(made.tokenizer.pad_token_id)
    found = [logits_of(made.network, [each], packed=False, pad_id=pad_id) for each in made.examples]
    return np.concatenate(found)


@torch.no_grad()
def _plain_logits(model: PreTrainedModel, made: Made) -> np.ndarray:
    parts: list[np.ndarray] = []
    for example in made.examples:
        if not example.ids:
            parts.append(np.zeros((len(example.read), len(made.labels)), dtype=np.float32))
            continue
        logits = model(input_ids=torch.tensor([example.ids])).logits[0].float().cpu().numpy()
        parts.append(logits[list(example.read)] if made.kind == "tagger" else logits[None])
    return np.concatenate(parts)


def _apart(ours: np.ndarray, others: np.ndarray) -> float:
    """The largest difference, as a share of the largest logit."""
    return float(np.abs(ours - others).max() / max(np.abs(ours).max(), 1e-6))


def _check_ours(made: Made, folder: Path) -> None:
    """Open the folder as its users do, and compare.

    Raises:
        RunError: It gives other logits.
    """
    encoder, classifier, values = _opened(folder, trust_remote_code=made.trust_remote_code)
    network = LabelNetwork(
        encoder.model,
        len(made.labels),
        reading=made.network.reading,
        bias=True,
        dropout=0.0,
    )
    with torch.no_grad():
        network.linear.weight.copy_(classifier.weight_CD)
        network.linear.bias.copy_(classifier.bias_C)
    read_back = logits_of(
        network, made.examples, packed=False, pad_id=int(encoder.tokenizer.pad_token_id)
    )
    apart = _apart(_our_logits(made), read_back)
    if tuple(values["labels"]) != made.labels or apart > _ALIKE:
        raise RunError(
            f"what was written gives other logits when it is opened (apart by {apart:.1g})"
        )


def _opened(folder: Path, *, trust_remote_code: bool) -> tuple[Encoder, Classifier, dict[str, Any]]:
    """A folder's body as an encoder, its linear layer, and what `labels.json` says.

    Raises:
        ModelError: The folder holds neither a tagger nor a classifier.
    """
    if not is_finetuned(folder):
        raise ModelError(
            f"{folder} holds no tagger or classifier; `llm2vec train tagger` or "
            "`llm2vec train classifier` makes one"
        )
    values: dict[str, Any] = read_json(folder / LABELS_FILE)
    name = f"{values['encoder']}{folder}"
    encoder = open_encoder(name, trust_remote_code=trust_remote_code)
    encoder.settings = encoder.settings.changed(
        max_length=values["max_length"], pooling=values.get("pooling")
    )
    weights = load_file(folder / _WEIGHTS)
    return encoder, Classifier(weights["weight"], weights["bias"]), values


def is_finetuned(folder: str | Path) -> bool:
    """Whether a folder was made by a fine-tuning."""
    return (Path(folder) / LABELS_FILE).is_file()


def open_tagger(folder: str | Path, *, trust_remote_code: bool = False) -> Tagger:
    """A fine-tuned tagger, as a saved probe is opened: `tag` gives spans with character offsets.

    Args:
        folder: A folder that `llm2vec train tagger` made.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        ModelError: The folder holds no tagger.
    """
    encoder, classifier, values = _opened(Path(folder), trust_remote_code=trust_remote_code)
    if values["kind"] != "tagger":
        raise ModelError(f"{folder} holds a classifier of texts: use `llm2vec classify`")
    facts = Facts(
        encoder=values["encoder"],
        labels=tuple(values["labels"]),
        reading=values["reading"],
        merge=values["merge"],
        metric="",
        value=0.0,
    )
    return Tagger(encoder, classifier, facts)


@dataclass(frozen=True)
class LabelledText:
    """A text with what a classifier says of it.

    Attributes:
        labels: Its label, or its labels; empty for a text without tokens.
        scores: The probability of each label of the classifier, by name.
    """

    labels: tuple[str, ...]
    scores: Mapping[str, float]


class TextClassifier:
    """A fine-tuned classifier of texts.

    Example:
        >>> TextClassifier.open("classifier").classify(["My card was stolen."])  # doctest: +SKIP
        [LabelledText(labels=('lost_or_stolen_card',), scores={...})]
    """

    def __init__(self, encoder: Encoder, classifier: Classifier, facts: Mapping[str, Any]) -> None:
        self.encoder, self.classifier, self.facts = encoder, classifier, facts

    @classmethod
    def open(cls, folder: str | Path, *, trust_remote_code: bool = False) -> "TextClassifier":
        """Open a folder that `llm2vec train classifier` made.

        Args:
            folder: The folder.
            trust_remote_code: Whether code that comes with the model may run.

        Raises:
            ModelError: The folder holds no classifier.
        """
        encoder, classifier, values = _opened(Path(folder), trust_remote_code=trust_remote_code)
        if values["kind"] != "classifier":
            raise ModelError(f"{folder} holds a tagger of words: use `llm2vec tag`")
        return cls(encoder, classifier, values)

    def classify(self, texts: Sequence[str]) -> list[LabelledText]:
        """The label or labels of each text, with calibrated probabilities."""
        if not texts:
            return []
        vectors_BD = self.encoder.encode(list(texts), convert_to_numpy=True, normalize=False)
        weight, bias = self.classifier.weight_CD.numpy(), self.classifier.bias_C.numpy()
        logits_BC = vectors_BD @ weight.T + bias
        has_tokens_B = np.asarray(vectors_BD.any(axis=1))
        return list(self._labelled(logits_BC, has_tokens_B))

    def _labelled(self, logits_BC: np.ndarray, has_tokens_B: np.ndarray) -> Iterator[LabelledText]:
        names = self.facts["labels"]
        if self.facts["several"]:
            likely_BC = 1 / (1 + np.exp(-logits_BC.astype(np.float64)))
        else:
            likely_BC = probabilities(logits_BC, temperature=self.facts["temperature"])
        for row, has_tokens in zip(likely_BC, has_tokens_B, strict=True):
            if not has_tokens:
                yield LabelledText((), {})
                continue
            scores = dict(zip(names, row.tolist(), strict=True))
            if self.facts["several"]:
                labels = tuple(name for name, score in scores.items() if score > 0.5)
            else:
                labels = (names[int(row.argmax())],)
            yield LabelledText(labels, scores)
