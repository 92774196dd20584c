"""Rows and guidance that kernels on a GPU are asked with, and how what they give is compared."""

import torch

from sedialect.kernels import reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
BOOKS = ["sedialect-32", "dialectfp4-16"]


def numbers(dtype: torch.dtype = torch.float32, count: int = 257, width: int = 1536) -> torch.Tensor:
    """Rows over many exponents, with zeros, a huge value, subnormal numbers and rows that are not finite."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, width, generator=generator) * torch.rand(count, width, generator=generator).mul(-12).exp2()
    x *= torch.logspace(-8, 4, count)[:, None]
    x[3], x[4, 5], x[5], x[6, 7], x[7, 9] = 0, 1e30, 1e-41, torch.nan, -torch.inf
    x[:, 16:32] = 0
    return x.to(dtype)


def finite(dtype: torch.dtype = torch.float32, count: int = 257, width: int = 1536) -> torch.Tensor:
    return numbers(dtype, count, width).nan_to_num(1.0, 1.0, -1.0)


def guidance(count: int, blocks: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = torch.randint(1, 16, (3, blocks), generator=generator, dtype=torch.uint8)
    dialects = torch.randint(0, 32, (2, blocks), generator=generator, dtype=torch.uint8)
    return {
        "salient": torch.cat([torch.randperm(count, generator=generator)[: count // 4], torch.tensor([-1, -1])]).int(),
        "group": torch.randint(-1, 5, (count,), generator=generator).int(),
        "choice": torch.cat([shapes, reference.SHARED_DIALECT + dialects]),
    }


def assert_values(found: tuple[torch.Tensor, torch.Tensor], wanted: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Operands times row scales are the same numbers; in float64, which holds them all."""
    there, here = ((operand.double().cpu() * scale.double().cpu().unsqueeze(1)) for operand, scale in (found, wanted))
    assert torch.equal(there.isnan(), here.isnan())
    assert torch.equal(there.nan_to_num(), here.nan_to_num())


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(((found.double() - wanted).norm() / wanted.norm()).detach())
