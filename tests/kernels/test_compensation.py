"""Error-compensated rounding of weights: the loop, its factor, and the dialects in it."""

import pytest
import torch

from sedialect.kernels import reference
from sedialect.kernels.compensation import Factor, compensate, factorize, output_error, refine, rounding_order
from sedialect.kernels.dialect_blocks import DialectBlocks, encode_calibrated_rows
from sedialect.sedialect_core.formatbook import Formatbook

WIDTH = 160  # more than one group of columns, and not a multiple of it


@pytest.fixture(scope="module")
def tables():
    return Formatbook.builtin().tables(torch.device("cpu"))


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(rows, width=WIDTH, rank=12, seed=1):
    """Rows as layers read them: few directions, channels of very different sizes."""
    mixed = random(rows, rank, seed=seed) @ random(rank, width, seed=2) + 0.3 * random(rows, width, seed=seed + 100)
    return mixed * random(width, seed=3).exp()


class Steps:
    """Multiples of a fixed step: a format without choices, so that the loop alone is tested."""

    def __init__(self, block_size, step=0.25):
        self.block_size, self.step, self.seen = block_size, step, []

    def choose(self, block, weight, upper):
        assert weight.shape[0] == self.block_size == len(upper)
        self.seen.append(block)

    def resume(self, block):
        assert block in self.seen

    def quantize(self, weight):
        return (weight / self.step).round() * self.step


def rounded_one_by_one(weight, moment, factor, step=0.25):
    """The same by the definition: after every column, the best correction of all that are left (OBQ, arXiv 2208.11580)."""
    damped = moment.double() / moment.double().diagonal().mean()
    damped += factor.damping * torch.eye(len(damped), dtype=damped.dtype)
    weight, left = weight.double().clone(), factor.order.tolist()
    while left:
        first, *left = left
        rounded = (weight[:, first] / step).round() * step
        lost = weight[:, first] - rounded
        weight[:, first] = rounded
        if left:
            weight[:, left] += lost.unsqueeze(1) * torch.linalg.solve(damped[left][:, left], damped[left, first])
    return weight.float()


@pytest.mark.parametrize("block_size", [16, 32])
def test_the_loop_is_the_best_correction_after_every_column(block_size):
    weight, x = random(8, WIDTH), correlated(300)
    factor = factorize(x.T @ x, block_size)
    form = Steps(block_size)
    values = compensate(weight, factor, form)
    expected = rounded_one_by_one(weight, x.T @ x, factor)
    assert (values != expected).float().mean() < 0.01  # a tie that falls the other way changes what comes behind it
    assert sorted(form.seen) == list(range(WIDTH // block_size))


def test_the_factor_is_one_of_the_inverse():
    x = correlated(500)
    factor = factorize(x.T @ x, 16, damping=0.05)
    moment = (x.T @ x).double()
    moment = moment / moment.diagonal().mean() + 0.05 * torch.eye(WIDTH)
    inverse = factor.upper.double().T @ factor.upper.double()
    product = inverse @ moment[factor.order][:, factor.order]
    torch.testing.assert_close(product, torch.eye(WIDTH, dtype=torch.float64), rtol=1e-3, atol=1e-3)
    assert torch.equal(factor.upper, factor.upper.triu())


def test_blocks_stay_together_in_the_order_of_rounding():
    order = rounding_order(random(96).square(), 16)
    assert sorted(order.tolist()) == list(range(96))
    for block in (order // 16).view(-1, 16):
        assert len(block.unique()) == 1
    assert torch.equal(rounding_order(torch.ones(96), 16), torch.arange(96))


def test_fewer_rows_than_columns_still_factor():
    x = correlated(5)
    factor = factorize(x.T @ x, 16)
    assert factor is not None
    assert factor.upper.isfinite().all()


def test_damping_rises_until_a_matrix_with_negative_eigenvalues_factors():
    x = correlated(50)
    moment = x.T @ x
    moment[3, 7] = moment[7, 3] = 40 * moment.diagonal().mean()
    factor = factorize(moment, 16)
    assert factor.damping > 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_a_moment_that_says_nothing_has_no_factor(value):
    moment = torch.eye(WIDTH) * value
    assert factorize(moment, 16) is None
    moment = torch.eye(WIDTH)
    moment[2, 5] = value
    assert (factorize(moment, 16) is None) == (value != 0)


@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize("size", [1.0, 3.7e-5])
def test_an_identity_moment_gives_the_plain_encoding(tables, block_size, size):
    weight, moment = random(40, WIDTH, seed=5) * 0.02, torch.eye(WIDTH) * size
    result = encode_calibrated_rows(weight, moment, factorize(moment, block_size), tables, block_size)
    for part, plain in zip(result.rows, reference.encode_weight_rows(weight, tables, block_size), strict=True):
        assert torch.equal(part, plain)


@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize("rows", [3, 60, 2000])
def test_no_row_of_the_output_is_further_off_than_by_plain_encoding(tables, block_size, rows):
    weight, x = random(48, WIDTH, seed=6), correlated(rows)
    moment = x.T @ x
    result = encode_calibrated_rows(weight, moment, factorize(moment, block_size), tables, block_size)
    plain = _outputs_lost(weight, reference.encode_weight_rows(weight, tables, block_size), x, tables)
    calibrated = _outputs_lost(weight, result.rows, x, tables)
    assert (calibrated <= plain * (1 + 1e-4)).all()
    assert calibrated.sum() < 0.6 * plain.sum()
    torch.testing.assert_close(result.plain, plain, rtol=1e-3, atol=0)
    torch.testing.assert_close(result.error, calibrated, rtol=2e-3, atol=1e-3 * float(plain.mean()))


def test_compensation_holds_on_rows_that_it_did_not_see(tables):
    weight, seen, unseen = random(48, WIDTH, seed=7), correlated(2000), correlated(2000, seed=50)
    moment = seen.T @ seen
    result = encode_calibrated_rows(weight, moment, factorize(moment, 16), tables, 16)
    plain = _outputs_lost(weight, reference.encode_weight_rows(weight, tables, 16), unseen, tables)
    assert _outputs_lost(weight, result.rows, unseen, tables).sum() < 0.6 * plain.sum()


def _damped_error(values, weight, moment, factor):
    moment = moment.double()
    damped = moment + factor.damping * moment.diagonal().mean() * torch.eye(len(moment))
    return output_error(values - weight, damped)


@pytest.mark.parametrize("block_size", [16, 32])
def test_going_through_the_columns_again_never_loses_and_ends_where_no_single_step_gains(block_size):
    weight, x = random(8, WIDTH), correlated(300)
    moment = x.T @ x
    factor, form = factorize(moment, block_size), Steps(block_size)
    values = compensate(weight, factor, form)
    errors = [_damped_error(values, weight, moment, factor)]
    for passes in (1, 2, 40):
        refined = refine(weight, values, moment, factor, form, passes)
        errors.append(_damped_error(refined, weight, moment, factor))
        assert (errors[-1] <= errors[-2] * (1 + 1e-4)).all()
    assert errors[1].sum() < 0.97 * errors[0].sum()
    for column in range(WIDTH):
        for step in (-form.step, form.step):
            moved = refined.clone()
            moved[:, column] += step
            assert (_damped_error(moved, weight, moment, factor) >= errors[-1] * (1 - 1e-4)).all()


@pytest.mark.parametrize("block_size", [16, 32])
def test_codes_are_those_of_the_refined_values(tables, block_size):
    weight, x = random(48, WIDTH, seed=7), correlated(2000)
    moment = x.T @ x
    factor = factorize(moment, block_size)
    form = DialectBlocks(reference.encode_weight_rows(weight, tables, block_size).scale, WIDTH, tables, block_size)
    rounded = compensate(weight, factor, form)
    values = refine(weight, rounded, moment, factor, form)
    rows = form.rows(values)
    assert not torch.equal(values, rounded)
    assert torch.equal(reference.decode_rows(rows.codes, rows.meta, tables) * rows.scale.unsqueeze(1), values)
    assert (
        _damped_error(values, weight, moment, factor) <= _damped_error(rounded, weight, moment, factor) * (1 + 1e-4)
    ).all()


def test_refined_codes_hold_on_rows_that_they_did_not_see(tables):
    weight, seen, unseen = random(48, WIDTH, seed=7), correlated(2000), correlated(2000, seed=50)
    moment = seen.T @ seen
    factor = factorize(moment, 16)
    once, refined = (encode_calibrated_rows(weight, moment, factor, tables, 16, passes).rows for passes in (0, 2))
    lost = [_outputs_lost(weight, rows, unseen, tables).sum() for rows in (once, refined)]
    assert lost[1] < 0.97 * lost[0]


def test_zeros_and_tiny_blocks_are_stored_in_the_one_way_there_is(tables):
    weight, x = random(6, WIDTH, seed=8), correlated(400)
    weight[2] = 0
    weight[3, 16:32] = 1e-12
    moment = x.T @ x
    rows = encode_calibrated_rows(weight, moment, factorize(moment, 16), tables, 16).rows
    assert not rows.codes[2].any()
    assert not rows.meta[2].any()
    empty = (reference.unpack(rows.codes).view(6, -1, 16) & 7).amax(2) == 0
    assert not rows.meta[empty].any()
    assert (reference.unpack(rows.codes) != 8).all()  # no negative zero


def test_the_error_of_the_output_is_that_of_the_rows():
    lost, x = random(5, WIDTH), correlated(70)
    torch.testing.assert_close(output_error(lost, x.T @ x), (x @ lost.T).square().sum(0).double(), rtol=1e-3, atol=0)


def test_a_factor_of_the_identity_carries_nothing_on():
    unit = Factor(torch.eye(64), torch.arange(64), 0.0)
    weight = random(4, 64)
    assert torch.equal(compensate(weight, unit, Steps(16)), (weight / 0.25).round() * 0.25)


def _outputs_lost(weight, rows, x, tables):
    decoded = reference.decode_rows(rows.codes, rows.meta, tables) * rows.scale.unsqueeze(1)
    return (x.double() @ (decoded - weight).double().T).square().sum(0)
