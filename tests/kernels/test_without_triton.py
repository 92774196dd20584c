"""Installations without Triton, as on Windows: plain torch encodes and decodes, and torch._int_mm multiplies integers."""

import subprocess
import sys

import pytest

HIDDEN = """
import sys
sys.modules["triton"] = None  # whatever imports it fails

import torch
import sedialect
from sedialect.kernels import capabilities, cuda, dispatch, integers
from sedialect.kernels.activations import encode_activations
from sedialect.kernels.guidance import RowGuidance
from sedialect.kernels.reference import EncodedRows
from sedialect.kernels.transform import InputTransform

# A GPU of 8.6, in so far as choices depend on one; its tensors lie on the CPU.
torch.cuda.current_device = lambda: 0
torch.cuda.get_device_name = lambda number: "a GPU"
torch.cuda.get_device_capability = lambda number: (8, 6)
name, reason = dispatch.implementation("cuda:0")
assert name == "reference" and "the package triton is not installed" in reason, reason
assert "INT8 matrix products" in reason and "torch._int_mm multiplies" in reason, reason

torch.manual_seed(0)
tables = sedialect.Formatbook.builtin().tables("cpu")
x, bias = torch.randn(5, 96), torch.randn(20)
weight = sedialect.encode(torch.randn(20, 96))
rows = EncodedRows(weight.codes, weight.meta, weight.scale)
whole = InputTransform(products="int8")
for salient in (None, torch.tensor([1, 3], dtype=torch.int32)):
    for bits in (4, 8):
        guidance = RowGuidance(salient)
        operand, scale = cuda.encode(x, tables, 16, bits, "max", guidance, whole)
        wanted, wanted_scale = encode_activations(x, tables, 16, bits, "max", guidance, whole)
        assert operand.dtype == torch.int8 and torch.equal(operand.float(), wanted) and torch.equal(scale, wanted_scale)
        y = cuda.multiply(operand, scale, rows, bias, tables, torch.float16, salient)
        exact = integers.scaled_product(operand, scale, *integers.decode_rows(rows, tables)) + bias
        if salient is not None:
            exact = exact[:5].index_add_(0, salient, exact[5:] - bias)
        assert y.dtype == torch.float16 and (y - exact).abs().max() < 2e-3 * exact.abs().max()
assert not dispatch._FAILED, dispatch._FAILED

model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 24))
for products in ("auto", "int8"):
    layer = sedialect.SeDialectLinear.from_linear(model[1], products=products)
    assert layer(torch.randn(3, 64)).isfinite().all()
print("ran")
"""


@pytest.mark.feature("No Triton (Windows)", "first", "plain torch encodes and decodes, `torch._int_mm` or FP8 multiplies")
def test_everything_runs_without_triton():
    run = subprocess.run([sys.executable, "-P", "-c", HIDDEN], capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.strip() == "ran", run.stderr[-3000:]
