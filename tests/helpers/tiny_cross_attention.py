"""Tiny models that read the text by cross-attention, except Wan's: LTX, Allegro, Latte, Cosmos, Sana, Kandinsky."""

from __future__ import annotations

from typing import Any

import torch
from tiny_inputs import (
    AUDIO,
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

LTX: dict[str, Any] = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "num_attention_heads": HEADS,
    "attention_head_dim": HEAD_DIM,
    "cross_attention_dim": WIDTH,
    "num_layers": 2,
    "caption_channels": TEXT_WIDTH,
}


def ltx() -> TinyModel:
    """Tokens come packed by the pipeline; the grid is told in keywords."""
    model = build("LTXVideoTransformer3DModel", **LTX)
    frames, height, width = GRID
    return model, {
        "hidden_states": torch.randn(BATCH, volume(GRID), CHANNELS),
        "encoder_hidden_states": text(),
        "timestep": steps(),
        "encoder_attention_mask": torch.ones(BATCH, TEXT, dtype=torch.bool),
        "num_frames": frames,
        "height": height,
        "width": width,
    }


LTX2_AUDIO = {
    "audio_in_channels": CHANNELS,
    "audio_out_channels": CHANNELS,
    "audio_num_attention_heads": HEADS,
    "audio_attention_head_dim": 16,
    "audio_cross_attention_dim": 32,
    "rope_double_precision": False,
    "gated_attn": True,
    "audio_gated_attn": True,
}


def ltx2() -> TinyModel:
    model = build("LTX2VideoTransformer3DModel", **LTX, **LTX2_AUDIO)
    _, inputs = ltx()
    inputs |= {
        "audio_hidden_states": torch.randn(BATCH, AUDIO, CHANNELS),
        "audio_encoder_hidden_states": text(),
        "audio_num_frames": AUDIO,
        "fps": 25.0,
    }
    return model, inputs


def sana_wm_refiner() -> TinyModel:
    """LTX-2's layers, of which this class runs the video half only: its audio linears are never called."""
    model = build("SanaWMLTX2RefinerTransformer3DModel", **LTX, **LTX2_AUDIO)
    angles = torch.rand(BATCH, volume(GRID), WIDTH)
    return model, {
        "hidden_states": torch.randn(BATCH, volume(GRID), CHANNELS),
        "encoder_hidden_states": text(),
        "timestep": torch.full((BATCH, volume(GRID)), 500.0),
        "video_rotary_emb": (angles.cos(), angles.sin()),
        "encoder_attention_mask": torch.ones(BATCH, TEXT),
    }


def allegro() -> TinyModel:
    model = build(
        "AllegroTransformer3DModel",
        num_attention_heads=HEADS,
        attention_head_dim=48,  # 3D rope: a multiple of 6
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=2,
        cross_attention_dim=96,
        sample_width=8,
        sample_height=4,
        sample_frames=3,
        caption_channels=TEXT_WIDTH,
    )
    return model, {"hidden_states": latents(), "encoder_hidden_states": text(), "timestep": steps()}


def latte() -> TinyModel:
    model = build(
        "LatteTransformer3DModel",
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=HEADS,
        caption_channels=TEXT_WIDTH,
        in_channels=CHANNELS,
        cross_attention_dim=WIDTH,
        out_channels=CHANNELS,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        video_length=LATTE_GRID[0],
    )
    inputs = {
        "hidden_states": latents(grid=LATTE_GRID),
        "encoder_hidden_states": text(),
        "timestep": steps(),
        "enable_temporal_attentions": True,
    }
    return model, inputs


LATTE_GRID = (3, 4, 4)  # its learned positions want the trained, square frame


def cosmos(**config: Any) -> TinyModel:
    model = build(
        "CosmosTransformer3DModel",
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        num_layers=2,
        mlp_ratio=2,
        text_embed_dim=TEXT_WIDTH,
        adaln_lora_dim=32,
        max_size=(4, 32, 32),
        patch_size=(1, 2, 2),
        concat_padding_mask=False,  # the mask is resized with torchvision, which tests do not need
        extra_pos_embed_type="learnable",
        **config,
    )
    inputs = {"hidden_states": latents(), "timestep": steps(), "encoder_hidden_states": text(), "fps": 30}
    return model, inputs


def cosmos_image() -> TinyModel:
    """Cosmos 2.5: queries of their own for image tokens in cross-attention."""
    model, inputs = cosmos(img_context_dim_in=16, img_context_num_tokens=IMAGE, img_context_dim_out=WIDTH)
    inputs["encoder_hidden_states"] = (text(), text(16, IMAGE))
    return model, inputs


def sana_video() -> TinyModel:
    model = build(
        "SanaVideoTransformer3DModel",
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        num_layers=2,
        num_cross_attention_heads=HEADS,
        cross_attention_head_dim=HEAD_DIM,
        cross_attention_dim=WIDTH,
        caption_channels=TEXT_WIDTH,
        sample_size=8,
        patch_size=(1, 2, 2),
        rope_max_seq_len=32,
    )
    return model, {"hidden_states": latents(), "encoder_hidden_states": text(), "timestep": steps()}


def sana_wm() -> TinyModel:
    """With cameras, so that the camera branches run; block 0 is a delta net, block 1 softmax attention.

    The last frame is marked invalid, so that what reads masked tokens and what does not could differ.
    """
    model = build(
        "SanaWMTransformer3DModel",
        in_channels=CHANNELS,
        num_layers=2,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        softmax_every_n=2,
        linear_head_dim=HEAD_DIM,
        chunk_plucker_channels=6,
        caption_channels=TEXT_WIDTH,
    )
    frames, height, width = GRID
    pinhole = torch.tensor([float(width), float(height), width / 2, height / 2])
    camera = torch.cat([torch.eye(4).flatten(), pinhole])
    return model, {
        "hidden_states": latents(patch=(1, 1, 1)),
        "timestep": torch.full((BATCH, 1, frames), 500.0),
        "encoder_hidden_states": text().unsqueeze(1),
        "encoder_attention_mask": torch.ones(BATCH, TEXT),
        "camera_conditions": camera.expand(BATCH, frames, 20).contiguous(),
        "chunk_plucker": latents(6, patch=(1, 1, 1)),
        "frame_valid_mask": torch.tensor([True] * (frames - 1) + [False]).expand(BATCH, frames),
    }


KANDINSKY: dict[str, Any] = {
    "in_visual_dim": CHANNELS,
    "out_visual_dim": CHANNELS,
    "time_dim": 32,
    "model_dim": WIDTH,
    "ff_dim": 96,
    "num_visual_blocks": 2,
    "axes_dims": (8, 12, 12),
}


def kandinsky5(grid: tuple[int, int, int] = GRID, sparse: dict[str, Any] | None = None) -> TinyModel:
    model = build(
        "Kandinsky5Transformer3DModel",
        **KANDINSKY,
        in_text_dim=TEXT_WIDTH,
        in_text_dim2=16,
        num_text_blocks=1,
        patch_size=(1, 2, 2),
        attention_type="regular" if sparse is None else "nabla",
    )
    return model, {
        "hidden_states": latents(grid=grid).permute(0, 2, 3, 4, 1).contiguous(),
        "encoder_hidden_states": text(),
        "timestep": steps(),
        "pooled_projections": torch.randn(BATCH, 16),
        "visual_rope_pos": [torch.arange(size) for size in grid],
        "text_rope_pos": torch.arange(TEXT),
        "sparse_params": sparse,
    }


KANDINSKY_TILED_GRID = (3, 8, 16)  # tokens are ordered by tiles of 8 x 8, so both sides are multiples of 8


def kandinsky5_nabla() -> TinyModel:
    """Sparse attention; every pair of tiles is allowed, so the pattern does not matter here."""
    from diffusers.models.attention_dispatch import AttentionBackendName

    tiles = volume(KANDINSKY_TILED_GRID) // 64
    sparse = {"to_fractal": True, "P": 0.9, "sta_mask": torch.ones(1, 1, tiles, tiles, dtype=torch.bool)}
    model, inputs = kandinsky5(KANDINSKY_TILED_GRID, sparse)
    for module in model.modules():  # not `set_attention_backend`, which changes all models of the process
        processor: Any = getattr(module, "processor", None)
        if processor is not None:
            processor._attention_backend = AttentionBackendName.FLEX
    return model, inputs


def kandinsky6() -> TinyModel:
    model = build(
        "Kandinsky6Transformer3DModel",
        **KANDINSKY,
        in_text_dim=TEXT_WIDTH,
        in_text_dim2=16,
        num_text_blocks=1,
        patch_size=(1, 2, 2),
        in_audio_dim=CHANNELS,
        out_audio_dim=CHANNELS,
        ca_rope=True,
        cross_gates=True,
        fix_modulation=True,
    )
    return model, {
        "hidden_states": latents(2 * CHANNELS + 1).permute(0, 2, 3, 4, 1).contiguous(),
        "encoder_hidden_states": text(),
        "pooled_projections": torch.randn(BATCH, 16),
        "timestep": steps(),
        "audio_hidden_states": torch.randn(BATCH, AUDIO, CHANNELS),
    }


def kandinsky6_sr() -> TinyModel:
    model = build("Kandinsky6SRTransformer3DModel", **KANDINSKY, patch_size=(1, 1, 1))
    noisy = latents(2 * CHANNELS + 1, grid=KANDINSKY_TILED_GRID, patch=(1, 1, 1))
    return model, {"hidden_states": noisy.permute(0, 2, 3, 4, 1).contiguous(), "timestep": steps()}
