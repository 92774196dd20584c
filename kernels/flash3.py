"""FlashAttention-3's kernel, where it is installed: attention in FP8 with a scale a head, and, for comparison, in bfloat16.

Keys are centred first, as in `reference_attention`, which halves the error. The casts are plain torch outside the operator,
so that torch.compile makes one pass of them and of what stands before.
"""

import importlib
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from .capabilities import gpu_number
from .ops import operator_fake, torch_operator
from .reference import E4M3_MAX
from .reference_attention import SMALLEST, scale_of

MODULES = ("fa3_fwd_interface", "flash_attn_interface")  # of the wheel on PyPI; of FlashAttention's own repository
INSTALL = "pip install fa3-fwd"
HOPPER = (9, 0)
OTHERWISE = "or use attention='8bit'"


@cache
def kernel() -> tuple[Callable[..., Any] | None, str]:
    """`flash_attn_func` and the module that it is from; or None and why there is none, in a sentence with the remedy."""
    said = ""
    for name in MODULES:
        try:
            return importlib.import_module(name).flash_attn_func, name
        except ModuleNotFoundError as error:
            if error.name != name:
                said += f"; {name} lacks {error.name}"
        except Exception as error:  # noqa: BLE001  # a library of another torch or CUDA fails in any way
            said += f"; {name} cannot be loaded ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
    return None, f"FlashAttention-3 is not installed: {INSTALL}, {OTHERWISE}{said}"


def refusal(device: torch.device) -> str | None:
    """Why FlashAttention-3 does not run in FP8 on this device, in a sentence with the remedy; None where it does."""
    found, why = kernel()
    if found is None:
        return why
    if device.type != "cuda":
        return f"FlashAttention-3 runs on NVIDIA H100 and H200, and not on {device.type}: use one of them, {OTHERWISE}"
    number = gpu_number(device)
    if torch.cuda.get_device_capability(number) != HOPPER:
        name = torch.cuda.get_device_name(number)
        return f"FlashAttention-3 runs in FP8 on NVIDIA H100 and H200, and this is {name}: use one of them, {OTHERWISE}"
    return None


def attention_fp8(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, softmax_scale: float | None = None
) -> torch.Tensor:
    """softmax(softmax_scale * query @ key.T) @ value in FP8, [B, H, M, D] in query.dtype; arguments as of
    `attention.attention_8bit`, without a mask.

    Raises:
        RuntimeError: the kernel is not installed, or not for this device.
    """
    return _in_fp8(query, key, value, scale_of(query, softmax_scale))[0].to(query.dtype)


def attention_fp8_with_lse(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, softmax_scale: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, and the natural log-sum-exp of each row's scaled scores, float32 [B, H, M]."""
    scale = scale_of(query, softmax_scale)
    output, lse, centre = _in_fp8(query, key, value, scale)
    return output.to(query.dtype), lse + (query.float() @ centre.transpose(2, 3)).squeeze(3) * scale


def _in_fp8(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> tuple[torch.Tensor, ...]:
    """Output, log-sum-exp without what the centre adds to it, and the keys' centre, float32 [B, H, 1, D]."""
    centre = key.mean(2, keepdim=True, dtype=torch.float32)
    parts = [in_fp8(query), in_fp8(key - centre), in_fp8(value)]
    return *flash3_operator(*(part for part, _ in parts), *(descale for _, descale in parts), scale), centre


def attention_bf16(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, softmax_scale: float | None = None
) -> torch.Tensor:
    """The same kernel in bfloat16 or float16, [B, H, M, D]: what FP8 is compared with.

    Raises:
        RuntimeError: as of `attention_fp8`.
    """
    return flash3_operator(query, key, value, None, None, None, scale_of(query, softmax_scale))[0]


def in_fp8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """E4M3 of x [B, H, N, D] and the descale of each head, float32 [B, H]. What is not finite becomes NaN where it stands,
    and does not count for the scale."""
    wide = x.float()
    magnitude = wide.abs()
    largest = torch.where(magnitude.isfinite(), magnitude, 0.0).amax((2, 3)).clamp(min=SMALLEST)
    scaled = wide * (E4M3_MAX / largest[..., None, None])
    return torch.where(scaled.isfinite(), scaled, torch.nan).to(torch.float8_e4m3fn), largest / E4M3_MAX


@torch_operator(
    "(Tensor query, Tensor key, Tensor value, Tensor? query_descale, Tensor? key_descale, Tensor? value_descale, "
    "float softmax_scale) -> (Tensor, Tensor)"
)
def _flash3(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    *descales, softmax_scale = rest
    if (problem := refusal(query.device)) is not None:
        raise RuntimeError(problem)
    function, _ = kernel()
    assert function is not None
    named = dict(zip(("q_descale", "k_descale", "v_descale"), descales, strict=True)) if descales[0] is not None else {}
    asked = {"return_attn_probs": True} if "return_attn_probs" in inspect.signature(function).parameters else {}
    tokens_first = (part.transpose(1, 2) for part in (query, key, value))
    output, lse = function(*tokens_first, softmax_scale=softmax_scale, **named, **asked)[:2]
    return output.transpose(1, 2), lse


@operator_fake("flash3")
def _(query: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    batch, heads, tokens, size = query.shape
    dtype = torch.bfloat16 if query.dtype == torch.float8_e4m3fn else query.dtype
    output = query.new_empty(batch, tokens, heads, size, dtype=dtype).transpose(1, 2)
    return output, query.new_empty(batch, heads, tokens, dtype=torch.float32)


flash3_operator = _flash3
