"""The command `info`: what a conversion would do to a model, before anything is trained."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from llm2vec.backbone.source import Source
from llm2vec.cli.budgets import BUDGET_PRESET, print_offers
from llm2vec.cli.console import answer, results, table
from llm2vec.cli.options import (
    Decoder,
    Json,
    Partial,
    PresetName,
    RecipeFile,
    Sets,
    TrustRemoteCode,
)
from llm2vec.cli.recipe import chosen_recipe

if TYPE_CHECKING:
    from llm2vec.conversion.estimate import Estimate
    from llm2vec.conversion.info import Info
    from llm2vec.evaluation.analysis import Similarity
    from llm2vec.evaluation.switch_effect import SwitchEffect

_EVIDENCE = (
    "The evidence is thin: three decoders were compared with full tests. For sentences the sign "
    "was that of the full test each time; for words a collapse was seen, and a loss of 2 points "
    "was not (docs/results.md). The cosines above foretold neither."
)

_VERDICTS = {True: "can be converted", False: "cannot be converted", None: "cannot be tried"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Examples:\n\n"
        "`llm2vec info Qwen/Qwen3-0.6B --analyse`\n\n"
        "`llm2vec info ./decoder --preset small --set mntp.steps=200 --json`"
    )(info)


def info(
    model: Decoder = "bundled",
    preset_name: PresetName = None,
    recipe_file: RecipeFile = None,
    sets: Sets = None,
    analyse: Annotated[
        bool,
        typer.Option(
            "--analyse",
            help="Load the weights too, and say whether the decoder will need MNTP.",
        ),
    ] = False,
    partial: Partial = False,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Say what a conversion would do to a model, before anything is trained.

    Only the configuration is read, unless --analyse is given.
    """
    named: dict[str, Any] = {"decoder": model}
    if partial:
        named["partial"] = True
    if trust_remote_code:
        named["trust_remote_code"] = True
    recipe = chosen_recipe(model, preset_name, recipe_file, named=named, sets=sets)
    Source.of(model).check()
    from llm2vec.conversion.info import describe
    from llm2vec.conversion.within import offered

    found = describe(recipe)
    planned = chosen_recipe(
        model, preset_name, recipe_file, named=named, sets=sets, large=BUDGET_PRESET
    )
    offers = offered(planned) if found.convertible else []
    analysis = None
    if analyse and found.convertible:
        analysis = _Analysis.of(Source(model, trust_remote_code=trust_remote_code), partial=partial)
    if json:
        analysed = {} if analysis is None else analysis.to_dict()
        plans = [plan.to_dict() for plan, _ in offers]
        answer({**found.to_dict(), "budgets": plans, **analysed})
        return
    _print_info(found)
    print_offers(offers)
    if analysis is not None:
        _print_similarity(analysis.similarity)
        _print_effects(analysis.effects)


@dataclass(frozen=True)
class _Analysis:
    """What --analyse measures.

    Attributes:
        similarity: How near the states are under both masks.
        effects: What the switch alone does to sentences and to words; empty for a hybrid.
    """

    similarity: "Similarity"
    effects: "list[SwitchEffect]"

    @classmethod
    def of(cls, source: Source, *, partial: bool) -> Self:
        """Measure a decoder."""
        from llm2vec.evaluation.analysis import layer_similarity
        from llm2vec.evaluation.switch_effect import switch_effects

        similarity = layer_similarity(source, partial=partial)
        return cls(similarity, [] if partial else switch_effects(source))

    def to_dict(self) -> dict[str, Any]:
        """The analysis as data for JSON."""
        effects = [effect.to_dict() for effect in self.effects]
        return {"similarity": self.similarity.cosine_LT, "switch_effects": effects}


def _print_info(found: "Info") -> None:
    results.print(f"{found.source}: {found.model_type}, {_VERDICTS[found.convertible]}")
    if not found.convertible:
        results.print(f"  {found.reason}")
    table("", ["", ""], [*_model_rows(found), *map(_estimate_row, found.estimates)])
    for proof in found.proofs:
        results.print(f"a small copy: {proof.name} (margin {proof.margin:.1e})")
    for note in found.notes:
        results.print(f"note: {note}")


def _model_rows(found: "Info") -> list[list[str]]:
    layers = ", ".join(f"{count} {kind}" for kind, count in found.layer_types.items())
    if found.bidirectional:
        layers += " (bidirectional already)"
    windows = ", ".join(f"{count} x {window}" for window, count in found.windows.items())
    longest = f"{found.positions:,} tokens" if found.positions else "no limit known"
    rows = [
        ["parameters", f"{found.parameters:,}, {found.head_parameters:,} of them the head's"],
        ["layers", layers],
        ["windows, tokens to either side", windows],
        ["vector", f"{found.hidden} numbers, pooling {found.pooling}"],
        ["longest text", longest],
        ["weights", f"{found.weights_bytes / 1e6:,.1f} MB"],
    ]
    if found.attention:
        layout = "texts packed without padding" if found.packs else "padded"
        rows.append(["attention", f"{found.attention}, {layout}"])
    return rows


def _estimate_row(estimate: "Estimate") -> list[str]:
    minutes = max(estimate.seconds / 60, 0.1)
    gigabytes = estimate.memory_bytes / 1e9
    cost = f"about {minutes:,.1f} minutes and {gigabytes:,.2f} GB here"
    return [f"{estimate.stage}, estimated", f"{estimate.steps:,} steps, {cost}"]


def _print_similarity(similarity: "Similarity") -> None:
    embedding, *layers = similarity.by_layer
    rows = [["embedding", f"{embedding:.3f}"]]
    rows += [[str(number), f"{value:.3f}"] for number, value in enumerate(layers, start=1)]
    title = "Causal against bidirectional states, nothing trained"
    table(title, ["layer", "mean cosine"], rows)


_VERDICTS_ON_MNTP = {
    "harms": "the switch alone harms them, so they need MNTP",
    "helps": "the switch alone helps them here, so MNTP is worth trying but not needed",
    "no clear effect": "the switch alone has no clear effect on them in so small a test",
}

_CAUTION = {"words": "; a larger test may still find a loss"}
"""What is added to a verdict that is no harm, where larger tests have contradicted it."""


def _print_effects(effects: "list[SwitchEffect]") -> None:
    """Say whether sentences and words will need MNTP, and how far that can be trusted."""
    if not effects:
        results.print(
            "Whether a hybrid needs MNTP is not measured here; evaluate it after a stage."
        )
        return
    results.print("Will it need MNTP? Measured causally (Uni) and with the switch alone (Bi):")
    for effect in effects:
        change = effect.difference
        numbers = (
            f"{100 * effect.uni:.1f} to {100 * effect.bi:.1f} ({100 * change.value:+.1f}, 95% "
            f"{100 * change.low:+.1f} to {100 * change.high:+.1f})"
        )
        verdict = _VERDICTS_ON_MNTP[effect.verdict]
        if effect.verdict != "harms":
            verdict += _CAUTION.get(effect.vectors, "")
        results.print(f"  {effect.vectors}: {verdict} ({effect.measured}: {numbers})")
    results.print(_EVIDENCE)
