"""What is told before anything is trained: a decoder, adapters and triples that a recipe cannot do with.

Reads configurations and rows, no weights.
"""

from collections.abc import Mapping

from transformers import PreTrainedConfig

from llm2vec.backbone.adapter_chain import check_adapter
from llm2vec.backbone.loading import load_config, load_tokenizer
from llm2vec.backbone.miniature import NoMiniature, miniature_model
from llm2vec.backbone.positions import longrope_limit, position_limit
from llm2vec.backbone.proofs import prove_dropout
from llm2vec.backbone.source import Source
from llm2vec.backbone.switch import body, is_bidirectional
from llm2vec.conversion.bidirectional import settings_of
from llm2vec.corpus.triples import check_triples
from llm2vec.encoder.sentence_transformers_files import unlike_elsewhere
from llm2vec.errors import ModelError, ProofFailed, UsageError
from llm2vec.recipe.knobs import Recipe
from llm2vec.runtime.progress import Progress
from llm2vec.training.simcse import attention_dropouts
from llm2vec.training.stages import STAGES


def check(recipe: Recipe, *, processes: int, progress: Progress) -> None:
    """Look whether a recipe can be followed.

    Args:
        recipe: What is to be done.
        processes: How many share a training step.
        progress: Told of what is not used.

    Raises:
        ModelError: The decoder is none, or is bidirectional already and MNTP or writing texts is asked for; an adapter
            is none.
        UsageError: The decoder has too few positions, or no attention dropout where SimCSE needs it.
        CorpusError: A data set of triples is wrong, or too small for a step.
    """
    source = Source.of(recipe.decoder, trust_remote_code=recipe.trust_remote_code)
    config = load_config(source)
    if is_bidirectional(config) and (recipe.mntp.steps or recipe.trains_on_own_texts):
        raise ModelError(
            f"{recipe.decoder} is bidirectional already; give the decoder that it was made from"
        )
    for adapter in recipe.adapters:
        check_adapter(adapter)
    _check_lengths(recipe, config)
    _check_pooling(recipe, source)
    border = longrope_limit(config)
    if border is not None and recipe.encoder.max_length > border:
        progress.note(
            f"longer texts than {border} tokens change the decoder's frequencies for all texts of a call: encode keeps "
            "them apart, other libraries do not; encode there in batches of one, or lower encoder.max_length"
        )
    if recipe.simcse.steps:
        noise = dict.fromkeys(attention_dropouts(source), recipe.simcse.dropout)
        _check_dropout(config, noise, trust_remote_code=recipe.trust_remote_code)
    if recipe.supervised.steps:
        check_triples(
            recipe.supervised.corpus,
            step_rows=recipe.supervised.batch_size * processes,
            on_note=progress.note,
        )
    elif recipe.supervised.corpus.source is not None:
        progress.note("supervised.corpus is not used: supervised.steps is 0")


def _check_dropout(
    config: PreTrainedConfig, noise: Mapping[str, float], *, trust_remote_code: bool
) -> None:
    """Try SimCSE's dropout on a small copy of the decoder, where one can be built."""
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
            f"({error}); leave it out: simcse.steps=0"
        ) from error


def _check_pooling(recipe: Recipe, source: Source) -> None:
    """Refuse settings that the encoder's folder could not tell other libraries."""
    tokenizer = load_tokenizer(source)
    reason = unlike_elsewhere(settings_of(recipe, tokenizer), tokenizer)
    if reason is not None:
        raise UsageError(
            f"encoder.pooling={recipe.encoder.pooling}: {reason}. Its folder could not give the same vectors there; "
            "choose encoder.pooling=mean, or other prompts"
        )


def _check_lengths(recipe: Recipe, config: PreTrainedConfig) -> None:
    limit, border = position_limit(config), longrope_limit(config)
    lengths = {"encoder.max_length": recipe.encoder.max_length}
    for stage in STAGES:
        knobs = stage.knobs(recipe)
        if knobs.steps:
            lengths[f"{stage.name}.max_length"] = knobs.max_length
    for name, length in lengths.items():
        if limit is not None and length > limit:
            raise UsageError(
                f"{name} is {length}, but the decoder has {limit} positions: --set {name}={limit}"
            )
        if border is not None and length > border and name != "encoder.max_length":
            raise UsageError(
                f"{name} is {length}, but longer texts than {border} tokens change the decoder's frequencies for all "
                f"texts of a batch: --set {name}={border}"
            )
