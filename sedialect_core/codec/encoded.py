"""`encode` and what it returns (docs/format.md)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from ...kernels import cuda, integers, reference
from ...kernels.reference import EncodedRows
from ...kernels.rotation import rotate_rows
from ...kernels.transform import InputTransform, scale_columns, transform_weight
from ..errors import EncodeError
from ..formatbook import Formatbook
from ..settings.table import BLOCK_SIZES

Role = Literal["weight", "activation"]
Candidates = Literal["max", "all"]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DELTA_BITS = {"weight": 3, "activation": 4}
DIALECT_BITS = 5
ROW_SCALE_BITS = 32
EXPONENT_BITS = 8
SAMPLED_ROWS = 256  # of a weight, evenly spread, from which its rounding loss is told


@dataclass(frozen=True)
class EncodedTensor:
    """A tensor [..., K] as 4-bit codes with one meta entry a block and one scale a row.

    codes  uint8 [..., K/2]: sign << 3 | index, element 2i in the low nibble of byte i
    meta   uint8 [..., K/B] for weights, uint16 for activations, whose delta may pass 7: delta << 5 | dialect
    scale  float32 [...]
    rotation  size of the Hadamard blocks by which the rows were rotated before they were encoded; 0: they were not
    equalizer  int8 [K]: before that, column k was multiplied by 2^equalizer[k]; None: it was not
    """

    codes: torch.Tensor
    meta: torch.Tensor
    scale: torch.Tensor
    block_size: int
    role: Role
    formatbook: Formatbook
    rotation: int = 0
    equalizer: torch.Tensor | None = None

    @classmethod
    def of_stored(
        cls,
        stored: Sequence[torch.Tensor],
        formatbook: Formatbook,
        *,
        block_size: int = 16,
        rotation: int = 0,
        equalizer: torch.Tensor | None = None,
    ) -> "EncodedTensor":
        """A weight from the first three tensors of `stored`, and its equalizer; shares their storage."""
        codes, meta, scale = stored
        row_scale = scale.view(torch.float32).squeeze(1)
        return cls(codes, meta, row_scale, block_size, "weight", formatbook, rotation, equalizer)

    @property
    def stored(self) -> dict[str, torch.Tensor]:
        """What files and layers keep of a weight [N, K], by the end of the key: codes, meta and, as bytes because loaders
        cast floats, row scales, uint8 [N, 4]; and the equalizer where there is one."""
        parts = {"": self.codes, "_meta": self.meta, "_scale": self.scale.view(-1, 1).view(torch.uint8)}
        return parts if self.equalizer is None else {**parts, "_equalizer": self.equalizer}

    @property
    def rounding_loss(self) -> float:
        """What INT8 units would add to the squared error of a weight's code, as a part of that, told from some of its rows;
        infinite where the weight is not in memory."""
        if self.codes.device.type == "meta":
            return math.inf
        some = torch.arange(0, len(self.codes), max(1, len(self.codes) // SAMPLED_ROWS), device=self.codes.device)
        rows = EncodedRows(*(part[some] for part in (self.codes, self.meta, self.scale)))
        return integers.rounding_loss(rows, self.formatbook.tables(self.codes.device))

    @property
    def shape(self) -> torch.Size:
        """Shape of the tensor that was encoded."""
        return torch.Size((*self.codes.shape[:-1], self.codes.shape[-1] * 2))

    @property
    def bits_per_element(self) -> float:
        """As `effective_bits` has them."""
        rows = self.scale.numel() if self.equalizer is not None else None
        return effective_bits(self.role, self.block_size, self.shape[-1], rows)

    def to(self, device: torch.device | str) -> "EncodedTensor":
        """The same on another device."""
        equalizer = None if self.equalizer is None else self.equalizer.to(device)
        parts = {name: getattr(self, name).to(device) for name in ("codes", "meta", "scale")}
        return replace(self, equalizer=equalizer, **parts)

    def rows(self, start: int, stop: int) -> "EncodedTensor":
        """Rows start .. stop - 1 of it; shares its storage."""
        return replace(self, **{name: getattr(self, name)[start:stop] for name in ("codes", "meta", "scale")})

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The values, [..., K] in `dtype`: operands times row scales, rotated and scaled back, rounded once."""
        values = self.coded_values()
        if self.rotation:
            values = rotate_rows(values.view(-1, self.shape[-1]), self.rotation).view(self.shape)
        return scale_columns(values, self.equalizer, -1).to(dtype)

    def coded_values(self) -> torch.Tensor:
        """What the codes stand for, float32 [..., K]: the values, still equalized and rotated where they are."""
        rows = math.prod(self.scale.shape)
        tables = self.formatbook.tables(self.codes.device)
        codes, meta = (part.reshape(rows, part.shape[-1]) for part in (self.codes, self.meta))
        operand = reference.decode_rows(codes, meta, tables)
        return operand.mul_(self.scale.reshape(rows, 1)).view(self.shape)


def effective_bits(role: Role, block_size: int, width: int, equalized_rows: int | None = None) -> float:
    """Bits an element of a row of `width`: 4, a block's dialect id and offset (5 + 3 bits; activations 5 + 4), a row's
    float32 scale, and a column's exponent where `equalized_rows` rows share one. Wherever bits of our format are named, they
    come from here."""
    columns = 0.0 if equalized_rows is None else EXPONENT_BITS / max(1, equalized_rows)
    return 4 + (DIALECT_BITS + DELTA_BITS[role]) / block_size + ROW_SCALE_BITS / width + columns


def encode(
    x: torch.Tensor,
    *,
    formatbook: Formatbook | str | None = None,
    block_size: int = 16,
    role: Role = "weight",
    candidates: Candidates | None = None,
    rotation: int = 0,
    equalizer: torch.Tensor | None = None,
    name: str = "tensor",
) -> EncodedTensor:
    """Encode a float tensor [..., K] in blocks of `block_size` along its last dimension.

    Args:
        formatbook: a book, or what `Formatbook.resolve` takes; `universal-32` when not given.
        role: a "weight" chooses by exact squared error and searches its row scale, once; an "activation" takes a power of
            two as row scale and chooses by the error tables, as layers do at run time.
        candidates: what a block chooses from; "max": the shapes of the maximum nearest to its own (default for activations);
            "all": every dialect (default for weights).
        rotation: size of the Hadamard blocks by which the rows are rotated first, a divisor of K; 0: they are not.
        equalizer: int8 [K], for weights: column k is multiplied by 2^equalizer[k] before that.
        name: what an error calls the tensor.

    Raises:
        EncodeError: K is not a multiple of the block size, the dtype is not floating, or a weight holds NaN or Inf.
        ValueError: there is no such rotation.

    Example:
        >>> encoded = encode(torch.randn(64, 256), role="weight")
        >>> encoded.codes.shape, encoded.bits_per_element
        (torch.Size([64, 128]), 4.625)
    """
    check_encodable(x, block_size, role, candidates, name)
    book = Formatbook.resolve(formatbook) if isinstance(formatbook, str) else formatbook or Formatbook.builtin()
    tables = book.tables(x.device)
    width = x.shape[-1]
    rows = transform_weight(x.reshape(math.prod(x.shape[:-1]), width), InputTransform(equalizer, rotation))
    if role == "weight":
        if not all_finite(rows):
            raise EncodeError(f"{name} holds NaN or Inf; load a sound checkpoint or leave this layer out")
        encoded = cuda.encode_weight(rows, tables, block_size, candidates or "all")
    else:
        encoded = reference.encode_rows(rows, tables, block_size, candidates or "max")
    return EncodedTensor(
        encoded.codes.view(*x.shape[:-1], width // 2),
        encoded.meta.view(*x.shape[:-1], width // block_size),
        encoded.scale.view(x.shape[:-1]),
        block_size,
        role,
        book,
        rotation,
        equalizer,
    )


def all_finite(x: torch.Tensor) -> bool:
    """Whether x holds neither NaN nor Inf. Without copies: beside a large weight, there may be no room for any."""
    return x.numel() == 0 or bool(torch.linalg.vector_norm(x, torch.inf).isfinite())


def check_encodable(x: torch.Tensor, block_size: int, role: str, candidates: str | None, name: str) -> None:
    """Refuse what `encode` cannot take, before anything is computed.

    Raises:
        EncodeError: as `encode` says, but for NaN and Inf, which are not looked for here.
    """
    if role not in DELTA_BITS:
        raise EncodeError(f"role {role!r} is unknown; use 'weight' or 'activation'")
    if candidates not in (None, "max", "all"):
        raise EncodeError(f"candidates {candidates!r} is unknown; use 'max' or 'all'")
    if block_size not in BLOCK_SIZES:
        raise EncodeError(f"block size {block_size} is not supported; choose one of {', '.join(map(str, BLOCK_SIZES))}")
    if x.ndim == 0 or x.dtype not in DTYPES:
        raise EncodeError(f"{name} is {x.dtype} of shape {tuple(x.shape)}; expected float32, float16 or bfloat16 rows")
    if x.shape[-1] == 0 or x.shape[-1] % block_size:
        raise EncodeError(
            f"{name} has {x.shape[-1]} elements a row, not a multiple of the block size {block_size}; choose another one"
        )
