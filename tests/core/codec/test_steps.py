"""What is shown of a block's encoding is what the encoder did."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sedialect.sedialect_core.codec import encode
from sedialect.sedialect_core.codec.steps import explain
from sedialect.sedialect_core.errors import EncodeError

CHOICES = st.sampled_from([("activation", "max"), ("activation", "all"), ("weight", "all")])


@settings(max_examples=40)
@given(st.integers(0, 10_000), CHOICES, st.sampled_from([16, 32]), st.floats(-12, 12))
def test_the_dialect_shown_is_the_best_of_the_candidates_shown(seed, choice, block_size, exponent):
    role, candidates = choice
    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    encoded = encode(x, role=role, candidates=candidates, block_size=block_size)
    steps = explain(x, encoded, row=1, block=2, candidates=candidates)
    best = min(steps.candidates, key=lambda candidate: (candidate.error, candidate.dialect))
    chosen = next(candidate for candidate in steps.candidates if candidate.dialect == steps.dialect)
    assert chosen.error == pytest.approx(best.error, rel=1e-9)
    if role == "activation":
        assert chosen == best, "integers: ties go to the lowest id"
    half_units = encoded.formatbook.dialects[steps.dialect].half_units
    unit = steps.scale * 2.0**-steps.delta
    for value, magnitude, decoded in zip(steps.values, steps.magnitudes, steps.decoded, strict=True):
        assert magnitude in half_units
        assert abs(decoded) == pytest.approx(magnitude * unit) and decoded * value >= 0
    assert all(q == min(31, int(2 * lifted)) for q, lifted in zip(steps.q, steps.lifted, strict=True))


def test_a_worked_example_of_the_format_s_definition():
    """Row maximum 14.9: scale 1, offset 0; every q is the floor of twice the number."""
    x = torch.tensor([[14.9, -0.2, 0.6, 3.4] + [0.0] * 12])
    steps = explain(x, encode(x, role="activation"), 0, 0, "max")
    assert (steps.scale, steps.delta) == (1.0, 0)
    assert steps.q[:4] == (29, 0, 1, 6)
    assert [candidate.dialect for candidate in steps.candidates] == [0, 1, 2, 3], "the four shapes of maximum 15"


def test_a_block_that_is_not_there_or_not_finite_is_refused():
    x = torch.ones(2, 32)
    encoded = encode(x, role="activation")
    with pytest.raises(EncodeError, match="no block 2 in row 0"):
        explain(x, encoded, 0, 2)
    x[1, 3] = torch.nan
    with pytest.raises(EncodeError, match="row 1 holds NaN or Inf"):
        explain(x, encode(x, role="activation"), 1, 0)
