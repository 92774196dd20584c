"""`encode` and what it returns (DESIGN 2.2, 2.4)."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch

from ...kernels import gemm, reference
from ..config import BLOCK_SIZES
from ..errors import EncodeError
from ..formatbook import Formatbook

Role = Literal["weight", "activation"]
Candidates = Literal["max", "all"]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DELTA_BITS = {"weight": 3, "activation": 4}
DIALECT_BITS = 5


@dataclass(frozen=True)
class EncodedTensor:
    """A tensor [..., K] as 4-bit codes with one meta entry a block and one scale a row.

    codes  uint8 [..., K/2]: sign << 3 | index, element 2i in the low nibble of byte i
    meta   uint8 [..., K/B] for weights, uint16 for activations, whose delta may pass 7: delta << 5 | dialect
    scale  float32 [...]
    """

    codes: torch.Tensor
    meta: torch.Tensor
    scale: torch.Tensor
    block_size: int
    role: Role
    formatbook: Formatbook

    @property
    def shape(self) -> torch.Size:
        """Shape of the tensor that was encoded."""
        return torch.Size((*self.codes.shape[:-1], self.codes.shape[-1] * 2))

    @property
    def bits_per_element(self) -> float:
        """Effective bits: 4, a block's dialect id and offset (5 + 3 bits; activations 5 + 4), a row's float32 scale."""
        return 4 + (DIALECT_BITS + DELTA_BITS[self.role]) / self.block_size + 32 / self.shape[-1]

    def to(self, device: torch.device | str) -> "EncodedTensor":
        """The same on another device."""
        return replace(self, codes=self.codes.to(device), meta=self.meta.to(device), scale=self.scale.to(device))

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The values, [..., K] in `dtype`: operands times row scales, rounded once."""
        rows = math.prod(self.scale.shape)
        tables = self.formatbook.tables(self.codes.device)
        codes, meta = (part.reshape(rows, part.shape[-1]) for part in (self.codes, self.meta))
        operand = reference.decode_rows(codes, meta, tables)
        return operand.mul_(self.scale.reshape(rows, 1)).view(self.shape).to(dtype)


def encode(
    x: torch.Tensor,
    *,
    formatbook: Formatbook | str | None = None,
    block_size: int = 16,
    role: Role = "weight",
    candidates: Candidates | None = None,
    name: str = "tensor",
) -> EncodedTensor:
    """Encode a float tensor [..., K] in blocks of `block_size` along its last dimension.

    Args:
        formatbook: a book, or what `Formatbook.resolve` takes; `universal-32` when not given.
        role: a "weight" chooses by exact squared error and searches its row scale, once; an "activation" takes a power of
            two as row scale and chooses by the error tables, as layers do at run time.
        candidates: what a block chooses from; "max": the shapes of the maximum nearest to its own (default for activations);
            "all": every dialect (default for weights).
        name: what an error calls the tensor.

    Raises:
        EncodeError: K is not a multiple of the block size, the dtype is not floating, or a weight holds NaN or Inf.

    Example:
        >>> encoded = encode(torch.randn(64, 256), role="weight")
        >>> encoded.codes.shape, encoded.bits_per_element
        (torch.Size([64, 128]), 4.625)
    """
    check_encodable(x, block_size, role, candidates, name)
    book = Formatbook.resolve(formatbook) if isinstance(formatbook, str) else formatbook or Formatbook.builtin()
    tables = book.tables(x.device)
    width = x.shape[-1]
    rows = x.reshape(math.prod(x.shape[:-1]), width)
    if role == "weight":
        if not all_finite(rows):
            raise EncodeError(f"{name} holds NaN or Inf; load a sound checkpoint or leave this layer out")
        encoded = gemm.encode_weight(rows, tables, block_size, candidates or "all")
    else:
        encoded = reference.encode_rows(rows, tables, block_size, candidates or "max")
    return EncodedTensor(
        encoded.codes.view(*x.shape[:-1], width // 2),
        encoded.meta.view(*x.shape[:-1], width // block_size),
        encoded.scale.view(x.shape[:-1]),
        block_size,
        role,
        book,
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
