"""Small working models with the layers, names and token order of Open-Sora, which diffusers does not have.

`MMDiTModel` stands for Open-Sora 2.0: blocks that keep text and video apart, then blocks on the joined sequence,
text first. `STDiT3` stands for Open-Sora 1.2: blocks that attend within a frame in turn with blocks that attend
along time at one place. Both exist with q, k, v fused into one linear and apart.

`OPEN_SORA[name]()` returns `(model, inputs)`, like the factories of `tiny_models`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from tiny_inputs import BATCH, CHANNELS, GRID, TEXT, TEXT_WIDTH, WIDTH, Factory, latents, steps, text
from torch import Tensor, nn

HEADS = 2
ROPE_AXES = (8, 12, 12)  # channels of a head that rotate with t, h, w


def wave(positions: Tensor, channels: int) -> Tensor:
    """Sines and cosines of positions [...] at `channels / 2` frequencies: [..., channels]."""
    rates = torch.exp(-torch.arange(channels // 2) / (channels // 2) * 9.2)
    angles = positions[..., None].float() * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary embedding of x [B, heads, N, D] by angles [B, N, D / 2]."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    turns = torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(pairs * turns[:, None]).flatten(-2).type_as(x)


def attention(q: Tensor, k: Tensor, v: Tensor, angles: Tensor | None = None) -> Tensor:
    """Softmax attention of [B, heads, N, D], with rotary angles or without: [B, N, heads * D]."""
    if angles is not None:
        q, k = rotate(q, angles), rotate(k, angles)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def heads_of(x: Tensor) -> Tensor:
    """[B, N, heads * D] -> [B, heads, N, D]."""
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def mlp(width: int, inner: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, inner), nn.GELU(approximate="tanh"), nn.Linear(inner, width))


class MLPEmbedder(nn.Module):
    """A condition vector [B, in] -> [B, width]."""

    def __init__(self, in_dim: int, width: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(in_dim, width)
        self.out_layer = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_layer(F.silu(self.in_layer(x)))


class QKNorm(nn.Module):
    """RMS norms of queries and keys over a head's channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query_norm = nn.RMSNorm(channels)
        self.key_norm = nn.RMSNorm(channels)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.query_norm(q), self.key_norm(k)


class Modulation(nn.Module):
    """Shifts, scales and gates from the condition vector: `parts` tensors [B, 1, width]."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.lin = nn.Linear(width, parts * width)

    def forward(self, vec: Tensor) -> tuple[Tensor, ...]:
        return self.lin(F.silu(vec))[:, None].chunk(self.parts, dim=-1)


class SelfAttention(nn.Module):
    """The projections of one stream; the attention itself joins both streams in the block."""

    def __init__(self, width: int, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        if fused:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q_proj = nn.Linear(width, width)
            self.k_proj = nn.Linear(width, width)
            self.v_proj = nn.Linear(width, width)
        self.norm = QKNorm(width // HEADS)
        self.proj = nn.Linear(width, width)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = self.qkv(x).chunk(3, dim=-1) if self.fused else (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        q, k, v = (heads_of(part) for part in parts)
        return *self.norm(q, k), v


class DoubleStreamBlock(nn.Module):
    def __init__(self, width: int, inner: int, fused: bool) -> None:
        super().__init__()
        for stream in ("img", "txt"):
            setattr(self, f"{stream}_mod", Modulation(width, 6))
            setattr(self, f"{stream}_norm1", nn.LayerNorm(width, elementwise_affine=False))
            setattr(self, f"{stream}_attn", SelfAttention(width, fused))
            setattr(self, f"{stream}_norm2", nn.LayerNorm(width, elementwise_affine=False))
            setattr(self, f"{stream}_mlp", mlp(width, inner))

    def forward(self, img: Tensor, txt: Tensor, vec: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
        states, gates, projected = {"txt": txt, "img": img}, {}, []
        for stream, x in states.items():
            gates[stream] = self.get_submodule(f"{stream}_mod")(vec)
            shift, scale = gates[stream][:2]
            normed = (1 + scale) * self.get_submodule(f"{stream}_norm1")(x) + shift
            projected.append(self.get_submodule(f"{stream}_attn").project(normed))  # type: ignore[operator]
        q, k, v = (torch.cat(parts, dim=2) for parts in zip(*projected, strict=True))  # text, then video
        mixed = attention(q, k, v, angles).split([txt.shape[1], img.shape[1]], dim=1)
        for stream, out in zip(states, mixed, strict=True):
            _, _, gate, shift, scale, mlp_gate = gates[stream]
            x = states[stream] + gate * self.get_submodule(f"{stream}_attn.proj")(out)
            normed = (1 + scale) * self.get_submodule(f"{stream}_norm2")(x) + shift
            states[stream] = x + mlp_gate * self.get_submodule(f"{stream}_mlp")(normed)
        return states["img"], states["txt"]


class SingleStreamBlock(nn.Module):
    """Attention and feed-forward side by side: `linear1` (or q, k, and v with the first half of the feed-forward)."""

    def __init__(self, width: int, inner: int, fused: bool) -> None:
        super().__init__()
        self.fused, self.width, self.inner = fused, width, inner
        if fused:
            self.linear1 = nn.Linear(width, 3 * width + inner)
        else:
            self.q_proj = nn.Linear(width, width)
            self.k_proj = nn.Linear(width, width)
            self.v_mlp = nn.Linear(width, width + inner)
        self.linear2 = nn.Linear(width + inner, width)
        self.norm = QKNorm(width // HEADS)
        self.pre_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = Modulation(width, 3)

    def forward(self, x: Tensor, vec: Tensor, angles: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(vec)
        normed = (1 + scale) * self.pre_norm(x) + shift
        if self.fused:
            q, k, v, hidden = self.linear1(normed).split([*[self.width] * 3, self.inner], dim=-1)
        else:
            q, k = self.q_proj(normed), self.k_proj(normed)
            v, hidden = self.v_mlp(normed).split([self.width, self.inner], dim=-1)
        q, k = self.norm(heads_of(q), heads_of(k))
        mixed = attention(q, k, heads_of(v), angles)
        return x + gate * self.linear2(torch.cat([mixed, F.gelu(hidden, approximate="tanh")], dim=-1))


class LastLayer(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False)
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(vec)[:, None].chunk(2, dim=-1)
        return self.linear((1 + scale) * self.norm_final(x) + shift)


class MMDiTModel(nn.Module):
    """img [B, T * H * W, C * 4] with its places img_ids [B, T * H * W, 3]; the output is shaped like img."""

    def __init__(self, *, width: int, inner: int, in_channels: int, depth: int, fused_qkv: bool) -> None:
        super().__init__()
        self.img_in = nn.Linear(in_channels, width)
        self.txt_in = nn.Linear(TEXT_WIDTH, width)
        self.cond_in = nn.Linear(in_channels + 4, width)
        self.time_in = MLPEmbedder(64, width)
        self.vector_in = MLPEmbedder(16, width)
        self.guidance_in = MLPEmbedder(64, width)
        self.double_blocks = nn.ModuleList(DoubleStreamBlock(width, inner, fused_qkv) for _ in range(depth))
        self.single_blocks = nn.ModuleList(SingleStreamBlock(width, inner, fused_qkv) for _ in range(depth))
        self.final_layer = LastLayer(width, in_channels)

    def forward(
        self, img: Tensor, img_ids: Tensor, txt: Tensor, txt_ids: Tensor, timesteps: Tensor, y_vec: Tensor,
        cond: Tensor, guidance: Tensor,
    ) -> Tensor:  # fmt: skip
        vec = self.time_in(wave(timesteps * 1000, 64)) + self.vector_in(y_vec)
        vec = vec + self.guidance_in(wave(guidance * 1000, 64))
        x, words = self.img_in(img) + self.cond_in(cond), self.txt_in(txt)
        places = torch.cat([txt_ids, img_ids], dim=1)
        rates = [10000.0 ** -(torch.arange(size // 2) * 2 / size) for size in ROPE_AXES]
        angles = torch.cat([places[..., axis, None] * rate for axis, rate in enumerate(rates)], dim=-1)
        for block in self.double_blocks:
            x, words = block(x, words, vec, angles)
        joined = torch.cat([words, x], dim=1)
        for block in self.single_blocks:
            joined = block(joined, vec, angles)
        return self.final_layer(joined[:, txt.shape[1] :], vec)


class Attention(nn.Module):
    """Self-attention of [N, L, C], whatever a sequence is."""

    def __init__(self, width: int, fused: bool) -> None:
        super().__init__()
        if fused:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q_proj = nn.Linear(width, width)
            self.k_proj = nn.Linear(width, width)
            self.v_proj = nn.Linear(width, width)
        self.fused = fused
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).chunk(3, dim=-1) if self.fused else (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        return self.proj(attention(*(heads_of(part) for part in parts)))


class MultiHeadCrossAttention(nn.Module):
    """The texts of a batch come packed in one row [1, B * L, C]; each sample attends to its own."""

    def __init__(self, width: int, fused: bool) -> None:
        super().__init__()
        self.q_linear = nn.Linear(width, width)
        if fused:
            self.kv_linear = nn.Linear(width, 2 * width)
        else:
            self.k_linear = nn.Linear(width, width)
            self.v_linear = nn.Linear(width, width)
        self.fused = fused
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        k, v = self.kv_linear(y).chunk(2, dim=-1) if self.fused else (self.k_linear(y), self.v_linear(y))
        k, v = (heads_of(part.reshape(x.shape[0], -1, part.shape[-1])) for part in (k, v))
        return self.proj(attention(heads_of(self.q_linear(x)), k, v))


class Mlp(nn.Module):
    def __init__(self, width: int, inner: int, out: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, out or width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class STDiT3Block(nn.Module):
    """Tokens stay [B, T * H * W, C] between the parts; only self-attention rearranges them."""

    def __init__(self, width: int, inner: int, fused: bool, temporal: bool) -> None:
        super().__init__()
        self.temporal = temporal
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.attn = Attention(width, fused)
        self.cross_attn = MultiHeadCrossAttention(width, fused)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = Mlp(width, inner)
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)

    def forward(self, x: Tensor, y: Tensor, t: Tensor, frames: int) -> Tensor:
        parts = (self.scale_shift_table + t.unflatten(-1, (6, -1))).chunk(6, dim=1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts
        x = x + gate * self.attend((1 + scale) * self.norm1(x) + shift, frames)
        x = x + self.cross_attn(x, y)
        return x + mlp_gate * self.mlp((1 + mlp_scale) * self.norm2(x) + mlp_shift)

    def attend(self, x: Tensor, frames: int) -> Tensor:
        batch = x.shape[0]
        grid = x.unflatten(1, (frames, -1))  # [B, T, S, C]
        if not self.temporal:
            return self.attn(grid.flatten(0, 1)).unflatten(0, (batch, frames)).flatten(1, 2)
        mixed = self.attn(grid.transpose(1, 2).flatten(0, 1))  # [B * S, T, C]
        return mixed.unflatten(0, (batch, -1)).transpose(1, 2).flatten(1, 2)


class TimestepEmbedder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(wave(t, 64))


class PatchEmbed3D(nn.Module):
    """Latents [B, C, T, H, W] -> tokens [B, T * H / 2 * W / 2, width]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(channels, width, kernel_size=(1, 2, 2), stride=(1, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class CaptionEmbedder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.y_proj = Mlp(TEXT_WIDTH, width, width)

    def forward(self, y: Tensor) -> Tensor:
        return self.y_proj(y)


class T2IFinalLayer(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False)
        self.linear = nn.Linear(width, out)
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        shift, scale = (self.scale_shift_table + t[:, None]).chunk(2, dim=1)
        return self.linear((1 + scale) * self.norm_final(x) + shift)


class STDiT3(nn.Module):
    """x [B, C, T, H, W], y [B, 1, L, text width]; the output is shaped like x."""

    patch_size = (1, 2, 2)

    def __init__(self, *, width: int, inner: int, channels: int, depth: int, fused: bool) -> None:
        super().__init__()
        self.x_embedder = PatchEmbed3D(channels, width)
        self.t_embedder = TimestepEmbedder(width)
        self.fps_embedder = TimestepEmbedder(width)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.y_embedder = CaptionEmbedder(width)
        self.spatial_blocks = nn.ModuleList(STDiT3Block(width, inner, fused, False) for _ in range(depth))
        self.temporal_blocks = nn.ModuleList(STDiT3Block(width, inner, fused, True) for _ in range(depth))
        self.final_layer = T2IFinalLayer(width, channels * 4)

    def forward(self, x: Tensor, timestep: Tensor, y: Tensor, fps: Tensor) -> Tensor:
        frames, height, width = x.shape[2], x.shape[3] // 2, x.shape[4] // 2
        tokens = self.x_embedder(x)
        t = self.t_embedder(timestep) + self.fps_embedder(fps)
        shifts = self.t_block(t)  # [B, 6 * width]
        words = self.y_embedder(y).flatten(1, 2)
        words = words.reshape(1, -1, words.shape[-1])
        for spatial, temporal in zip(self.spatial_blocks, self.temporal_blocks, strict=True):
            tokens = temporal(spatial(tokens, words, shifts, frames), words, shifts, frames)
        out = self.final_layer(tokens, t).unflatten(1, (frames, height, width)).unflatten(-1, (2, 2, -1))
        return out.permute(0, 6, 1, 2, 4, 3, 5).reshape(x.shape)  # [B, C, T, H, 2, W, 2] -> [B, C, T, H, W]


def mmdit(fused: bool) -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    model = MMDiTModel(width=WIDTH, inner=4 * WIDTH, in_channels=4 * CHANNELS, depth=2, fused_qkv=fused)
    places = torch.cartesian_prod(*(torch.arange(size) for size in GRID)).expand(BATCH, -1, 3)
    tokens = places.shape[1]
    return model.eval().requires_grad_(False), {
        "img": torch.randn(BATCH, tokens, 4 * CHANNELS),
        "img_ids": places,
        "txt": text(),
        "txt_ids": torch.zeros(BATCH, TEXT, 3, dtype=torch.long),
        "timesteps": steps(0.5),
        "y_vec": torch.randn(BATCH, 16),
        "cond": torch.randn(BATCH, tokens, 4 * CHANNELS + 4),
        "guidance": steps(4.0),
    }


def stdit3(fused: bool) -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    model = STDiT3(width=WIDTH, inner=4 * WIDTH, channels=CHANNELS, depth=2, fused=fused)
    inputs = {"x": latents(), "timestep": steps(), "y": text()[:, None], "fps": steps(24.0)}
    return model.eval().requires_grad_(False), inputs


OPEN_SORA: dict[str, Factory] = {
    "MMDiTModel": partial(mmdit, False),
    "MMDiTModel (fused)": partial(mmdit, True),
    "STDiT3": partial(stdit3, True),
    "STDiT3 (apart)": partial(stdit3, False),
}
