"""Running an attention's calls in fewer bits, where they can be: "8bit" by our own kernels, "fp8" by FlashAttention-3.

What a call cannot be is decided from shapes, types and settings alone: nothing waits for a GPU, and compiled graphs hold.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import torch

from ...kernels import attention, attention_support, flash3
from .state import Flags

Attend = Callable[..., torch.Tensor]
MORE_THAN_KEYS = "masked by more than which keys count"


class Call(NamedTuple):
    """Arguments of an attention: queries, keys and values [B, H, N, D], a mask in any of its forms, and the rest.

    With `keys_alone`, a mask of two axes is one of keys, [B, N]; otherwise one of queries and keys.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: Any = None
    scale: float | None = None
    dropout: bool = False
    causal: bool = False
    keys_alone: bool = False


@dataclass
class Attending:
    """How one attention module's long calls run.

    kind        "8bit" or "fp8"
    flags       of the model's hook, which knows the protected steps
    pair_mask   whether a mask [B, 1, N, N] of this model is valid tokens by valid tokens, so that its diagonal says all
    last        why the last call outside of compiled graphs stayed in 16 bit; empty where it did not; None before the first
    """

    kind: str
    flags: Flags
    pair_mask: bool = False
    last: str | None = None

    def __call__(self, call: Call) -> torch.Tensor | None:
        """What the call gives, [B, H, M, D]; None where it stays in 16 bit."""
        mask = key_mask(call, self.pair_mask)
        if self._stays(call, MORE_THAN_KEYS if mask is None and call.mask is not None else ""):
            return None
        return self._attend(call.query, call.key, call.value, mask, call.scale)

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float | None
    ) -> torch.Tensor:
        if self.kind == "fp8":
            return flash3.attention_fp8(query, key, value, scale)
        return attention.attention_8bit(query, key, value, mask, scale)

    def in_parallel(self, call: Call, config: Any) -> torch.Tensor | None:
        """The same for a process's part of the tokens, by diffusers' context parallelism; gives [B, M, H, D]. A mask is of
        this part's keys: Ulysses puts those of all processes together, in the order of their keys."""
        mask = key_mask(call)
        by_ring = config.context_parallel_config.ring_degree > 1
        masked = MORE_THAN_KEYS if mask is None else "masked, and split by Ring" if by_ring else ""
        if self._stays(call, masked if call.mask is not None else ""):
            return None
        from diffusers.models.attention_dispatch import _templated_context_parallel_attention

        tokens_first = (part.transpose(1, 2) for part in (call.query, call.key, call.value))
        ours: dict[str, Any] = {"forward_op": self._part, "backward_op": _no_gradient, "_parallel_config": config}
        own = None if mask is None else mask.contiguous()
        output: torch.Tensor = _templated_context_parallel_attention(*tokens_first, own, scale=call.scale, **ours)
        return output

    def _part(self, ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **others: Any) -> Any:
        """What diffusers calls for each part of the keys: [B, M, H, D], and the log-sum-exp [B, M, H] where it is wanted."""
        mask, _, _, scale, _, return_lse = rest
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        if not return_lse:
            return self._attend(query, key, value, mask, scale).transpose(1, 2)
        told = flash3.attention_fp8_with_lse if self.kind == "fp8" else attention.attention_8bit_with_lse
        output, lse = told(query, key, value, softmax_scale=scale)
        return output.transpose(1, 2), lse.transpose(1, 2)

    def _stays(self, call: Call, masked: str) -> bool:
        """Whether the call stays in 16 bit; why is kept for the report."""
        reason = self.refusal(call) or masked
        if not torch.compiler.is_compiling():
            self.last = reason
        return bool(reason)

    def refusal(self, call: Call) -> str:
        """Why a call stays in 16 bit, but for its mask; empty where it does not."""
        query, key, value = call.query, call.key, call.value
        if self.flags.protected_now:
            return "a protected step"
        if call.causal or call.dropout:
            return "causal" if call.causal else "with dropout"
        if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
            return "gradients are wanted"
        if key.shape[1] != query.shape[1] or value.shape != key.shape or key.shape[3] != query.shape[3]:
            return "queries, keys and values differ in their heads"
        if query.dtype != key.dtype or query.dtype != value.dtype:
            return "queries, keys and values differ in their types"
        if query.dtype == torch.float32 and query.device.type != "cpu":
            return "float32"
        if query.shape[2] < attention_support.LEAST_TOKENS or key.shape[2] < attention_support.LEAST_TOKENS:
            return f"fewer than {attention_support.LEAST_TOKENS} tokens"
        if self.kind == "fp8" and call.mask is not None:
            return "masked, which FlashAttention-3 has no room for"
        return attention_support.head_size_refusal(self.kind, query.shape[3]) or ""


def stayed(attending: Iterable[Attending]) -> tuple[str, ...]:
    """How many attentions stayed in 16 bit in the last run outside of compiled graphs, and why, in sentences."""
    reasons = Counter(one.last for one in attending if one.last)
    return tuple(f"in the last run {count} stayed in 16 bit: {why}" for why, count in reasons.items())


def key_mask(call: Call, pair_mask: bool = False) -> torch.Tensor | None:
    """Which keys count, bool [B, N], where the mask says no more than that; None without a mask, or where it says more."""
    mask = call.mask
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
        return None
    batch, keys = call.key.shape[0], call.key.shape[2]
    if mask.ndim == 2 and (call.keys_alone or mask.shape[0] == 1):
        found = mask
    elif mask.ndim == 4 and mask.shape[1] == 1 and mask.shape[2] == 1:
        found = mask[:, 0, 0]
    elif mask.ndim == 4 and mask.shape[1] == 1 and pair_mask and mask.shape[2] == mask.shape[3]:
        found = mask[:, 0].diagonal(dim1=1, dim2=2)
    else:
        return None
    if found.shape[1] != keys or found.shape[0] not in (1, batch):
        return None
    return found.expand(batch, keys)


def _no_gradient(*args: Any, **kwargs: Any) -> NoReturn:
    raise RuntimeError("attention in 8 bit has no gradient; train with attention='16bit'")
