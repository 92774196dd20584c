"""Tiny models of Wan and of the classes made after it: SkyReels, ChronoEdit, VACE, Animate, AnyFlow, Helios."""

from __future__ import annotations

from typing import Any

import torch
from tiny_inputs import (
    BATCH,
    CHANNELS,
    GRID,
    HEAD_DIM,
    HEADS,
    IMAGE,
    TEXT,
    TEXT_WIDTH,
    WIDTH,
    TinyModel,
    build,
    latents,
    steps,
    text,
    volume,
)

WAN: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": HEADS,
    "attention_head_dim": HEAD_DIM,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "text_dim": TEXT_WIDTH,
    "freq_dim": 32,
    "ffn_dim": 96,
    "num_layers": 2,
    "cross_attn_norm": True,
    "rope_max_seq_len": 32,
}
WAN_TEXT = 512  # Wan's I2V and Animate count text tokens from the end, always this many


def wan(class_name: str, **config: Any) -> TinyModel:
    model = build(class_name, **{**WAN, **config})
    return model, {"hidden_states": latents(), "timestep": steps(), "encoder_hidden_states": text()}


def wan_image() -> TinyModel:
    """CLIP image tokens stand before the text, which is told from them by its fixed length."""
    model, inputs = wan("WanTransformer3DModel", image_dim=32, added_kv_proj_dim=WIDTH)
    inputs |= {"encoder_hidden_states": text(tokens=WAN_TEXT), "encoder_hidden_states_image": text(32, IMAGE)}
    return model, inputs


def wan_fused() -> TinyModel:
    """q, k and v of self-attention, k and v of cross-attention as one linear each, beside the unused originals."""
    model, inputs = wan("WanTransformer3DModel")
    model.fuse_qkv_projections()  # type: ignore[operator]
    return model, inputs


def wan_vace() -> TinyModel:
    model, inputs = wan("WanVACETransformer3DModel", vace_layers=[0, 1], vace_in_channels=12)
    inputs |= {"control_hidden_states": latents(12), "control_hidden_states_scale": torch.ones(2)}
    return model, inputs


def wan_animate() -> TinyModel:
    """Face frames are compressed 4x by the face encoder, plus one zero frame: 8 frames drive 3 latent frames."""
    model = build(
        "WanAnimateTransformer3DModel",
        **{**WAN, "in_channels": 2 * CHANNELS + 4, "latent_channels": CHANNELS, "image_dim": 32},
        added_kv_proj_dim=WIDTH,
        motion_encoder_channel_sizes={"4": 16, "8": 16, "16": 16},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=16,
        face_encoder_hidden_dim=32,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=1,
    )
    return model, {
        "hidden_states": latents(2 * CHANNELS + 4),
        "timestep": steps(),
        "encoder_hidden_states": text(tokens=WAN_TEXT),
        "encoder_hidden_states_image": text(32, IMAGE),
        "pose_hidden_states": latents(grid=(GRID[0] - 1, *GRID[1:])),
        "face_pixel_values": torch.randn(BATCH, 3, 8, 16, 16).clamp(-1, 1),
    }


def wan_animate2() -> TinyModel:
    """The reference pass of one segment: lists of samples instead of a batch, one sample here."""
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    model = build(
        "WanAnimate2Transformer3DModel",
        patch_size=(1, 2, 2),
        text_len=TEXT,
        in_dim=CHANNELS + 4,
        dim=WIDTH,
        ffn_dim=96,
        freq_dim=32,
        text_dim=TEXT_WIDTH,
        out_dim=CHANNELS,
        num_heads=HEADS,
        num_layers=2,
        cross_attn_norm=True,
        use_img_emb=True,
    )
    return model, {
        "hidden_states": [latents()[0]],
        "timestep": torch.tensor([1.0]),
        "encoder_hidden_states": [text()[0]],
        "condition_latents": [latents(4)[0]],
        "encoder_hidden_states_image": text(1280, IMAGE)[:1],
        "kv_cache": WanAnimate2KVCache(2),
        "kv_cache_mode": "extract",
        "seq_len": volume(GRID),
        "offset_grid_sizes": torch.tensor([GRID], dtype=torch.long),
    }


def anyflow(class_name: str, **config: Any) -> TinyModel:
    """Latents are [B, T, C, H, W] and every frame has its own timestep, [B, T]."""
    settings = {**WAN, "gate_value": 0.25, "deltatime_type": "r", **config}
    model = build(class_name, **settings)
    frame_steps = torch.full((BATCH, GRID[0]), 500.0)
    return model, {
        "hidden_states": latents().transpose(1, 2).contiguous(),
        "timestep": frame_steps,
        "r_timestep": frame_steps / 2,
        "encoder_hidden_states": text(),
    }


def anyflow_far() -> TinyModel:
    """Three one-frame chunks, of which the last two are kept whole and the first is compressed."""
    model, inputs = anyflow("AnyFlowFARTransformer3DModel", compressed_patch_size=(1, 4, 4), full_chunk_limit=2)
    inputs["chunk_partition"] = [1, 1, 1]
    return model, inputs


HELIOS_HISTORY = {"short": 1, "mid": 2, "long": 4}  # latent frames of history, oldest ("long") first in the sequence


def helios() -> TinyModel:
    model = build(
        "HeliosTransformer3DModel",
        **{key: value for key, value in WAN.items() if key != "rope_max_seq_len"},
        rope_dim=(8, 12, 12),
        has_multi_term_memory_patch=True,
        guidance_cross_attn=True,
        zero_history_timestep=True,
        is_amplify_history=False,
    )
    inputs: dict[str, Any] = {
        "hidden_states": latents(grid=(3, 4, 8)),
        "timestep": steps(),
        "encoder_hidden_states": text(),
        "indices_hidden_states": torch.ones(BATCH, 3),
    }
    for name, frames in HELIOS_HISTORY.items():
        inputs[f"indices_latents_history_{name}"] = torch.ones(BATCH, frames)
        inputs[f"latents_history_{name}"] = latents(grid=(frames, 4, 8))
    return model, inputs
