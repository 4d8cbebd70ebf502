"""The main job: a recipe's stages in order, each a folder in and a folder out, and an encoder proven at the end.

Work lies in `OUT.stages/` until the encoder stands in `OUT`, whole. A killed run is started again by the same call:
finished stages are folders that exist. Nothing is kept anywhere else.
"""

import json
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm2vec import backbone, decoder
from llm2vec.encoder import LLM2Vec
from llm2vec.errors import ModelError, RunError, UsageError
from llm2vec.files import PARTIAL, fingerprint_folder, publish, read_json, whole_file, whole_folder, write_json
from llm2vec.folder import PROVENANCE_FILE, Settings, model_card
from llm2vec.machine import default_device
from llm2vec.places import place
from llm2vec.progress import Progress, Silent
from llm2vec.proofs import prove_dropout
from llm2vec.readback import prove_read_back
from llm2vec.recipe import CorpusRecipe, Recipe, StageRecipe, differences
from llm2vec.stages.mntp import train_mntp
from llm2vec.stages.simcse import attention_dropouts, train_simcse
from llm2vec.stages.training import weights_dtype
from llm2vec.texts import SELF, corpus_fingerprint, read_texts, self_texts, sentences
from llm2vec.tokens import TokenStore, separator_for, store_tokens

_RUN_FILE = "run.json"
_STAGE_FILE = "stage.json"
_SCRATCH = ".work"


@dataclass(frozen=True)
class Conversion:
    """What came of a recipe.

    Attributes:
        folder: The encoder.
        stages: The stage folders kept, by name, `0-bi` first.
        provenance: What `provenance.json` in the folder says.
    """

    folder: Path
    stages: Mapping[str, Path]
    provenance: Mapping[str, Any]


def convert(
    recipe: Recipe,
    out: str | Path,
    *,
    keep_stages: bool = False,
    start_over: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Turn a decoder into an encoder folder, going on where a killed run stopped.

    Args:
        recipe: What to do.
        out: The encoder folder to make; work in progress lies beside it in `OUT.stages`.
        keep_stages: Keep the stage folders after the end.
        start_over: Throw away an unfinished or finished run under the same `out`.
        progress: Told of everything long.

    Raises:
        LLM2VecError: Whatever is wrong with decoder, corpus or recipe; finished stages are kept.
    """
    job = _Job(recipe, Path(out), progress or Silent())
    if start_over:
        job.on_main(job.forget)
    if job.finished():
        job.progress.note(f"{job.out} is finished already; --start-over makes it again")
        return job.result()
    job.on_main(job.begin)
    job.stage("0-bi", lambda folder: job.on_main(lambda: job.make_bidirectional(folder)))
    job.stage("1-mntp", job.mntp)
    job.stage("2-simcse", job.simcse)
    job.on_main(job.finish)
    if not keep_stages:
        job.on_main(lambda: shutil.rmtree(job.work))
    return job.result()


class _Job:
    """One conversion: where its folders are and what it has found out so far."""

    def __init__(self, recipe: Recipe, out: Path, progress: Progress) -> None:
        self.recipe, self.out, self.progress = recipe, out, progress
        self.work = out.with_name(out.name + ".stages")
        self.source = place(recipe.decoder)
        self.made: list[str] = []
        self.processes = PartialState(cpu=default_device().type == "cpu")

    def on_main(self, work: Callable[[], None]) -> None:
        """Do what only one of several processes should, while the others wait."""
        if self.processes.is_main_process:
            work()
        self.processes.wait_for_everyone()

    # --- what there is already

    def finished(self) -> bool:
        """Whether the encoder stands there; a different one is refused."""
        provenance = self.out / PROVENANCE_FILE
        if not self.out.exists():
            return False
        if not provenance.is_file():
            raise RunError(f"{self.out} exists and is no encoder made here; choose another --out or remove it")
        self._refuse_changes(read_json(provenance), self.out)
        return True

    def forget(self) -> None:
        """Remove what an earlier run made under this name, and nothing else."""
        for folder, ours in ((self.out, PROVENANCE_FILE), (self.work, _RUN_FILE)):
            if (folder / ours).is_file():
                shutil.rmtree(folder)

    def begin(self) -> None:
        """Claim the work folder, or go on in it."""
        known = self.work / _RUN_FILE
        if known.is_file():
            self._refuse_changes(read_json(known), self.work)
            return
        if self.work.exists() and any(self.work.iterdir()):
            raise RunError(f"{self.work} exists and is not ours; remove it, or choose another --out")
        write_json(known, self._identity())

    def _identity(self) -> dict[str, Any]:
        recipe = self.recipe
        corpora = {"corpus": recipe.corpus, "simcse.corpus": recipe.simcse.corpus or recipe.corpus}
        return {
            "recipe": recipe.to_dict(),
            "decoder": fingerprint_folder(self.source) if isinstance(self.source, Path) else self.source,
            "corpora": {name: corpus_fingerprint(corpus) for name, corpus in corpora.items()},
        }

    def _refuse_changes(self, before: Mapping[str, Any], where: Path) -> None:
        now = self._identity()
        changed = list(differences(before.get("recipe", {}), now["recipe"]))
        if before.get("decoder") != now["decoder"]:
            changed.append("the decoder's files")
        if before.get("corpora") != now["corpora"] and not changed:
            changed.append("the texts of the corpus")
        if changed:
            raise RunError(
                f"{where} was made with something else: {'; '.join(changed)}. "
                "Say --start-over to throw it away, or choose another --out"
            )

    def stage(self, name: str, make: Callable[[Path], None]) -> None:
        """Make a stage's folder unless it is there."""
        if (self.work / name).is_dir():
            self.progress.note(f"{name} is there already")
        else:
            make(self.work / name)
        shutil.rmtree(self.work / (name + _SCRATCH), ignore_errors=True)
        if (self.work / name).is_dir():
            self.made.append(name)

    # --- the stages

    def make_bidirectional(self, folder: Path) -> None:
        """Stage 0: the decoder, bidirectional and proven, nothing trained."""
        self._check_decoder()
        tokenizer = decoder.load_tokenizer(self.source, **self._hub())
        if self.recipe.corpus.source == SELF:
            self._write_own_texts(tokenizer)
        model = self._load(self.source, tokenizer, self.recipe.mntp, head=True)
        switch = backbone.make_bidirectional(model)
        for note in switch.notes:
            self.progress.note(note)
        near = [window for window in switch.windows if window is not None]
        if near:
            self.progress.note(
                f"{len(near)} of {len(switch.windows)} layers keep their windows, now to either side: "
                f"{', '.join(map(str, sorted(set(near))))} tokens"
            )
        with whole_folder(folder) as partial:
            LLM2Vec(model, tokenizer, settings=self._settings(tokenizer)).write(partial)
            write_json(partial / _STAGE_FILE, {"stage": "bi", "switch": switch.to_dict(), "metrics": []})

    def mntp(self, folder: Path) -> None:
        """Stage 1: masked next-token prediction."""
        recipe = self.recipe.mntp
        if not recipe.steps:
            return
        with _scratch(folder) as scratch:
            tokenizer = decoder.load_tokenizer(self.work / "0-bi")
            length = recipe.max_length if recipe.layout == "lines" else None
            texts = self._texts(self.recipe.corpus)
            with self.processes.main_process_first():
                store = self._store(texts, scratch, tokenizer, max_length=length, min_tokens=2)
            model = self._load(self.work / "0-bi", tokenizer, recipe, head=True)
            switch = backbone.make_bidirectional(model)
            model, log = train_mntp(
                model, tokenizer, store, recipe, folder=scratch, seed=self.recipe.seed, progress=self.progress
            )
            facts = {"stage": "mntp", "switch": switch.to_dict(), "corpus": _facts(store), "metrics": log}
            self._save(folder, model, tokenizer, facts)

    def simcse(self, folder: Path) -> None:
        """Stage 2: unsupervised contrastive learning."""
        recipe = self.recipe.simcse
        if not recipe.steps:
            return
        with _scratch(folder) as scratch:
            source = self.work / self.made[-1]
            tokenizer = decoder.load_tokenizer(source)
            texts = self._texts(recipe.corpus or self.recipe.corpus)
            if recipe.sentences:
                texts = (sentence for text in texts for sentence in sentences(text))
            with self.processes.main_process_first():
                store = self._store(
                    texts, scratch, tokenizer, max_length=recipe.max_length, min_tokens=recipe.min_tokens
                )
            if len(store) < recipe.batch_size:
                raise UsageError(f"simcse.batch_size {recipe.batch_size} is more than the corpus's {len(store)} texts")
            quiet = attention_dropouts(source)
            noisy = dict.fromkeys(quiet, recipe.dropout)
            model = self._load(source, tokenizer, recipe, head=False, overrides=noisy)
            switch = backbone.make_bidirectional(model)
            live = prove_dropout(model)
            model, log = train_simcse(
                model,
                tokenizer,
                store,
                recipe,
                pooling=self.recipe.encoder.pooling,
                folder=scratch,
                seed=self.recipe.seed,
                progress=self.progress,
            )
            for name, value in quiet.items():
                setattr(model.config, name, value)
            switch_facts = switch.to_dict()
            switch_facts["proofs"].append(live.to_dict())
            facts = {"stage": "simcse", "switch": switch_facts, "corpus": _facts(store), "metrics": log}
            self._save(folder, model, tokenizer, facts)

    def finish(self) -> None:
        """Write the encoder from the last stage, open it as others would, compare, and publish it."""
        last = self.work / self.made[-1]
        built = self.work / ("encoder" + PARTIAL)
        shutil.rmtree(built, ignore_errors=True)
        encoder = LLM2Vec.from_pretrained(last)
        encoder.save(built)
        proof = prove_read_back(encoder, built)
        stages = [read_json(self.work / name / _STAGE_FILE) for name in self.made]
        provenance = {
            **self._identity(),
            "versions": _versions(),
            "machine": {"platform": platform.platform(), "device": str(encoder.device)},
            "stages": stages,
            "read_back": proof.to_dict(),
        }
        write_json(built / PROVENANCE_FILE, provenance)
        (built / "README.md").write_text(model_card(self.out.name, provenance), encoding="utf8")
        with whole_file(built / "metrics.jsonl") as partial:
            lines = ({"stage": stage["stage"], **line} for stage in stages for line in stage["metrics"])
            partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf8")
        publish(built, self.out)

    def result(self) -> Conversion:
        """The finished conversion."""
        stages = {path.name: path for path in sorted(self.work.glob("[0-9]-*")) if path.suffix != PARTIAL}
        return Conversion(self.out, stages, read_json(self.out / PROVENANCE_FILE))

    # --- what they need

    def _hub(self) -> dict[str, Any]:
        return {"trust_remote_code": self.recipe.trust_remote_code}

    def _load(
        self,
        source: str | Path,
        tokenizer: PreTrainedTokenizerBase,
        recipe: StageRecipe,
        *,
        head: bool,
        overrides: Mapping[str, float] | None = None,
    ) -> PreTrainedModel:
        model = decoder.load(
            source, head=head, dtype=weights_dtype(recipe, default_device()), config_overrides=overrides, **self._hub()
        )
        decoder.check_vocabulary(model, tokenizer)
        return model

    def _check_decoder(self) -> None:
        config = decoder.load_config(self.source, **self._hub())
        if backbone.is_bidirectional(config):
            raise ModelError(f"{self.source} is bidirectional already; give the decoder that it was made from")
        limit = backbone.position_limit(config)
        recipe = self.recipe
        lengths = {
            "mntp.max_length": recipe.mntp.max_length if recipe.mntp.steps else 0,
            "simcse.max_length": recipe.simcse.max_length if recipe.simcse.steps else 0,
            "encoder.max_length": recipe.encoder.max_length,
        }
        for name, length in lengths.items():
            if limit is not None and length > limit:
                raise UsageError(f"{name} is {length}, but the decoder has {limit} positions: --set {name}={limit}")

    def _write_own_texts(self, tokenizer: PreTrainedTokenizerBase) -> None:
        place = self._own_texts()
        if place.is_file():
            return
        writer = decoder.load(self.source, head=True, dtype=torch.float32, **self._hub()).eval()
        written = self_texts(writer, tokenizer, self.recipe.corpus, seed=self.recipe.seed, progress=self.progress)
        with whole_file(place) as partial:
            partial.write_text("".join(text + "\n" for text in written), encoding="utf8")

    def _own_texts(self) -> Path:
        return self.work / "self.txt"

    def _settings(self, tokenizer: PreTrainedTokenizerBase) -> Settings:
        encoder = self.recipe.encoder
        separator = encoder.separator
        return Settings(
            pooling_mode=encoder.pooling,
            max_length=encoder.max_length,
            normalize=encoder.normalize,
            prompts=dict(encoder.prompts),
            separator=separator_for(tokenizer, encoder.prompts.values()) if separator is None else separator,
        )

    def _texts(self, corpus: CorpusRecipe) -> Iterator[str]:
        if corpus.source == SELF:
            corpus = CorpusRecipe(source=str(self._own_texts()), max_texts=corpus.max_texts)
        return read_texts(corpus)

    def _store(
        self,
        texts: Iterator[str],
        scratch: Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None,
        min_tokens: int,
    ) -> TokenStore:
        place = scratch / "tokens"
        if place.is_dir():
            return TokenStore(place)
        self.progress.start("reading texts", total=None)
        store = store_tokens(
            tokenizer, texts, place, max_length=max_length, min_tokens=min_tokens, seen=self.progress.advance
        )
        self.progress.finish()
        return store

    def _save(
        self, folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: Mapping[str, Any]
    ) -> None:
        def write() -> None:
            with whole_folder(folder) as partial:
                LLM2Vec(model, tokenizer, settings=self._settings(tokenizer)).write(partial)
                write_json(partial / _STAGE_FILE, facts)

        self.on_main(write)


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A stage's own place for tokens and checkpoints; kept when the stage is cut short, removed when it is done."""
    scratch = folder.with_name(folder.name + _SCRATCH)
    scratch.mkdir(parents=True, exist_ok=True)
    yield scratch
    shutil.rmtree(scratch, ignore_errors=True)


def _facts(store: TokenStore) -> dict[str, Any]:
    return {"texts": store.texts, "tokens": store.tokens, "fingerprint": store.fingerprint}


def _versions() -> dict[str, str]:
    names = ("llm2vec", "torch", "transformers", "peft", "sentence-transformers", "tokenizers")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "source"
    return found
