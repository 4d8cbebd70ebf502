"""Pooling, against a plain loop."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm2vec.encoder.pooling import pool

ROUNDING = 1e-5
"""Sums of up to eight float32 states of size 1 in another order."""

RANGES = st.lists(
    st.integers(0, 8).flatmap(
        lambda length: st.tuples(
            st.just(length), st.integers(0, length), st.integers(0, length)
        ).map(lambda each: (each[0], min(each[1:]), max(each[1:])))
    ),
    min_size=1,
    max_size=6,
)


def one_text(states_TD, first, end, pooling):
    """The definition, for one text."""
    if end <= first:
        return torch.zeros(states_TD.shape[1])
    own_ND = states_TD[first:end]
    weights_N = torch.arange(1.0, len(own_ND) + 1)
    return {
        "mean": own_ND.mean(0),
        "weighted_mean": (own_ND * weights_N[:, None]).sum(0) / weights_N.sum(),
        "last": states_TD[-1],
        "first": states_TD[0],
    }[pooling]


@pytest.mark.parametrize("pooling", ["mean", "weighted_mean", "last", "first"])
@given(ranges=RANGES)
def test_flat_pooling_equals_a_loop_over_texts(pooling, ranges):
    ranges_B3 = torch.tensor(ranges)
    lengths_B = ranges_B3[:, 0]
    states_ND = torch.randn(int(lengths_B.sum()), 5, generator=torch.Generator().manual_seed(0))
    found_BD = pool(states_ND, ranges_B3, pooling=pooling)
    parts = states_ND.split(lengths_B.tolist())
    wanted_BD = [
        one_text(part, first, end, pooling)
        for part, (_, first, end) in zip(parts, ranges, strict=True)
    ]
    torch.testing.assert_close(found_BD, torch.stack(wanted_BD), atol=ROUNDING, rtol=0)
