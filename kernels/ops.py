"""What layers call: Python functions of a few values, each around a torch operator, which takes tensors and scalars alone.

Operators are opaque to torch.compile; each has a fake for its shapes. `flat` is the one place where values become arguments
of operators, and the functions that implement them put them together again.

`encode` and `matmul` are the two halves of a layer; layers that read the same input share one `encode`. `linear` is both at
once and differentiable: gradients are straight-through, that is, backwards the rounding of activations counts as the
identity, so that a LoRA on a frozen quantized layer, and whatever stands before it, can be trained. The stored weight itself
has no gradient.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch

from . import cuda, integers, reference
from .activations import encode_activations
from .capabilities import check, operand_dtype, weight_dtype
from .guidance import UNGUIDED, RowGuidance
from .reference import EncodedRows
from .rotation import rotate_rows
from .tables import DialectTables
from .transform import UNCHANGED, InputTransform, scale_columns

Operator = TypeVar("Operator", bound=Callable[..., Any])
TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)


def _free_namespace() -> str:
    """Where this copy of the package registers its operators: ComfyUI may load one beside the one that is installed, and
    what torch registers again under one name, it takes away from whoever had it."""
    name, number = "sedialect", 1
    while hasattr(getattr(torch.ops, name), "encode"):
        name, number = f"sedialect_{number}", number + 1
    return name


NAMESPACE = _free_namespace()
LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")


def without_autocast(operator: Operator) -> Operator:
    """The operator without autocast, which would round what a type was chosen for. Its first argument tells the device."""

    @wraps(operator)
    def run(x: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        if not torch.is_autocast_enabled(x.device.type):
            return operator(x, *arguments, **options)
        with torch.autocast(x.device.type, enabled=False):
            return operator(x, *arguments, **options)

    return run  # type: ignore[return-value]


def torch_operator(schema: str) -> Callable[[Operator], Operator]:
    """Register a function without a gradient as an operator of its name.

    `torch.library.custom_op` would do it, and cost the host some 20 microseconds a call more (beside an H100, torch 2.11):
    for a gradient that nobody asks for, and checks that the tests make.
    """

    def register(function: Operator) -> Operator:
        name = function.__name__.lstrip("_")
        LIBRARY.define(name + schema, tags=TAGS)
        LIBRARY.impl(name, without_autocast(function), "CompositeExplicitAutograd")
        operator: Operator = getattr(getattr(torch.ops, NAMESPACE), name).default
        return operator

    return register


def operator_fake(name: str) -> Callable[[Operator], Operator]:
    """What an operator's outputs are like, for compilers."""
    return torch.library.register_fake(f"{NAMESPACE}::{name}", lib=LIBRARY)


# Schemas are written out, because torch 2.6 cannot infer `list[Tensor]` from annotations. What follows the first arguments
# comes by its place, and torch leaves out what ends a call and has its default.
TRANSFORM = "Tensor? equalizer=None, int rotation=0, str products='auto'"
GUIDANCE = f"Tensor? salient=None, Tensor? group=None, Tensor? choice=None, Tensor? protected=None, {TRANSFORM}"
WEIGHT = "Tensor codes, Tensor meta, Tensor scale"


def flat(guidance: RowGuidance, transform: InputTransform) -> tuple[Any, ...]:
    """The end of an operator's arguments, as `GUIDANCE` names them."""
    return (*guidance, *transform)


def _guided(rest: tuple[Any, ...]) -> tuple[RowGuidance, InputTransform]:
    """What `flat` made, from as much of it as torch hands on."""
    parts = len(RowGuidance._fields)
    return RowGuidance(*rest[:parts]), InputTransform(*rest[parts:])


def encode(
    x: torch.Tensor,
    tables: list[torch.Tensor],
    block_size: int,
    bits: int,
    candidates: str,
    guidance: RowGuidance = UNGUIDED,
    transform: InputTransform = UNCHANGED,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations as operands of a matrix product, [M + E, K], and their row scales, float32 [M + E].

    The operands' dtype is `capabilities.operand_dtype`'s, in which each of them is exact, but for integers, to which small
    ones are rounded; for `bits=16` it is x's, and the row scales are 1. An operand times its row scale is the value.

    Args:
        x: [M, K] float32, float16 or bfloat16.
        tables: the tensors of a `DialectTables`.
        bits: 4, dialects; 8, E4M3 with a row scale; 16, as they are.
        candidates: for 4 bits, "max" or "all".
        guidance: what is done for single rows; E residual rows are appended.
        transform: what is done to x first.
    """
    return encode_operator(x, tables, block_size, bits, candidates, *flat(guidance, transform))


def matmul(
    operand: torch.Tensor,
    row_scale: torch.Tensor | None,
    weight: EncodedRows,
    bias: torch.Tensor | None,
    tables: list[torch.Tensor],
    dtype: torch.dtype,
    salient: torch.Tensor | None = None,
) -> torch.Tensor:
    """x_hat @ W.T + bias in `dtype`, [M, N], of what `encode` gave and W in the storage layout.

    Args:
        operand: [M + E, K]; row_scale: float32 [M + E], None for ones.
        weight: codes uint8 [N, K/2], meta uint8 [N, K/B], scale float32 [N]; bias: [N] or None.
        salient: as for `encode`; row M + e of the product is added to row salient[e], unless that is -1. On GPUs they must
            be distinct, but for -1.
    """
    return matmul_operator(operand, row_scale, *weight, bias, tables, dtype, salient)


def linear(
    x: torch.Tensor,
    weight: EncodedRows,
    bias: torch.Tensor | None,
    tables: list[torch.Tensor],
    bits: int,
    candidates: str,
    guidance: RowGuidance = UNGUIDED,
    transform: InputTransform = UNCHANGED,
) -> torch.Tensor:
    """x @ W.T + bias in x.dtype, [M, N], with W in the storage layout and activations encoded as they come.

    Arguments as of `encode` and `matmul`.
    """
    return linear_operator(x, *weight, bias, tables, bits, candidates, *flat(guidance, transform))


@torch_operator(f"(Tensor x, Tensor[] tables, int block_size, int bits, str candidates, {GUIDANCE}) -> (Tensor, Tensor)")
def _encode(
    x: torch.Tensor, tables: list[torch.Tensor], block_size: int, bits: int, candidates: str, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    book = DialectTables(*tables)
    guidance, transform = _guided(rest)
    check(x.device, book.indices.device, x.dtype)
    if x.device.type == "cuda" and bits != 16:
        return cuda.encode(x, book, block_size, bits, candidates, guidance, transform)
    operand, scale = encode_activations(x, book, block_size, bits, candidates, guidance, transform)
    return operand.to(operand_dtype(x, bits, transform.products)), scale


@operator_fake("encode")
def _(x: torch.Tensor, tables: Any, block_size: int, bits: int, candidates: str, *rest: Any) -> tuple[torch.Tensor, ...]:
    guidance, transform = _guided(rest)
    rows = x.shape[0] + (0 if guidance.salient is None else guidance.salient.shape[0])
    dtype = operand_dtype(x, bits, transform.products)
    return x.new_empty(rows, x.shape[1], dtype=dtype), x.new_empty(rows, dtype=torch.float32)


@torch_operator(
    f"(Tensor operand, Tensor? row_scale, {WEIGHT}, Tensor? bias, Tensor[] tables, ScalarType dtype, Tensor? salient=None)"
    " -> Tensor"
)
def _matmul(operand: torch.Tensor, row_scale: torch.Tensor | None, *rest: Any) -> torch.Tensor:
    *parts, bias, tables, dtype, salient = rest if len(rest) == 7 else (*rest, None)
    stored, book = EncodedRows(*parts), DialectTables(*tables)
    check(operand.device, stored.codes.device, dtype)
    if operand.device.type == "cuda":
        return cuda.multiply(operand, row_scale, stored, bias, book, dtype, salient)
    if operand.dtype == torch.int8 and row_scale is not None:  # integers always have row scales
        product = integers.scaled_product(operand, row_scale, *integers.decode_rows(stored, book))
    else:
        weight = reference.decode_rows(stored.codes, stored.meta, book, weight_dtype(operand))
        product = reference.scaled_matmul(operand.to(weight.dtype), row_scale, weight, stored.scale)
    if salient is not None:
        rows = product.shape[0] - salient.shape[0]
        # A row of -1 is zeros, and adding them changes nothing.
        product = product[:rows].index_add_(0, salient.clamp_min(0), product[rows:])
    return (product if bias is None else product.add_(bias.float())).to(dtype)


@operator_fake("matmul")
def _(operand: torch.Tensor, row_scale: Any, codes: torch.Tensor, *rest: Any) -> torch.Tensor:
    *_, dtype, salient = rest if len(rest) == 6 else (*rest, None)
    rows = operand.shape[0] - (0 if salient is None else salient.shape[0])
    return operand.new_empty(rows, codes.shape[0], dtype=dtype)


@torch.library.custom_op(
    f"{NAMESPACE}::linear",
    mutates_args=(),
    schema=f"(Tensor x, {WEIGHT}, Tensor? bias, Tensor[] tables, int bits, str candidates, {GUIDANCE}) -> Tensor",
)
@without_autocast
def linear_operator(x: torch.Tensor, codes: torch.Tensor, meta: torch.Tensor, *rest: Any) -> torch.Tensor:
    """What `linear` calls."""
    scale, bias, tables, bits, candidates, *others = rest
    guidance, transform = _guided(tuple(others))
    operand, row_scale = x, None
    if bits != 16 or transform.rotation or transform.equalizer is not None:
        block_size = codes.shape[1] * 2 // meta.shape[1]
        operand, row_scale = encode(x, tables, block_size, bits, candidates, guidance, transform)
    return matmul(operand, row_scale, EncodedRows(codes, meta, scale), bias, tables, x.dtype, guidance.salient)


@linear_operator.register_fake
def _(x: torch.Tensor, codes: torch.Tensor, *rest: Any) -> torch.Tensor:
    return x.new_empty(x.shape[0], codes.shape[0])


@torch_operator(f"(Tensor gradient, {WEIGHT}, Tensor[] tables, {TRANSFORM}) -> Tensor")
def linear_input_gradient(
    gradient: torch.Tensor,
    codes: torch.Tensor,
    meta: torch.Tensor,
    scale: torch.Tensor,
    tables: list[torch.Tensor],
    equalizer: torch.Tensor | None = None,
    rotation: int = 0,
    products: str = "auto",
) -> torch.Tensor:
    """gradient @ W, [M, K] in gradient.dtype, of the gradient [M, N] of `linear`'s output; the rest as for `linear`.

    The product is in float32 unless the gradient is a GPU's bfloat16 already: other types would lose digits in bfloat16.
    """
    wide = torch.bfloat16 if gradient.device.type != "cpu" and gradient.dtype == torch.bfloat16 else torch.float32
    check(gradient.device, codes.device)
    if gradient.device.type == "cuda":
        weight, _ = cuda.decode(EncodedRows(codes, meta, scale), DialectTables(*tables), wide, scaled=True)
        product = gradient.to(wide) @ weight
    else:
        weight = reference.decode_rows(codes, meta, DialectTables(*tables), wide)
        product = (gradient.float() * scale).to(wide) @ weight
    rotated_back = rotate_rows(product, rotation)  # rotating is its own transpose
    return scale_columns(rotated_back, equalizer, -1).to(gradient.dtype)


@operator_fake("linear_input_gradient")
def _(gradient: torch.Tensor, codes: torch.Tensor, *rest: Any) -> torch.Tensor:
    return gradient.new_empty(gradient.shape[0], codes.shape[1] * 2)


encode_operator, matmul_operator = _encode, _matmul  # for those who look at operators themselves, as torch's checks do


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, codes, meta, scale, bias, tables, *_, equalizer, ctx.rotation, _ = inputs
    # Packed: the float weight is decoded again when it is needed.
    ctx.save_for_backward(codes, meta, scale, equalizer, *tables)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
    codes, meta, scale, equalizer, *tables = ctx.saved_tensors
    to_x = to_bias = None
    if ctx.needs_input_grad[0]:
        to_x = linear_input_gradient(gradient, codes, meta, scale, tables, equalizer, ctx.rotation)
    if ctx.bias_dtype is not None and ctx.needs_input_grad[4]:
        to_bias = gradient.float().sum(0).to(ctx.bias_dtype)
    others = len(ctx.needs_input_grad) - 6  # torch counts only arguments that differ from their defaults
    return to_x, None, None, None, to_bias, [None] * len(tables), *[None] * others


linear_operator.register_autograd(_backward, setup_context=_keep_for_backward)


def _keep_for_second(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, codes, meta, scale, tables, *transform = inputs
    equalizer, ctx.rotation, _ = InputTransform(*transform)
    ctx.save_for_backward(codes, meta, scale, equalizer, *tables)


def _second(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
    """Of the gradient's gradient: the product with the weight is linear, so its derivative is the product the other way."""
    codes, meta, scale, equalizer, *tables = ctx.saved_tensors
    transform = InputTransform(equalizer, ctx.rotation)
    back = linear(gradient, EncodedRows(codes, meta, scale), None, tables, 16, "max", transform=transform)
    others = len(ctx.needs_input_grad) - 5  # torch counts only arguments that differ from their defaults
    return back, None, None, None, [None] * len(tables), *[None] * others


torch.library.register_autograd(f"{NAMESPACE}::linear_input_gradient", _second, setup_context=_keep_for_second, lib=LIBRARY)
