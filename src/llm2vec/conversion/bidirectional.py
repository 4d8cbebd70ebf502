"""Stage 0 of a conversion: the decoder, made bidirectional and proven, with nothing trained."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm2vec.backbone.adapter_chain import adapter_folder
from llm2vec.backbone.adapters import merge_chain, tokenizer_with, trained_with_head
from llm2vec.backbone.depth import keep_layers
from llm2vec.backbone.loading import (
    embedding_rows,
    load_config,
    load_decoder,
    load_tokenizer,
)
from llm2vec.backbone.lora import check_trainable, weights_dtype
from llm2vec.backbone.source import Source
from llm2vec.backbone.switch import Switch, allow_partly, body, make_bidirectional
from llm2vec.backbone.vocabulary import fit_tokenizer
from llm2vec.conversion.run_folder import write_stage_facts
from llm2vec.conversion.start import own_settings
from llm2vec.corpus.self_written import self_texts
from llm2vec.encoder.encoder import Encoder
from llm2vec.encoder.settings import Settings
from llm2vec.encoder.templates import read_template
from llm2vec.encoder.tokenization import separator_for
from llm2vec.recipe.knobs import PairsRecipe, Recipe, StageRecipe
from llm2vec.runtime.files import atomic_file, atomic_folder
from llm2vec.runtime.hardware import default_device
from llm2vec.runtime.progress import Progress
from llm2vec.training.stage import CAUSAL
from llm2vec.training.stages import STAGES


def make_bidirectional_folder(recipe: Recipe, folder: Path, *, progress: Progress) -> None:
    """Write the first stage's folder.

    Args:
        recipe: What to do.
        folder: The folder to make, whole or not at all.
        progress: Listener for notes.

    Raises:
        ModelError: The decoder cannot be loaded, or cannot be made bidirectional.
        UsageError: A stage of the recipe cannot train the decoder.
    """
    source = Source.of(recipe.decoder, trust_remote_code=recipe.trust_remote_code)
    tokenizer = load_tokenizer(source)
    adapters = [adapter_folder(Source.of(each)) for each in recipe.adapters]
    model = _load(recipe, source, adapters)
    if recipe.encoder.layers is not None:
        keep_layers(model, recipe.encoder.layers)
    rows = embedding_rows(model)
    tokenizer = tokenizer_with(tokenizer, adapters, rows=rows)
    fit_tokenizer(tokenizer, rows=rows)
    for stage in STAGES:
        if stage.knobs(recipe).steps:
            check_trainable(model if stage.has_head else body(model), stage.knobs(recipe))
    facts: dict[str, Any] = {"stage": "uni", "switch": CAUSAL, "metrics": []}
    if recipe.encoder.bidirectional:
        switch = make_bidirectional(model)
        _note_switch(switch, progress)
        facts = {"stage": "bi", "switch": switch.to_dict(), "metrics": []}
    with atomic_folder(folder) as partial:
        Encoder(model, tokenizer, settings=settings_of(recipe, tokenizer)).write(partial)
        write_stage_facts(partial, facts)


def settings_of(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Settings:
    """The settings of the encoder that a recipe makes.

    What a recipe does not say stays as in the encoder that it goes on with.
    """
    encoder = recipe.encoder
    template = None if encoder.template is None else read_template(encoder.template, tokenizer)
    source = Source.of(recipe.decoder, trust_remote_code=recipe.trust_remote_code)
    before = own_settings(source) or Settings()
    default_name = before.default_prompt_name
    return replace(
        before,
        default_prompt_name=default_name if default_name in encoder.prompts else None,
        bidirectional=encoder.bidirectional,
        pooling=encoder.pooling,
        max_length=encoder.max_length,
        normalize=encoder.normalize,
        prompts=dict(encoder.prompts),
        separator=_separator(recipe, tokenizer),
        template=template,
    )


def _load(recipe: Recipe, source: Source, adapters: Sequence[Path]) -> PreTrainedModel:
    """The decoder with the recipe's adapters merged, and with its LM head if MNTP follows."""
    needs_head = recipe.mntp.steps > 0
    config = load_config(source)
    adapters_have_head = any(trained_with_head(folder, config) for folder in adapters)
    dtype = weights_dtype(_first_knobs(recipe), default_device())
    model = load_decoder(source, head=needs_head or adapters_have_head, dtype=dtype)
    merged = merge_chain(model, adapters)
    if recipe.partial:
        allow_partly(merged)
    return merged if needs_head else body(merged)


def _first_knobs(recipe: Recipe) -> StageRecipe:
    """The knobs of the stage that trains first, whose precision the decoder has until then."""
    all_knobs = [stage.knobs(recipe) for stage in STAGES]
    return next((knobs for knobs in all_knobs if knobs.steps), all_knobs[0])


def _separator(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> str:
    """The characters between prompt and text, which are the same in training and in encoding."""
    encoder = recipe.encoder
    supervised = recipe.supervised
    if encoder.separator is not None:
        return encoder.separator
    prompts = list(encoder.prompts.values())
    if supervised.steps:
        prompts += supervised.corpus.all_prompts
        if supervised.held_out is not None:
            prompts += PairsRecipe(data=(supervised.held_out,)).all_prompts
    return separator_for(tokenizer, [prompt for prompt in prompts if prompt.strip()])


def write_own_texts(recipe: Recipe, own_texts: Path, *, progress: Progress) -> None:
    """Let the decoder, still causal, write the corpus, if the recipe asks for that.

    Texts that an earlier run wrote stay.

    Args:
        recipe: What to do.
        own_texts: The file to write.
        progress: Listener that the texts are reported to.
    """
    if not recipe.trains_on_own_texts or own_texts.is_file():
        return
    source = Source.of(recipe.decoder, trust_remote_code=recipe.trust_remote_code)
    tokenizer = load_tokenizer(source)
    writer = load_decoder(source, head=True, dtype=torch.float32)
    fit_tokenizer(tokenizer, rows=embedding_rows(writer))
    texts = self_texts(writer.eval(), tokenizer, recipe.corpus, seed=recipe.seed, progress=progress)
    with atomic_file(own_texts) as partial:
        partial.write_text("".join(text + "\n" for text in texts), encoding="utf8")


def _note_switch(switch: Switch, progress: Progress) -> None:
    """Tell a person what the switch could not do, and which windows stay."""
    for note in switch.notes:
        progress.note(note)
    windows = [window for window in switch.windows if window is not None]
    if windows:
        lengths = ", ".join(map(str, sorted(set(windows))))
        progress.note(
            f"{len(windows)} of {len(switch.windows)} layers keep their windows, now to either "
            f"side: {lengths} tokens"
        )
