"""Seeing queries and keys of every softmax attention, after norms and rotary embeddings, and running it otherwise.

Models reach softmax attention by `torch.nn.functional.scaled_dot_product_attention`, by the backends of diffusers'
dispatcher, or by a function of their own, which is then named to `watch_function`. Each is replaced once by a function that
calls the original first and then tells the block whose attention module is running, if any: for all other models it does
nothing. Where the module's attention is to run in fewer bits, the first two are asked to instead of the original; what is
seen is the same.
"""

import functools
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from ..errors import ModelError
from ..inspection.placement import Placement
from . import operators
from .attending import Attending, Call
from .shard import as_arguments
from .state import BlockState, Flags


class Seen(NamedTuple):
    """Queries and keys [B, H, N, D] of one call, its mask and its scale.

    With `tile`, an entry of the mask stands for so many queries and as many keys.
    """

    query: torch.Tensor
    key: torch.Tensor
    mask: torch.Tensor | None = None
    scale: float | None = None
    tile: int = 0


@dataclass
class Watched:
    """The attention of one transformer block: where its video tokens stand, and what it showed."""

    flags: Flags
    placement: Placement
    quantile: float
    peak: bool
    megabytes: float
    state: BlockState

    def see(self, seen: Seen) -> None:
        """Note one call, if it is the self-attention of the video tokens."""
        if self.state.received.ndim != 3 or not self._is_self_attention(seen.query.shape[2], seen.key.shape[2]):
            return
        first, video = self.state.samples_seen, self.flags.own_tokens
        self.state.samples_seen = first + seen.query.shape[0]
        if self.state.samples_seen > self.state.received.shape[1]:
            return
        if seen.mask is not None and self.flags.shard is not None:
            raise ModelError(
                "an attention with a mask cannot be looked at where its sequence is split over processes; use "
                "salient_by='norm' and semantic=False"
            )
        length = seen.key.shape[2]
        start = length - video if self.placement.where == "last" else 0
        windows = self.flags.windows
        operators.observe_attention(
            *seen,
            first,
            start,
            self.flags.profile,
            self.flags.call,
            windows.anchors,
            windows.members,
            self.quantile,
            self.peak,
            self.megabytes,
            self.state.received,
            self.state.salient,
            self.state.claims,
            *as_arguments(self.flags.shard),
        )

    def _is_self_attention(self, queries: int, keys: int) -> bool:
        """Whether so many queries and keys can be those of all tokens; or of the video tokens, with text among the keys."""
        video = self.flags.own_tokens
        return keys >= video > 0 and (queries == keys or (queries == video and self.placement.others))


@dataclass
class Treatment:
    """What is done with the calls of one attention module: they are looked at, or run in fewer bits, or both."""

    watched: Watched | None = None
    attending: Attending | None = None


class Running(threading.local):
    """The attention module that is being called in this thread: another thread's model is none of its business."""

    def __init__(self) -> None:  # not of the class: see `Flags`
        self.treatment: Treatment | None = None


RUNNING = Running()
HOOK_ID = -1  # torch's own are not negative


class Enter:
    """Before an attention module: what is called from now on is this block's."""

    def __init__(self, treatment: Treatment | None) -> None:
        self.treatment = treatment

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In another process, functions are not watched yet."""
        self.__dict__.update(state)
        watch_torch_and_diffusers()

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self.treatment is not None and self.treatment.watched is not None:
            self.treatment.watched.state.samples_seen = 0
        RUNNING.treatment = self.treatment


class Leave:
    """After an attention module, also where it failed."""

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        RUNNING.treatment = None


def treat_module(module: nn.Module, treatment: Treatment) -> list[RemovableHandle]:
    """Have this attention module's calls treated."""
    enter = module.register_forward_pre_hook(Enter(treatment))
    leave = module.register_forward_hook(Leave(), always_call=True)
    # torch numbers hooks, and graphs are compiled for the number of one that is always called: a graph for every block.
    owned: list[tuple[RemovableHandle, Any]] = [(enter, module._forward_pre_hooks), (leave, module._forward_hooks)]
    for handle, hooks in (*owned, (leave, module._forward_hooks_always_called)):
        hooks[HOOK_ID] = hooks.pop(handle.id)
    enter.id = leave.id = HOOK_ID
    return [enter, leave]


Reader = Callable[..., Seen | None]
Attender = Callable[..., Any]  # gets an `Attending` and the arguments of a call; None where the original is to run
_ORIGINALS: dict[tuple[int, str], tuple[Any, Any]] = {}  # owner and name -> owner and original


def watch_function(owner: Any, name: str, read: Reader) -> None:
    """Watch a model's own attention function: the attribute or, of a dict, the entry `name` of `owner`.

    Args:
        read: gets the arguments of a call, and returns queries and keys as they enter the softmax; or None, for a call that
            is no self-attention of the video.

    Example:
        >>> watch_function(opensora.models.mmdit.layers, "attention", lambda q, k, v, pe: Seen(*apply_rope(q, k, pe)))
    """
    _replace(owner, name, read)


def _replace(owner: Any, name: str, read: Reader, attend: Attender | None = None) -> None:
    if (id(owner), name) in _ORIGINALS:
        return
    original = owner[name] if isinstance(owner, dict) else getattr(owner, name)
    _ORIGINALS[id(owner), name] = (owner, original)
    _put(owner, name, _watching(original, read, attend))


def watch_torch_and_diffusers() -> None:
    """Watch `scaled_dot_product_attention` and, where diffusers is there, every backend of its dispatcher."""
    _replace(functional, "scaled_dot_product_attention", _read_sdpa, _attend_sdpa)
    try:
        from diffusers.models.attention_dispatch import _AttentionBackendRegistry
    except ImportError:
        return
    for backend in list(_AttentionBackendRegistry._backends):
        _replace(_AttentionBackendRegistry._backends, backend, _read_backend, _attend_backend)


def unwatch_functions() -> None:
    """Put all original functions back."""
    for (_, name), (owner, original) in list(_ORIGINALS.items()):
        _put(owner, name, original)
    _ORIGINALS.clear()


def _put(owner: Any, name: str, function: Any) -> None:
    if isinstance(owner, dict):
        owner[name] = function
    else:
        setattr(owner, name, function)


def _watching(original: Callable[..., Any], read: Reader, attend: Attender | None) -> Callable[..., Any]:
    @functools.wraps(original)
    def attention(*args: Any, **kwargs: Any) -> Any:
        treatment = RUNNING.treatment
        if treatment is None:
            return original(*args, **kwargs)
        watched, attending = treatment.watched, treatment.attending
        output = None
        if attend is None:  # a model's own function: what it calls in turn may still run in fewer bits
            RUNNING.treatment = Treatment(None, attending)
        else:
            RUNNING.treatment = None  # a backend may call torch's function in turn
            output = attend(attending, *args, **kwargs) if attending is not None else None
        if output is None:
            output = original(*args, **kwargs)
        RUNNING.treatment = treatment
        seen = read(*args, **kwargs) if watched is not None else None
        if watched is not None and seen is not None:
            watched.see(seen)
        return output

    return attention


def _attend_sdpa(
    attending: Attending,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor | None:
    """Arguments of `scaled_dot_product_attention`."""
    return attending(Call(query, key, value, attn_mask, scale, dropout_p > 0, is_causal))


def _attend_backend(
    attending: Attending,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    _parallel_config: Any = None,
    **others: Any,
) -> torch.Tensor | None:
    """Arguments of a diffusers backend, [B, N, H, D], whose mask may be one of keys alone, [B, N], or flex attention's."""
    if return_lse:
        return None
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    call = Call(query, key, value, attn_mask, scale, dropout_p > 0, is_causal, keys_alone=True)
    if _parallel_config is not None:
        return attending.in_parallel(call, _parallel_config)
    output = attending(call)
    return None if output is None else output.transpose(1, 2)


def _read_sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **others: Any,
) -> Seen | None:
    """Arguments of `scaled_dot_product_attention`. What is causal is text."""
    return None if is_causal else Seen(query, key, attn_mask, scale)


def _read_backend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: Any = None, *args: Any, **kwargs: Any
) -> Seen | None:
    """Arguments of a diffusers backend, [B, N, H, D], whose mask may be one of keys alone, [B, N], or flex attention's."""
    if kwargs.get("is_causal"):
        return None
    mask, tile = attn_mask, 0
    if mask is not None and not isinstance(mask, torch.Tensor):
        mask, tile = _tiles_of(attn_mask), attn_mask.BLOCK_SIZE[0]
    elif mask is not None and mask.ndim == 2:
        mask = mask[:, None, None]
    return Seen(query.transpose(1, 2), key.transpose(1, 2), mask, kwargs.get("scale"), tile)


def _tiles_of(mask: Any) -> torch.Tensor:
    """Which tiles of queries see which tiles of keys, bool [B, H, Q, K], of flex attention's BlockMask with square tiles.

    Tiles that are seen in part count as seen: which part is known to a function that only its own kernels can call.
    """
    parts = [(mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices)]
    counted = [(counts, indices) for counts, indices in parts if counts is not None]
    last = counted[0][1].shape[-1]
    seen = torch.zeros(*counted[0][1].shape[:-1], last + 1, dtype=torch.bool, device=counted[0][1].device)
    for counts, indices in counted:
        listed = torch.arange(last, device=indices.device) < counts.unsqueeze(-1)
        seen = seen.scatter(-1, torch.where(listed, indices, last).long(), True)
        seen[..., last] = False
    return seen[..., :last]


def remove(handles: Iterable[RemovableHandle]) -> None:
    """Take hooks off again."""
    for handle in handles:
        handle.remove()
