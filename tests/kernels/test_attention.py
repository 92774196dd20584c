"""Attention in 8 bit on CPUs: near exact attention, at any length and layout, and what is not finite stays where it is."""

import math

import pytest
import torch
from torch.nn import functional

from sedialect.kernels import attention, reference_attention
from sedialect.kernels.attention import attention_8bit, attention_8bit_with_lse

LENGTHS = [(1, 1), (1, 300), (127, 127), (129, 129), (300, 257), (1000, 1000)]


def inputs(
    queries: int, keys: int, head_dim: int = 64, heads: int = 3, batch: int = 2, dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    """Query, key and value; keys have an offset of their own in each head, as rotary embeddings and biases give them."""
    generator = torch.Generator().manual_seed(queries * 10007 + keys + head_dim)
    q, k, v = (torch.randn(batch, heads, n, head_dim, generator=generator) for n in (queries, keys, keys))
    return [x.to(dtype) for x in (q, k + 3 * torch.randn(1, heads, 1, head_dim, generator=generator), v)]


def exact(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, key_mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention and log-sum-exp in float64."""
    q, k, v = (x.double() for x in (query, key, value))
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None, None], -math.inf)
    return scores.softmax(3) @ v, scores.logsumexp(3)


def error(output: torch.Tensor, truth: torch.Tensor) -> float:
    return float((output.double() - truth).norm() / truth.norm())


@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_attention_is_near_the_exact_one(queries: int, keys: int, head_dim: int) -> None:
    q, k, v = inputs(queries, keys, head_dim)
    output, lse = attention_8bit_with_lse(q, k, v)
    truth, true_lse = exact(q, k, v)
    assert error(output, truth) < 0.05
    assert (lse.double() - true_lse).abs().max() < 0.05
    torch.testing.assert_close(attention_8bit(q, k, v), output, rtol=0, atol=0)


def test_values_of_16_bit_are_nearer() -> None:
    q, k, v = inputs(200, 700)
    truth, _ = exact(q, k, v)
    errors = {bits: error(reference_attention.attention(q, k, v, value_bits=bits)[0], truth) for bits in (8, 16)}
    assert errors[16] < 0.5 * errors[8]


def test_the_centre_of_keys_costs_no_digits() -> None:
    q, k, v = inputs(100, 500)
    shifted, plain = k + 50.0, error(attention_8bit(q, k, v), exact(q, k, v)[0])
    assert error(attention_8bit(q, shifted, v), exact(q, shifted, v)[0]) < 1.05 * plain


def test_long_rows_of_nearly_equal_values_do_not_drift() -> None:
    """40,000 terms of one sign. The values' own rounding is kept out: they are E4M3 numbers, up to a little noise."""
    q, k, v = inputs(4, 40_000, heads=1, batch=1)
    level = 4 + 0.01 * v
    level[..., :1, :] = 7  # so that 4 is 256 units of the scale
    output = attention_8bit(q * 0.1, k, level)
    assert error(output, exact(q * 0.1, k, level)[0]) < 0.005


def test_masked_keys_count_nowhere() -> None:
    q, k, v = inputs(100, 300)
    mask = torch.ones(2, 300, dtype=torch.bool)
    mask[0, 200:], mask[1, :40] = False, False
    output, lse = attention_8bit_with_lse(q, k, v, mask)
    truth, true_lse = exact(q, k, v, mask)
    assert error(output, truth) < 0.05
    assert (lse.double() - true_lse).abs().max() < 0.05
    for garbage in (1e4, math.nan, math.inf):
        masked = (~mask)[:, None, :, None]
        again, _ = attention_8bit_with_lse(q, k.masked_fill(masked, garbage), v.masked_fill(masked, garbage), mask)
        torch.testing.assert_close(again, output, rtol=0, atol=1e-6)
    torch.testing.assert_close(attention_8bit(q[:1], k[:1, :, :200], v[:1, :, :200]), output[:1], rtol=0, atol=1e-6)


def test_rows_without_keys_are_zeros() -> None:
    q, k, v = inputs(5, 200)
    mask = torch.tensor([False, True])[:, None].expand(2, 200)
    output, lse = attention_8bit_with_lse(q, k, v, mask)
    assert (output[0] == 0).all() and (lse[0] == -math.inf).all()
    assert error(output[1:], exact(q[1:], k[1:], v[1:])[0]) < 0.05


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("value_bits", [8, 16])
def test_what_is_not_finite_stays_in_its_rows(bad: float, value_bits: int) -> None:
    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return reference_attention.attention(q, k, v, value_bits=value_bits)[0]

    q, k, v = inputs(50, 300)
    clean = run(q, k, v)
    for which, place in ((0, (1, 2, 7, 3)), (1, (1, 2, 200, 3)), (2, (1, 2, 200, 3))):
        tensors = [q, k, v]
        tensors[which] = tensors[which].clone()
        tensors[which][place] = bad
        output = run(*tensors)
        touched = torch.zeros(2, 3, 50, dtype=torch.bool)
        touched[1, 2, 7 if which == 0 else slice(None)] = True
        assert not output.isfinite().all(3)[touched].any()
        torch.testing.assert_close(output[~touched], clean[~touched], rtol=0, atol=0)


def test_zeros_give_means_and_huge_numbers_stay_finite() -> None:
    q, k, v = inputs(3, 200)
    torch.testing.assert_close(attention_8bit(q * 0, k, v), v.mean(2, keepdim=True).expand_as(q), rtol=0, atol=0.02)
    torch.testing.assert_close(attention_8bit(q, k * 0, v), v.mean(2, keepdim=True).expand_as(q), rtol=0, atol=0.02)
    assert (attention_8bit(q, k, v * 0) == 0).all()
    assert attention_8bit(q * 1e4, k * 1e4, v * 1e30).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_transposed_view_is_taken_and_given_back_in_its_order(dtype: torch.dtype) -> None:
    q, k, v = inputs(150, 150, dtype=dtype)
    views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    output = attention_8bit(*views)
    assert output.dtype == dtype and output.stride() == views[0].stride()
    torch.testing.assert_close(output, attention_8bit(q, k, v), rtol=0, atol=0)


def test_chunks_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = inputs(130, 300)
    whole = attention_8bit(q, k, v)
    monkeypatch.setitem(reference_attention.CHUNK_SCORES, "cpu", 1)
    torch.testing.assert_close(attention_8bit(q, k, v), whole, rtol=0, atol=1e-6)


def test_parts_of_the_keys_are_put_together_by_their_log_sum_exp() -> None:
    q, k, v = inputs(60, 600)
    parts = [attention_8bit_with_lse(q, k[:, :, part], v[:, :, part]) for part in (slice(0, 256), slice(256, None))]
    weights = torch.stack([lse for _, lse in parts]).softmax(0).unsqueeze(4)
    joined = (torch.stack([output for output, _ in parts]) * weights).sum(0)
    assert error(joined, exact(q, k, v)[0]) < 0.05


def test_scores_are_scaled_as_told() -> None:
    q, k, v = inputs(60, 300)
    expected = functional.scaled_dot_product_attention(q, k, v, scale=0.3)
    assert error(attention_8bit(q, k, v, softmax_scale=0.3), expected.double()) < 0.05


def test_torch_approves_of_the_operators() -> None:
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs(40, 50, dtype=torch.bfloat16))
    for mask in (None, torch.rand(2, 50) < 0.5):
        for operator in (attention.attention_operator, attention.attention_lse_operator):
            torch.library.opcheck(operator, (q, k, v, mask, 0.1), test_utils=checks)


def test_compiling_breaks_no_graph() -> None:
    q, k, v = inputs(140, 140)
    compiled = torch.compile(lambda *x: attention_8bit(*x) * 2, fullgraph=True)
    torch.testing.assert_close(compiled(q, k, v), attention_8bit(q, k, v) * 2)
