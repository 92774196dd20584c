"""On a GPU: attention in 8 bit gives the reference's numbers and stays near float64; models with it compile and graph."""

import copy
import math
import warnings

import pytest
import tiny_wan
import torch
from torch.nn.functional import scaled_dot_product_attention

from sedialect import SeDialectConfig, quantize_model
from sedialect.kernels import attention_support, flash3, reference_attention
from sedialect.kernels.attention import attention_8bit, attention_8bit_with_lse, attention_lse_operator, attention_operator
from sedialect.kernels.capabilities import refusals
from sedialect.sedialect_core.integrations.semantics import ATTENDING

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
DTYPES = [torch.bfloat16, torch.float16]
LENGTHS = [(1, 1), (1, 300), (127, 127), (129, 129), (1000, 1000), (300, 1111)]


@pytest.fixture(autouse=True)
def no_kernel_fails():
    """What 16-bit attention had to stand in for would make these tests say nothing about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the Triton kernel")
        yield


def inputs(queries: int, keys: int, head_dim: int = 128, dtype=torch.bfloat16, heads: int = 3, batch: int = 2):
    """Query, key and value [B, H, N, D], as views of [B, N, H, D]; keys have an offset in each head."""
    torch.manual_seed(queries * 10007 + keys + head_dim)
    q, k, v = (torch.randn(batch, n, heads, head_dim, device="cuda") for n in (queries, keys, keys))
    k = k + 3 * torch.randn(1, 1, heads, head_dim, device="cuda")
    return [x.to(dtype).transpose(1, 2) for x in (q, k, v)]


def mask_of(keys: int, batch: int = 2) -> torch.Tensor:
    """Holes in the first sample, padding at the end of the second; the first key always counts."""
    mask = torch.ones(batch, keys, dtype=torch.bool, device="cuda")
    mask[0, 1::3], mask[1, 1 + keys // 2 :] = False, False
    return mask


def exact(q, k, v, mask=None):
    scores = q.double() @ k.double().transpose(2, 3) / math.sqrt(q.shape[3])
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -math.inf)
    return scores.softmax(3) @ v.double(), scores.logsumexp(3)


def distance(output, truth) -> float:
    return float((output.double() - truth.double()).norm() / truth.double().norm())


def value_bits() -> int:
    return 16 if refusals(torch.device("cuda")).fp8 else 8


@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
@pytest.mark.parametrize("head_dim", attention_support.HEAD_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [False, True])
def test_the_kernel_gives_the_references_numbers(queries, keys, head_dim, dtype, masked):
    q, k, v = inputs(queries, keys, head_dim, dtype)
    mask = mask_of(keys) if masked else None
    output, lse = attention_8bit_with_lse(q, k, v, mask)
    wanted, wanted_lse = reference_attention.attention(q, k, v, mask, value_bits=value_bits())
    truth, true_lse = exact(q, k, v, mask)
    assert output.dtype == dtype and output.stride() == q.stride()
    own = distance(wanted, truth)
    # Sums in another order move a few values over a rounding boundary: far less than the rounding itself.
    assert distance(output, wanted) < 0.3 * own + 0.004
    assert distance(output, truth) < 1.1 * own + 0.004
    assert (lse - wanted_lse).abs().max() < 0.01 and (lse.double() - true_lse).abs().max() < 0.05
    torch.testing.assert_close(attention_8bit(q, k, v, mask), output, rtol=0, atol=0)


def test_strides_of_all_kinds_are_taken():
    q, k, v = inputs(300, 300)
    wanted = attention_8bit(q, k, v)
    dense = attention_8bit(*(x.contiguous() for x in (q, k, v)))
    packed = torch.stack([x.transpose(1, 2) for x in (q, k, v)], 2)  # one linear made all three: [B, N, 3, H, D]
    views = [packed[:, :, part].transpose(1, 2) for part in range(3)]
    for other in (dense, attention_8bit(*views)):
        torch.testing.assert_close(other, wanted, rtol=0, atol=1e-2)
    assert dense.is_contiguous()


def test_long_sequences_of_nearly_equal_values_do_not_drift():
    q, k, v = inputs(64, 118_800, heads=1, batch=1)
    level = (4 + 0.01 * v.float()).to(v.dtype)
    level[:, :, 0] = 7  # so that 4 is a number of E4M3
    output = attention_8bit(q, k, level)
    assert distance(output, exact(q, k, level)[0]) < 0.01


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_in_its_rows(bad):
    q, k, v = inputs(150, 300)
    clean = attention_8bit(q, k, v)
    for which, place in ((0, (1, 2, 7, 3)), (1, (1, 2, 200, 3)), (2, (1, 2, 200, 3))):
        tensors = [x.clone() for x in (q, k, v)]
        tensors[which][place] = bad
        output = attention_8bit(*tensors)
        touched = torch.zeros(2, 3, 150, dtype=torch.bool, device="cuda")
        touched[1, 2, 7 if which == 0 else slice(None)] = True
        assert not output.isfinite().all(3)[touched].any()
        torch.testing.assert_close(output[~touched], clean[~touched], rtol=0, atol=0)


def test_masked_keys_count_nowhere():
    q, k, v = inputs(100, 500)
    mask = mask_of(500)
    wanted = attention_8bit(q, k, v, mask)
    for garbage in (1e4, math.nan, math.inf):
        left_out = (~mask)[:, None, :, None]
        found = attention_8bit(q, k.masked_fill(left_out, garbage), v.masked_fill(left_out, garbage), mask)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_torch_approves_of_the_operators():
    checks = ("test_schema", "test_faketensor")
    q, k, v = inputs(140, 150)
    for mask in (None, mask_of(150)):
        for operator in (attention_operator, attention_lse_operator):
            torch.library.opcheck(operator, (q, k, v, mask, 0.1), test_utils=checks)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(attention_support, "LEAST_TOKENS", 8)


def wan():
    """A Wan with heads of 64 channels, in bfloat16 on the GPU."""
    model, given = tiny_wan.wan("WanTransformer3DModel", attention_head_dim=64)
    given = {name: x.cuda().bfloat16() if x.is_floating_point() else x.cuda() for name, x in given.items()}
    return model.cuda().bfloat16(), given


@torch.no_grad()
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("settings", [{"precision": "16bit"}, {"precision": "w4a8"}], ids=["alone", "quality"])
def test_a_model_compiles_to_one_graph(mode, settings):
    torch._dynamo.reset()
    model, given = wan()
    plain = copy.deepcopy(model)(**given, return_dict=False)[0]
    quantize_model(model, SeDialectConfig(attention="8bit", **settings))
    eager = model(**given, return_dict=False)[0]
    assert {one.last for one in model.__dict__[ATTENDING].values()} == {""}
    if settings["precision"] == "16bit":
        assert 0 < distance(eager, plain) < 0.05
    compiled = torch.compile(model, fullgraph=True, mode=mode)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            found = compiled(**given, return_dict=False)[0].clone()
    assert distance(found, eager) < 0.05
    torch._dynamo.reset()


hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or flash3.refusal(torch.device("cuda")) is not None,
    reason="needs FlashAttention-3 on Hopper",
)


@hopper
@pytest.mark.parametrize(("queries", "keys"), [(127, 127), (1000, 1000), (300, 1111)])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_flash_attention_3_in_fp8(queries, keys, head_dim):
    q, k, v = inputs(queries, keys, head_dim)
    output, lse = flash3.attention_fp8_with_lse(q, k, v)
    truth, true_lse = exact(q, k, v)
    assert output.dtype == q.dtype and output.shape == q.shape
    assert distance(output, truth) < 0.12 and (lse.double() - true_lse).abs().max() < 0.2
    torch.testing.assert_close(flash3.attention_fp8(q, k, v), output, rtol=0, atol=0)
    assert distance(flash3.attention_bf16(q, k, v), truth) < 0.01
    assert distance(attention_8bit(q, k, v), truth) < 0.85 * distance(output, truth)  # measured: 0.72 to 0.74


@hopper
def test_flash_attention_3_compiles_and_keeps_bad_queries_to_themselves():
    torch._dynamo.reset()
    q, k, v = inputs(300, 300)
    compiled = torch.compile(flash3.attention_fp8, fullgraph=True)
    assert distance(compiled(q, k, v), flash3.attention_fp8(q, k, v)) < 0.02
    bad = q.clone()
    bad[1, 2, 7, 3] = torch.nan
    finite = flash3.attention_fp8(bad, k, v).isfinite().all(3)
    assert not finite[1, 2, 7] and int((~finite).sum()) == 1
    torch._dynamo.reset()


@pytest.mark.usefixtures("small")
def test_sage_attention_goes_on_working_under_quantized_layers():
    pytest.importorskip("sageattention")
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    active = _AttentionBackendRegistry._active_backend
    model, given = wan()
    with torch.no_grad():
        quantize_model(model, SeDialectConfig(precision="w4a8"))
        plain = model(**given, return_dict=False)[0]
        try:
            model.set_attention_backend("sage")
            assert distance(model(**given, return_dict=False)[0], plain) < 0.1
        finally:
            _AttentionBackendRegistry._active_backend = active


def test_a_gpu_without_kernels_attends_in_16_bit(monkeypatch):
    from sedialect.kernels import attention

    refused = refusals(torch.device("cuda"))._replace(triton="switched off by a test")
    monkeypatch.setattr(attention, "refusals", lambda device: refused, raising=False)
    q, k, v = inputs(100, 300)
    wanted = scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(attention_8bit(q, k, v), wanted, rtol=0, atol=2e-2)
