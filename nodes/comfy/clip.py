"""A CLIP whose text encoders have encoded weights, built beside the CLIP it was made from.

ComfyUI makes text encoders from many classes, each with arguments of its own. So the new one is a copy of the old one's
modules around the same tensors, in which linears give way to encoded ones; LoRAs are kept beside those, as in a MODEL.
"""

import copy
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import comfy.sd
import torch
from comfy.hooks import EnumHookMode
from comfy.patcher_extension import CallbacksMP

from ...sedialect_core.checkpoint.record import Record
from ...sedialect_core.config import SeDialectConfig
from ...sedialect_core.errors import ModelError
from ...sedialect_core.formatbook import Formatbook
from ...sedialect_core.formatbook.matching import find_book
from ...sedialect_core.plan.layers import Plan
from ...sedialect_core.plan.report import ModelReport, implementations, in_short, report_of
from ...sedialect_core.plan.text_models import text_plan, weights_only
from ...sedialect_core.quantize.apply import set_submodule
from ...sedialect_core.quantize.weights import WeightEncoder, groups_of
from . import layout
from .checkpoints import COMFY_QUANT, Checkpoint
from .checks import KEY, check_weights, linear_types
from .encoding import ENCODING_BYTES, Watch, interruptible
from .linear import EncodedLinear, operations
from .model import CALLBACKS
from .patcher import hold_encoded
from .sources import foreign_kind

INNER = "transformer."  # between a text encoder's name and its layers', which files leave out
FOLLOWED = (CallbacksMP.ON_LOAD, CallbacksMP.ON_APPLY_HOOKS, CallbacksMP.ON_DETACH, CallbacksMP.ON_CLONE)


@dataclass(frozen=True)
class QuantizedCLIP:
    """What is known of a quantized CLIP; travels with every clone of it."""

    plan: Plan
    record: Record
    bytes_before: int


def quantized_clip(clip: Any) -> QuantizedCLIP | None:
    """What is known of a CLIP of ours; None for others."""
    found: QuantizedCLIP | None = clip.patcher.get_attachment(KEY)
    return found


def quantize_clip(clip: Any, config: SeDialectConfig, book: Formatbook | None, watch: Watch) -> Any:
    """A new CLIP, encoded layer by layer from `clip`'s own weights, which are neither changed nor let go.

    Args:
        config: of which activations, tokens and steps do not count: weights alone are quantized.
        book: the formatbook, where it is not the one that `config` names.

    Raises:
        ModelError: it is quantized already, or holds nothing that can be quantized.
        SeDialectError: settings, formatbook or weights are unusable.
    """
    _check(clip)
    comfy.model_management.unload_model_and_clones(clip.patcher)  # the shared model may hold another clone's merged LoRAs
    network = clip.cond_stage_model
    plan = text_plan(network, weights_only(config), linear_types(network))
    notes: tuple[str, ...] = ()
    if book is None:
        book, _, notes = find_book(network, config.formatbook, config.block_size)
    plan = replace(plan, config=plan.config.override(formatbook=book.name), notes=(*plan.notes, *notes))
    check_weights(dict(network.state_dict()), plan)
    before = comfy.model_management.module_size(network)
    new, plan = _encoded_copy(network, plan, book, watch)
    known = QuantizedCLIP(plan, Record.of(plan, book), before)
    origin = (_rebuilt, (new, clip.patcher.load_device, clip.patcher.offload_device))
    return _adopt(clip, new, known, origin)


def load_clip(
    checkpoints: list[Checkpoint],
    kind: str,
    origin: tuple[Any, ...],
    embeddings: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """A CLIP from checkpoints, one for each text encoder.

    Args:
        kind: of ComfyUI's types of CLIP, as its own loader has them: "wan", "ltxv", "hunyuan_video" …
        origin: a function and arguments that load it again, for ComfyUI to call with `disable_dynamic`.
        options: of ComfyUI's, beside ours.

    Raises:
        ModelError: ComfyUI does not know the type or the encoders, or layers of the files are not in them.
    """
    known_kind = getattr(comfy.sd.CLIPType, kind.upper(), None)
    if known_kind is None:
        raise ModelError(f"this ComfyUI has no CLIP of the type {kind!r}; choose another one, or update ComfyUI")
    states, records = [], []
    for checkpoint in checkpoints:
        weights = {**checkpoint.tensors}
        layout.wrap_all(weights, checkpoint.record)
        states.append(weights)
        records.append(checkpoint.record)
    made = {"custom_operations": operations(torch.float32), **(options or {})}
    clip = comfy.sd.load_text_encoder_state_dicts(
        states, embedding_directory=embeddings, clip_type=known_kind, model_options=made
    )
    network = clip.cond_stage_model
    record = _joined(network, records)
    given = weights_only(SeDialectConfig(block_size=record.block_size, formatbook=record.formatbook.name))
    plan = _recorded(text_plan(network, given, linear_types(network)), record)
    unpacked = sum(weight.numel() * 2 if layout.is_encoded(weight) else weight.nbytes for weight in network.parameters())
    return _adopt(clip, network, QuantizedCLIP(plan, record, unpacked), origin, fresh=True)


def checkpoints_of(clip: Any, known: QuantizedCLIP) -> dict[str, Checkpoint]:
    """What files of a quantized CLIP hold, one for each text encoder, by its name; LoRAs on it are not part of them."""
    comfy.model_management.unload_model_and_clones(clip.patcher)
    state = {key: value for key, value in clip.cond_stage_model.state_dict().items() if not key.endswith(COMFY_QUANT)}
    tokenizer = {key: value for key, value in clip.tokenizer.state_dict().items() if isinstance(value, torch.Tensor)}
    found = {}
    for prefix in _encoders(clip.cond_stage_model):

        def short(name: str, prefix: str = prefix) -> str:
            return name.removeprefix(prefix).removeprefix(INNER)

        tensors = {short(key): value for key, value in state.items() if key.startswith(prefix)}
        layers = {name for name in known.record.precisions if name.startswith(prefix)}
        if layers:
            record = known.record.of_layers(layers).renamed(short)
            found[prefix.rstrip(".")] = Checkpoint({**tensors, **tokenizer}, record, "")
    return found


def report_clip(clip: Any, known: QuantizedCLIP) -> ModelReport:
    """The report of a quantized CLIP on the device where it will run."""
    found = report_of("text encoder", clip.cond_stage_model, known.plan, known.bytes_before, clip.patcher.load_device)
    after = comfy.model_management.module_size(clip.cond_stage_model)
    return replace(found, bytes_after=after, implementation=implementations(clip.patcher.load_device, known.plan))


def summary_clip(clip: Any) -> str:
    """What was made of a quantized CLIP, in a few lines for its node."""
    known = quantized_clip(clip)
    assert known is not None
    after = comfy.model_management.module_size(clip.cond_stage_model)
    return "\n".join([in_short(known.plan, known.bytes_before, after), *known.plan.notes])


def _check(clip: Any) -> None:
    if clip is None:
        raise ModelError("the CLIP is missing: the checkpoint holds no text encoder; load one with Load CLIP")
    name = type(clip.cond_stage_model).__name__
    if clip.patcher.get_attachment(KEY) is not None:
        raise ModelError(f"this {name} is quantized by SeDialect already; connect the 16-bit CLIP, or leave this node out")
    foreign = next((kind for kind in map(foreign_kind, clip.cond_stage_model.modules()) if kind), None)
    if foreign is not None:
        raise ModelError(f"this {name} is quantized already ({foreign}); load the 16-bit text encoder instead")


def _encoded_copy(network: Any, plan: Plan, book: Formatbook, watch: Watch) -> tuple[Any, Plan]:
    """The network's modules around its own tensors, the planned layers encoded; and the plan as it was carried out."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    new = copy.deepcopy(network, shared)
    linear = operations(torch.float32).Linear
    device = comfy.model_management.get_torch_device()
    comfy.model_management.free_memory(ENCODING_BYTES, device)
    encoder = WeightEncoder(book, plan.config.candidates)
    total, done = sum(layer.weights for layer in plan.quantized), {}
    for group in groups_of(plan.quantized):

        def weight_of(layer: Any) -> torch.Tensor:
            interruptible()
            weight: torch.Tensor = network.get_submodule(layer.name).weight.detach().to(device)
            return weight

        for layer, encoded in encoder.encode(group, weight_of):
            old = network.get_submodule(layer.name)
            stored = encoded.to(old.weight.device).stored
            parts = [stored[suffix] for suffix in layout.SUFFIXES]
            settings = {"precision": layer.precision, "candidates": plan.config.candidates, "rotation": layer.rotation}
            settings["equalizer"] = stored.get(layout.EQUALIZER)
            state = {"weight": layout.wrap(*parts, old.weight.dtype, book=book, **settings)}
            if old.bias is not None:
                state["bias"] = old.bias
            set_submodule(new, layer.name, _layer(linear, old, state))
            done[layer.name] = layer
            watch(sum(one.weights for one in done.values()), total)
    return new, replace(plan, layers=tuple(done.get(layer.name, layer) for layer in plan.layers))


def _layer(linear: Any, old: Any, state: dict[str, Any]) -> Any:
    """A layer of ComfyUI's with an encoded weight, and the bias of the one that it stands for."""
    shape = (old.in_features, old.out_features, "bias" in state)
    made = linear(*shape, device=old.weight.device, dtype=old.weight.dtype)
    made.load_state_dict(state, strict=False, assign=True)
    return made.train(old.training).requires_grad_(False)


def _encoders(network: Any) -> list[str]:
    """Names of the text encoders in a CLIP, each with a dot behind it; "" for one that is no part of another module."""
    inside = [f"{name}." for name, part in network.named_children() if hasattr(part, "transformer")]
    return inside or [""]


def _joined(network: Any, records: list[Record]) -> Record:
    """One record for a CLIP, by its own names, from those of its files."""
    modules = dict(network.named_modules())
    precisions, rotations, equalized = {}, {}, {}
    if len({(record.block_size, record.formatbook.digest) for record in records}) > 1:
        raise ModelError("the files were quantized with different block sizes or formatbooks; save both from one CLIP")
    for record in records:
        prefix = next((p + INNER for p in _encoders(network) if _holds(modules, p + INNER, record)), None)
        if prefix is None:
            first = next(iter(record.precisions))
            raise ModelError(
                f"the file lists the layer {first!r}, which {type(network).__name__} does not have encoded; choose another "
                "type of CLIP"
            )
        precisions |= {prefix + name: value for name, value in record.precisions.items()}
        rotations |= {prefix + name: value for name, value in record.rotations.items()}
        equalized |= {prefix + name: value for name, value in record.equalized.items()}
    return Record(type(network).__name__, records[0].block_size, records[0].formatbook, precisions, rotations, equalized)


def _holds(modules: Mapping[str, Any], prefix: str, record: Record) -> bool:
    """Whether all layers of a record are encoded ones below this name."""
    found = (modules.get(prefix + name) for name in record.precisions)
    return all(isinstance(layer, EncodedLinear) and layer.encoded for layer in found)


def _recorded(plan: Plan, record: Record) -> Plan:
    """The plan as the file has it."""
    layers = tuple(
        replace(
            layer,
            precision=record.precisions.get(layer.name),
            block_size=record.block_size if layer.name in record.precisions else None,
            equalized=record.equalized.get(layer.name, ""),
            rotation=record.rotations.get(layer.name, 0),
        )
        for layer in plan.layers
    )
    return replace(plan, layers=layers)


def _rebuilt(network: Any, load_device: Any, offload_device: Any, disable_dynamic: bool = False) -> Any:
    """A patcher around a fresh copy of the modules: ComfyUI asks for one to compile it, or for another GPU."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    cls = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    return cls(copy.deepcopy(network, shared), load_device, offload_device)


def _adopt(clip: Any, network: Any, known: QuantizedCLIP, origin: tuple[Any, ...], fresh: bool = False) -> Any:
    """A CLIP of ours around `network`: its own line of clones, and LoRAs that are kept beside encoded weights."""
    new = clip if fresh else clip.clone()
    if not fresh:
        comfy.model_management.archive_model_dtypes(network)
        new.cond_stage_model = network
        new.patcher = clip.patcher.clone(model_override=(network, ({}, {}, {}, set())))
    patcher = new.patcher
    patcher.size, patcher.parent, patcher.clone_base_uuid = 0, None, uuid.uuid4()
    patcher.cached_patcher_init = origin
    patcher.set_attachments(KEY, known)
    patcher.hook_mode = EnumHookMode.MinVram
    hold_encoded(patcher)
    for event in FOLLOWED:
        patcher.callbacks.get(event, {}).pop(KEY, None)
        patcher.add_callback_with_key(event, KEY, CALLBACKS[event])
    return new
