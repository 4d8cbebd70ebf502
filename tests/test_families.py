"""Every decoder type that transformers has: it passes its proofs, or is refused with a reason."""

import warnings
from pathlib import Path

import configurations
import families
import pytest
from configurations import CONFIGURATIONS

TABLE = Path(__file__).parents[1] / "docs" / "families.md"

LEAST = 80
"""So many types must convert."""

CONVERTED = ("gpt2", "mixtral", "lfm2", "gemma3n_text")
"""Types that are converted here too, from end to end: learned positions and fused projections, stacked experts, one
that SimCSE cannot train, and one that writes another window where servers are told of it. The script converts all of them."""

HEAD_TOLERANCE = 2e-5
"""Rounding of float32 logits of size 1 to 30 when the head's product has another shape."""


def rows_of_the_table():
    return {
        line.split("|")[1].strip(): line
        for line in TABLE.read_text().splitlines()
        if line.startswith("| ")
    }


def rows_of_types():
    return {name: line for name, line in rows_of_the_table().items() if name.startswith("`")}


def stages_in(line):
    """What a line of the table says that a type was trained in."""
    return line.split("|")[4].strip()


@pytest.mark.parametrize("model_type", families.TYPES)
def test_a_type_is_proven_or_refused_as_the_table_says(model_type):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what families say of their own default configurations
        outcome = families.outcome(model_type)
    line = rows_of_the_table()[f"`{model_type}`"]
    assert line == families.row(outcome, stages_in(line))
    if outcome.uses is None:
        assert len(outcome.reason) > 20
    else:
        assert "proven" in (outcome.eager, outcome.sdpa)
        assert outcome.head_difference <= HEAD_TOLERANCE


@pytest.mark.parametrize("method", families.METHODS)
@pytest.mark.parametrize("model_type", CONVERTED)
def test_a_type_is_converted_as_the_table_says(model_type, method, tmp_path):
    stages = families.stages_trained(model_type, tmp_path, method=method)
    assert stages_in(rows_of_the_table()[f"`{model_type}`"]) == stages
    assert stages in (families.ALL_STAGES, families.WITHOUT_SIMCSE)


def test_all_types_that_are_proven_convert():
    converted = [line for line in rows_of_types().values() if "refused" not in line]
    stages = {stages_in(line) for line in converted}
    assert stages == {families.ALL_STAGES, families.WITHOUT_SIMCSE}
    assert len(converted) >= LEAST
    assert set(rows_of_types()) == {f"`{name}`" for name in families.TYPES}


@pytest.mark.parametrize("title", CONFIGURATIONS)
def test_a_configuration_that_people_use_is_proven_or_refused_as_the_table_says(title):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert rows_of_the_table()[title] == configurations.row(title)
