"""Torch custom operators: what layers call. Opaque to torch.compile, with a fake for its shapes; no autograd."""

import torch

from . import reference
from .tables import DialectTables


@torch.library.custom_op("sedialect::linear", mutates_args=())
def linear(
    x: torch.Tensor,
    codes: torch.Tensor,
    meta: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    tables: list[torch.Tensor],
    activation_bits: int,
    candidates: str,
) -> torch.Tensor:
    """x @ W.T + bias in x.dtype, [M, N], with W in the storage layout and activations encoded as they come.

    Args:
        x: [M, K] float32, float16 or bfloat16.
        codes: uint8 [N, K/2]; meta: uint8 [N, K/B]; scale: float32 [N]; bias: [N] or None.
        tables: the tensors of a `DialectTables`.
        activation_bits: 4, dialects; 8, E4M3 with a row scale; 16, as they are.
        candidates: for 4 bits, "max" or "all".
    """
    book = DialectTables(*tables)
    block_size = codes.shape[1] * 2 // meta.shape[1]
    if activation_bits == 4:
        operand, row_scale = reference.quantize_rows(x, book, block_size, candidates)
    elif activation_bits == 8:
        operand, row_scale = reference.e4m3_rows(x)
    else:
        operand, row_scale = x.float(), x.new_ones(x.shape[0], dtype=torch.float32)
    weight = reference.decode_rows(codes, meta, book, _matmul_dtype(x.device))
    return reference.scaled_matmul(operand.to(weight.dtype), row_scale, weight, scale, bias).to(x.dtype)


@linear.register_fake
def _(
    x: torch.Tensor,
    codes: torch.Tensor,
    meta: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    tables: list[torch.Tensor],
    activation_bits: int,
    candidates: str,
) -> torch.Tensor:
    return x.new_empty(x.shape[0], codes.shape[0])


def _matmul_dtype(device: torch.device) -> torch.dtype:
    """Operands are exact in bfloat16, which GPUs multiply fastest; float16 would overflow in the sum. CPUs: float32."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16
