"""A pipeline of vLLM-Omni's whose folders are quantized: which of its layers are, and with what.

Done once the classes are made and before the first weight is read: the files are looked into as diffusers' loader has it, a
model of diffusers without weights tells what each layer is for, and each layer gets its parameters.
"""

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from ..checkpoint.format import EQUALIZER, RECORD, Contents, check_contents, check_settings, read_contents, read_headers
from ..checkpoint.integrity import DigestCheck
from ..checkpoint.skeleton import skeleton
from ..codec import EncodedTensor
from ..config import SeDialectConfig
from ..errors import InputError, ModelError
from ..linear import Guide, SeDialectLinear
from ..plan.layers import LayerPlan, Plan
from ..plan.rules import recorded_plan
from ..plan.tokens import is_guided
from ..quantize.products import check_products, with_losses
from ..quantize.readers import readers
from ..quantize.units import compare_units
from ..semantics.guides import is_told
from ..semantics.shard import Shard
from ..shared_input import share_inputs
from ..storage.reading import read_object
from .joined import Joined, join, saved_names
from .linear_method import SeDialectLinearMethod
from .row_guides import check_served, guide_of, served_with, shard_of_group

METHOD = "sedialect"


@dataclass(frozen=True)
class Processes:
    """Among which a model is spread: those that have parts of its weights, and those that have parts of a sequence."""

    columns: Shard | None = None
    tokens: Shard | None = None

    @classmethod
    def of_vllm(cls) -> "Processes":
        """The groups that vLLM-Omni has made."""
        from vllm.distributed import get_tp_group
        from vllm_omni.diffusion.distributed.parallel_state import get_sp_group

        return cls(shard_of_group(get_tp_group()), shard_of_group(get_sp_group()))


@dataclass
class Served:
    """One transformer, and what is left to do when its weights are there."""

    component: nn.Module
    plan: Plan
    methods: dict[str, SeDialectLinearMethod]
    """By the engine's names."""
    digests: DigestCheck
    finished: bool = field(default=False)

    def finish(self, device: torch.device) -> None:
        """Compare the digests, choose matrix units, and let layers of one input share its encoding; once.

        Raises:
            InputError: a tensor is not the one that was written.
            ConfigError: the device lacks the units that `products` names.
        """
        if self.finished:
            return
        self.finished = True
        self.component._parameters.pop(RECORD, None)
        self.digests.finish()
        products = self.plan.config.products
        check_products(device, products)
        compare_units(device, products)
        parts = dict(self._parts())
        self.plan = with_losses(self.plan, lambda entry: parts[entry.name].rounding_loss if entry.name in parts else 0.0)
        now = {entry.name: entry for entry in self.plan.quantized}
        made: list[tuple[LayerPlan, SeDialectLinear]] = []
        for joined, linear in self._linears():
            entry = now[joined.first.name]
            linear.products = self.plan.products_of(entry)
            made.append((entry, linear))
        share_inputs(readers(made))

    def _linears(self) -> Iterator[tuple[Joined, SeDialectLinear]]:
        for method in self.methods.values():
            assert method.linear is not None and method.joined is not None
            yield method.joined, method.linear

    def _parts(self) -> Iterator[tuple[str, EncodedTensor]]:
        """What is here of each saved layer's weight, by its name."""
        for method in self.methods.values():
            assert method.linear is not None and method.joined is not None and method.sizes is not None
            names, rows = [entry.name for entry in method.joined.entries], method.sizes.rows
            encoded, start = method.linear.encoded, 0
            for name, count in zip(names, rows if len(names) == len(rows) else [sum(rows)], strict=True):
                yield name, encoded.rows(start, start + count)
                start += count


def serve(pipeline: nn.Module, loader: Any) -> list[Served]:
    """Find the quantized folders of a pipeline that vLLM-Omni's `loader` has made, and give its layers their parameters.

    Raises:
        ModelError: no folder is quantized though the layers were made for it; or one cannot be run as it is: the message
            names the layer or the setting, and what to do.
        InputError: a folder is damaged, or incomplete.
    """
    waiting = set(_methods(pipeline).values())
    if not waiting:
        return []
    if getattr(loader.parallel_config, "use_hsdp", False):
        raise ModelError("--use-hsdp shards weights as floats, and these are codes; use --tensor-parallel-size or --usp")
    processes, found = Processes.of_vllm(), []
    for source in loader._get_weight_sources(pipeline):
        component = pipeline.get_submodule(source.prefix.rstrip("."))
        methods = _methods(component)
        where = (source.model_or_path, source.subfolder, source.revision, source.fall_back_to_pt)
        folder, files, _ = loader._prepare_weights(*where, source.allow_patterns_overrides)
        safe = [file for file in files if str(file).endswith(".safetensors")]
        if safe and RECORD in read_headers(safe)[0]:
            found.append(serve_component(component, Path(folder), safe, processes))
        else:
            for name, method in methods.items():
                method.leave(component.get_submodule(name))
        waiting -= set(methods.values())
    if not found:
        raise ModelError(
            f"--quantization {METHOD} serves quantized folders, and {type(pipeline).__name__} has none; quantize it first: "
            "sedialect quantize MODEL --output FOLDER"
        )
    for method in waiting:
        raise ModelError(
            f"{type(pipeline).__name__} reads the weights of {method.prefix!r} in a way of its own, and a quantized folder "
            "cannot be read in it; serve the 16-bit model"
        )
    return found


def serve_component(component: nn.Module, folder: Path, files: list[str], processes: Processes) -> Served:
    """The same for one transformer, whose files are there.

    Raises:
        ModelError: as `serve`.
        InputError: as `serve`.
    """
    contents = read_contents(files)
    config = _read_config(folder)
    saved = SeDialectConfig.from_dict(config.pop("quantization_config", {}))
    check_settings(contents, saved)
    model = skeleton(config, str(folder / "config.json"))
    check_contents(contents, model, getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())
    methods = _methods(component)
    if not methods:
        raise ModelError(f"vLLM-Omni's {type(component).__name__} takes no quantization; serve the 16-bit model")
    settings = next(iter(methods.values())).config.applied_to(saved)
    check_served(settings)
    record = contents.record
    values = (record.block_size, record.precisions, record.rotations, record.equalized)
    plan = recorded_plan(model, settings, *values)
    joined = _joined(component, methods, plan, contents)
    served = Served(component, plan, {name: methods[name] for name in joined}, DigestCheck(record, contents.file_of))
    # The loader brings the record as well, and classes complain of a tensor that they have no parameter for.
    size = contents.tensors[RECORD].shape
    component.register_parameter(RECORD, nn.Parameter(torch.empty(size, dtype=torch.uint8), requires_grad=False))
    for name, method in methods.items():
        layer = component.get_submodule(name)
        if name in joined:
            method.settle(layer, joined[name], record.formatbook, settings.candidates, served)
        else:
            method.leave(layer)
    if processes.tokens is not None and any(entry.salient not in ("", "text") for entry in plan.quantized):
        _check_even(component)
    _guide(served, processes)
    return served


def _methods(module: nn.Module) -> dict[str, SeDialectLinearMethod]:
    """Our layers that wait for their files, by name."""
    methods = {name: getattr(layer, "quant_method", None) for name, layer in module.named_modules()}
    return {name: one for name, one in methods.items() if isinstance(one, SeDialectLinearMethod) and not one.settled}


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{path} is not there; download the whole repository, and serve its folder")
    return read_object(path)


def _joined(
    component: nn.Module, methods: Mapping[str, SeDialectLinearMethod], plan: Plan, contents: Contents
) -> dict[str, Joined]:
    """The saved layers of each of the engine's that is quantized.

    Raises:
        ModelError: a saved layer belongs to none of them.
    """
    entries = {entry.name: entry for entry in plan.quantized}
    packed = getattr(component, "packed_modules_mapping", None) or {}
    joined: dict[str, Joined] = {}
    for name in methods:
        if names := saved_names(name, packed, entries.keys()):
            joined[name] = join([entries[one] for one in names])
            _check_exponents(contents, names)
    taken = {entry.name for one in joined.values() for entry in one.entries}
    if lost := [name for name in entries if name not in taken and not _elsewhere(component, name)]:
        raise ModelError(
            f"the layer {lost[0]!r} ({len(lost)} in all) is quantized in the folder, and vLLM-Omni's "
            f"{type(component).__name__} has no quantizable layer for it; quantize anew with skip=({_pattern(lost[0])!r},)"
        )
    return joined


def _elsewhere(component: nn.Module, name: str) -> bool:
    """Whether another process has the part of the model that the layer lies in."""
    missing = [path for path, part in component.named_modules() if type(part).__name__ == "PPMissingLayer"]
    return any(name.startswith(f"{path}.") for path in missing)


def _pattern(name: str) -> str:
    """A regular expression for layers of this name in every block."""
    return "".join("\\d+" if part.isdigit() else "\\." if part == "." else part for part in re.split(r"(\.)", name))


def _check_exponents(contents: Contents, names: Sequence[str]) -> None:
    """Compare the equalizers of layers that run as one: one input is scaled once.

    Raises:
        ModelError: they differ.
    """
    found = []
    for name in names:
        if name in contents.record.equalized:
            key = f"{name}{EQUALIZER}"
            with safe_open(contents.tensors[key].file, framework="pt") as opened:
                found.append(opened.get_tensor(key))
    for name, other in zip(names[1:], found[1:], strict=False):
        if not torch.equal(found[0], other):
            raise ModelError(
                f"{names[0]} and {name} run as one layer, but their equalizers differ; quantize with equalize=False"
            )


def _check_even(component: nn.Module) -> None:
    """Refuse second terms where processes may have unlike numbers of tokens: they could not tell each other scores.

    Raises:
        ModelError: that is so.
    """
    parts = [part for part in (getattr(component, "_sp_plan", None) or {}).values() if isinstance(part, Mapping)]
    split = [one for part in parts for one in part.values()]
    if not split or not all(getattr(one, "auto_pad", False) for one in split):
        raise ModelError(
            f"vLLM-Omni may split the sequence of {type(component).__name__} into unlike parts, among which tokens with a "
            f"second term cannot be chosen; {served_with('salient_ratio', 0)}"
        )


def _guide(served: Served, processes: Processes) -> None:
    """Give layers what tells them about their rows."""
    if not is_guided(served.plan.config):
        return
    guides: dict[Hashable, Guide] = {}
    for method in served.methods.values():
        linear, joined, sizes = method.linear, method.joined, method.sizes
        assert linear is not None and joined is not None and sizes is not None
        entry = joined.first
        if linear.precision != "w4a4" or not is_told(entry, served.plan.config):
            continue
        columns = processes.columns if sizes.columns != sizes.all_columns else None
        key = (entry.shared_input or entry.name, entry.equalized, entry.salient, columns)
        if key not in guides:
            guides[key] = guide_of(entry, linear, served.plan, processes.tokens, columns)
        linear.guide = guides[key]
