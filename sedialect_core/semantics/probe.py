"""Seeing queries and keys of every softmax attention, after norms and rotary embeddings, without changing any result.

Models reach softmax attention by `torch.nn.functional.scaled_dot_product_attention`, by the backends of diffusers'
dispatcher, or by a function of their own, which is then named to `watch_function`. Each is replaced once by a function that
calls the original first and then tells the block whose attention module is running, if any: for all other models it does
nothing.
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

from . import operators
from .placement import Placement
from .state import BlockState, Flags


class Seen(NamedTuple):
    """Queries and keys [B, H, N, D] of one call, its mask and its scale."""

    query: torch.Tensor
    key: torch.Tensor
    mask: torch.Tensor | None = None
    scale: float | None = None


@dataclass
class Watched:
    """The attention of one transformer block: where its video tokens stand, and what it showed."""

    flags: Flags
    placement: Placement
    quantile: float
    peak: bool
    state: BlockState
    samples_seen: int = 0
    """Of this forward: some models attend sample by sample."""

    def see(self, seen: Seen) -> None:
        """Note one call, if it is the self-attention of the video tokens."""
        tokens, length, video = seen.query.shape[2], seen.key.shape[2], self.flags.video_tokens
        first, samples = self.samples_seen, self.state.received.shape[1]
        self.samples_seen = first + seen.query.shape[0]
        if tokens != length or length < video or self.samples_seen > samples:
            return
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
            self.state.received,
            self.state.salient,
            self.state.claims,
        )


class Running:
    """The attention module that is being called, by thread: another thread's model is none of its business."""

    def __init__(self) -> None:
        self.watched: Watched | None = None
        self.thread = 0

    def current(self) -> Watched | None:
        """The attention whose module is running in this thread; traced code belongs to one thread."""
        if self.watched is None or torch.compiler.is_compiling():
            return self.watched
        return self.watched if self.thread == threading.get_ident() else None


RUNNING = Running()


class Enter:
    """Before an attention module: what is seen from now on is this block's."""

    def __init__(self, watched: Watched | None) -> None:
        self.watched = watched

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self.watched is not None:
            self.watched.samples_seen = 0
        RUNNING.watched = self.watched
        if not torch.compiler.is_compiling():
            RUNNING.thread = threading.get_ident()


class Leave:
    """After an attention module."""

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        RUNNING.watched = None


def watch_module(module: nn.Module, watched: Watched) -> list[RemovableHandle]:
    """Have this attention module's calls noted."""
    return [module.register_forward_pre_hook(Enter(watched)), module.register_forward_hook(Leave())]


Reader = Callable[..., Seen]
_ORIGINALS: dict[tuple[int, str], tuple[Any, Any]] = {}  # owner and name -> owner and original


def watch_function(owner: Any, name: str, read: Reader) -> None:
    """Watch a model's own attention function: the attribute or, of a dict, the entry `name` of `owner`.

    Args:
        read: gets the arguments of a call, and returns queries and keys as they enter the softmax.

    Example:
        >>> watch_function(opensora.models.mmdit.layers, "attention", lambda q, k, v, pe: Seen(*apply_rope(q, k, pe)))
    """
    if (id(owner), name) in _ORIGINALS:
        return
    original = owner[name] if isinstance(owner, dict) else getattr(owner, name)
    _ORIGINALS[id(owner), name] = (owner, original)
    _put(owner, name, _watching(original, read))


def watch_torch_and_diffusers() -> None:
    """Watch `scaled_dot_product_attention` and, where diffusers is there, every backend of its dispatcher."""
    watch_function(functional, "scaled_dot_product_attention", _read_sdpa)
    try:
        from diffusers.models.attention_dispatch import _AttentionBackendRegistry
    except ImportError:
        return
    for backend in list(_AttentionBackendRegistry._backends):
        watch_function(_AttentionBackendRegistry._backends, backend, _read_backend)


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


def _watching(original: Callable[..., Any], read: Reader) -> Callable[..., Any]:
    @functools.wraps(original)
    def attention(*args: Any, **kwargs: Any) -> Any:
        watched = RUNNING.current()
        if watched is None:
            return original(*args, **kwargs)
        RUNNING.watched = None  # a backend may call torch's function in turn
        output = original(*args, **kwargs)
        RUNNING.watched = watched
        watched.see(read(*args, **kwargs))
        return output

    return attention


def _read_sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **others: Any,
) -> Seen:
    """Arguments of `scaled_dot_product_attention`."""
    return Seen(query, key, attn_mask, scale)


def _read_backend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: Any = None, *args: Any, **kwargs: Any
) -> Seen:
    """Arguments of a diffusers backend, [B, N, H, D], whose mask may be one of keys alone, [B, N]. Masks of other kinds than
    tensors are left out."""
    mask = attn_mask if isinstance(attn_mask, torch.Tensor) else None
    if mask is not None and mask.ndim == 2:
        mask = mask[:, None, None]
    return Seen(query.transpose(1, 2), key.transpose(1, 2), mask, kwargs.get("scale"))


def remove(handles: Iterable[RemovableHandle]) -> None:
    """Take hooks off again."""
    for handle in handles:
        handle.remove()
