"""Tiny random models of every decoder type that transformers has, made by shrinking the default configurations."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from llm2vec import Recipe, convert
from llm2vec.backbone.lm_head import masked_rows
from llm2vec.backbone.loading import check_is_decoder
from llm2vec.backbone.miniature import NoMiniature, miniature_config
from llm2vec.backbone.proofs import prove_causal
from llm2vec.backbone.switch import body, make_bidirectional
from llm2vec.errors import LLM2VecError, ModelError, NotConvertible
from llm2vec.recipe.files import merged
from llm2vec.recipe.presets import preset

NOT_TRIED = "its default configuration cannot be built small"

TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
"""Every model type that transformers opens as a causal language model."""

_ALTERNATING = ["sliding_attention", "full_attention"] * 2

FILLED_IN: Mapping[str, Mapping[str, Any]] = {
    "cohere_compass_text": {
        "layer_types": _ALTERNATING,
        "num_hidden_layers": 4,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0}
            for kind in ("sliding_attention", "full_attention")
        },
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "dots1": {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
    },
    "dots3_note_text": {"per_layer_config": None, "head_dim": 192},
    "falcon_h1": {"mamba_d_head": 16, "mamba_n_heads": 8, "mamba_d_ssm": 128},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2_moe": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"hidden_size": 64, "num_heads": 4, "head_dim": 16, "expand": 1, "n_groups": 1},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
}
"""What default configurations leave out and real ones have."""

EXERCISED: Mapping[str, Mapping[str, Any]] = {
    name: {"layer_types": _ALTERNATING, "sliding_window": 6, "use_sliding_window": True}
    for name in ("qwen2", "qwen3", "smollm3")
}
"""What default configurations switch off and some real ones use."""


def small_config(model_type: str) -> PreTrainedConfig:
    """A small configuration of the type's language model."""
    config = AutoConfig.for_model(model_type, **FILLED_IN.get(model_type, {}))
    small = miniature_config(config)
    for name, value in EXERCISED.get(model_type, {}).items():
        setattr(small, name, value)
    return small


def tiny(model_type: str, *, attention: str | None = None, **changes: Any) -> PreTrainedModel:
    """A random model of the type, always the same one, in evaluation mode."""
    config = small_config(model_type)
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    chosen = {} if attention is None else {"attn_implementation": attention}
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, **chosen).eval()
    return model


@dataclass(frozen=True)
class Outcome:
    """What comes of a model type.

    Attributes:
        model_type: As transformers names it.
        eager: "proven", or why not.
        sdpa: The same; None where the family has none.
        uses: The implementation of a saved folder; None: refused.
        packs: Texts share rows.
        windows: Of the small model's layers.
        head_difference: Largest difference between masked rows and all logits.
        causal: Proven to be causal before the switch, as the baseline `uni:` must be.
        reason: Why it is refused.
    """

    model_type: str
    eager: str | None = None
    sdpa: str | None = None
    uses: str | None = None
    packs: bool = False
    windows: tuple[int | None, ...] = ()
    head_difference: float | None = None
    causal: bool = True
    reason: str | None = None


def outcome(model_type: str) -> Outcome:
    """Build, switch and prove a type as `make_bidirectional` would choose, then under the other implementation too."""
    try:
        config = AutoConfig.for_model(model_type, **FILLED_IN.get(model_type, {}))
        check_is_decoder(config, model_type)
        model = tiny(model_type)
    except NoMiniature as error:
        return Outcome(model_type, reason=f"{NOT_TRIED}: {_last_line(error.__cause__)}")
    except ModelError as error:
        return Outcome(model_type, reason=str(error))
    except (ValueError, TypeError, AttributeError, StrictDataclassError) as error:
        return Outcome(model_type, reason=f"{NOT_TRIED}: {_last_line(error)}")
    try:
        switch = make_bidirectional(model)
    except NotConvertible as error:
        return Outcome(model_type, reason=str(error))
    under = {
        name: "proven" if switch.attention == name else proven_under(model_type, name)
        for name in ("eager", "sdpa")
    }
    return Outcome(
        model_type,
        **under,
        uses=switch.attention,
        packs=switch.packs,
        windows=switch.windows,
        head_difference=head_difference(lively(model)),
        causal=prove_causal(body(tiny(model_type))).passed,
    )


def _last_line(error: BaseException | None) -> str:
    return str(error).splitlines()[-1].strip()


def proven_under(model_type: str, attention: str) -> str:
    """ "proven", or what this implementation fails at."""
    try:
        model = tiny(model_type, attention=attention)
    except (ValueError, ImportError):
        return "not offered"
    try:
        switch = make_bidirectional(model)
    except NotConvertible as error:
        return str(error)
    return "proven" if switch.attention == attention else switch.notes[0]


def lively(model: PreTrainedModel) -> PreTrainedModel:
    """Give logit scales and caps values that matter, and the head a bias that is not zero, where there are any."""
    for config in {
        id(each): each for each in (model.config, model.config.get_text_config(decoder=True))
    }.values():
        for name in (
            "logit_scale",
            "logits_scaling",
            "final_logit_softcapping",
            "logits_soft_cap",
            "lm_head_multiplier",
        ):
            derived = isinstance(getattr(type(config), name, None), property)
            if isinstance(getattr(config, name, None), int | float) and not derived:
                setattr(config, name, 3.0)
    for name in ("logit_scale", "logits_scaling", "final_logit_softcapping"):
        if isinstance(getattr(model, name, None), int | float):
            setattr(model, name, 3.0)
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        torch.nn.init.normal_(head.bias)
    return model


def head_difference(model: PreTrainedModel) -> float:
    """Largest difference between the logits of a few positions and the same ones out of all logits, padded."""
    random = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(4, 100, (3, 11), generator=random)
    mask_BT = (torch.arange(11) < torch.tensor([11, 7, 9])[:, None]).long()
    inputs = {"input_ids": ids_BT, "attention_mask": mask_BT, "use_cache": False}
    rows = torch.tensor([0, 1, 5, 10, 12, 16, 22, 29])
    with torch.no_grad():
        full_NV = model(**inputs).logits.flatten(0, 1)[rows]
        with masked_rows(model, rows):
            picked_MV = model(**inputs).logits[0]
        with masked_rows(model, (rows // 11, rows % 11)):
            paired_MV = model(**inputs).logits[0]
    return max(float((each - full_NV).abs().max()) for each in (picked_MV, paired_MV))


def row(outcome: Outcome, stages: str) -> str:
    """A type's line of `docs/families.md`: what holds for the family, no measured numbers.

    Args:
        outcome: What comes of the type.
        stages: What its tiny model was trained in, as `stages_trained` says; not looked at for a type that is refused.
    """
    if outcome.uses is None:
        return f"| `{outcome.model_type}` | refused | | | {outcome.reason} |"
    windows = sum(window is not None for window in outcome.windows)
    notes = [f"{windows} of {len(outcome.windows)} layers have windows"] if windows else []
    notes += [
        f"{name}: {said}"
        for name, said in (("eager", outcome.eager), ("sdpa", outcome.sdpa))
        if said != "proven"
    ]
    notes += [] if outcome.causal else ["no causal baseline: it reads later tokens as it is"]
    packs = "yes" if outcome.packs else "no"
    return f"| `{outcome.model_type}` | {outcome.uses} | {packs} | {stages} | {'; '.join(notes)} |"


# --- converted, from end to end

LETTERS = " _abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,'"
SPECIAL = ("<unk>", "<pad>", "<s>", "</s>")

TEXTS = tuple(
    f"{subject} {verb} {thing}."
    for subject in ("The miller", "A nurse", "My brother", "The pupil")
    for verb in ("opened", "painted", "sold")
    for thing in ("the green door", "a box", "two red boats")
)

FEW_STEPS = {
    "mntp": {"steps": 2, "batch_size": 4, "max_length": 32, "eval_blocks": 2},
    "simcse": {"steps": 2, "batch_size": 4, "max_length": 32},
    "encoder": {"max_length": 64},
}
"""What a conversion of a tiny model changes in the `paper` preset: how long it trains, and on how much."""


def letters_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with a token for each letter, of fewer tokens than a tiny model has embeddings."""
    tokens = [*SPECIAL, *LETTERS]
    made = Tokenizer(WordLevel({token: place for place, token in enumerate(tokens)}, "<unk>"))
    made.pre_tokenizer = Split(Regex("."), behavior="isolated")
    named = dict(zip(("unk_token", "pad_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=made, **named)


def write_decoder(model_type: str, folder: Path, **changes: Any) -> Path:
    """A tiny random decoder of the type and a tokenizer, as a folder."""
    tiny(model_type, **changes).save_pretrained(folder)
    letters_tokenizer().save_pretrained(folder)
    return folder


def converted(
    model_type: str, folder: Path, *, method: str, simcse_steps: int = 2, **changes: Any
) -> str:
    """Convert a tiny model of the type by the `paper` preset: "yes", or what that ends with.

    Args:
        model_type: As transformers names it.
        folder: A folder for everything that is written.
        method: `lora` or `full`.
        simcse_steps: How many steps of SimCSE; 0 leaves it out.
        **changes: Values of the tiny model's configuration.
    """
    (folder / "texts.txt").write_text("\n".join(TEXTS))
    named = {
        "decoder": str(write_decoder(model_type, folder / "decoder", **changes)),
        "corpus": {"source": str(folder / "texts.txt")},
        "mntp": {"method": method},
        "simcse": {"method": method, "steps": simcse_steps},
    }
    recipe = Recipe.read(merged(preset("paper"), FEW_STEPS, named))
    try:
        convert(recipe, folder / "encoder")
    except LLM2VecError as error:
        return str(error)
    return "yes"


ALL_STAGES, WITHOUT_SIMCSE = "MNTP, SimCSE", "MNTP"

METHODS = ("lora", "full")
"""Adapters on everything that can have them, and all weights."""


def stages_trained(model_type: str, folder: Path, *, method: str) -> str:
    """The stages in which a tiny model of the type was converted, or what the conversion ends with.

    Without SimCSE is converted what has no dropout in its attention, or none that does anything: that is told before
    anything is trained.

    Args:
        model_type: As transformers names it.
        folder: An empty one, for everything that is written.
        method: `lora` or `full`.
    """
    end = converted(model_type, folder, method=method)
    if end == "yes":
        return ALL_STAGES
    if not end.endswith("simcse.steps=0"):
        return end
    end = converted(model_type, folder, method=method, simcse_steps=0)
    return WITHOUT_SIMCSE if end == "yes" else end
