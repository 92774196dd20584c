"""Torch custom operators: what layers call. Opaque to torch.compile, each with a fake for its shapes.

Gradients are straight-through: backwards, the rounding of activations counts as the identity, so that a LoRA on a frozen
quantized layer, and whatever stands before it, can be trained. The stored weight itself has no gradient.
"""

from typing import Any

import torch

from . import reference
from .tables import DialectTables

# Written out, because torch 2.6 cannot infer `list[Tensor]` from annotations.
LINEAR_SCHEMA = (
    "(Tensor x, Tensor codes, Tensor meta, Tensor scale, Tensor? bias, Tensor[] tables, int activation_bits, str candidates)"
    " -> Tensor"
)


@torch.library.custom_op("sedialect::linear", mutates_args=(), schema=LINEAR_SCHEMA)
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


GRADIENT_SCHEMA = "(Tensor gradient, Tensor codes, Tensor meta, Tensor scale, Tensor[] tables) -> Tensor"


@torch.library.custom_op("sedialect::linear_input_gradient", mutates_args=(), schema=GRADIENT_SCHEMA)
def linear_input_gradient(
    gradient: torch.Tensor, codes: torch.Tensor, meta: torch.Tensor, scale: torch.Tensor, tables: list[torch.Tensor]
) -> torch.Tensor:
    """gradient @ W, [M, K] in gradient.dtype, of the gradient [M, N] of `linear`'s output; the rest as for `linear`.

    The product is in float32 unless the gradient is a GPU's bfloat16 already: other types would lose digits in bfloat16.
    """
    fast = gradient.device.type != "cpu" and gradient.dtype == torch.bfloat16
    weight = reference.decode_rows(codes, meta, DialectTables(*tables), torch.bfloat16 if fast else torch.float32)
    return ((gradient.float() * scale).to(weight.dtype) @ weight).to(gradient.dtype)


@linear_input_gradient.register_fake
def _(
    gradient: torch.Tensor, codes: torch.Tensor, meta: torch.Tensor, scale: torch.Tensor, tables: list[torch.Tensor]
) -> torch.Tensor:
    return gradient.new_empty(gradient.shape[0], codes.shape[1] * 2)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, codes, meta, scale, bias, tables, _, _ = inputs
    ctx.save_for_backward(codes, meta, scale, *tables)  # packed: the float weight is decoded again when it is needed
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
    codes, meta, scale, *tables = ctx.saved_tensors
    to_x = to_bias = None
    if ctx.needs_input_grad[0]:
        to_x = linear_input_gradient(gradient, codes, meta, scale, tables)
    if ctx.bias_dtype is not None and ctx.needs_input_grad[4]:
        to_bias = gradient.float().sum(0).to(ctx.bias_dtype)
    return to_x, None, None, None, to_bias, [None] * len(tables), None, None


linear.register_autograd(_backward, setup_context=_keep_for_backward)


def _matmul_dtype(device: torch.device) -> torch.dtype:
    """Operands are exact in bfloat16, which GPUs multiply fastest; float16 would overflow in the sum. CPUs: float32."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16
