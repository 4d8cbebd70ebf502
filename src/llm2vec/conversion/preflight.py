"""Checks before anything is trained: whether decoder, adapters and triples suit the recipe.

This module reads configurations and rows, but no weights.
"""

from collections.abc import Mapping

from transformers import PreTrainedConfig

from llm2vec.backbone.adapter_chain import check_adapter
from llm2vec.backbone.loading import load_config, load_tokenizer
from llm2vec.backbone.miniature import NoMiniature, miniature_model
from llm2vec.backbone.positions import check_length, longrope_limit
from llm2vec.backbone.proofs import prove_dropout
from llm2vec.backbone.source import Source
from llm2vec.backbone.switch import body, is_bidirectional
from llm2vec.conversion.bidirectional import settings_of
from llm2vec.corpus.triples import check_triples
from llm2vec.encoder.sentence_transformers_files import unlike_elsewhere
from llm2vec.errors import ModelError, ProofFailed, UsageError
from llm2vec.recipe.knobs import PairsRecipe, Recipe, SupervisedRecipe
from llm2vec.runtime.optional import optional
from llm2vec.runtime.progress import Progress
from llm2vec.training.pair_loss import SCORES
from llm2vec.training.simcse import attention_dropouts
from llm2vec.training.stages import STAGES


def check(recipe: Recipe, *, processes: int, progress: Progress) -> None:
    """Check that a recipe can be followed.

    Args:
        recipe: What to do.
        processes: Number of processes that share a training step.
        progress: Listener for notes.

    Raises:
        ModelError: The decoder is no decoder, or the recipe has MNTP or lets the decoder write
            texts and it is bidirectional already; or an adapter is no adapter.
        UsageError: The decoder has too few positions, or no attention dropout for SimCSE; or
            sentence-transformers could not give the encoder's vectors.
        CorpusError: A data set of triples has errors, or is too small for a step.
    """
    source = Source.of(recipe.decoder, trust_remote_code=recipe.trust_remote_code)
    config = load_config(source)
    if is_bidirectional(config) and (recipe.mntp.steps or recipe.trains_on_own_texts):
        raise ModelError(
            f"{recipe.decoder} is bidirectional already; give the decoder that it was made from"
        )
    if is_bidirectional(config) and not recipe.encoder.bidirectional:
        raise ModelError(
            f"{recipe.decoder} is bidirectional already and cannot stay causal; give the decoder "
            "that it was made from"
        )
    for adapter in recipe.adapters:
        check_adapter(adapter)
    _check_lengths(recipe, config)
    _check_pooling(recipe, source)
    border = longrope_limit(config)
    if border is not None and recipe.encoder.max_length > border:
        progress.note(
            f"texts of more than {border} tokens change the decoder's frequencies for all texts of "
            "a call. `encode` "
            "keeps them apart, other libraries do not: encode there in batches of one, or lower "
            "encoder.max_length"
        )
    if recipe.simcse.steps:
        noise = dict.fromkeys(attention_dropouts(source), recipe.simcse.dropout)
        _check_dropout(config, noise, trust_remote_code=recipe.trust_remote_code)
    _check_pairs(recipe.supervised, processes=processes, progress=progress)
    _note_unused(recipe, progress)


def _check_pairs(knobs: SupervisedRecipe, *, processes: int, progress: Progress) -> None:
    """Check the rows of the supervised stage, if it has steps."""
    if knobs.steps:
        check_triples(
            knobs.corpus,
            step_rows=knobs.batch_size * processes,
            scores=SCORES.get(knobs.scored_loss),
            on_note=progress.note,
        )
        if knobs.held_out is not None:
            optional("scipy.stats", extra="evaluate")
            held_out = PairsRecipe(data=(knobs.held_out,))
            check_triples(held_out, step_rows=2, on_note=progress.note)


def _note_unused(recipe: Recipe, progress: Progress) -> None:
    """Tell a person which stages have something to learn from and no steps."""
    corpus = recipe.supervised.corpus
    if not recipe.supervised.steps and (corpus.source is not None or corpus.data):
        progress.note("supervised.corpus is not used, because supervised.steps is 0")
    if not recipe.distill.steps and recipe.distill.teacher is not None:
        progress.note("distill.teacher is not used, because distill.steps is 0")


def _check_dropout(
    config: PreTrainedConfig, noise: Mapping[str, float], *, trust_remote_code: bool
) -> None:
    """Try SimCSE's dropout on a small model of the decoder's family, if one can be built."""
    try:
        miniature_model(config, trust_remote_code=trust_remote_code)
    except NoMiniature:
        return
    try:
        noisy = miniature_model(config, trust_remote_code=trust_remote_code, overrides=noise)
        prove_dropout(body(noisy))
    except (NoMiniature, ProofFailed) as error:
        raise UsageError(
            f"{config.model_type} has no live attention dropout, the noise that SimCSE needs "
            f"({error}); leave the stage out: simcse.steps=0"
        ) from error


def _check_pooling(recipe: Recipe, source: Source) -> None:
    """Refuse settings that the files of sentence-transformers cannot express."""
    tokenizer = load_tokenizer(source)
    reason = unlike_elsewhere(settings_of(recipe, tokenizer), tokenizer)
    if reason is not None:
        raise UsageError(
            f"encoder.pooling={recipe.encoder.pooling}: {reason}. The encoder would have other "
            "vectors there; "
            "choose encoder.pooling=mean, or other prompts"
        )


def _check_lengths(recipe: Recipe, config: PreTrainedConfig) -> None:
    """Refuse lengths without positions, and stages in which the decoder's frequencies change."""
    check_length("encoder.max_length", recipe.encoder.max_length, config)
    for stage in STAGES:
        knobs = stage.knobs(recipe)
        if knobs.steps:
            check_length(f"{stage.name}.max_length", knobs.max_length, config, trained=True)
