"""A dialect-encoded weight as a `QuantizedTensor` of comfy-kitchen, the type that ComfyUI moves, offloads and saves.

Its data are the codes; meta and row scales travel with them as parameters, all three byte for byte as they lie in a file,
so that ComfyUI may read them from disk straight into the GPU's memory. `multiply` is the one place where a layer of
ComfyUI reaches the kernels.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from comfy_kitchen.tensor import QuantizedLayout, QuantizedTensor, register_layout_class, register_layout_op
from comfy_kitchen.tensor.base import BaseLayoutParams, dequantize_args

from ...kernels import ops
from ...kernels.guidance import UNGUIDED, RowGuidance
from ...kernels.reference import EncodedRows
from ...kernels.transform import InputTransform
from ...sedialect_core.checkpoint.integrity import check_exponents, check_meta, check_scale
from ...sedialect_core.checkpoint.record import Record
from ...sedialect_core.codec import EncodedTensor, encode
from ...sedialect_core.errors import ModelError
from ...sedialect_core.formatbook import Formatbook
from ...sedialect_core.linear import ACTIVATION_BITS

LAYOUT = "SeDialectLayout"  # names in comfy-kitchen's and ComfyUI's registries, which all packs share
FORMAT = "sedialect"
SUFFIXES = ("", "_meta", "_scale")  # of "weight": codes, meta, row scales, as in docs/format.md
EQUALIZER = "_equalizer"  # and exponents, where there are some


@dataclass(frozen=True)
class Params(BaseLayoutParams):
    """What decodes the codes [N, K/2]; plain data, for ComfyUI builds it anew whenever a weight is moved.

    scale       uint8 [N, 4]: the bits of the float32 row scales, in bytes because loaders cast floats
    meta        uint8 [N, K/B]: delta << 5 | dialect
    book        the formatbook
    precision   of the layer: "w4a4", "w4a8" or "w4a16"
    candidates  which dialects an activation block chooses from
    rotation    size of the Hadamard blocks by which weight and activations are rotated; 0: they are not
    equalizer   int8 [K], exponents of the powers of two taken from the activations and given to the weight, or None
    products    which matrix units multiply, as of `InputTransform`
    """

    meta: torch.Tensor
    book: Formatbook
    precision: str
    candidates: str
    rotation: int = 0
    equalizer: torch.Tensor | None = None
    products: str = "auto"

    def _tensor_fields(self) -> list[str]:
        return ["scale", "meta", *([] if self.equalizer is None else ["equalizer"])]

    @property
    def transform(self) -> InputTransform:
        """How activations become operands."""
        return InputTransform(self.equalizer, self.rotation, self.products)

    @property
    def row_scale(self) -> torch.Tensor:
        """Row scales, float32 [N]."""
        return self.scale.view(torch.float32).squeeze(1)

    @property
    def block_size(self) -> int:
        """Elements a block."""
        return self.orig_shape[1] // self.meta.shape[1]


class SeDialectLayout(QuantizedLayout):
    """The layout's operations, as comfy-kitchen asks for them."""

    Params = Params

    @classmethod
    def quantize(cls, tensor: torch.Tensor, **settings: Any) -> tuple[torch.Tensor, Params]:
        """Encode a float weight [N, K]; `settings` are those of `Params`, and block_size. What other packs may
        pass besides (scale, stochastic_rounding) has no meaning here: rounding to the nearest is the format's own."""
        book, size = settings["book"], settings["block_size"]
        rotation, equalizer = settings.get("rotation", 0), settings.get("equalizer")
        if equalizer is not None:
            equalizer = equalizer.to(tensor.device)
        name = settings.get("name", "weight")
        encoded = encode(tensor, formatbook=book, block_size=size, rotation=rotation, equalizer=equalizer, name=name)
        codes, meta, scale = (encoded.stored[suffix] for suffix in SUFFIXES)
        shape = (int(tensor.shape[0]), int(tensor.shape[1]))
        kinds = (settings.get("precision", "w4a4"), settings.get("candidates", "max"))
        products = settings.get("products", "auto")
        return codes, Params(scale, tensor.dtype, shape, meta, book, *kinds, rotation, equalizer, products)

    @classmethod
    def dequantize(cls, qdata: torch.Tensor, params: Params) -> torch.Tensor:
        """The weight as floats, [N, K]."""
        return _encoded(qdata, params).dequantize(params.orig_dtype)

    @classmethod
    def get_plain_tensors(cls, qtensor: QuantizedTensor) -> tuple[torch.Tensor, ...]:
        """Codes, meta, row scales, and exponents where there are some."""
        return tuple(cls.state_dict_tensors(qtensor._qdata, qtensor._params).values())

    @classmethod
    def state_dict_tensors(cls, qdata: torch.Tensor, params: Params) -> dict[str, torch.Tensor]:
        """What is saved, by the end of the key."""
        parts = dict(zip(SUFFIXES, (qdata, params.meta, params.scale), strict=True))
        return parts if params.equalizer is None else {**parts, EQUALIZER: params.equalizer}

    @classmethod
    def requantize_kwargs(cls, qtensor: QuantizedTensor) -> dict[str, Any]:
        """The settings by which a changed weight is encoded again."""
        params = qtensor._params
        return {
            "book": params.book,
            "block_size": params.block_size,
            "precision": params.precision,
            "candidates": params.candidates,
            "rotation": params.rotation,
            "equalizer": params.equalizer,
        }


def wrap(
    codes: torch.Tensor, meta: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype, **settings: Any
) -> QuantizedTensor:
    """A weight from a file's tensors; `settings` are those of `Params`, `dtype` what it stands for."""
    shape = (int(codes.shape[0]), int(codes.shape[1]) * 2)
    return QuantizedTensor(codes, LAYOUT, Params(scale, dtype, shape, meta, **settings))


def rewrapped(weight: QuantizedTensor) -> QuantizedTensor:
    """Another weight around the same tensors, of which nobody has said yet which units multiply it."""
    return QuantizedTensor(weight._qdata, LAYOUT, replace(weight._params, products="auto"))


def stored_bytes(weight: QuantizedTensor) -> int:
    """What codes, meta, row scales and exponents take."""
    return sum(tensor.nbytes for tensor in SeDialectLayout.get_plain_tensors(weight))


def wrap_all(weights: dict[str, Any], record: Record) -> None:
    """Put the three tensors of each recorded layer together, in place.

    Raises:
        ModelError: one is missing or has the wrong shape.
        InputError: dialect ids, row scales or exponents are out of range.
    """
    settings = {"book": record.formatbook, "candidates": "max"}
    for name, precision in record.precisions.items():
        keys = [f"{name}.weight{suffix}" for suffix in SUFFIXES]
        found = [weights.pop(key, None) for key in keys]
        if lost := [key for key, tensor in zip(keys, found, strict=True) if tensor is None]:
            raise ModelError(f"the key {lost[0]!r} is missing, so the file is not complete; download it again")
        codes, meta, scale = found
        rows, columns = codes.shape[0], codes.shape[1] * 2 // record.block_size
        if meta.shape != (rows, columns) or scale.shape != (rows, 4) or {t.dtype for t in found} != {torch.uint8}:
            raise ModelError(f"the shapes of {name!r} do not belong together, so the file is damaged; download it again")
        check_meta(meta, record.formatbook, repr(keys[1]))
        check_scale(scale, repr(keys[2]))
        bias = weights.get(f"{name}.bias")
        dtype = torch.bfloat16 if bias is None else bias.dtype
        kinds = {"precision": precision, "rotation": record.rotations.get(name, 0)}
        kinds["equalizer"] = _equalizer(weights, name, columns * record.block_size) if name in record.equalized else None
        weights[keys[0]] = wrap(codes, meta, scale, dtype, **kinds, **settings)


def _equalizer(weights: dict[str, Any], name: str, width: int) -> torch.Tensor:
    """Take the exponents of an equalized layer out of the dictionary.

    Raises:
        ModelError: they are missing or have the wrong shape.
        InputError: one is too large.
    """
    key = f"{name}.weight{EQUALIZER}"
    found = weights.pop(key, None)
    if found is None:
        raise ModelError(f"the key {key!r} is missing, so the file is not complete; download it again")
    if found.shape != (width,) or found.dtype != torch.int8:
        raise ModelError(f"the shapes of {name!r} do not belong together, so the file is damaged; download it again")
    check_exponents(found, repr(key))
    return torch.as_tensor(found)


def _encoded(codes: torch.Tensor, params: Params) -> EncodedTensor:
    """The weight as the codec's value."""
    stored = (codes, params.meta, params.scale)
    settings: dict[str, Any] = {"rotation": params.rotation, "equalizer": params.equalizer}
    return EncodedTensor.of_stored(stored, params.book, block_size=params.block_size, **settings)


def rounding_loss(weight: QuantizedTensor) -> float:
    """What INT8 units would add to the squared error of a weight's code, as a part of that."""
    return _encoded(weight._qdata, weight._params).rounding_loss


def set_products(weight: QuantizedTensor, products: str) -> None:
    """Say which matrix units multiply a weight, in place."""
    weight._params = replace(weight._params, products=products)


def is_encoded(tensor: object) -> bool:
    """Whether a tensor is a weight of this layout."""
    return isinstance(tensor, QuantizedTensor) and tensor._layout_cls == LAYOUT


def dialects(weight: QuantizedTensor) -> torch.Tensor:
    """The dialect id of every block, uint8 [N, K/B]."""
    return weight._params.meta & 31


def multiply(
    x: torch.Tensor, weight: QuantizedTensor, bias: torch.Tensor | None, guidance: RowGuidance = UNGUIDED
) -> torch.Tensor:
    """x [..., K] @ weight.T + bias, [..., N] in x.dtype; x is encoded in the precision of the weight's layer.

    Args:
        guidance: what is known of the rows of x, flattened to [M, K].
    """
    params = weight._params
    rows = x.reshape(-1, x.shape[-1])
    y = ops.linear(
        rows,
        EncodedRows(weight._qdata, params.meta, params.row_scale),
        bias,
        params.book.tables(x.device).operands,
        ACTIVATION_BITS[params.precision],
        params.candidates,
        guidance,
        params.transform,
    )
    return y.view(*x.shape[:-1], weight.shape[0])


def register() -> None:
    """Make the layout known to comfy-kitchen. Calling it again changes nothing."""
    register_layout_class(LAYOUT, SeDialectLayout)
    register_layout_op(torch.ops.aten.linear.default, SeDialectLayout)(_linear)


def _linear(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """`torch.nn.functional.linear` on such a weight, for code that does not go through the layer."""
    x, weight, bias = (*args, None)[:3]
    if not is_encoded(weight) or isinstance(x, QuantizedTensor):
        decoded: torch.Tensor = torch.nn.functional.linear(*dequantize_args((x, weight, bias)))
        return decoded
    return multiply(x, weight, bias)
