"""A MODEL's weights, encoded layer by layer, and kept for the run after: it may ask for the same ones again.

A LoRA before SeDialect Quantize, or a setting of what layers do while they run, makes ComfyUI run that node anew, but the
codes are those of the same 16-bit weights. They are kept as long as the 16-bit model is, one set for each node: the tensors
are those of the quantized MODEL, so that they take no memory of their own while that is there.
"""

import json
import weakref
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import comfy.model_management
import torch

from ...sedialect_core.calibration.cache import CalibrationCache
from ...sedialect_core.config import SeDialectConfig
from ...sedialect_core.formatbook import Formatbook
from ...sedialect_core.formatbook.matching import weights_digest
from ...sedialect_core.plan.layers import LayerPlan, Plan
from ...sedialect_core.quantize.weights import WeightEncoder, groups_of
from ...sedialect_core.settings import LIVE
from . import layout, text
from .calibration import COMPONENT
from .memory import give_back_when_gone

ENCODING_BYTES = 2 << 30  # what encoding one layer may take on the device
MOMENT_BYTES = 48  # and, with a calibration, for each element of its inputs' moment: factored in float64
MOST = 4  # nodes whose codes are kept at once
KEPT_NOTE = "the encoded weights of the run before are used again: only LoRAs or what layers do at run time has changed"
Watch = Callable[[int, int], None]  # told how many weights are done, of how many


@dataclass(frozen=True)
class _Kept:
    """Codes of one 16-bit model. `key` is what they were made from, `outcome` what encoding decided, by the layer's name."""

    source: "weakref.ref[Any]"
    key: str
    weights: Mapping[str, Any]
    outcome: Mapping[str, Mapping[str, Any]]


_KEPT: dict[str, _Kept] = {}


def interruptible() -> None:
    """Raise if the user has cancelled the run."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def encode_or_reuse(
    model: Any,
    weights: dict[str, Any],
    plan: Plan,
    book: Formatbook,
    watch: Watch,
    calibration: CalibrationCache | None,
    keep: bool = True,
) -> Plan:
    """Replace each planned weight in the dictionary; the tensors themselves stay as they are. Gives the plan as it was
    carried out. What was kept for the node that runs goes as soon as it asks for something else.

    Args:
        model: the 16-bit model of ComfyUI's that the weights are of.
        keep: whether they are its own, so that the run after may ask for their codes.
    """
    give_back_when_gone(model)
    node, key = text.running_node(), _key(model, plan.config, book, calibration)
    found = next((kept for kept in _KEPT.values() if keep and kept.source() is model and kept.key == key), None)
    if found is None:
        _KEPT.pop(node, None)
        done = encode_weights(weights, plan, book, watch, calibration)
        found = _Kept(weakref.ref(model, _forget), key, _planned(weights, plan), done)
        notes = plan.notes
    else:
        watch(1, 1)
        weights |= {name: layout.rewrapped(weight) for name, weight in found.weights.items()}
        notes = (*plan.notes, KEPT_NOTE)
    _KEPT.pop(node, None)
    if keep:
        _KEPT[node] = found
    for oldest in list(_KEPT)[:-MOST]:
        del _KEPT[oldest]
    notes = notes if calibration is None else (*notes, calibration.describe())
    return replace(plan, layers=tuple(replace(one, **found.outcome.get(one.name, {})) for one in plan.layers), notes=notes)


def kept_bytes() -> list[int]:
    """What the codes of each node take that are kept."""
    return [sum(layout.stored_bytes(weight) for weight in kept.weights.values()) for kept in list(_KEPT.values())]


def _forget(source: "weakref.ref[Any]") -> None:
    """The 16-bit model is gone, and with it whoever could ask for its codes."""
    for node in [node for node, kept in list(_KEPT.items()) if kept.source is source]:
        _KEPT.pop(node, None)


def _planned(weights: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """The codes, in objects of their own: the MODEL's are told which units multiply them."""
    names = [f"{layer.name}.weight" for layer in plan.quantized]
    return {name: layout.rewrapped(weights[name]) for name in names}


def _key(model: Any, config: SeDialectConfig, book: Formatbook, calibration: CalibrationCache | None) -> str:
    """Everything that codes depend on."""
    settings = {name: value for name, value in asdict(config).items() if name not in (*LIVE, "formatbook")}
    calibrated = None if calibration is None else [str(calibration.folder), dict(calibration.fingerprint)]
    return json.dumps([weights_digest(model.diffusion_model), settings, book.digest, calibrated], sort_keys=True)


def encode_weights(
    weights: dict[str, Any], plan: Plan, book: Formatbook, watch: Watch, calibration: CalibrationCache | None
) -> dict[str, Mapping[str, Any]]:
    """Encode each planned weight in the dictionary, one layer at a time; what that decided, by the layer's name."""
    device = comfy.model_management.get_torch_device()
    widest = max(layer.in_features for layer in plan.quantized) if calibration is not None else 0
    comfy.model_management.free_memory(ENCODING_BYTES + MOMENT_BYTES * widest**2, device)
    known = None if calibration is None else calibration.component(COMPONENT)
    encoder = WeightEncoder(book, plan.config.candidates, known)
    total, done, outcome = sum(layer.weights for layer in plan.quantized), 0, dict[str, Mapping[str, Any]]()

    def weight_of(layer: LayerPlan) -> Any:
        interruptible()
        return weights[f"{layer.name}.weight"].to(device)

    for group in groups_of(plan.quantized):
        with torch.inference_mode(False), torch.no_grad():  # a node runs in that mode, whose tensors no LoRA is trained over
            made = [
                (layer, encoded.to(weights[f"{layer.name}.weight"].device).stored)
                for layer, encoded in encoder.encode(group, weight_of)
            ]
        for layer, stored in made:
            before = weights[f"{layer.name}.weight"]
            settings = {"precision": layer.precision, "candidates": plan.config.candidates, "rotation": layer.rotation}
            parts, settings["equalizer"] = [stored[suffix] for suffix in layout.SUFFIXES], stored.get(layout.EQUALIZER)
            weights[f"{layer.name}.weight"] = layout.wrap(*parts, before.dtype, book=book, **settings)
            outcome[layer.name] = layer.outcome
            done += layer.weights
            watch(done, total)
    return outcome
