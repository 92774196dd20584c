"""A layer under `torch.func`, forward-mode derivatives and `vmap`, which torch's operators of `ops` do not know.

Rounding counts as the identity, as in `ops.linear`: y = Q(x) W^T + b has the derivative dy = dx W^T + db, and backwards
g W. Both products are linear maps that know each other, so that derivatives of every order and mode are right.
"""

from typing import Any, NamedTuple

import torch
from torch.autograd import forward_ad

from . import ops
from .guidance import RowGuidance
from .reference import EncodedRows
from .transform import InputTransform

NO_VMAP = "vmap over {} of quantized layers is not possible: packed codes cannot be stacked; call the models one by one"


def transformed() -> bool:
    """Whether a transform of `torch.func`, or a level of forward-mode derivatives, is active."""
    return forward_ad._current_level >= 0 or mapped()


def mapped() -> bool:
    """Whether a transform of `torch.func` is active: grad, jvp, vmap and what is made of them."""
    return bool(torch._C._are_functorch_transforms_active())


class Fixed(NamedTuple):
    """What of a layer has no derivative: the weight, its transform, and the tensors of its `DialectTables`."""

    codes: torch.Tensor
    meta: torch.Tensor
    scale: torch.Tensor
    equalizer: torch.Tensor | None
    rotation: int
    products: str
    tables: tuple[torch.Tensor, ...]

    @classmethod
    def of(cls, weight: EncodedRows, transform: InputTransform, tables: list[torch.Tensor]) -> "Fixed":
        own = (transform.equalizer, transform.rotation, transform.products)
        return cls(weight.codes, weight.meta, weight.scale, *own, tuple(tables))

    @property
    def flat(self) -> tuple[Any, ...]:
        """The same as arguments of a `torch.autograd.Function`."""
        return (*self[:-1], *self.tables)

    @classmethod
    def again(cls, flat: tuple[Any, ...]) -> "Fixed":
        """What `flat` gave."""
        codes, meta, scale, equalizer, rotation, products, *tables = flat
        return cls(codes, meta, scale, equalizer, rotation, products, tuple(tables))

    @property
    def weight(self) -> EncodedRows:
        return EncodedRows(self.codes, self.meta, self.scale)

    @property
    def transform(self) -> InputTransform:
        return InputTransform(self.equalizer, self.rotation, self.products)


def linear(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    fixed: Fixed,
    bits: int,
    candidates: str,
    guidance: RowGuidance,
) -> torch.Tensor:
    """What `ops.linear` gives, [M, N] of x [M, K]; with a bias that may have a derivative of its own."""
    y: torch.Tensor = _Linear.apply(x, bias, *guidance, bits, candidates, *fixed.flat)
    return y


def product(v: torch.Tensor, fixed: Fixed, transposed: bool) -> torch.Tensor:
    """v @ W.T, or v @ W where `transposed`, of the decoded weight, in v.dtype."""
    found: torch.Tensor = _Product.apply(v, transposed, *fixed.flat)
    return found


class _Linear(torch.autograd.Function):
    """Q(x) @ W.T + b. Arguments: x, b or None, a `RowGuidance`, bits, candidates, what `Fixed.flat` gives."""

    @staticmethod
    def forward(x: torch.Tensor, bias: torch.Tensor | None, *rest: Any) -> torch.Tensor:
        guidance, (bits, candidates), fixed = RowGuidance(*rest[:4]), rest[4:6], Fixed.again(rest[6:])
        block_size = fixed.codes.shape[1] * 2 // fixed.meta.shape[1]
        tables = list(fixed.tables)
        operand, row_scale = ops.encode(x, tables, block_size, bits, candidates, guidance, fixed.transform)
        return ops.matmul(operand, row_scale, fixed.weight, bias, tables, x.dtype, guidance.salient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        _keep(ctx, inputs[8:])
        ctx.bias_dtype = None if inputs[1] is None else inputs[1].dtype
        ctx.shape, ctx.dtype = output.shape, output.dtype

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        to_bias = None if ctx.bias_dtype is None else gradient.float().sum(0).to(ctx.bias_dtype)
        return product(gradient, _kept(ctx), transposed=True), to_bias, *[None] * (ctx.others - 1)

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor | None, of_bias: torch.Tensor | None, *others: Any) -> torch.Tensor:
        added = None if of_bias is None else of_bias.to(ctx.dtype).expand(ctx.shape)
        if tangent is None:
            assert added is not None
            return added.clone()
        moved = product(tangent, _kept(ctx), transposed=False)
        return moved if added is None else moved + added

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: torch.Tensor, bias: Any, *rest: Any) -> tuple[torch.Tensor, int]:
        _check_fixed(in_dims[8:])
        rows = _first(x, in_dims[0], info.batch_size)
        guidance = _guidance_of_all(RowGuidance(*rest[:4]), in_dims[2:6], info.batch_size, rows.shape[1])
        own = bias if in_dims[1] is not None else None  # a bias for each input
        y: torch.Tensor = _Linear.apply(rows.flatten(0, 1), bias if own is None else None, *guidance, *rest[4:])
        y = y.unflatten(0, rows.shape[:2])
        return (y if own is None else y + own.movedim(in_dims[1], 0).unsqueeze(1).to(y.dtype)), 0


class _Product(torch.autograd.Function):
    """v @ W.T or v @ W. Arguments: v, whether transposed, what `Fixed.flat` gives."""

    @staticmethod
    def forward(v: torch.Tensor, transposed: bool, *rest: Any) -> torch.Tensor:
        fixed = Fixed.again(rest)
        tables = list(fixed.tables)
        if transposed:
            gradient: torch.Tensor = ops.linear_input_gradient(v, *fixed.weight, tables, fixed.equalizer, fixed.rotation)
            return gradient
        block_size = fixed.codes.shape[1] * 2 // fixed.meta.shape[1]
        operand, row_scale = ops.encode(v, tables, block_size, 16, "max", transform=fixed.transform)
        return ops.matmul(operand, row_scale, fixed.weight, None, tables, v.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.transposed = inputs[1]
        _keep(ctx, inputs[2:])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        return product(gradient, _kept(ctx), not ctx.transposed), *[None] * ctx.others

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor, *others: Any) -> torch.Tensor:
        return product(tangent, _kept(ctx), ctx.transposed)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], v: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, int]:
        _check_fixed(in_dims[2:])
        rows = _first(v, in_dims[0], info.batch_size)
        y: torch.Tensor = _Product.apply(rows.flatten(0, 1), *rest)
        return y.unflatten(0, rows.shape[:2]), 0


def _keep(ctx: Any, flat: tuple[Any, ...]) -> None:
    fixed = Fixed.again(flat)
    kept = (*fixed.weight, fixed.equalizer, *fixed.tables)
    ctx.save_for_backward(*kept)
    ctx.save_for_forward(*kept)
    ctx.rotation, ctx.products = fixed.rotation, fixed.products
    ctx.others = len(ctx.needs_input_grad) - 1


def _kept(ctx: Any) -> Fixed:
    codes, meta, scale, equalizer, *tables = ctx.saved_tensors
    return Fixed(codes, meta, scale, equalizer, ctx.rotation, ctx.products, tuple(tables))


def _check_fixed(in_dims: tuple[Any, ...]) -> None:
    if any(dim is not None for dim in in_dims):
        raise RuntimeError(NO_VMAP.format("the weights"))


def _first(x: torch.Tensor, dim: int | None, count: int) -> torch.Tensor:
    """x with the axis that is mapped over in front."""
    return x.expand(count, *x.shape) if dim is None else x.movedim(dim, 0)


def _guidance_of_all(guidance: RowGuidance, dims: tuple[Any, ...], count: int, rows: int) -> RowGuidance:
    """The guidance of `count` inputs of so many rows, one after the other."""
    if dims[3] is not None:
        raise RuntimeError(NO_VMAP.format("the steps"))
    first = torch.arange(count, device=None if guidance.salient is None else guidance.salient.device).unsqueeze(1)
    salient, group, choice = guidance[:3]
    if salient is not None:
        salient = _first(salient, dims[0], count)
        salient = torch.where(salient < 0, salient, salient + first * rows).flatten().int()
    if group is not None and choice is not None:
        number = torch.arange(count, device=group.device).unsqueeze(1)
        all_choices, all_groups = _first(choice, dims[2], count), _first(group, dims[1], count)
        group = torch.where(all_groups < 0, -1, all_groups + number * all_choices.shape[1]).flatten().int()
        choice = all_choices.flatten(0, 1)
    return RowGuidance(salient, group, choice, guidance.protected)
