"""Attention processors for models whose own know nothing of a split sequence: the same attention, by diffusers' dispatcher.

Each process has its part of the video tokens and of the text, side by side. Masks say which keys count, so they need not be
in the order that one process would have them, only in that of the keys.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0

from ..semantics.shard import shard_of

Rotate = Callable[[torch.Tensor, Any], torch.Tensor]


class SplitProcessor:
    """What enabling context parallelism looks for in a processor, and attention over a split sequence."""

    _attention_backend: Any = None
    _parallel_config: Any = None

    def attend(self, parts: tuple[torch.Tensor, ...], mask: torch.Tensor | None = None) -> torch.Tensor:
        """Of queries, keys and values [B, N, H, D] the attention [B, N, H * D]; mask: bool [B, N], which keys count."""
        backend, config = self._attention_backend, self._parallel_config
        output: torch.Tensor = dispatch_attention_fn(*parts, attn_mask=mask, backend=backend, parallel_config=config)
        return output.flatten(2, 3).to(parts[0].dtype)


class TwoStreams(SplitProcessor):
    """Video and text with weights of their own, the video first: HunyuanVideo 1.5 and Mochi."""

    def __init__(self, rotate: Rotate) -> None:
        self.rotate = rotate

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        image_rotary_emb: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Video and text after the attention; `attention_mask`, [B, T], is of the text that is here."""
        video = _projected(attn, hidden_states, ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"))
        if image_rotary_emb is not None:
            video = (self.rotate(video[0], image_rotary_emb), self.rotate(video[1], image_rotary_emb), video[2])
        added = ("add_q_proj", "add_k_proj", "add_v_proj")
        text = _projected(attn, encoder_hidden_states, added, ("norm_added_q", "norm_added_k"))
        tokens, valid = hidden_states.shape[1], attention_mask.bool()
        counts = torch.cat([valid.new_ones(len(valid), tokens), valid], dim=1)
        output = self.attend(tuple(torch.cat(pair, dim=1) for pair in zip(video, text, strict=True)), counts)
        seen, words = output[:, :tokens], output[:, tokens:] * valid.unsqueeze(2)
        last = getattr(attn, "to_add_out", None)
        return attn.to_out[1](attn.to_out[0](seen)), words if last is None else last(words)


class TextThenVideo(SplitProcessor):
    """One sequence and one set of weights, the text first: CogVideoX."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: None = None,
        image_rotary_emb: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Video and text after the attention."""
        words = encoder_hidden_states.shape[1]
        whole = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        query, key, value = _projected(attn, whole, ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"))
        if image_rotary_emb is not None:
            query, key = (
                torch.cat([part[:, :words], rotate_by_angles(part[:, words:], image_rotary_emb)], dim=1)
                for part in (query, key)
            )
        output = attn.to_out[1](attn.to_out[0](self.attend((query, key, value))))
        return output[:, words:], output[:, :words]


class OwnMask(HunyuanVideoAttnProcessor2_0):
    """HunyuanVideo's own, with the part of its mask that is of the tokens that are here."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        image_rotary_emb: Any = None,
    ) -> Any:
        """As of diffusers'; `attention_mask`, [B, 1, 1, N], is of the video and then the text of all processes."""
        shard = shard_of(self)
        if shard is not None:
            video, text = hidden_states.shape[1] * shard.ranks, encoder_hidden_states.shape[1] * shard.ranks
            parts = attention_mask.squeeze(1).split([video, text], dim=2)
            attention_mask = torch.cat([shard.part(part.squeeze(1)) for part in parts], dim=1)[:, None, None]
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)


def rotate_by_angles(x: torch.Tensor, angles: Any) -> torch.Tensor:
    """Rotary positions as diffusers' models have them, of x [B, N, H, D]."""
    rotated: torch.Tensor = apply_rotary_emb(x, tuple(angles), sequence_dim=1)
    return rotated


def rotate_pairs(x: torch.Tensor, angles: Any) -> torch.Tensor:
    """Mochi's: angles of each head, cosines and sines [N, H, D/2], of neighbouring channels."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = angles
    turned = (even * cosine - odd * sine).to(x.dtype), (even * sine + odd * cosine).to(x.dtype)
    return torch.stack(turned, dim=-1).flatten(-2)


def _projected(
    attn: Any, x: torch.Tensor, layers: tuple[str, ...], norms: tuple[str, ...]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values [B, N, H, D]; the first two normed where the module has norms."""
    query, key, value = (getattr(attn, name)(x).unflatten(2, (attn.heads, -1)) for name in layers)
    norm_query, norm_key = (getattr(attn, name, None) for name in norms)
    return (
        query if norm_query is None else norm_query(query),
        key if norm_key is None else norm_key(key),
        value,
    )
