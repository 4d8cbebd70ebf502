"""Every decoder type that transformers has: it passes its proofs, or is refused with a reason."""

import warnings
from pathlib import Path

import families
import pytest

TABLE = Path(__file__).parents[1] / "docs" / "families.md"

LEAST = 80
"""So many types must convert."""

HEAD_TOLERANCE = 2e-5
"""Rounding of float32 logits of size 1 to 30 when the head's product has another shape."""


def rows_of_the_table():
    return {
        line.split("|")[1].strip(): line
        for line in TABLE.read_text().splitlines()
        if line.startswith("| `")
    }


@pytest.mark.parametrize("model_type", families.TYPES)
def test_a_type_is_proven_or_refused_as_the_table_says(model_type):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what families say of their own default configurations
        outcome = families.outcome(model_type)
    assert rows_of_the_table()[f"`{model_type}`"] == families.row(outcome)
    if outcome.uses is None:
        assert len(outcome.reason) > 20
    else:
        assert "proven" in (outcome.eager, outcome.sdpa)
        assert outcome.head_difference <= HEAD_TOLERANCE


def test_enough_types_convert():
    converted = [line for line in rows_of_the_table().values() if "refused" not in line]
    assert len(converted) >= LEAST
    assert set(rows_of_the_table()) == {f"`{name}`" for name in families.TYPES}
