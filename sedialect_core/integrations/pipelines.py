"""The methods that every diffusers pipeline gains: `enable_sedialect`, `disable_sedialect`, `sedialect_report`.

Plain functions of a pipeline; `registration` puts them on diffusers' `DiffusionPipeline` and `ModularPipeline`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..config import SeDialectConfig
from ..errors import ModelError
from ..inspection import is_text_model
from ..inspection.denoisers import denoisers as denoisers
from ..inspection.encoders import encoders
from ..linear import SeDialectLinear, has_quantized_layers
from ..plan.layers import Plan
from ..plan.report import ModelReport, model_bytes, report_of
from ..progress import Watch
from ..quantize.apply import prepare, quantize_layers, set_submodule
from ..quantize.checks import check_attends, check_ready, check_restorable
from ..quantize.unfinished import unfinished, whole_again
from .fitting import choose, place, tell, uncompile
from .lora import fused_into_codes
from .models import mark_with_quantizer
from .semantics import attention_seen, follow, reguide
from .state import Enabled, mark_plain

if TYPE_CHECKING:
    from ..calibration.cache import CalibrationCache
    from ..video.sampling import Request

FITTED = "_sedialect_fit"  # on a pipeline, for what was chosen
TEXT = "text"  # a calibration of the text encoders alone
ORIGINAL = "_sedialect_original"  # on a layer, for its 16-bit predecessor


def enable_sedialect(
    pipe: Any,
    config: SeDialectConfig | None = None,
    *,
    preset: str | None = None,
    text_encoder: bool | str | Sequence[str] | None = None,
    fit: str | float | None = None,
    video: Mapping[str, int] | None = None,
    compile: bool = True,
    calibration: "CalibrationCache | str | Path | Sequence[str | Request] | None" = None,
    keep_original: bool = False,
    progress: bool | Watch = True,
    **overrides: Any,
) -> Any:
    """Quantize the pipeline's video transformers in place, both of Wan 2.2 included; text encoders on request, weights
    only. Returns the pipeline.

    With `precision="16bit"` and an `attention` no layer is touched, and only attention changes, in quantized models, too.

    Args:
        config: the settings; or name a `preset`; either can be changed by `overrides`, such as `block_size=32`.
        text_encoder: True quantizes all text encoders as well, a name or several those; transformers that sedialect has
            quantized already stay as they are then, if nothing else is asked for. None: no, or as `fit` needs it.
        fit: memory of a card, as it is sold: "12GB". Chooses the preset if none is named, whether text encoders are
            quantized, where models lie, whether blocks are compiled and whether the VAE decodes in tiles, so that everything
            fits; says what and why on stderr and in the report, and places the models. Call it on a pipeline that is not
            offloaded.
        video: `height`, `width`, `num_frames` that `fit` counts memory for; else what is usual for the model.
        compile: whether `fit` may compile the transformers' blocks where they fit only then.
        calibration: encode the weights so that their errors cancel in what the layers give: "self" to run a few bundled
            prompts first, or prompts of your own, or what `sedialect.calibrate` gave, or the folder that it wrote.
            "glance": run one prompt in a few steps, and only equalize layers by the size of the channels that they read.
            Text encoders read a few hundred sentences; "text": they alone.
        keep_original: keep the 16-bit layers in CPU memory, so that `disable_sedialect` can put them back.
        progress: show progress bars on stderr, or tell a watch.

    Raises:
        ConfigError: an unknown preset, setting or value.
        ModelError: the pipeline has no transformer, or is in a state that quantizing would break, or nothing fits; the
            message says how to mend it. No model has been changed then.
        InputError: the calibration is of another model, not finished, or failed. No model has been changed then.

    Example:
        >>> pipe.enable_sedialect(preset="quality", keep_original=True)
        >>> pipe.enable_sedialect(calibration="self", rotation=64)
        >>> pipe.enable_sedialect(text_encoder=True, calibration="text")
        >>> pipe.enable_sedialect(fit="12GB")
        >>> pipe.enable_sedialect(precision="16bit", attention="8bit")
    """
    if config is not None and preset is not None:
        raise ModelError("pass either a config or a preset, not both")
    asked = config is not None or preset is not None or bool(overrides)
    settings = (config or SeDialectConfig.preset(preset or "default")).override(**overrides)
    if fit is not None:
        chosen = settings if asked else None
        return _fit(pipe, fit, video, compile, chosen, text_encoder, calibration, keep_original, progress)
    keep = bool(text_encoder) and not asked and (calibration is None or _is_text(calibration))
    return _enable_all(pipe, settings, keep, text_encoder or False, calibration, keep_original, progress)


def _fit(
    pipe: Any,
    fit: str | float,
    video: Mapping[str, int] | None,
    compiling: bool,
    config: SeDialectConfig | None,
    text_encoder: bool | str | Sequence[str] | None,
    calibration: Any,
    keep_original: bool,
    progress: bool | Watch,
) -> Any:
    """Choose, quantize and place."""
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    encoder = None if text_encoder is None else bool(text_encoder)
    choice = choose(pipe, fit, config, video=video, encoder=encoder, device=device, compiling=compiling)
    texts = text_encoder if isinstance(text_encoder, str | Sequence) else choice.option.encoder
    open_texts = [name for name, part in encoders(pipe, texts).items() if not has_quantized_layers(part)]
    if open_texts or not all(map(has_quantized_layers, denoisers(pipe).values())):
        _enable_all(pipe, choice.option.config, True, open_texts, calibration, keep_original, progress)
    if device.type == "cuda":
        place(pipe, choice, device)
    else:
        told = "this machine has no CUDA GPU, so that nothing was moved or compiled"
        choice = replace(choice, notes=(*choice.notes, told))
    if progress:
        tell(choice)
    pipe.__dict__[FITTED] = choice
    return pipe


def _enable_all(
    pipe: Any,
    config: SeDialectConfig,
    keep: bool,
    text_encoder: bool | str | Sequence[str],
    calibration: Any,
    keep_original: bool,
    progress: bool | Watch,
) -> Any:
    """Quantize what is asked for; `keep`: transformers that are quantized already stay as they are."""
    texts = encoders(pipe, text_encoder)
    models = {name: model for name, model in denoisers(pipe).items() if not (keep and has_quantized_layers(model))}
    for name, model in models.items():
        (check_attends if config.attention_alone else check_ready)(name, model)
    for name, model in texts.items():
        check_ready(name, model)
    plans = {name: _prepared(model, config) for name, model in (models | texts).items()}
    caches = _calibrations(pipe, calibration, config, progress, list(models), texts)
    enabled: list[nn.Module] = []
    try:
        for name, model in models.items():
            plan = plans[name]
            if plan is None:
                reguide(model, attention=config.attention)
            else:
                _enable(name, model, plan, keep_original, progress, caches.get(name))
                enabled.append(model)
            follow(pipe, model)
        for name, model in texts.items():
            plan = plans[name]
            assert plan is not None
            _enable(name, model, plan, keep_original, progress, caches.get(name))
            enabled.append(model)
    except BaseException:  # such as a watch's wish to stop: with the originals at hand, nothing stays half done
        for model in enabled if keep_original else ():
            _disable(model)
        raise
    return pipe


def _prepared(model: nn.Module, config: SeDialectConfig) -> Plan | None:
    """Its plan, so that what is wrong with one model is found before another is changed; None where only the attention of a
    quantized model is to change."""
    if config.attention_alone and getattr(model, "is_quantized", False) and hasattr(model, "_sedialect"):
        return None
    return prepare(model, config)


def _calibrations(
    pipe: Any, given: Any, config: SeDialectConfig, progress: bool | Watch, names: Sequence[str], texts: dict[str, nn.Module]
) -> "dict[str, CalibrationCache]":
    """The calibration of each component that has one."""
    if given is None:
        return {}
    found: dict[str, CalibrationCache] = {}
    if not _is_text(given):
        from ..calibration.moments import calibration_of

        found |= dict.fromkeys(names, calibration_of(pipe, given, config, progress))
    elif not texts:
        raise ModelError(f"calibration={TEXT!r} is for text encoders, and none is asked for; add text_encoder=True")
    if texts:
        from ..calibration.texts import calibrate_texts, tokenizers_of

        watch = progress if isinstance(progress, Watch) else None
        read = tokenizers_of(pipe, list(texts))
        found |= dict.fromkeys(texts, calibrate_texts(texts, read, config, progress=progress is True, watch=watch))
    return found


def _is_text(calibration: Any) -> bool:
    return isinstance(calibration, str) and calibration == TEXT


def disable_sedialect(pipe: Any) -> Any:
    """Put the original layers back, bit for bit. Returns the pipeline.

    Raises:
        ModelError: the pipeline is not enabled, or was enabled without `keep_original=True`, or is offloaded layer by
            layer, or has LoRAs fused. No model has been changed then.
    """
    states = {name: (model, _state(name, model)) for name, model in _enabled(pipe).items()}
    for name, (model, state) in states.items():
        if state.loaded:
            raise ModelError(f"{name} was quantized when it was loaded; load the 16-bit model, or call {name}.dequantize()")
        if not state.keeps_originals:
            raise ModelError(f"{name} kept no 16-bit layers; load it again, or enable with keep_original=True next time")
        check_restorable(name, model)
        if fused := fused_into_codes(model):
            raise ModelError(f"{name} has LoRA {', '.join(fused)} fused into its codes; call pipe.unfuse_lora() first")
    for model, _ in states.values():
        _disable(model)
    pipe.__dict__.pop(FITTED, None)
    return pipe


def sedialect_report(pipe: Any) -> "PipelineReport":
    """Layers, bits, memory and the implementation that runs, for each transformer and quantized text encoder. Print it.

    Raises:
        ModelError: the pipeline is not enabled.
    """
    found = _enabled(pipe).items()
    states = ((name, model, _state(name, model)) for name, model in found)
    runs_on = getattr(pipe, "_execution_device", None)
    return PipelineReport(
        tuple(
            report_of(name, model, state.plan, state.bytes_before, runs_on, attention_seen(model))
            for name, model, state in states
        ),
        str(pipe.__dict__.get(FITTED, "")),
    )


@dataclass(frozen=True)
class PipelineReport:
    """One `ModelReport` for each transformer and quantized text encoder of a pipeline."""

    models: tuple[ModelReport, ...]
    fit: str = ""
    """What `fit` chose, and why."""

    def __str__(self) -> str:
        return "\n\n".join([*([self.fit] if self.fit else []), *map(str, self.models)])


def _enable(
    component: str,
    model: nn.Module,
    plan: Plan,
    keep_original: bool,
    progress: bool | Watch,
    cache: "CalibrationCache | None",
) -> None:
    before = model_bytes(model)
    named: dict[str, nn.Linear] = {}
    keep = named.__setitem__ if keep_original else None
    calibration = None if cache is None else cache.component(component)
    try:
        plan = quantize_layers(model, plan=plan, progress=progress, keep=keep, calibration=calibration)
    except BaseException:
        for name, linear in named.items():
            set_submodule(model, name, linear)
        if named:
            whole_again(model)
        raise
    if cache is not None:
        plan = replace(plan, notes=(*plan.notes, cache.describe()))
    for name, linear in named.items():
        # By layer rather than by name: loading or unloading a LoRA renames them. In __dict__, past torch's bookkeeping: no
        # child of the layer, which would be moved, saved and counted with it, but copied and pickled with it all the same.
        model.get_submodule(name).__dict__[ORIGINAL] = linear.to("cpu")
    mark_with_quantizer(model, Enabled(plan, before, keep_original))


def _disable(model: nn.Module) -> None:
    for name, layer in list(model.named_modules()):
        if isinstance(layer, SeDialectLinear):
            set_submodule(model, name, layer.__dict__[ORIGINAL].to(layer.weight.device))
    uncompile(model)
    mark_plain(model)


def _enabled(pipe: Any) -> dict[str, nn.Module]:
    """The transformers, and the models of the transformers library that are quantized."""
    components: dict[str, Any] = pipe.components
    return denoisers(pipe) | {
        name: part
        for name, part in components.items()
        if isinstance(part, nn.Module) and is_text_model(part) and isinstance(getattr(part, "_sedialect", None), Enabled)
    }


def _state(name: str, model: nn.Module) -> Enabled:
    if found := unfinished(model):
        raise ModelError(f"{name} {found[0]}; {found[1]}")
    state = getattr(model, "_sedialect", None)
    if not isinstance(state, Enabled):
        raise ModelError(f"{name} is not quantized by sedialect; call pipe.enable_sedialect() first")
    return state
