"""The numbers of a training run: the real one, and a tiny one that walks through every stage in seconds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Everything that decides what comes out of a run; written into the log next to the weights."""

    seed: int = 20261122
    size: int = 128
    frames: int = 33
    # autoencoder
    base_dim: int = 12
    crop_steps: int = 3000
    crop_clips: int = 6
    crops_per_clip: int = 3
    crop_size: int = 64
    crop_frames: int = 17
    autoencoder_steps: int = 400
    autoencoder_batch: int = 6
    autoencoder_lr: float = 3e-3
    autoencoder_muon_lr: float = 6e-3
    kl_weight: float = 3e-5
    fresh_clips: int = 64
    # bank of encoded clips
    bank_clips: int = 18_432
    bank_batch: int = 64
    captions_per_clip: int = 4
    # text encoder
    text_dim: int = 192
    text_layers: int = 2
    text_ff: int = 256
    text_length: int = 56
    padded_length: int = 512
    # denoiser
    heads: int = 2
    head_dim: int = 128
    ffn_dim: int = 1024
    layers: int = 8
    denoiser_steps: int = 5200
    refine_steps: int = 4200
    denoiser_batch: int = 256
    muon_lr: float = 3e-3
    adam_lr: float = 1e-3
    weight_decay: float = 0.05
    train_shift: float = 3.0
    caption_dropout: float = 0.1
    ema: float = 0.9985
    # sampling, recommended to users as well
    sample_steps: int = 20
    guidance: float = 2.0
    sample_shift: float = 3.0


def smoke_settings() -> Settings:
    """A run that proves the plumbing on a CPU in seconds; its model knows nothing."""
    return Settings(
        size=32,
        frames=5,
        base_dim=4,
        crop_steps=2,
        crop_clips=1,
        crops_per_clip=2,
        crop_size=16,
        crop_frames=5,
        autoencoder_steps=2,
        autoencoder_batch=2,
        fresh_clips=4,
        bank_clips=8,
        bank_batch=4,
        text_dim=32,
        text_layers=1,
        text_ff=32,
        heads=1,
        ffn_dim=64,
        layers=1,
        denoiser_steps=3,
        refine_steps=2,
        denoiser_batch=4,
        sample_steps=2,
    )
