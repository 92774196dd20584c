"""Quantized checkpoints as ComfyUI keeps them: one file in its model folder, or a diffusers folder put there.

The tensors and the record are those of docs/format.md. Names may be ComfyUI's, with or without the prefix that its own
save node writes, or, for Wan, diffusers'.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open

from ...sedialect_core.checkpoint.format import SCALE, read_headers
from ...sedialect_core.checkpoint.integrity import check_covered, check_undamaged, damaged_keys
from ...sedialect_core.checkpoint.record import RECORD, Record
from ...sedialect_core.checkpoint.skeleton import MAX_SIZE, REPEATED
from ...sedialect_core.checkpoint.wan_names import (
    config_of,
    names_of_authors,
    names_of_diffusers,
    settings_of,
    to_authors,
    to_diffusers,
)
from ...sedialect_core.config import SeDialectConfig
from ...sedialect_core.errors import ConfigError, InputError, ModelError, shortened, shown
from ...sedialect_core.storage.atomic import staging, write_tensors
from ...sedialect_core.storage.reading import parse_object, read_object

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
COMFY_QUANT = ".comfy_quant"  # ComfyUI's own note beside each quantized weight that its save node writes
SETTINGS = "sedialect_settings"  # among the tensors of a MODEL: the metadata entry `config`, for whoever keeps no metadata
OURS = "sedialect"  # in that entry, beside what ComfyUI looks for: our own settings
INDEX = ".safetensors.index.json"
BLOCK = re.compile(r"\.(\d{1,6})\.")  # the number of a block, in a name
MOST_DIGITS = 5  # of the number of files that a model is split into
Read = Callable[[str], dict[str, torch.Tensor]]


class Checkpoint(NamedTuple):
    """A quantized network: its tensors and its record by ComfyUI's names, and the metadata entry `config`, or ""."""

    tensors: dict[str, torch.Tensor]
    record: Record
    settings: str


def read_checkpoint(path: str, read: Read) -> Checkpoint:
    """A checkpoint from a file, or from all files of the sharded model that the file is part of.

    Args:
        read: gives the tensors of one file, without copying them if it can.

    Raises:
        InputError: the file is damaged, or no checkpoint of sedialect's.
        ModelError: its names are nobody's.
    """
    files, key, record, metadata = _look(path)
    prefix = key.removesuffix(RECORD)
    held = {file: read(str(file)) for file in files}
    found = {name: tensor for tensors in held.values() for name, tensor in tensors.items()}
    _check_digests(record, {name: str(file) for file, names in held.items() for name in names}, path)
    record = replace(record, digests={})  # of these names, and of tensors that nothing was added to
    tensors = {
        name.removeprefix(prefix): tensor
        for name, tensor in found.items()
        if name.startswith(prefix) and name != key and not name.endswith(COMFY_QUANT)
    }
    said = tensors.pop(SETTINGS, None)
    settings = metadata.get("config", "") if said is None else said.numpy().tobytes()
    settings = json.dumps(parse_object(settings, f"{path}: {SETTINGS!r}")) if settings else ""
    if names_of_diffusers(tensors):
        tensors = {to_authors(name): tensor for name, tensor in tensors.items()}
        record = record.renamed(to_authors)
        settings = _settings_beside(Path(path)) or settings
    elif any(name.startswith("condition_embedder.") or ".to_out.0." in name for name in tensors) and not settings:
        raise ModelError(f"{Path(path).name} has diffusers' names for a {record.model}; only Wan's can be translated")
    if settings:
        _check_sizes(json.loads(settings).get("transformer", {}), tensors, path)
    return Checkpoint(tensors, record, settings)


def check_header(path: str) -> None:
    """Look into a file without reading its weights.

    Raises:
        InputError: as `read_checkpoint` does.
    """
    _look(path)


def write_file(path: Path, checkpoint: Checkpoint) -> Path:
    """Write one file with ComfyUI's names, whole or not at all, and return its path.

    Raises:
        InputError: the folder cannot be written, or the disk is full.
    """
    metadata = {"format": "pt", **checkpoint.record.metadata(), "config": checkpoint.settings}
    return _save(checkpoint.tensors, checkpoint.record, path, metadata)


def write_folder(folder: Path, checkpoint: Checkpoint, config: SeDialectConfig) -> Path:
    """Write a folder that diffusers' `from_pretrained` loads, and return it.

    Raises:
        ModelError: diffusers has no such model, or it is not Wan.
        InputError: the folder cannot be written, or the disk is full.
    """
    if not names_of_authors(checkpoint.tensors):
        raise ModelError(
            f"only Wan models can be saved with diffusers' names, and this is a {checkpoint.record.model}; choose ComfyUI's"
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.tensors.items()}
    for name in checkpoint.record.precisions:
        rows, packed = shapes[f"{name}.weight"]
        shapes[f"{name}.weight"] = (rows, packed * 2)
    built = config_of(json.loads(checkpoint.settings)["transformer"], shapes)
    tensors = {to_diffusers(name): tensor for name, tensor in checkpoint.tensors.items()}
    record = replace(checkpoint.record.renamed(to_diffusers), model=built["_class_name"])
    book = record.formatbook
    settings = replace(config, block_size=record.block_size, formatbook=book.name, formatbook_digest=book.digest)
    with staging(folder) as staged:
        metadata = {"format": "pt", **record.metadata()}
        _save(tensors, record, staged / "diffusion_pytorch_model.safetensors", metadata)
        text = json.dumps({**built, "quantization_config": settings.to_dict()}, indent=2, sort_keys=True)
        (staged / "config.json").write_text(text + "\n", encoding="utf-8")
    return folder


def config_in(settings: str, record: Record) -> SeDialectConfig:
    """The settings by which a checkpoint was quantized, where it tells them, and the defaults where it does not.

    Args:
        settings: the metadata entry `config`, or "".

    Raises:
        ConfigError: a newer sedialect wrote them, or they are damaged.
    """
    said = json.loads(settings).get(OURS) if settings else None
    if said is not None and not isinstance(said, dict):
        raise ConfigError(f"the settings in the file are {shown(said)}, not an object; take the file from where it was made")
    config = SeDialectConfig.from_dict(said) if said else SeDialectConfig()
    return config.override(block_size=record.block_size, formatbook=record.formatbook.name)


def settings_with(settings: str, config: SeDialectConfig) -> str:
    """The metadata entry `config` with our own settings in it."""
    return json.dumps({**json.loads(settings), OURS: config.to_dict()})


def check_complete(checkpoint: Checkpoint) -> None:
    """Compare what is to be written with its record.

    Raises:
        ModelError: they differ: another node has replaced layers of the MODEL.
    """
    there = {name.removesuffix(SCALE) for name in checkpoint.tensors if name.endswith(SCALE)}
    if odd := sorted(there ^ set(checkpoint.record.precisions)):
        raise ModelError(f"the layer {odd[0]!r} is not as SeDialect Quantize made it; save the MODEL right behind that node")


def _look(path: str) -> tuple[list[Path], str, Record, dict[str, str]]:
    """The files of a model, the key of its record, the record, and the metadata."""
    files = _shards(Path(path))
    headers, metadata = read_headers(files)
    key = next((prefix + RECORD for prefix in PREFIXES if prefix + RECORD in headers), None)
    if key is None:
        raise InputError(
            f"{Path(path).name} is not quantized by sedialect (it has no {RECORD!r}); load it with Load Diffusion Model and "
            "put SeDialect Quantize behind it"
        )
    with safe_open(headers[key].file, framework="pt") as opened:
        record = Record.from_tensor(opened.get_tensor(key), headers[key].file)
    record.check_digest(metadata.get("sedialect_formatbook_digest", ""), f"the header of {headers[key].file}")
    return files, key, record, metadata


def _check_digests(record: Record, file_of: Mapping[str, str], path: str) -> None:
    """Compare all tensors with the record's digests; files that other programs have written have none. What is missing is
    named by whoever misses it."""
    if record.digests:
        check_covered(record, file_of.keys() | record.digests.keys(), path)
        check_undamaged(damaged_keys(record.digests, file_of), file_of)


def _check_sizes(built: object, names: Iterable[str], path: str) -> None:
    """Refuse sizes that ComfyUI, which takes them as they are, would build for hours or fill the memory with."""
    if not isinstance(built, dict):
        raise InputError(f"{path}: 'transformer' in its settings is {shown(built)}, not an object; download it again")
    blocks = 1 + max((int(number) for name in names for number in BLOCK.findall(name)), default=0)
    for key, value in built.items():
        most = blocks if REPEATED.search(key) else MAX_SIZE
        if isinstance(value, int) and abs(value) > most:
            raise InputError(
                f"{path}: {shown(key)} in its settings is {shown(value)}, and at most {most:,} belongs to these tensors; "
                "download it again"
            )


def _save(tensors: Mapping[str, torch.Tensor], record: Record, path: Path, metadata: dict[str, str]) -> Path:
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return write_tensors(path, {**whole, RECORD: record.sealed(whole).to_tensor()}, metadata)


def _shards(path: Path) -> list[Path]:
    """All files of the model that `path` is, or is a part of."""
    stem, _, count = path.name.removesuffix(".safetensors").rpartition("-of-")
    if not stem or not (count.isascii() and count.isdigit()):
        return [path]
    if len(count) > MOST_DIGITS:
        raise InputError(f"{path.name} calls itself one of {shown(count)} files; rename it, or download the model again")
    files = [path.with_name(f"{stem[:-5]}{number:05d}-of-{count}.safetensors") for number in range(1, int(count) + 1)]
    if lost := [file for file in files if not file.is_file()]:
        raise InputError(f"{lost[0]} is missing beside {path.name}; download all {int(count)} files of the model")
    return files


def _settings_beside(path: Path) -> str:
    """What the config.json in the file's folder says, in ComfyUI's words; "" where there is none."""
    beside = path.with_name("config.json")
    if not beside.is_file():
        return ""
    try:
        config = read_object(beside)
        return json.dumps({"transformer": settings_of(config), OURS: config.get("quantization_config")})
    except (InputError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{beside} does not describe a Wan model ({shortened(error)}); take it from where the weights are"
        ) from None
