"""The reference on a GPU: the same codes as on the CPU, bit for bit, and products within bfloat16's rounding."""

import pytest
import torch
from torch import nn

from sedialect import SeDialectLinear, encode
from sedialect.kernels import reference
from sedialect.sedialect_core import demo, doctor
from sedialect.sedialect_core.comparison import compare
from sedialect.sedialect_core.config import SeDialectConfig
from sedialect.sedialect_core.sampling import load_pipeline

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def numbers(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Rows over many exponents, with zeros, a huge value, subnormal numbers and one row that is not finite."""
    x = torch.randn(257, 1536, generator=torch.Generator().manual_seed(0)) * torch.logspace(-8, 8, 257)[:, None]
    x[3], x[4, 5], x[5] = 0, 1e30, 1e-41
    return x.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize("candidates", ["max", "all"])
def test_activations_encode_as_on_the_cpu(dtype, block_size, candidates):
    x = numbers(dtype).nan_to_num(posinf=1.0, neginf=1.0)
    x[6, 7] = torch.nan
    arguments = {"role": "activation", "block_size": block_size, "candidates": candidates}
    here, there = encode(x, **arguments), encode(x.cuda(), **arguments)
    for name in ("codes", "meta", "scale"):
        assert torch.equal(getattr(here, name).float().nan_to_num(), getattr(there, name).float().cpu().nan_to_num())


@pytest.mark.parametrize("block_size", [16, 32])
def test_weights_encode_as_on_the_cpu(block_size):
    weight = numbers()
    here, there = encode(weight, block_size=block_size), encode(weight.cuda(), block_size=block_size)
    for name in ("codes", "meta", "scale"):
        assert torch.equal(getattr(here, name), getattr(there, name).cpu())


@pytest.mark.parametrize("precision", ["w4a4", "w4a8", "w4a16"])
def test_layers_lose_no_more_than_bfloat16_does(precision):
    torch.manual_seed(0)
    linear = nn.Linear(1536, 768).cuda().bfloat16()
    layer = SeDialectLinear.from_linear(linear, precision=precision)
    x = torch.randn(300, 1536, device="cuda", dtype=torch.bfloat16)
    if precision == "w4a4":
        activation = encode(x, role="activation").dequantize(torch.float64)
    elif precision == "w4a8":
        operand, scale = reference.e4m3_rows(x)
        activation = operand.double() * scale.double().unsqueeze(1)
    else:
        activation = x.double()
    wanted = activation @ layer.dequantize(torch.float64).T + linear.bias.double()
    exact = x.double() @ linear.weight.double().T + linear.bias.double()
    torch_loss = (linear(x).double() - exact).norm() / exact.norm()
    assert (layer(x).double() - wanted).norm() / wanted.norm() < 2 * torch_loss


def test_the_self_test_passes_on_every_gpu():
    _, sound = doctor.examine()
    assert sound


def test_the_main_job_runs_on_a_gpu():
    pipe = load_pipeline(demo.MODEL, torch.bfloat16, "cuda")
    comparison = compare(pipe, demo.request(*demo.evaluation_prompts()[0]), SeDialectConfig())
    assert comparison.fidelity.psnr > 24
