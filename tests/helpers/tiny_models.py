"""Tiny random instances of every video transformer class of diffusers, with the inputs their forwards take.

One place builds them, so that every room's tests speak of the same models. The sizes are chosen to tell streams
apart: the numbers of video tokens, text tokens, image tokens, audio tokens and samples differ from each other,
and no two axes of a token grid are equal. Hidden sizes are multiples of 32, so any block size fits every linear
inside a block.

`TINY[class_name]()` returns `(model, inputs)`; `model(**inputs)` runs on the CPU in float32. Each call seeds
the global generator, so two calls give the same weights and inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

BATCH = 2
GRID = (3, 2, 4)  # video tokens along T, H, W
TEXT = 7  # text tokens a sample
IMAGE = 5  # image condition tokens a sample
AUDIO = 9  # audio tokens a sample
HEADS = 2
HEAD_DIM = 32
WIDTH = HEADS * HEAD_DIM
TEXT_WIDTH = 32
CHANNELS = 4

TinyModel = tuple[nn.Module, dict[str, Any]]
Factory = Callable[[], TinyModel]


def volume(grid: tuple[int, int, int]) -> int:
    """How many tokens a T x H x W grid holds."""
    return math.prod(grid)


def latents(
    channels: int = CHANNELS, *, grid: tuple[int, int, int] = GRID, patch: tuple[int, int, int] = (1, 2, 2)
) -> Tensor:
    """Latents [B, C, T, H, W] that become `grid` tokens under `patch`."""
    return torch.randn(BATCH, channels, *(size * step for size, step in zip(grid, patch, strict=True)))


def text(width: int = TEXT_WIDTH, tokens: int = TEXT) -> Tensor:
    """Text states [B, tokens, width]."""
    return torch.randn(BATCH, tokens, width)


def steps(value: float = 500.0) -> Tensor:
    """One timestep a sample, [B]."""
    return torch.full((BATCH,), value)


def build(class_name: str, /, **config: Any) -> nn.Module:
    """The model with seeded random weights; parameters that a class starts at zero are made random as well.

    A zero gate or a zero output projection would hide what lies behind it: outputs would not depend on blocks.
    """
    torch.manual_seed(0)
    model: nn.Module = getattr(diffusers, class_name)(**config).eval()
    for parameter in model.parameters():
        if parameter.is_floating_point() and not parameter.any():
            nn.init.normal_(parameter.data, std=0.02)
    return model.requires_grad_(False)


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


TINY: dict[str, Factory] = {
    "WanTransformer3DModel": partial(wan, "WanTransformer3DModel"),
    "WanVACETransformer3DModel": wan_vace,
    "WanAnimateTransformer3DModel": wan_animate,
    "WanAnimate2Transformer3DModel": wan_animate2,
    "SkyReelsV2Transformer3DModel": partial(wan, "SkyReelsV2Transformer3DModel"),
    "ChronoEditTransformer3DModel": partial(wan, "ChronoEditTransformer3DModel", rope_temporal_skip_len=8),
    "AnyFlowTransformer3DModel": partial(anyflow, "AnyFlowTransformer3DModel"),
    "AnyFlowFARTransformer3DModel": anyflow_far,
    "HeliosTransformer3DModel": helios,
    "CogVideoXTransformer3DModel": cogvideox,
    "ConsisIDTransformer3DModel": consisid,
    "HunyuanVideoTransformer3DModel": hunyuan_video,
    "HunyuanVideo15Transformer3DModel": hunyuan_video15,
    "HunyuanVideoFramepackTransformer3DModel": hunyuan_framepack,
    "LTXVideoTransformer3DModel": ltx,
    "LTX2VideoTransformer3DModel": ltx2,
    "MochiTransformer3DModel": mochi,
    "AllegroTransformer3DModel": allegro,
    "LatteTransformer3DModel": latte,
    "EasyAnimateTransformer3DModel": easyanimate,
    "CosmosTransformer3DModel": cosmos,
    "Cosmos3OmniTransformer": cosmos3,
    "SanaVideoTransformer3DModel": sana_video,
    "SanaWMTransformer3DModel": sana_wm,
    "SanaWMLTX2RefinerTransformer3DModel": sana_wm_refiner,
    "Kandinsky5Transformer3DModel": kandinsky5,
    "Kandinsky6Transformer3DModel": kandinsky6,
    "Kandinsky6SRTransformer3DModel": kandinsky6_sr,
    "MotifVideoTransformer3DModel": motif_video,
    "MiniMaxH3Transformer3DModel": minimax_h3,
}

VARIANTS: dict[str, Factory] = {
    "WanTransformer3DModel (image)": wan_image,
    "WanTransformer3DModel (fused)": wan_fused,
    "CogVideoXTransformer3DModel (1.5)": partial(cogvideox, patch_size_t=2, use_rotary_positional_embeddings=True),
    "HunyuanVideoTransformer3DModel (image)": partial(hunyuan_video, image_condition_type="token_replace"),
    "CosmosTransformer3DModel (image)": cosmos_image,
    "Kandinsky5Transformer3DModel (nabla)": kandinsky5_nabla,
}
"""Configurations of the same classes that have other layers, or another order of tokens."""
