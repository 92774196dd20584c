"""Rotation by blocks of a Hadamard matrix."""

import pytest
import torch

from sedialect.kernels import rotation


@pytest.mark.parametrize("size", rotation.SIZES)
def test_rotation_is_a_product_with_the_hadamard_matrix(size):
    x = torch.randn(5, 3 * size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    expected = (x.view(5, 3, size) @ rotation.hadamard(size)).view(5, -1)
    torch.testing.assert_close(rotation.rotate_rows(x, size).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", rotation.SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rotating_twice_gives_the_rows_back(size, dtype):
    x = torch.randn(7, 2 * size, generator=torch.Generator().manual_seed(size)).to(dtype)
    twice = rotation.rotate_rows(rotation.rotate_rows(x, size), size)
    torch.testing.assert_close(twice, x.float(), rtol=1e-5, atol=1e-6)


def test_rotation_of_small_integers_is_exact_where_the_root_is_a_power_of_two():
    x = torch.randint(-100, 101, (9, 128), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(rotation.rotate_rows(rotation.rotate_rows(x, 64), 64), x)


def test_both_sides_of_a_product_rotated_leave_it_as_it_was():
    generator = torch.Generator().manual_seed(1)
    x, weight = torch.randn(6, 96, generator=generator), torch.randn(4, 96, generator=generator)
    rotated = rotation.rotate_rows(x, 32) @ rotation.rotate_rows(weight, 32).T
    torch.testing.assert_close(rotated, x @ weight.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_moment_rotates_as_its_rows_do(dtype):
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(2)).to(dtype)
    rotated = rotation.rotate_rows(x, 32).to(dtype)
    torch.testing.assert_close(rotation.rotate_moment(x.T @ x, 32), rotated.T @ rotated, rtol=1e-4, atol=1e-4)


def test_a_value_that_is_not_finite_spoils_its_own_block_alone():
    x = torch.ones(3, 64)
    x[1, 17] = torch.nan
    out = rotation.rotate_rows(x, 16)
    assert not out[1, 16:32].isfinite().any()
    out[1, 16:32] = 0
    assert out.isfinite().all()


def test_the_rows_themselves_are_left_alone():
    x = torch.randn(2, 32)
    before = x.clone()
    rotation.rotate_rows(x, 16).zero_()
    assert torch.equal(x, before)


@pytest.mark.parametrize(("width", "size"), [(48, 32), (64, 8), (64, 24)])
def test_sizes_that_do_not_fit_are_refused(width, size):
    with pytest.raises(ValueError, match=f"blocks of {size} on {width} columns"):
        rotation.rotate_rows(torch.zeros(1, width), size)
