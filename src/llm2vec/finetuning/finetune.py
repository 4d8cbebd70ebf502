"""Fine-tuning from start to folder: open, train, keep the best weights, merge, save, and read back.

A run keeps its checkpoints in `OUT.finetuning/`. Killed, the same command goes on from there; with
another model, other data or other settings it is refused by what changed.
"""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import PreTrainedModel

from llm2vec.backbone.lora import add_adapters, merge
from llm2vec.backbone.positions import check_length
from llm2vec.corpus.tagged import TaggedSentence
from llm2vec.encoder.batching import is_packed
from llm2vec.encoder.words import Reading as WordReading
from llm2vec.errors import CorpusError, RunError
from llm2vec.finetuning.classifier import (
    ClassifierData,
    classifier_data,
    classifier_outcome,
    classifier_score,
)
from llm2vec.finetuning.data import LabelledTexts
from llm2vec.finetuning.folder import LABELS_FILE, Made, write_folder
from llm2vec.finetuning.labels import Labels
from llm2vec.finetuning.metrics import Outcome
from llm2vec.finetuning.network import LabelNetwork, Reading
from llm2vec.finetuning.plain import Kind
from llm2vec.finetuning.recipe import FinetuneRecipe
from llm2vec.finetuning.start import Start, open_start
from llm2vec.finetuning.tagger import (
    TaggerData,
    merge_of,
    tagger_data,
    tagger_outcome,
    tagger_score,
)
from llm2vec.finetuning.task import Score, finetuning_task, logits_of
from llm2vec.recipe.knobs import Pooling
from llm2vec.runtime import fingerprint
from llm2vec.runtime.files import (
    read_json,
    refuse_occupied,
    remove_files,
    resolved_folder,
    write_json,
)
from llm2vec.runtime.hardware import default_device
from llm2vec.runtime.lock import LOCK_FILES, locked
from llm2vec.runtime.optional import optional
from llm2vec.runtime.progress import Progress, Silent
from llm2vec.training.early_stopping import BEST_FILES, EarlyStopping
from llm2vec.training.trainer import train

_RUN, _LOG = "run.json", "metrics.json"
_READ_BACK = 8
"""Development examples that every way of opening the folder must label alike."""
_FEWEST_STEPS = 10
"""Steps between two evaluations at least."""


@dataclass(frozen=True)
class Finetuned:
    """What a fine-tuning made.

    Attributes:
        folder: The folder of the tagger or classifier.
        development: What it reached on the development data.
        plain: Whether plain transformers opens it as a model with labels.
        why_not: If not, the reason in a sentence.
        steps: Steps of training, and the step of the weights that were kept.
    """

    folder: Path
    development: Outcome
    plain: bool
    why_not: str
    steps: tuple[int, int]


@dataclass(frozen=True)
class _Job:
    """One fine-tuning, whichever kind it is.

    Attributes:
        kind: A tagger or a classifier.
        start: The model.
        data: The examples.
        labels: The labels.
        reading: What the linear layer reads.
        bias: Whether the linear layer has a bias.
        score: Logits of the development data to the metrics that training is stopped by.
        facts: What the folder says beside labels and metrics.
    """

    kind: Kind
    start: Start
    data: TaggerData | ClassifierData
    labels: Labels
    reading: Reading
    bias: bool
    score: Score
    facts: Mapping[str, Any]


def train_tagger(
    model: str,
    train: Sequence[TaggedSentence],
    development: Sequence[TaggedSentence],
    *,
    out: Path | str,
    recipe: FinetuneRecipe,
    reading: WordReading = "own",
    seed: int = 42,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Finetuned:
    """Fine-tune a model to label words.

    Args:
        model: A decoder or an encoder folder, made bidirectional and proven; `uni:DECODER` stays
            causal; `auto:ENCODER` is any encoder of transformers.
        train: Sentences to train on.
        development: Sentences whose score stops the training: entity F1, or macro F1 of labels
            without entities.
        out: The folder to make.
        recipe: The settings.
        reading: Whether a word is read from its own tokens or from one token earlier.
        seed: The seed of order, adapters and dropout.
        trust_remote_code: Whether code that comes with the model may run.
        progress: The listener to the training; None is silent.

    Returns:
        The folder, and what it reached.

    Raises:
        CorpusError: The labels cannot be learned: only one, or none shared with the development
            data.
        ModelError: The model cannot be opened, or cannot be made bidirectional.
        RunError: `out` holds something else, or an earlier run was made with something else.
    """
    progress = progress or Silent()
    start = open_start(model, trust_remote_code=trust_remote_code)
    word_merge = merge_of(start, recipe.read_at)
    data = tagger_data(
        start,
        train,
        development,
        max_length=recipe.max_length,
        reading=reading,
        merge=word_merge,
    )
    if data.repaired:
        progress.note(
            f"{data.repaired} labels continue an entity that nothing began: read as its beginning"
        )
    facts = {"reading": reading, "merge": word_merge, "max_length": recipe.max_length}
    job = _Job(
        kind="tagger",
        start=start,
        data=data,
        labels=data.labels,
        reading=Reading(),
        bias=True,
        score=lambda logits: tagger_score(data.development, logits, data.labels),
        facts=facts,
    )
    identity = {"train": [train], "development": [development], "reading": reading}
    return _finetune(job, model, identity, Path(out), recipe, seed, progress)


def train_classifier(
    model: str,
    train: LabelledTexts,
    development: LabelledTexts,
    *,
    out: Path | str,
    recipe: FinetuneRecipe,
    pooling: Pooling = "last",
    seed: int = 42,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Finetuned:
    """Fine-tune a model to label texts; arguments as of `train_tagger`.

    Args:
        model: As of `train_tagger`.
        train: Texts to train on, with one label each or with several.
        development: Texts whose macro F1 stops the training.
        out: The folder to make.
        recipe: The settings.
        pooling: How the states of a text become one vector. `last` is what transformers' own
            classifiers of decoders do; others keep the folder to this package.
        seed: As of `train_tagger`.
        trust_remote_code: As of `train_tagger`.
        progress: As of `train_tagger`.

    Raises:
        CorpusError, ModelError, RunError: As `train_tagger` says.
    """
    progress = progress or Silent()
    start = open_start(model, trust_remote_code=trust_remote_code)
    data = classifier_data(start, train, development, max_length=recipe.max_length)
    if train.empty or development.empty:
        progress.note(f"{train.empty + development.empty} rows without text were left out")
    facts = {"pooling": pooling, "several": data.several, "max_length": recipe.max_length}
    job = _Job(
        kind="classifier",
        start=start,
        data=data,
        labels=data.labels,
        reading=Reading(pooling),
        bias=False,
        score=lambda logits: classifier_score(data, logits),
        facts=facts,
    )
    identity = {"train": [train], "development": [development], "pooling": pooling}
    return _finetune(job, model, identity, Path(out), recipe, seed, progress)


def _finetune(
    job: _Job,
    model: str,
    identity: Mapping[str, Any],
    out: Path,
    recipe: FinetuneRecipe,
    seed: int,
    progress: Progress,
) -> Finetuned:
    out = resolved_folder(out, option="--out")
    refuse_occupied(out)
    _check(job, recipe)
    run = out.with_name(f"{out.name}.finetuning")
    processes = PartialState(cpu=default_device().type == "cpu")
    recipe = _planned(recipe, len(job.data.train_examples), processes.num_processes)
    known = _identity(job, model, identity, recipe, seed)
    with ExitStack() as stack:
        if processes.is_main_process:
            run.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(run))
            _claim(run, known)
        processes.wait_for_everyone()
        network, steps = _trained(job, recipe, run, seed, progress)
        outcome = _merged_and_measured(job, network)
        if processes.is_main_process:
            _write(job, network, outcome, model, out, recipe, steps)
        processes.wait_for_everyone()
    if processes.is_main_process:
        _clear(run)
    why_not = str(read_json(out / LABELS_FILE)["why_not_plain"])
    return Finetuned(out, outcome, not why_not, why_not, steps)


def _check(job: _Job, recipe: FinetuneRecipe) -> None:
    """Refuse what would fail in the middle of the training.

    Raises:
        UsageError: Texts are longer than the model reads, or a package is not installed.
        CorpusError: There is nothing to train on, or nothing to judge by.
    """
    for module in ("scipy.optimize", "sklearn.metrics"):
        optional(module, extra="evaluate")
    check_length("max_length", recipe.max_length, job.start.model.config, trained=True)
    parts = {
        "training": job.data.train_examples,
        "development": job.data.development_examples,
    }
    for name, examples in parts.items():
        if not any(each.ids for each in examples):
            raise CorpusError(f"the {name} data holds no text with a token of this model")


def _planned(recipe: FinetuneRecipe, examples: int, processes: int) -> FinetuneRecipe:
    """The recipe with the steps that its epochs come to."""
    per_step = recipe.batch_size * processes
    steps = max(1, round(recipe.epochs * examples / per_step))
    return recipe.model_copy(update={"steps": steps})


def _evaluate_every(recipe: FinetuneRecipe) -> int:
    """Steps between evaluations.

    Small data would otherwise be judged before anything is learned.
    """
    in_each_pass = recipe.steps / (recipe.epochs * recipe.evaluations)
    return min(recipe.steps, max(_FEWEST_STEPS, round(in_each_pass)))


def _identity(
    job: _Job, model: str, identity: Mapping[str, Any], recipe: FinetuneRecipe, seed: int
) -> dict[str, Any]:
    return {
        "kind": job.kind,
        "model": model,
        "weights": fingerprint.of_weights(job.start.model),
        "data": fingerprint.of_values(repr(sorted(identity.items()))),
        "recipe": recipe.model_dump(mode="json"),
        "seed": seed,
    }


def _claim(run: Path, identity: Mapping[str, Any]) -> None:
    """Take the run's folder, or go on in it.

    Raises:
        RunError: It was made with something else, or it holds files that are not of a run.
    """
    file = run / _RUN
    if not file.is_file():
        if others := sorted({each.name for each in run.iterdir()} - {*LOCK_FILES}):
            raise RunError(
                f"{run} holds {others[0]}, which is not of a fine-tuning; move it, or choose "
                "another --out"
            )
        write_json(file, identity)
        return
    before = read_json(file)
    if changed := [name for name, value in identity.items() if before.get(name) != value]:
        raise RunError(
            f"{run} was made with another {', '.join(changed)}; choose another --out, or remove "
            f"{run.name} to start over"
        )


def _clear(run: Path) -> None:
    """Remove what the run wrote; the folder stays if it holds anything else."""
    for checkpoint in run.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    remove_files(run, (_RUN, _LOG, *BEST_FILES))


def _trained(
    job: _Job, recipe: FinetuneRecipe, run: Path, seed: int, progress: Progress
) -> tuple[LabelNetwork, tuple[int, int]]:
    """Train, and give the network with its best weights, and the steps of training and of those."""
    torch.manual_seed(seed)
    packed, pad_id = is_packed(job.start.model), int(job.start.tokenizer.pad_token_id)
    network = LabelNetwork(
        add_adapters(job.start.model, recipe),
        len(job.labels.names),
        reading=job.reading,
        bias=job.bias,
        dropout=recipe.head_dropout,
    )
    stopping = EarlyStopping(run, patience=recipe.patience)
    task = finetuning_task(
        job.kind,
        job.data.train_examples,
        packed=packed,
        pad_id=pad_id,
        seed=seed,
        weights_C=_label_weights(job.labels, recipe),
        development=job.data.development_examples,
        score=job.score,
        evaluate_every=_evaluate_every(recipe),
    )
    log = train(
        network, task, recipe, folder=run, seed=seed, progress=progress, callbacks=[stopping]
    )
    PartialState().wait_for_everyone()  # the first process writes the best weights
    stopping.restore(network)
    taken = max((entry["step"] for entry in log), default=recipe.steps)
    return network.eval(), (int(taken), stopping.best.step)


def _label_weights(labels: Labels, recipe: FinetuneRecipe) -> Tensor | None:
    if recipe.class_weights == "none":
        return None
    return torch.tensor(labels.balanced_weights(), dtype=torch.float32)


def _merged_and_measured(job: _Job, network: LabelNetwork) -> Outcome:
    """Merge the adapters, and measure the network on the development data."""
    packed, pad_id = is_packed(job.start.model), int(job.start.tokenizer.pad_token_id)
    body: PreTrainedModel = merge(network.body, dtype=torch.float32)
    network.body = body.eval()
    logits = logits_of(network, job.data.development_examples, packed=packed, pad_id=pad_id)
    if isinstance(job.data, TaggerData):
        return tagger_outcome(job.data.development, logits, job.labels)
    return classifier_outcome(job.data, logits)


def _write(
    job: _Job,
    network: LabelNetwork,
    outcome: Outcome,
    model: str,
    out: Path,
    recipe: FinetuneRecipe,
    steps: tuple[int, int],
) -> None:
    facts = {
        **job.facts,
        "model": model,
        "steps": {"trained": steps[0], "kept": steps[1]},
        "recipe": recipe.model_dump(mode="json"),
        "proofs": job.start.facts.get("proofs", []),
    }
    made = Made(
        kind=job.kind,
        prefix=job.start.prefix,
        network=network,
        tokenizer=job.start.tokenizer,
        labels=job.labels.names,
        facts=facts,
        outcome=outcome,
        examples=job.data.development_examples[:_READ_BACK],
        trust_remote_code=job.start.trust_remote_code,
    )
    write_folder(made, out)
