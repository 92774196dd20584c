"""Whole pipelines as users run them at home: which weights in how many bits, and what lies on the GPU when.

Wan 2.1 14B's shapes at random weights, built on the GPU block by block. No video comes of them: nothing here is about
quality.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...sedialect_core.config import SeDialectConfig
from ...sedialect_core.errors import InputError, shown
from ...sedialect_core.footprint.outline import text_encoder_config
from ...sedialect_core.integrations.models import quantize_model
from ...sedialect_core.plan.rules import make_plan
from ...sedialect_core.quantize.apply import set_submodule
from .arms import ARMS, Arm, unchanged
from .models import WholeModel, build, model_of
from .trials import backend

LENGTH = 512  # tokens of a prompt, padded, as WanPipeline encodes it
OURS = "preset quality"
COMPACT = Arm(f"{OURS}, B=32", unchanged, SeDialectConfig.preset("quality", block_size=32), preset=True)
VAE: Mapping[str, Any] = {"base_dim": 96, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2}
TINY_VAE: Mapping[str, Any] = {"base_dim": 4, "z_dim": 16, "dim_mult": [1, 1, 2, 2], "num_res_blocks": 1}
TINY_TEXT = {"vocab_size": 99, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
Placing = Callable[[Any, torch.device], None]


@dataclass(frozen=True)
class Home:
    """What all ways have in common: the transformer, and configurations of the text encoder and of the autoencoder."""

    model: WholeModel
    text: Mapping[str, Any]
    vae: Mapping[str, Any]

    @property
    def latent(self) -> tuple[int, ...]:
        """Shape of the latents of one video."""
        frames, rows, columns = self.model.video.grid
        return 1, int(self.vae["z_dim"]), frames, 2 * rows, 2 * columns


def home(quick: bool) -> Home:
    """The pipeline that is measured; `quick`: a tiny one, which says nothing of it."""
    text = {"model_type": "umt5", **TINY_TEXT} if quick else text_encoder_config("umt5-xxl")
    return Home(model_of(quick), text, TINY_VAE if quick else VAE)


@dataclass(frozen=True)
class Way:
    """One way to run it."""

    name: str
    arm: str
    """How the transformer's linears are."""
    placing: Placing
    encoder: str = ""
    """How the text encoder's are; empty for 16 bit."""
    casting: bool = False
    """Whether diffusers stores the transformer in FP8, and casts layer by layer."""
    compiled: bool = False
    """Whether the transformer's blocks are compiled."""


def stay(pipe: Any, device: torch.device) -> None:
    """Everything lies on the GPU."""
    pipe.to(device)


def take_turns(pipe: Any, device: torch.device) -> None:
    """Each model lies on the GPU while it runs: diffusers' model offloading."""
    if device.type == "cuda":
        pipe.enable_model_cpu_offload(device=device)


def stream(pipe: Any, device: torch.device) -> None:
    """Transformer and text encoder come block by block while the block before computes: diffusers' group offloading."""
    from diffusers.hooks import apply_group_offloading

    pipe.vae.to(device)
    streams = device.type == "cuda"
    common: dict[str, Any] = {"onload_device": device, "offload_device": torch.device("cpu"), "use_stream": streams}
    apply_group_offloading(pipe.transformer, offload_type="block_level", num_blocks_per_group=1, **common)
    apply_group_offloading(pipe.text_encoder, offload_type="leaf_level", **common)  # its blocks lie too deep for diffusers


# In the order of measuring: where seconds run out, the last ones are not measured.
WAYS = (
    Way("16 bit, blocks streamed", "BF16", stream),
    Way("sedialect, encoder too, compiled, models take turns", OURS, take_turns, "w4a16", compiled=True),
    Way("sedialect, encoder too, models take turns", OURS, take_turns, "w4a16"),
    Way("sedialect, models take turns", OURS, take_turns),
    Way("torchao FP8 rows, models take turns", "torchao FP8 rows", take_turns),
    Way("GGUF Q4_0, models take turns", "GGUF Q4_0", take_turns),
    Way("bitsandbytes NF4, encoder too, models take turns", "bitsandbytes NF4", take_turns, "bitsandbytes NF4"),
    Way("sedialect, encoder too, all on the GPU", OURS, stay, "w4a16"),
    Way("sedialect, B=32, encoder too, models take turns", COMPACT.name, take_turns, "w4a16"),
    Way("FP8 by layerwise casting, models take turns", "BF16", take_turns, casting=True),
    Way("bitsandbytes NF4, models take turns", "bitsandbytes NF4", take_turns),
    Way("16 bit, models take turns", "BF16", take_turns),
)


def choose_ways(names: Sequence[str] | None) -> tuple[Way, ...]:
    """The ways of these names, in the order of measuring; None: all of them.

    Raises:
        InputError: there is no such way.
    """
    known = [way.name for way in WAYS]
    for name in names or ():
        if name not in known:
            raise InputError(f"--memory has no way {shown(name)}; there are {'; '.join(known)}")
    return tuple(way for way in WAYS if names is None or way.name in names)


def make_pipeline(way: Way, home: Home, device: torch.device) -> Any:
    """The pipeline, its models where they were built; nothing is placed yet.

    Raises:
        ImportError: a package is missing.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    transformer, _ = build(home.model, arm_of(way.arm), device)
    if way.casting:
        transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    if way.compiled:
        transformer.compile_repeated_blocks(backend=backend(device))
    encoder = _text_encoder(home, device)
    if way.encoder:
        _quantize(encoder, way.encoder)
    pipe = WanPipeline(
        tokenizer=None,
        text_encoder=encoder,
        vae=make_vae(home, device),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=transformer,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def arm_of(name: str) -> Arm:
    """An arm by its name."""
    return next(arm for arm in (*ARMS, COMPACT) if arm.name == name)


def make_vae(home: Home, device: torch.device) -> Any:
    """The autoencoder in float32, as diffusers advises for Wan, decoding in tiles."""
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan(**home.vae).to(device).eval().requires_grad_(False)
    vae.enable_tiling()
    return vae


def _text_encoder(home: Home, device: torch.device) -> Any:
    from transformers import AutoConfig, UMT5EncoderModel

    settings = dict(home.text)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.device("meta"):
        model = UMT5EncoderModel._from_config(config, dtype=torch.bfloat16)
    model = model.to_empty(device=device).eval().requires_grad_(False)
    model.encoder.embed_tokens.weight = model.shared.weight
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
    return model


def _quantize(encoder: nn.Module, arm: str) -> None:
    """The text encoder as an arm has it; the same layers for all."""
    config = arm_of(arm).config
    if config is not None:
        quantize_model(encoder, config)
        return
    for layer in make_plan(encoder, SeDialectConfig()).quantized:
        linear = encoder.get_submodule(layer.name)
        assert isinstance(linear, nn.Linear)
        set_submodule(encoder, layer.name, arm_of(arm).layer(linear))
