"""diffusers' native attention with the log-sum-exp that Ring wants, which torch's function does not tell: for CPUs, where no
backend of diffusers has one."""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention


def native_attention(
    ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **others: Any
) -> Any:
    """What diffusers calls as `_native_attention_forward_op`: [B, N, H, D], and [B, N, H] where log-sum-exps are wanted."""
    mask, _, _, scale, _, return_lse = rest
    query, key, value = (part.permute(0, 2, 1, 3) for part in (query, key, value))
    output = scaled_dot_product_attention(query, key, value, mask, scale=scale).permute(0, 2, 1, 3)
    if not return_lse:
        return output
    return output, (query @ key.mT * (scale or query.shape[-1] ** -0.5)).logsumexp(-1).permute(0, 2, 1)
