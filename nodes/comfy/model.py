"""A MODEL with encoded layers, built beside the MODEL it was made from.

A quantized MODEL is a model of its own, not object patches on a shared one: the original keeps its weights and its place
in memory, while LoRAs, samplings and wrappers that were put on it carry over. Its linears are ComfyUI's own
mixed-precision ones with an encoded weight, so that offloading, dynamic VRAM and saving treat them as any other.
"""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management
import comfy.model_patcher
import comfy.quant_ops
import comfy.sd
import comfy.utils
import torch
from comfy.hooks import EnumHookMode
from comfy.patcher_extension import CallbacksMP, WrappersMP
from safetensors import safe_open

from ...kernels.transform import InputTransform, transform_weight
from ...sedialect_core.calibration.cache import CalibrationCache
from ...sedialect_core.calibration.capture import WEIGHT_ROWS, add_weight, spread_rows
from ...sedialect_core.checkpoint.record import RECORD, Record
from ...sedialect_core.config import SeDialectConfig
from ...sedialect_core.errors import ModelError
from ...sedialect_core.formatbook import Formatbook
from ...sedialect_core.formatbook.blocks import BlockSample
from ...sedialect_core.formatbook.fitting import fit_book
from ...sedialect_core.formatbook.matching import find_book, weights_digest
from ...sedialect_core.plan.advice import slower_than_possible
from ...sedialect_core.plan.layers import LayerPlan, Plan
from ...sedialect_core.plan.report import ModelReport, implementations, in_short, report_of
from ...sedialect_core.plan.rules import check_quantizes, make_plan, recorded_plan
from ...sedialect_core.quantize.checks import check_attention
from ...sedialect_core.quantize.products import check_products
from ...sedialect_core.quantize.weights import exponents_by_weights, groups_of
from . import layout
from .adapters import dense_layers
from .calibration import COMPONENT
from .checkpoints import COMFY_QUANT, SETTINGS, Checkpoint, settings_with
from .checks import KEY, check_groups, check_loaded, check_quantizable, check_weights, linear_types, told_by_comfyui
from .encoding import Watch, encode_or_reuse, interruptible
from .guides import attach, run_guided, tokens_of
from .linear import EncodedLinear, encoded_layers, operations, usable
from .merges import put_merges
from .patcher import hold_encoded
from .products import settle_products
from .sources import clone_around, own_weights, settle_sources


@dataclass(frozen=True)
class Quantized:
    """What is known of a quantized MODEL; travels with every clone of it."""

    plan: Plan
    record: Record
    bytes_before: int
    settings: str  # JSON for safetensors metadata, from which ComfyUI's detection takes what shapes do not tell


def quantized(patcher: Any) -> Quantized | None:
    """What is known of a MODEL of ours; None for others."""
    found: Quantized | None = patcher.get_attachment(KEY)
    return found


def quantize(
    patcher: Any,
    config: SeDialectConfig,
    book: Formatbook | None,
    watch: Watch,
    calibration: CalibrationCache | None = None,
    notes: tuple[str, ...] = (),
    decode: bool = False,
) -> Any:
    """A new MODEL, encoded layer by layer from `patcher`'s own weights, which are neither changed nor let go.

    Args:
        book: the formatbook, where it is not the one that `config` names.
        calibration: of this MODEL, by which weights are encoded.
        notes: what else the report is to say.
        decode: weights that another quantizer has stored are decoded first, and so rounded twice.

    Raises:
        InputError: the calibration is of another MODEL, or not finished.
        ConfigError: the GPU lacks the units that `products` names.
        ModelError: it is no video model, is quantized already, or something is fastened to its old layers.
        SeDialectError: settings, formatbook or weights are unusable.
    """
    check_quantizable(patcher, decode)
    network = patcher.model.diffusion_model
    check_groups(network, config)
    check_products(patcher.load_device, config.products)
    comfy.model_management.unload_model_and_clones(patcher)  # the shared model may hold another clone's merged LoRAs
    if calibration is not None:
        calibration.check_models({COMPONENT: network})
    check_attention(config)
    plan = make_plan(network, config, linear_types=linear_types(network))
    check_quantizes(plan)
    found: tuple[str, ...] = ()
    if book is None:
        book, _, found = find_book(network, config.formatbook, config.block_size)
    plan = replace(plan, config=config.override(formatbook=book.name), notes=(*notes, *plan.notes, *found))
    built_from = operations(patcher.model.get_dtype_inference())
    weights = own_weights(patcher)
    check_weights(weights, plan)
    plan, merged = put_merges(patcher, weights, settle_sources(patcher, weights, plan))
    plan = encode_or_reuse(patcher.model, weights, plan, book, watch, calibration, keep=not merged)
    plan = settle_products(plan, patcher.load_device, lambda layer: weights[f"{layer.name}.weight"])
    origin = _Origin(
        _copy_config(patcher.model.model_config, built_from),
        weights,
        plan,
        Record.of(plan, book),
        settings_with(_settings(patcher), plan.config),
        patcher.load_device,
        patcher.offload_device,
    )
    before = comfy.model_management.module_size(patcher.model)
    known = Quantized(plan, origin.record, before, origin.settings)
    new = clone_around(patcher, origin.model())
    new.patches = {key: patches for key, patches in new.patches.items() if key not in merged}
    return _adopt(new, known, (origin.patcher, ()))


def load(checkpoint: Checkpoint, config: SeDialectConfig, origin: tuple[Any, ...], disable_dynamic: bool = False) -> Any:
    """A MODEL from a checkpoint.

    Args:
        config: what it does with its tokens, and what its report says.
        origin: a function and arguments that load it again, for ComfyUI to call with `disable_dynamic`.

    Raises:
        ModelError: ComfyUI does not know the model, or tensors are missing or have the wrong shape.
    """
    weights, record, settings = {**checkpoint.tensors}, checkpoint.record, checkpoint.settings
    layout.wrap_all(weights, record)
    given = set(weights)
    dtype = torch.float32 if comfy.model_management.cpu_mode() else torch.bfloat16
    options = {"custom_operations": operations(dtype)}
    metadata = {"config": settings} if settings else None
    with told_by_comfyui(record):
        patcher = comfy.sd.load_diffusion_model_state_dict(weights, options, metadata, disable_dynamic=disable_dynamic)
    if patcher is None:
        raise ModelError(
            f"ComfyUI {_version()} does not recognise the model (written from a {record.model}); update ComfyUI, or load "
            "a file that was saved from the same kind of model"
        )
    network = patcher.model.diffusion_model
    check_loaded(network, record, given)
    check_groups(network, config)
    check_products(patcher.load_device, config.products)
    said = (record.block_size, record.precisions, record.rotations, record.equalized)
    plan = recorded_plan(network, config, *said, linear_types=linear_types(network))
    plan = settle_products(plan, patcher.load_device, lambda layer: network.get_submodule(layer.name).weight)
    settings = settings_with(settings or _settings(patcher), plan.config)
    _label(network, record, settings)
    attach(patcher.model, plan)
    unpacked = sum(weight.numel() * 2 if layout.is_encoded(weight) else weight.nbytes for weight in network.parameters())
    known = Quantized(plan, record, unpacked, settings)
    return _adopt(patcher, known, origin)


def tensors(patcher: Any) -> dict[str, torch.Tensor]:
    """What a checkpoint of a quantized MODEL holds, by ComfyUI's names; LoRAs on it are not part of it."""
    comfy.model_management.unload_model_and_clones(patcher)
    state = own_weights(patcher)
    return {key: value for key, value in state.items() if key not in (RECORD, SETTINGS) and not key.endswith(COMFY_QUANT)}


def read_tensors(path: str) -> dict[str, torch.Tensor]:
    """The tensors of a file as ComfyUI reads them, so that they may go from disk straight to the GPU."""
    state: dict[str, torch.Tensor] = comfy.utils.load_torch_file(path, safe_load=True)
    return state


def report(patcher: Any, known: Quantized) -> ModelReport:
    """The report of a quantized MODEL on the device where it will run."""
    tokens = tokens_of(patcher.model)
    seen = () if tokens is None else tokens.attention_seen()
    network = patcher.model.diffusion_model
    found = report_of("diffusion_model", network, known.plan, known.bytes_before, patcher.load_device, seen)
    after = comfy.model_management.module_size(patcher.model)
    return replace(found, bytes_after=after, implementation=implementations(patcher.load_device, known.plan))


def runs_on(patcher: Any) -> torch.device:
    """The device that a MODEL is loaded to when it runs."""
    device: torch.device = patcher.load_device
    return device


def summary(patcher: Any) -> str:
    """What was made of a quantized MODEL, in a few lines for its node: layers, memory, notes, and what makes it slow."""
    known = quantized(patcher)
    assert known is not None
    plan, after = known.plan, comfy.model_management.module_size(patcher.model)
    return "\n".join([in_short(plan, known.bytes_before, after), *plan.notes, *speed(patcher, known)])


def speed(patcher: Any, known: Quantized) -> list[str]:
    """What makes a quantized MODEL slower than it could be, and what to do; a line each."""
    why = slower_than_possible(patcher.load_device, known.plan.config)
    names = [f"diffusion_model.{layer.name}.weight" for layer in known.plan.quantized]
    if dense := dense_layers(patcher.patches, names):
        why.append(f"{dense} layers have a LoRA of another kind (DoRA, LoKr, ...), which takes each a 16-bit product more")
    return [f"speed: {one}" for one in why]


class RunSeen(NamedTuple):
    """What the last run of a MODEL showed: saliency [T, H, W] or None, what its numbers are or why there are none, notes."""

    values: torch.Tensor | None
    says: str
    notes: tuple[str, ...] = ()


def run_seen(patcher: Any, known: Quantized) -> RunSeen:
    """What the last run of a quantized MODEL showed."""
    tokens = tokens_of(patcher.model)
    if tokens is None:
        return RunSeen(None, "No tokens are told apart: salient_ratio is 0 and semantic is off.")
    notes = (f"  note: {tokens.unseen}",) if tokens.unseen else ()
    if tokens.map is None:
        idle = f"No run has shown any for this {known.plan.model} yet; connect the sampler's LATENT to samples."
        return RunSeen(None, idle, notes)
    return RunSeen(tokens.map.values, tokens.map.says, notes)


def dialect_use(patcher: Any, known: Quantized) -> list[int]:
    """Blocks of a quantized MODEL's weights that chose each dialect, in id order."""
    counts = torch.zeros(len(known.record.formatbook.dialects), dtype=torch.int64)
    for layer in encoded_layers(patcher.model.diffusion_model).values():
        chosen = layout.dialects(layer.weight).flatten().long().cpu()
        counts += torch.bincount(chosen, minlength=len(counts))
    return list(counts.tolist())


def fit(patcher: Any, block_size: int, watch: Watch) -> Formatbook:
    """A formatbook with the least error on rows of all weights that would be quantized.

    Raises:
        ModelError: the MODEL cannot be quantized.
    """
    check_quantizable(patcher)
    network = patcher.model.diffusion_model
    comfy.model_management.unload_model_and_clones(patcher)
    config = SeDialectConfig(block_size=block_size)
    layers = make_plan(network, config, linear_types=linear_types(network)).quantized
    start, sample, weights = Formatbook.builtin(), BlockSample(), own_weights(patcher)
    total = len(layers) + start.dialects[0].maximum - start.dialects[-1].maximum + 1

    def step(done: int) -> None:
        interruptible()
        watch(done, total)

    def weight_of(layer: LayerPlan) -> Any:
        return weights[f"{layer.name}.weight"]

    done = 0
    for group in groups_of(layers):
        transform = InputTransform(exponents_by_weights(group, weight_of))
        for layer in group:
            step(done)
            rows = transform_weight(spread_rows(weight_of(layer), WEIGHT_ROWS), transform)
            add_weight(sample, rows.float().cpu(), start.tables(), block_size)
            done += 1
    digest = weights_digest(network)
    name = f"{type(network).__name__}-{digest[:8]}-{block_size}"
    highest = start.dialects[0].maximum
    fitted = fit_book([sample], start, name=name, on_maximum=lambda maximum: step(len(layers) + highest - maximum + 1))
    return replace(fitted.book, fingerprint={"weights": digest, "block_size": str(block_size)})


@dataclass(frozen=True)
class _Origin:
    """All that a quantized model is built from; its tensors are those of the model, so that keeping it costs nothing."""

    config: Any
    weights: Mapping[str, Any]
    plan: Plan
    record: Record
    settings: str
    load_device: torch.device
    offload_device: torch.device

    def model(self) -> Any:
        """A model of ComfyUI's own class, around these tensors."""
        weights = {key: weight if layout.is_encoded(weight) else usable(weight) for key, weight in self.weights.items()}
        model = self.config.get_model(weights, "", device=self.offload_device)
        model.diffusion_model.load_state_dict(weights, strict=False, assign=True)
        _label(model.diffusion_model, self.record, self.settings)
        attach(model, self.plan)
        return model

    def patcher(self, disable_dynamic: bool = False) -> Any:
        """A new MODEL without patches: ComfyUI asks for one to compile it, or for another GPU."""
        cls = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
        return cls(self.model(), self.load_device, self.offload_device)


def _label(network: torch.nn.Module, record: Record, settings: str) -> None:
    """Put record and settings among the tensors: ComfyUI's own save node keeps no metadata, and so writes them too."""
    network.register_buffer(RECORD, record.to_tensor())
    network.register_buffer(SETTINGS, torch.tensor(list(settings.encode()), dtype=torch.uint8))


def _copy_config(config: Any, custom_operations: Any) -> Any:
    """A model's configuration with other operations. ComfyUI's class answers None to what `copy` asks, so by hand."""
    new = object.__new__(type(config))
    new.__dict__.update(config.__dict__)
    new.custom_operations = custom_operations
    if new.unet_config.get("dtype") in (torch.float8_e4m3fn, torch.float8_e5m2):  # of a source in FP8
        new.unet_config = {**new.unet_config, "dtype": custom_operations._compute_dtype}
    return new


def _adopt(patcher: Any, known: Quantized, origin: tuple[Any, ...]) -> Any:
    """Make a patcher of ours: its own line of clones, its size, and LoRAs that are kept beside encoded weights."""
    patcher.size, patcher.parent, patcher.clone_base_uuid = 0, None, uuid.uuid4()
    patcher.cached_patcher_init = origin
    patcher.set_attachments(KEY, known)
    patcher.hook_mode = EnumHookMode.MinVram  # the other mode keeps merged float weights, and has no place for them here
    hold_encoded(patcher)
    patcher.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, KEY)
    patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, run_guided)
    for event, callback in CALLBACKS.items():
        patcher.callbacks.get(event, {}).pop(KEY, None)
        patcher.add_callback_with_key(event, KEY, callback)
    return patcher


def _hand_out_patches(patcher: Any, *_: Any, hooked: Mapping[str, Any] | None = None) -> None:
    for name, layer in encoded_layers(patcher.model).items():
        key = f"{name}.weight"
        layer.patch_key, layer.patches = key, [*patcher.patches.get(key, ()), *(hooked or {}).get(key, ())]


def _hand_out_hooks(patcher: Any, hooks: Any) -> None:
    """LoRAs that come and go with the conditioning or the step."""
    _hand_out_patches(patcher, hooked=patcher.get_combined_hook_patches(hooks))


def _take_back_patches(patcher: Any, unpatch_all: bool) -> None:
    for module in patcher.model.modules() if unpatch_all else ():
        if isinstance(module, EncodedLinear):
            module.patches = []


def _begin_run(patcher: Any) -> None:
    """A sampler call begins; the one before it may have been broken off."""
    if (tokens := tokens_of(patcher.model)) is not None:
        tokens.restart()


def _end_run(patcher: Any) -> None:
    if (tokens := tokens_of(patcher.model)) is not None:
        tokens.finish()


CALLBACKS = {
    CallbacksMP.ON_PRE_RUN: _begin_run,
    CallbacksMP.ON_CLEANUP: _end_run,
    CallbacksMP.ON_LOAD: _hand_out_patches,
    CallbacksMP.ON_APPLY_HOOKS: _hand_out_hooks,
    CallbacksMP.ON_DETACH: _take_back_patches,
    CallbacksMP.ON_CLONE: hold_encoded,
}


def _settings(patcher: Any) -> str:
    """The metadata entry `config`: what the source file said, and the plain values that the network was built with."""
    built = {key: value for key, value in patcher.model.model_config.unet_config.items() if _plain(key, value)}
    init = patcher.cached_patcher_init
    path = init[1][0] if init is not None and init[1] and isinstance(init[1][0], str) else ""
    said: Any = {}
    if path.endswith(".safetensors") and Path(path).is_file():
        with safe_open(path, framework="pt") as opened:
            said = json.loads((opened.metadata() or {}).get("config", "{}")).get("transformer", {})
    return json.dumps({"transformer": {**said, **built}})


def _plain(key: str, value: Any) -> bool:
    return key not in ("image_model", "dtype") and isinstance(value, bool | int | float | str)


def _version() -> str:
    from comfyui_version import __version__

    return str(__version__)
