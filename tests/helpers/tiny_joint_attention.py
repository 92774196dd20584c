"""Tiny models whose blocks attend to video and text together.

CogVideoX, ConsisID, HunyuanVideo, Motif, Mochi and EasyAnimate; and Cosmos 3 and MiniMax H3, which pack all tokens
into one sequence.
"""

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

COGVIDEOX: dict[str, Any] = {
    "num_attention_heads": HEADS,
    "attention_head_dim": HEAD_DIM,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "time_embed_dim": 32,
    "text_embed_dim": TEXT_WIDTH,
    "num_layers": 2,
    "sample_width": 8,
    "sample_height": 4,
    "sample_frames": 9,
    "patch_size": 2,
    "temporal_compression_ratio": 4,
    "max_text_seq_length": TEXT,
}


def cogvideox(**config: Any) -> TinyModel:
    """With `patch_size_t` (CogVideoX 1.5), that many latent frames make one token frame."""
    model = build("CogVideoXTransformer3DModel", **COGVIDEOX, **config)
    frames = config.get("patch_size_t", 1)
    return model, {
        "hidden_states": latents(patch=(frames, 2, 2)).transpose(1, 2).contiguous(),
        "encoder_hidden_states": text(),
        "timestep": steps(),
    }


def consisid() -> TinyModel:
    """With the face branch, whose perceivers put identity features into the video tokens after each block."""
    model = build(
        "ConsisIDTransformer3DModel",
        **{**COGVIDEOX, "num_attention_heads": 3},  # the perceivers' keys are 2/3 as wide: 64
        is_train_face=True,
        is_kps=False,
        cross_attn_interval=1,
        cross_attn_dim_head=16,
        cross_attn_num_heads=2,
        LFE_id_dim=16,
        LFE_vit_dim=16,
        LFE_depth=5,
        LFE_dim_head=16,
        LFE_num_heads=2,
        LFE_num_id_token=2,
        LFE_num_querie=3,
        LFE_output_dim=64,
        LFE_ff_mult=1,
        LFE_num_scale=1,
    )
    return model, {
        "hidden_states": latents().transpose(1, 2).contiguous(),
        "encoder_hidden_states": text(),
        "timestep": steps(),
        "id_cond": torch.randn(BATCH, 16),
        "id_vit_hidden": [torch.randn(BATCH, IMAGE, 16)],
    }


HUNYUAN: dict[str, Any] = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "num_attention_heads": HEADS,
    "attention_head_dim": HEAD_DIM,
    "num_layers": 2,
    "num_single_layers": 2,
    "num_refiner_layers": 1,
    "patch_size": 2,
    "patch_size_t": 1,
    "guidance_embeds": True,
    "text_embed_dim": TEXT_WIDTH,
    "pooled_projection_dim": 16,
    "rope_axes_dim": (8, 12, 12),
}


def hunyuan_video(class_name: str = "HunyuanVideoTransformer3DModel", **config: Any) -> TinyModel:
    model = build(class_name, **{**HUNYUAN, **config})
    return model, {
        "hidden_states": latents(),
        "timestep": steps(),
        "encoder_hidden_states": text(),
        "encoder_attention_mask": torch.ones(BATCH, TEXT),
        "pooled_projections": torch.randn(BATCH, 16),
        "guidance": steps(6000.0),
    }


def hunyuan_framepack() -> TinyModel:
    """Clean, 2x and 4x compressed history frames stand before the frames being denoised."""
    name = "HunyuanVideoFramepackTransformer3DModel"
    model, inputs = hunyuan_video(name, has_image_proj=True, image_proj_dim=16, has_clean_x_embedder=True)
    inputs |= {"image_embeds": text(16, IMAGE), "indices_latents": torch.ones(GRID[0])}
    history = {"latents_clean": 1, "latents_history_2x": 2, "latents_history_4x": 4}
    for argument, frames in history.items():
        inputs[argument] = latents(grid=(frames, *GRID[1:]))
        inputs[f"indices_{argument}"] = torch.ones(frames)
    return model, inputs


def hunyuan_video15() -> TinyModel:
    """Text of two encoders and image tokens share the text stream; the valid ones are moved to its front."""
    model = build(
        "HunyuanVideo15Transformer3DModel",
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        num_layers=2,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        patch_size=1,
        patch_size_t=1,
        text_embed_dim=TEXT_WIDTH,
        text_embed_2_dim=16,
        image_embed_dim=16,
        rope_axes_dim=(8, 12, 12),
        target_size=16,
        task_type="i2v",
    )
    return model, {
        "hidden_states": latents(patch=(1, 1, 1)),
        "timestep": steps(),
        "encoder_hidden_states": text(),
        "encoder_attention_mask": torch.ones(BATCH, TEXT),
        "encoder_hidden_states_2": text(16, 4),
        "encoder_attention_mask_2": torch.ones(BATCH, 4),
        "image_embeds": text(16, IMAGE),
    }


def motif_video() -> TinyModel:
    """Cross-attention to the text alone in both kinds of blocks; the last single block is a decoder block."""
    model = build(
        "MotifVideoTransformer3DModel",
        in_channels=2 * CHANNELS + 1,
        out_channels=CHANNELS,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        num_layers=2,
        num_single_layers=2,
        num_decoder_layers=1,
        mlp_ratio=2.0,
        patch_size=2,
        patch_size_t=1,
        norm_type="layer_norm",
        text_embed_dim=TEXT_WIDTH,
        image_embed_dim=16,
        rope_axes_dim=(8, 12, 12),
        enable_text_cross_attention_dual=True,
        enable_text_cross_attention_single=True,
    )
    return model, {
        "hidden_states": latents(2 * CHANNELS + 1),
        "timestep": steps(),
        "encoder_hidden_states": text(),
        "image_embeds": text(16, IMAGE),
    }


def mochi() -> TinyModel:
    model = build(
        "MochiTransformer3DModel",
        patch_size=2,
        num_attention_heads=6,  # its gated feed-forwards are 8/3 as wide: 192 -> 512, and 96 -> 256 for the text
        attention_head_dim=HEAD_DIM,
        num_layers=2,
        pooled_projection_dim=96,
        in_channels=CHANNELS,
        text_embed_dim=TEXT_WIDTH,
        time_embed_dim=16,
        max_sequence_length=16,
    )
    return model, {
        "hidden_states": latents(),
        "encoder_hidden_states": text(),
        "timestep": steps(),
        "encoder_attention_mask": torch.ones(BATCH, TEXT, dtype=torch.bool),
    }


def easyanimate() -> TinyModel:
    model = build(
        "EasyAnimateTransformer3DModel",
        attention_head_dim=HEAD_DIM,
        num_attention_heads=HEADS,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        mmdit_layers=2,
        num_layers=3,
        patch_size=2,
        sample_height=4,
        sample_width=8,
        text_embed_dim=TEXT_WIDTH,
        time_embed_dim=32,
    )
    return model, {"hidden_states": latents(), "timestep": steps(), "encoder_hidden_states": text()}


def cosmos3() -> TinyModel:
    """One packed sequence without a batch: text tokens ("und"), then the video tokens being generated ("gen")."""
    tokens = volume(GRID)
    vision = torch.arange(TEXT, TEXT + tokens)
    model = build(
        "Cosmos3OmniTransformer",
        head_dim=HEAD_DIM,
        hidden_size=WIDTH,
        intermediate_size=96,
        latent_channel=CHANNELS,
        latent_patch_size=2,
        num_attention_heads=HEADS,
        num_hidden_layers=2,
        num_key_value_heads=1,
        patch_latent_dim=4 * CHANNELS,
        rope_axes_dim=[8, 4, 4],
        vocab_size=32,
    )
    return model, {
        "input_ids": torch.arange(TEXT) + 1,
        "text_indexes": torch.arange(TEXT),
        "position_ids": torch.zeros(3, TEXT + tokens, dtype=torch.long),
        "und_len": TEXT,
        "sequence_length": TEXT + tokens,
        "vision_tokens": [latents()[:1]],
        "vision_token_shapes": [GRID],
        "vision_sequence_indexes": vision,
        "vision_mse_loss_indexes": vision,
        "vision_timesteps": torch.ones(tokens),
        "vision_noisy_frame_indexes": [torch.arange(GRID[0])],
    }


def minimax_h3() -> TinyModel:
    """Text, audio and video rows of one packed sequence, told apart by index tensors."""
    tokens = volume(GRID)
    model = build(
        "MiniMaxH3Transformer3DModel",
        num_attention_heads=HEADS,
        attention_head_dim=48,
        hidden_size=WIDTH,
        num_layers=2,
        num_refiner_layers=1,
        ffn_dim=96,
        in_channels=CHANNELS,
        audio_in_channels=6,
        patch_size=(1, 2, 2),
        text_dim=TEXT_WIDTH,
        freq_dim=32,
        time_embed_hidden_dim=32,
        time_embed_dim=32,
        rope_freq_dim=6,
    )
    tags = torch.tensor([1] * TEXT + [2] * AUDIO + [0] * tokens)  # 0 video, 1 text, 2 audio
    positions = torch.zeros(len(tags), 3)
    positions[:, 0] = torch.arange(len(tags))
    positions[tags == 0] = torch.cartesian_prod(*(torch.arange(size) for size in GRID)).float()
    return model, {
        "hidden_states": torch.randn(BATCH, tokens, 4 * CHANNELS),
        "audio_hidden_states": torch.randn(BATCH, AUDIO, 6),
        "encoder_hidden_states": text(),
        "timestep": torch.tensor([0.7, 0.3]),
        "timestep_indices": (tags == 2).long(),
        "token_tags": tags,
        "position_ids": positions,
        "text_indices": (tags == 1).nonzero().flatten(),
        "audio_indices": (tags == 2).nonzero().flatten(),
        "video_indices": (tags == 0).nonzero().flatten(),
    }
