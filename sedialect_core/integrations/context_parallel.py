"""diffusers' context parallelism for a pipeline's transformers, also for those that diffusers has no plan for.

A plan says where a sequence is split and where it is whole again. Where a model's attention knows nothing of a split
sequence, it gets a processor that does; the engine is always diffusers'.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ..errors import ModelError
from ..inspection.denoisers import denoisers

Plan = Mapping[str, Any]


def enable_context_parallel(target: Any, config: Any) -> None:
    """Split the sequence of a model, or of each transformer of a pipeline, over processes.

    Args:
        target: a model or a pipeline of diffusers, quantized or not.
        config: diffusers' `ContextParallelConfig`, or a `ParallelConfig` that holds one.

    Raises:
        ModelError: this model's sequence cannot be split, or not so; or the configuration is another one. Nothing has been
            changed then.

    Example:
        >>> pipe.enable_sedialect()
        >>> enable_context_parallel(pipe, ContextParallelConfig(ulysses_degree=2))
    """
    inner = getattr(config, "context_parallel_config", config)
    if not hasattr(inner, "ulysses_degree"):
        raise ModelError(
            f"{type(config).__name__} splits weights, and encoded weights are not split; pass a ContextParallelConfig, "
            "which splits the sequence"
        )
    models: list[Any] = [target] if isinstance(target, nn.Module) else list(denoisers(target).values())
    planned = [_planned(model, inner) for model in models]
    for model, (plan, prepare) in zip(models, planned, strict=True):
        prepare(model)
        model.enable_parallelism(config=config, cp_plan=plan)


def _planned(model: nn.Module, config: Any) -> tuple[Plan | None, Callable[[Any], None]]:
    """The plan of a model, None where diffusers has one; and what makes the model ready for it."""
    if getattr(model, "_cp_plan", None) is not None:
        return None, _nothing
    name = type(model).__name__
    if name not in OURS:
        raise ModelError(
            f"neither diffusers nor sedialect knows how to split the sequence of {name}; make whole videos on each GPU "
            "instead, with `sedialect generate`"
        )
    plan, prepare = OURS[name]
    if prepare in MASKED and config.ring_degree > 1:
        raise ModelError(f"the attention of {name} has a mask, which Ring does not split; use ulysses_degree alone")
    if name == "HunyuanVideoTransformer3DModel":
        _check_hunyuan(model, config)
    return plan(), prepare


def _check_hunyuan(model: Any, config: Any) -> None:
    if model.config.image_condition_type == "token_replace":
        raise ModelError(
            "HunyuanVideo with image_condition_type='token_replace' treats the first frame's tokens otherwise, wherever "
            "they are; its sequence is not split; use 'latent_concat', or make whole videos on each GPU"
        )
    if config.ulysses_anything:
        raise ModelError(
            "HunyuanVideo's mask is split evenly; leave ulysses_anything off, or choose a size that divides evenly"
        )


def _split(dim: int, dims: int, output: bool = False) -> Any:
    from diffusers.models._modeling_parallel import ContextParallelInput

    return ContextParallelInput(dim, dims, output)


def _whole() -> Any:
    from diffusers.models._modeling_parallel import ContextParallelOutput

    return ContextParallelOutput(1, 3)


def _video_and_text() -> Plan:
    """Both sequences, [B, N, D] each, where they enter the first block."""
    return {"hidden_states": _split(1, 3), "encoder_hidden_states": _split(1, 3)}


def _wan_vace() -> Plan:
    """As Wan's. Blocks of the control each read the whole sequence; the first of them reads the whole control."""
    hidden = {"hidden_states": _split(1, 3)}
    return {
        "rope": {0: _split(1, 4, output=True), 1: _split(1, 4, output=True)},
        "vace_blocks.*": hidden,
        "vace_blocks.0": {"control_hidden_states": _split(1, 3)},
        "blocks.0": hidden,
        "proj_out": _whole(),
    }


def _two_streams() -> Plan:
    """HunyuanVideo and 1.5: rotary positions come from a module."""
    return {
        "rope": {0: _split(0, 2, output=True), 1: _split(0, 2, output=True)},
        "transformer_blocks.0": _video_and_text(),
        "proj_out": _whole(),
    }


def _hunyuan_15() -> Plan:
    return {**_two_streams(), "transformer_blocks.*": {"attention_mask": _split(1, 2)}}


def _mochi() -> Plan:
    angles = [_split(0, 3), _split(0, 3)]
    every = {"encoder_attention_mask": _split(1, 2), "image_rotary_emb": angles}
    return {"transformer_blocks.*": every, "transformer_blocks.0": _video_and_text(), "proj_out": _whole()}


def _cogvideox() -> Plan:
    every = {"image_rotary_emb": [_split(0, 2), _split(0, 2)]}
    return {"transformer_blocks.*": every, "transformer_blocks.0": _video_and_text(), "proj_out": _whole()}


def _prepare_hunyuan(model: Any) -> None:
    from .split_processors import OwnMask

    for block in (*model.transformer_blocks, *model.single_transformer_blocks):
        block.attn.set_processor(OwnMask())


def _prepare_hunyuan_15(model: Any) -> None:
    from .split_processors import TwoStreams, rotate_by_angles

    for block in model.transformer_blocks:
        block.attn.set_processor(TwoStreams(rotate_by_angles))


def _prepare_mochi(model: Any) -> None:
    from .split_processors import TwoStreams, rotate_pairs

    for block in model.transformer_blocks:
        block.attn1.processor = TwoStreams(rotate_pairs)


def _prepare_cogvideox(model: Any) -> None:
    from .split_processors import TextThenVideo

    for block in model.transformer_blocks:
        block.attn1.set_processor(TextThenVideo())


def _nothing(model: Any) -> None:
    """The model's own processors know of split sequences."""


OURS: dict[str, tuple[Callable[[], Plan], Callable[[Any], None]]] = {
    "WanVACETransformer3DModel": (_wan_vace, _nothing),
    "HunyuanVideoTransformer3DModel": (_two_streams, _prepare_hunyuan),
    "HunyuanVideo15Transformer3DModel": (_hunyuan_15, _prepare_hunyuan_15),
    "MochiTransformer3DModel": (_mochi, _prepare_mochi),
    "CogVideoXTransformer3DModel": (_cogvideox, _prepare_cogvideox),
}
"""Plans for models that diffusers has none for, and what makes each of them ready."""
MASKED = (_prepare_hunyuan, _prepare_hunyuan_15, _prepare_mochi)
