"""Attention in 8 bit, as torch operators: `reference_attention` on CPUs, which defines the numbers, and Triton on GPUs.

Tensors are [batch B, heads H, tokens, head_dim D] with any strides whose last is 1: a transposed view of [B, tokens, H, D]
costs nothing. The output has the query's dtype and its order in memory. There is no gradient.
"""

import torch
from torch.nn import functional

from . import reference_attention
from .capabilities import refusals
from .dispatch import attempt
from .ops import operator_fake, torch_operator
from .reference_attention import scale_of

HEAD_SIZES = (64, 80, 96, 128)
KERNEL = "the Triton kernel for attention in 8 bit"


def attention_8bit(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_mask: torch.Tensor | None = None,
    softmax_scale: float | None = None,
) -> torch.Tensor:
    """softmax(softmax_scale * query @ key.T) @ value with 8-bit operands, [B, H, M, D] in query.dtype.

    Args:
        query: [B, H, M, D]; key, value: [B, H, N, D]; all float16, bfloat16 or float32.
        key_mask: bool [B, N], True for keys that are attended to by all queries of their sample; None for all keys.
        softmax_scale: 1 / sqrt(D) unless told.
    """
    return attention_operator(query, key, value, key_mask, scale_of(query, softmax_scale))


def attention_8bit_with_lse(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_mask: torch.Tensor | None = None,
    softmax_scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, and the natural log-sum-exp of each row's scaled scores, float32 [B, H, M]: by it the results of parts of
    the keys are put together."""
    return attention_lse_operator(query, key, value, key_mask, scale_of(query, softmax_scale))


SCHEMA = "(Tensor query, Tensor key, Tensor value, Tensor? key_mask, float softmax_scale) -> "


@torch_operator(SCHEMA + "Tensor")
def _attention_8bit(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, key_mask: torch.Tensor | None, softmax_scale: float
) -> torch.Tensor:
    return _attend(query, key, value, key_mask, softmax_scale, False)[0]


@torch_operator(SCHEMA + "(Tensor, Tensor)")
def _attention_8bit_with_lse(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, key_mask: torch.Tensor | None, softmax_scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return _attend(query, key, value, key_mask, softmax_scale, True)


@operator_fake("attention_8bit")
def _(query: torch.Tensor, *rest: object) -> torch.Tensor:
    return torch.empty_like(query)


@operator_fake("attention_8bit_with_lse")
def _(query: torch.Tensor, *rest: object) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(query), query.new_empty(query.shape[:3], dtype=torch.float32)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_mask: torch.Tensor | None,
    softmax_scale: float,
    return_lse: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    def plain() -> tuple[torch.Tensor, torch.Tensor]:
        return reference_attention.attention(query, key, value, key_mask, softmax_scale)

    def fast() -> tuple[torch.Tensor, torch.Tensor]:
        from . import triton_attention

        output, lse = triton_attention.attention_forward(query, key, value, key_mask, softmax_scale, return_lse)
        return output, query.new_empty(0) if lse is None else lse

    def exact() -> tuple[torch.Tensor, torch.Tensor]:
        if return_lse:
            return plain()
        mask = None if key_mask is None else key_mask[:, None, None, :]
        output = functional.scaled_dot_product_attention(query, key, value, mask, scale=softmax_scale)
        return torch.empty_like(query).copy_(output), query.new_empty(0)  # in the query's order, as compilers are told

    if query.device.type != "cuda":
        return plain()
    if refusals(query.device).triton_products is not None:
        return exact()
    return attempt(KERNEL, "16-bit attention", query.device, fast, exact)


attention_operator, attention_lse_operator = _attention_8bit, _attention_8bit_with_lse  # for torch's checks of operators
