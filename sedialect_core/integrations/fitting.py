"""`enable_sedialect(fit="12GB")`: looks at a pipeline, takes the first option that fits the card, and carries it out."""

import copy
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ...kernels.capabilities import refusals
from ..config import SeDialectConfig
from ..errors import ModelError
from ..inspection import is_transformer, layout_of
from ..inspection.encoders import TEXT_ENCODER
from ..linear import SeDialectLinear, has_quantized_layers
from ..plan.advice import INSTALL_TRITON
from ..plan.fit import ALL, STREAMED, TEXT, TRANSFORMER, TURNS, VAE, Choice, Fitter, card_of
from ..plan.report import model_bytes
from ..plan.working_memory import repeated_blocks, usual
from ..quantize.checks import is_compiled

COMPILED = "_sedialect_compiled"  # on a block, where it was compiled because it was chosen here
SIZES = ("height", "width", "num_frames")
QUALITY, ELSEWHERE = (
    "quality",
    "weight-only",
)  # presets where none is asked for: on GPUs that multiply in 8 bit, and elsewhere


def choose(
    pipe: Any,
    fit: str | float,
    config: SeDialectConfig | None,
    *,
    video: Mapping[str, int] | None = None,
    encoder: bool | None = None,
    device: torch.device | None = None,
    compiling: bool = True,
) -> Choice:
    """What of a pipeline would be quantized and where it would lie on a card; nothing is changed.

    Args:
        fit: memory of the card, as it is sold: "12GB".
        config: None takes the preset that suits the device.
        video: `height`, `width`, `num_frames` that memory is counted for; what is usual for the model where it is not given.
        encoder: whether text encoders are quantized; None leaves it open.
        compiling: whether transformers' blocks may be compiled; on a GPU without Triton they are not.

    Raises:
        ConfigError: `fit` says no size.
        ModelError: nothing fits, or a size is unknown.
    """
    card = card_of(fit)
    roles = {name: role for name, part in pipe.components.items() if isinstance(part, nn.Module) if (role := _role(name))}
    shells = {name: _shell(pipe.components[name]) for name in roles}
    stored = {name: model_bytes(pipe.components[name]) for name in roles if has_quantized_layers(pipe.components[name])}
    size = _size(pipe, video or {})
    open_sizes = config is None
    config = config or SeDialectConfig.preset(QUALITY if _multiplies_in_8_bit(device) else ELSEWHERE)
    fitter = Fitter(shells, roles, _latent(pipe, size), (size["num_frames"], size["height"], size["width"]), stored)
    refused = _refuses_to_compile(device) if compiling else None
    choice = fitter.choose(card, config, encoder=encoder, block_sizes=open_sizes, compiling=compiling and refused is None)
    told = [f"{name} is quantized already, and stays as it is" for name in stored]
    told += [] if refused is None else [f"compiling the blocks was left out: {refused}; {INSTALL_TRITON}"]
    return replace(choice, notes=(*choice.notes, *told))


def place(pipe: Any, choice: Choice, device: torch.device) -> None:
    """Have the models lie where the choice says, and their blocks compiled if it says so."""
    if choice.option.compiled:
        _compile(pipe)
    if choice.option.tiling:
        pipe.vae.enable_tiling()
    if choice.option.place == ALL:
        pipe.to(device)
    elif choice.option.place == TURNS:
        pipe.enable_model_cpu_offload(device=device)
    elif choice.option.place == STREAMED:
        _stream(pipe, device)


def uncompile(model: nn.Module) -> None:
    """Leave a model's blocks as they were before `place` compiled them."""
    for module in model.modules():
        if module.__dict__.pop(COMPILED, False):
            module._compiled_call_impl = None


def tell(choice: Choice) -> None:
    """On stderr, beside the bars."""
    print(choice, file=sys.stderr)


def _compile(pipe: Any) -> None:
    """The blocks of the transformers, one by one, which is quicker than whole models; what is compiled already stays."""
    for name, part in pipe.components.items():
        if is_transformer(name) and isinstance(part, nn.Module) and not is_compiled(part):
            for block in repeated_blocks(part):
                block.compile()
                block.__dict__[COMPILED] = True


def _refuses_to_compile(device: torch.device | None) -> str | None:
    """Why blocks cannot be compiled for a device; where there is no GPU, it is assumed that they can."""
    return None if device is None or device.type != "cuda" else refusals(device).device or refusals(device).triton


def _stream(pipe: Any, device: torch.device) -> None:
    """Blocks come one by one, the next one while this one computes; what is small stays on the GPU."""
    from diffusers.hooks import apply_group_offloading

    settings: dict[str, Any] = {"onload_device": device, "offload_device": torch.device("cpu")}
    settings["use_stream"] = device.type == "cuda"
    for name, part in pipe.components.items():
        if not isinstance(part, nn.Module):
            continue
        if is_transformer(name):
            apply_group_offloading(part, offload_type="block_level", num_blocks_per_group=1, **settings)
        elif TEXT_ENCODER.fullmatch(name):
            apply_group_offloading(part, offload_type="leaf_level", **settings)
        else:
            part.to(device)


def _role(name: str) -> str:
    if is_transformer(name):
        return TRANSFORMER
    if TEXT_ENCODER.fullmatch(name):
        return TEXT
    return VAE if name == "vae" else "other"


def _shell(model: nn.Module) -> nn.Module:
    """The model without its values, on the device meta; quantized layers as the linears that they stand for."""
    known = {id(tensor): _without_values(tensor) for tensor in (*model.parameters(), *model.buffers())}
    hidden = {
        name: model.__dict__.pop(name) for name in list(model.__dict__) if name.startswith(("_sedialect", "hf_quantizer"))
    }
    try:
        shell = copy.deepcopy(model, known)
    finally:
        model.__dict__.update(hidden)
    for parent in list(shell.modules()):
        for name, part in parent._modules.items():
            if isinstance(part, SeDialectLinear):
                linear = nn.Linear(part.in_features, part.out_features, part.bias is not None, device="meta")
                parent._modules[name] = linear.to(part.compute_dtype)
    return shell


def _without_values(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


def _size(pipe: Any, given: Mapping[str, int]) -> dict[str, int]:
    if unknown := sorted(given.keys() - set(SIZES)):
        raise ModelError(f"video holds {unknown[0]!r}; give {', '.join(SIZES)}, or some of them")
    known = usual(type(_transformer(pipe)).__name__)
    return {name: int(given.get(name, getattr(known, name))) for name in SIZES}


def _latent(pipe: Any, size: Mapping[str, int]) -> tuple[int, int, int]:
    """Frames, rows and columns of the latents, in whole patches."""
    transformer = _transformer(pipe)
    known = usual(type(transformer).__name__)
    space = _ratio(pipe, "vae_scale_factor_spatial", "vae_spatial_compression_ratio", known.space)
    time = _ratio(pipe, "vae_scale_factor_temporal", "vae_temporal_compression_ratio", known.time)
    _, rows, columns = layout_of(transformer).patch
    height, width = size["height"] // space // rows * rows, size["width"] // space // columns * columns
    return (size["num_frames"] - 1) // time + 1, height, width


def _ratio(pipe: Any, *names: Any) -> int:
    *attributes, otherwise = names
    return int(next((value for name in attributes if (value := getattr(pipe, name, None))), otherwise))


def _transformer(pipe: Any) -> nn.Module:
    found = next((part for name, part in pipe.components.items() if is_transformer(name) and part is not None), None)
    if not isinstance(found, nn.Module):
        raise ModelError(f"{type(pipe).__name__} has no transformer; fit is for pipelines that have one")
    return found


def _multiplies_in_8_bit(device: torch.device | None) -> bool:
    return device is not None and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
