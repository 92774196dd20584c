"""A call of ComfyUI's `optimized_attention`, run in fewer bits where that can be done."""

from typing import Any

import torch

from ...sedialect_core.semantics.attending import Attending, Call


def attend(
    attending: Attending,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    heads: int,
    mask: torch.Tensor | None = None,
    attn_precision: Any = None,
    skip_reshape: bool = False,
    skip_output_reshape: bool = False,
    *others: Any,
    scale: float | None = None,
    low_precision_attention: bool = True,
    **more: Any,
) -> torch.Tensor | None:
    """What the call gives, [B, M, H * D], or [B, H, M, D] with `skip_output_reshape`; None where it stays in 16 bit.

    Args:
        query, key, value: [B, N, H * D], or [B, H, N, D] with `skip_reshape`; arguments as ComfyUI names them.
        low_precision_attention: False where the model asks for its full precision.
    """
    if attn_precision is not None or not low_precision_attention:
        attending.last = "the model asks for more precision"
        return None
    if not skip_reshape:
        query, key, value = split_heads(heads, query, key, value)
    output = attending(Call(query, key, value, whole_mask(mask), scale))
    if output is None or skip_output_reshape:
        return output
    return output.transpose(1, 2).flatten(2)


def split_heads(heads: int, *parts: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """[B, H, N, D] of what ComfyUI hands over as [B, N, H * D], queries first."""
    width = parts[0].shape[-1] // heads
    return tuple(part.unflatten(-1, (-1, width)).transpose(1, 2) for part in parts)


def whole_mask(mask: torch.Tensor | None) -> torch.Tensor | None:
    """A mask with axes for samples and heads: ComfyUI's may lack them."""
    if mask is None or mask.ndim == 4:
        return mask
    return mask[None, None] if mask.ndim == 2 else mask.unsqueeze(1)
