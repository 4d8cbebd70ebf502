"""The main job: a recipe's stages in order, each a folder in and a folder out, and an encoder proven at the end.

A killed run is started again by the same call: finished stages are folders that exist (`work`).
"""

import json
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm2vec.backbone.adapters import adapter_folder, merge_chain
from llm2vec.backbone.loading import check_vocabulary, load_decoder, load_tokenizer
from llm2vec.backbone.lora import weights_dtype
from llm2vec.backbone.proofs import prove_dropout
from llm2vec.backbone.source import place
from llm2vec.backbone.switch import body, make_bidirectional
from llm2vec.conversion.preflight import check
from llm2vec.conversion.read_back import prove_read_back
from llm2vec.conversion.run_folder import Work, scratch_beside
from llm2vec.corpus.texts import SELF, read_texts, self_texts, sentences
from llm2vec.corpus.token_store import TokenStore, store_tokens
from llm2vec.corpus.triples import Triples, store_triples
from llm2vec.encoder.encoder import LLM2Vec
from llm2vec.encoder.folder import (
    CHECKPOINTS,
    PROVENANCE_FILE,
    Settings,
    about_template,
    model_card,
)
from llm2vec.encoder.reference import read_template
from llm2vec.encoder.tokenization import separator_for
from llm2vec.errors import UsageError
from llm2vec.recipe.knobs import CorpusRecipe, Recipe, StageRecipe
from llm2vec.runtime.files import PARTIAL, publish, read_json, whole_file, whole_folder, write_json
from llm2vec.runtime.hardware import default_device, versions
from llm2vec.runtime.progress import Progress, Silent
from llm2vec.training.mntp import train_mntp
from llm2vec.training.simcse import attention_dropouts, train_simcse
from llm2vec.training.supervised import train_supervised
from llm2vec.training.trainer import KEPT

_STAGE_FILE = "stage.json"


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
    work = job.work
    if start_over:
        job.on_main(work.forget)
    if work.finished():
        job.progress.note(f"{work.out} is finished already; --start-over makes it again")
        return job.result()
    job.on_main(work.begin)
    work.stage("0-bi", lambda folder: job.on_main(lambda: job.make_bidirectional(folder)))
    work.stage("1-mntp", job.mntp)
    work.stage("2-simcse", job.simcse)
    work.stage("3-supervised", job.supervised)
    job.on_main(job.finish)
    if not keep_stages:
        job.on_main(lambda: shutil.rmtree(work.folder))
    return job.result()


class _Job:
    """One conversion: its stages, and what they need."""

    def __init__(self, recipe: Recipe, out: Path, progress: Progress) -> None:
        self.recipe, self.progress = recipe, progress
        self.source = place(recipe.decoder)
        self.work = Work(recipe, self.source, out, progress)
        self.processes = PartialState(cpu=default_device().type == "cpu")

    def on_main(self, work: Callable[[], None]) -> None:
        """Do what only one of several processes should, while the others wait."""
        if self.processes.is_main_process:
            work()
        self.processes.wait_for_everyone()

    def make_bidirectional(self, folder: Path) -> None:
        """Stage 0: the decoder, bidirectional and proven, nothing trained."""
        check(self.recipe, processes=self.processes.num_processes, progress=self.progress)
        tokenizer = load_tokenizer(self.source, **self._hub())
        if self.recipe.trains_on_own_texts:
            self._write_own_texts(tokenizer)
        model = self._load(
            self.source, tokenizer, self._first_stage(), head=self.recipe.mntp.steps > 0
        )
        merge_chain(body(model), [adapter_folder(place(each)) for each in self.recipe.adapters])
        switch = make_bidirectional(model)
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
            write_json(
                partial / _STAGE_FILE, {"stage": "bi", "switch": switch.to_dict(), "metrics": []}
            )

    def mntp(self, folder: Path) -> None:
        """Stage 1: masked next-token prediction."""
        recipe = self.recipe.mntp
        if not recipe.steps:
            return
        with scratch_beside(folder) as scratch:
            source = self.work.made[-1]
            tokenizer = load_tokenizer(source)
            length = recipe.max_length if recipe.layout == "lines" else None
            texts = self._texts(self.recipe.corpus)
            with self.processes.main_process_first():
                store = self._store(texts, scratch, tokenizer, max_length=length, min_tokens=2)
            model = self._load(source, tokenizer, recipe, head=True)
            switch = make_bidirectional(model)
            model, log = train_mntp(
                model,
                tokenizer,
                store,
                recipe,
                folder=scratch,
                seed=self.recipe.seed,
                progress=self.progress,
            )
            facts = {
                "stage": "mntp",
                "switch": switch.to_dict(),
                "corpus": store.facts(),
                "metrics": log,
            }
            self._save(folder, model, tokenizer, facts, scratch)

    def simcse(self, folder: Path) -> None:
        """Stage 2: unsupervised contrastive learning."""
        recipe = self.recipe.simcse
        if not recipe.steps:
            return
        with scratch_beside(folder) as scratch:
            source = self.work.made[-1]
            tokenizer = load_tokenizer(source)
            texts = self._texts(recipe.corpus or self.recipe.corpus)
            if recipe.sentences:
                texts = (sentence for text in texts for sentence in sentences(text))
            with self.processes.main_process_first():
                store = self._store(
                    texts,
                    scratch,
                    tokenizer,
                    max_length=recipe.max_length,
                    min_tokens=recipe.min_tokens,
                )
            if len(store) < recipe.batch_size:
                raise UsageError(
                    f"simcse.batch_size {recipe.batch_size} is more than the corpus's {len(store)} texts"
                )
            quiet = attention_dropouts(source)
            noisy = dict.fromkeys(quiet, recipe.dropout)
            model = self._load(source, tokenizer, recipe, head=False, overrides=noisy)
            switch = make_bidirectional(model)
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
            facts = {
                "stage": "simcse",
                "switch": switch_facts,
                "corpus": store.facts(),
                "metrics": log,
            }
            self._save(folder, model, tokenizer, facts, scratch)

    def supervised(self, folder: Path) -> None:
        """Stage 3: supervised contrastive learning."""
        recipe = self.recipe.supervised
        if not recipe.steps:
            return
        with scratch_beside(folder) as scratch:
            source = self.work.made[-1]
            tokenizer = load_tokenizer(source)
            with self.processes.main_process_first():
                triples = self._triples(scratch, tokenizer)
            model = self._load(source, tokenizer, recipe, head=False)
            switch = make_bidirectional(model)
            model, log = train_supervised(
                model,
                tokenizer,
                triples,
                recipe,
                pooling=self.recipe.encoder.pooling,
                folder=scratch,
                seed=self.recipe.seed,
                processes=self.processes.num_processes,
                progress=self.progress,
            )
            corpus = {
                **triples.store.facts(),
                "data_sets": [asdict(each) for each in triples.data_sets],
            }
            facts = {
                "stage": "supervised",
                "switch": switch.to_dict(),
                "corpus": corpus,
                "metrics": log,
            }
            self._save(folder, model, tokenizer, facts, scratch)

    def finish(self) -> None:
        """Write the encoder from the last stage, open it as others would, compare, and publish it."""
        built = self.work.folder / ("encoder" + PARTIAL)
        shutil.rmtree(built, ignore_errors=True)
        encoder = LLM2Vec.from_pretrained(self.work.made[-1])
        built.mkdir(parents=True)
        encoder.write(built)
        if (note := about_template(encoder.settings)) is not None:
            self.progress.note(note)
        proof = prove_read_back(encoder, built)
        stages = [read_json(stage / _STAGE_FILE) for stage in self.work.made]
        provenance = {
            **self.work.identity(),
            "versions": versions(),
            "machine": {"platform": platform.platform(), "device": str(encoder.device)},
            "stages": stages,
            "read_back": proof.to_dict(),
        }
        write_json(built / PROVENANCE_FILE, provenance)
        (built / "README.md").write_text(
            model_card(self.work.out.name, provenance), encoding="utf8"
        )
        with whole_file(built / "metrics.jsonl") as partial:
            lines = (
                {"stage": stage["stage"], **line} for stage in stages for line in stage["metrics"]
            )
            partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf8")
        publish(built, self.work.out)

    def result(self) -> Conversion:
        """The finished conversion."""
        out = self.work.out
        return Conversion(out, self.work.kept(), read_json(out / PROVENANCE_FILE))

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
        model = load_decoder(
            source,
            head=head,
            dtype=weights_dtype(recipe, default_device()),
            config_overrides=overrides,
            **self._hub(),
        )
        check_vocabulary(model, tokenizer)
        return model

    def _first_stage(self) -> StageRecipe:
        """The stage that trains first; its precision is what the decoder is kept in until then."""
        recipe = self.recipe
        return next(
            (stage for stage in (recipe.mntp, recipe.simcse, recipe.supervised) if stage.steps),
            recipe.mntp,
        )

    def _write_own_texts(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if self.work.own_texts.is_file():
            return
        writer = load_decoder(self.source, head=True, dtype=torch.float32, **self._hub()).eval()
        written = self_texts(
            writer, tokenizer, self.recipe.corpus, seed=self.recipe.seed, progress=self.progress
        )
        with whole_file(self.work.own_texts) as partial:
            partial.write_text("".join(text + "\n" for text in written), encoding="utf8")

    def _settings(self, tokenizer: PreTrainedTokenizerBase) -> Settings:
        encoder = self.recipe.encoder
        return Settings(
            pooling_mode=encoder.pooling,
            max_length=encoder.max_length,
            normalize=encoder.normalize,
            prompts=dict(encoder.prompts),
            separator=self._separator(tokenizer),
            template=self._template(tokenizer),
        )

    def _template(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        template = self.recipe.encoder.template
        return None if template is None else read_template(template, tokenizer)

    def _separator(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """What stands between prompt and text, the same when trained with prompts as when encoding with them."""
        encoder, supervised = self.recipe.encoder, self.recipe.supervised
        if encoder.separator is not None:
            return encoder.separator
        trained = supervised.corpus.instructions.values() if supervised.steps else ()
        prompts = [*encoder.prompts.values(), *chain.from_iterable(trained)]
        return separator_for(tokenizer, (prompt for prompt in prompts if prompt.strip()))

    def _texts(self, corpus: CorpusRecipe) -> Iterator[str]:
        if corpus.source == SELF:
            corpus = CorpusRecipe(source=str(self.work.own_texts), max_texts=corpus.max_texts)
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
            tokenizer,
            texts,
            place,
            max_length=max_length,
            min_tokens=min_tokens,
            seen=self.progress.advance,
        )
        self.progress.finish()
        return store

    def _triples(self, scratch: Path, tokenizer: PreTrainedTokenizerBase) -> Triples:
        recipe, place = self.recipe.supervised, scratch / "triples"
        if place.is_dir():
            return Triples(place)
        self.progress.start("reading triples", total=None)
        triples = store_triples(
            tokenizer,
            recipe.corpus,
            place,
            max_length=recipe.max_length,
            separator=self._separator(tokenizer),
            template=self._template(tokenizer),
            seen=self.progress.advance,
        )
        self.progress.finish()
        for each in triples.data_sets:
            if each.skipped:
                self.progress.note(
                    f"{each.name}: {each.skipped} of {each.skipped + each.rows} rows have an empty text"
                )
        return triples

    def _save(
        self,
        folder: Path,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Mapping[str, Any],
        scratch: Path,
    ) -> None:
        """Write a stage's folder, and those of the models it kept along the way."""

        def write() -> None:
            for kept in sorted(scratch.glob(f"{KEPT}[0-9]*[0-9]")):
                place = (
                    self.work.folder
                    / CHECKPOINTS
                    / f"{folder.name}-{int(kept.name.removeprefix(KEPT))}"
                )
                place.parent.mkdir(exist_ok=True)
                body = load_decoder(kept, head=False, dtype=model.dtype)
                with whole_folder(place) as partial:
                    LLM2Vec(body, tokenizer, settings=self._settings(tokenizer)).write(partial)
            with whole_folder(folder) as partial:
                LLM2Vec(model, tokenizer, settings=self._settings(tokenizer)).write(partial)
                write_json(partial / _STAGE_FILE, facts)

        self.on_main(write)
