"""What a quantized model's files hold, byte by byte, and the checks before the first of them is believed.

Everything a reader needs travels in the tensors, because loaders and converters drop the rest: what is said of all of them
in `RECORD`. The safetensors metadata repeats what people and the Hub want to see. Nothing here knows diffusers, and nothing
is ever unpickled.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..config import SeDialectConfig
from ..errors import FormatbookError, InputError, ModelError, shortened, shown
from ..formatbook import Formatbook
from ..linear import SeDialectLinear
from ..quantize.apply import set_submodule
from ..storage.reading import check_regular
from .integrity import check_codes, check_covered
from .record import DAMAGED, RECORD, Record

SCALE = ".weight_scale"
EQUALIZER = ".weight_equalizer"
FLOATS = ("F64", "F32", "F16", "BF16")
MAX_TENSORS = 50_000  # the largest models have a few thousand; so many more take long to look at alone


@dataclass(frozen=True)
class Stored:
    """One tensor of a checkpoint, from its file's header."""

    file: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Contents:
    """All tensors of a checkpoint, by key, and its record."""

    tensors: Mapping[str, Stored]
    record: Record
    metadata: Mapping[str, str]

    @cached_property
    def file_of(self) -> dict[str, str]:
        """The file of every key."""
        return {key: stored.file for key, stored in self.tensors.items()}


def named_book(config: SeDialectConfig) -> Formatbook:
    """The formatbook of settings by which weights are quantized before they are all in memory.

    Raises:
        FormatbookError: there is no such book, it has another digest, or the choice is left to the weights.
    """
    if config.formatbook.partition(":")[0] == "auto":
        raise FormatbookError(
            f"formatbook={config.formatbook!r} chooses by all 16-bit weights, which are not in memory together here; load "
            "the model and call pipe.enable_sedialect(), or name the book"
        )
    book = Formatbook.resolve(config.formatbook)
    if config.formatbook_digest not in ("", book.digest):
        raise FormatbookError(
            f"formatbook {config.formatbook!r} has the digest {book.digest[:12]}…, not {config.formatbook_digest[:12]}… as "
            "the settings ask; take the book they were made with"
        )
    return book


def read_headers(files: Iterable[str | Path]) -> tuple[dict[str, Stored], dict[str, str]]:
    """Names, dtypes and shapes of all tensors in safetensors files, and their metadata together; no weight is read.

    Raises:
        InputError: a file is no safetensors file, is cut off, or has a key that another one has.
    """
    tensors: dict[str, Stored] = {}
    metadata: dict[str, str] = {}
    for file in map(str, files):
        if not file.endswith(".safetensors"):
            raise InputError(f"{file} is no safetensors file, and sedialect reads no other")
        check_regular(file)
        try:
            with safe_open(file, framework="pt") as opened:
                metadata |= opened.metadata() or {}
                found = _stored(opened, file)
        except (OSError, SafetensorError, RuntimeError) as error:  # the last where a file is larger than can be mapped
            raise InputError(f"{file} cannot be read ({shortened(error)}); {DAMAGED}") from None
        if twice := found.keys() & tensors.keys():
            key = min(twice)
            raise InputError(f"{file}: the key {shown(key)} stands in {Path(tensors[key].file).name} as well; {DAMAGED}")
        tensors |= found
    return tensors, metadata


def _stored(opened: Any, file: str) -> dict[str, Stored]:
    keys = opened.keys()
    if len(keys) > MAX_TENSORS:
        raise InputError(f"{file} holds {len(keys):,} tensors; at most {MAX_TENSORS:,} are possible; {DAMAGED}")
    parts = {key: opened.get_slice(key) for key in keys}
    return {key: Stored(file, part.get_dtype(), tuple(part.get_shape())) for key, part in parts.items()}


def read_contents(files: Iterable[str | Path]) -> Contents:
    """Look into the files of a quantized checkpoint without reading its weights.

    Raises:
        InputError: a file is damaged, is not sedialect's, or contradicts itself.
    """
    names = [str(file) for file in files]
    tensors, metadata = read_headers(names)
    if RECORD not in tensors:
        raise InputError(f"{', '.join(names)}: the key {RECORD!r} is missing, so this is no checkpoint of sedialect's")
    stored = tensors[RECORD]
    file = stored.file
    if stored.dtype != "U8" or len(stored.shape) != 1:
        raise InputError(f"{file}: {RECORD!r} is {stored.dtype} {list(stored.shape)}, not a row of bytes; {DAMAGED}")
    with safe_open(file, framework="pt") as opened:
        record = Record.from_tensor(opened.get_tensor(RECORD), file)
    record.check_digest(metadata.get("sedialect_formatbook_digest", ""), f"the header of {file}")
    return Contents(tensors, record, metadata)


def check_contents(contents: Contents, model: nn.Module, ignored: Iterable[str] = (), tied: Collection[str] = ()) -> None:
    """Compare a checkpoint with the model that it is to be loaded into, before anything is changed.

    Args:
        model: with its float layers still in place.
        ignored: regular expressions of keys that may be there in vain.
        tied: keys that may be missing, for their weights stand under another one.

    Raises:
        ModelError: a key is missing, superfluous, or has another shape or type; the first is named, with its file.
        InputError: ids, scales or exponents are out of range, or the record's digests are of other keys.
    """
    record, tensors = contents.record, contents.tensors
    expected = _expected(record, model)
    file = tensors[RECORD].file
    name = type(model).__name__
    origin = (
        f"the weights are of a {record.model}, and config.json describes {'another' if name == record.model else 'a'} {name}"
    )
    patterns = [re.compile(pattern) for pattern in ignored]
    missing = sorted(key for key, tensor in expected.items() if tensor.needed and key not in tensors and key not in tied)
    extra = sorted(tensors.keys() - expected.keys() - {RECORD})
    extra = [key for key in extra if not any(pattern.search(key) for pattern in patterns)]
    if missing:
        raise ModelError(f"{file}: the key {missing[0]!r} is missing{_more(missing)}; {origin}: {DAMAGED}")
    if extra:
        raise ModelError(
            f"{tensors[extra[0]].file}: the key {extra[0]!r} belongs nowhere{_more(extra)}; {origin}: {DAMAGED}"
        )
    for key in sorted(expected.keys() & tensors.keys()):
        stored, wanted = tensors[key], expected[key]
        if stored.shape != wanted.shape or not wanted.takes(stored.dtype):
            raise ModelError(
                f"{stored.file}: {key!r} is {stored.dtype} {list(stored.shape)}, but {wanted.kind} {list(wanted.shape)} was "
                f"expected; {origin}"
            )
    if record.digests:
        check_covered(record, tensors, file)
    check_codes(record, contents.file_of)


def check_settings(contents: Contents, config: SeDialectConfig) -> None:
    """Compare a checkpoint's record with the settings in its config.json.

    Raises:
        InputError: they name another formatbook or block size.
    """
    contents.record.check_digest(config.formatbook_digest, "config.json")
    if config.block_size != contents.record.block_size:
        raise InputError(
            f"{contents.tensors[RECORD].file} has blocks of {contents.record.block_size}, but config.json says "
            f"{config.block_size}; the files do not belong together: {DAMAGED}"
        )


def place_layers(model: nn.Module, record: Record, candidates: str, compute_dtype: torch.dtype) -> None:
    """Put empty quantized layers, on the meta device, where the checkpoint has some."""
    for name, precision in record.precisions.items():
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        layer = SeDialectLinear(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            precision=precision,
            block_size=record.block_size,
            formatbook=record.formatbook,
            candidates=candidates,
            rotation=record.rotations.get(name, 0),
            equalized=name in record.equalized,
            compute_dtype=compute_dtype,
            device="meta",
        )
        set_submodule(model, name, layer)


def layer_shapes(in_features: int, out_features: int, block_size: int) -> dict[str, tuple[int, int]]:
    """Shapes of what a quantized layer stores, all uint8, by the end of the key."""
    columns = {".weight": in_features // 2, ".weight_meta": in_features // block_size, SCALE: 4}
    return {suffix: (out_features, width) for suffix, width in columns.items()}


@dataclass(frozen=True)
class _Wanted:
    """What a model wants under a key: "floats", "bytes", "exponents" or "others"; `needed` unless it has filled the tensor
    itself."""

    kind: str
    shape: tuple[int, ...]
    needed: bool = True

    def takes(self, dtype: str) -> bool:
        exact = {"bytes": "U8", "exponents": "I8"}.get(self.kind)
        return dtype == exact if exact else (dtype in FLOATS) == (self.kind == "floats")


def _expected(record: Record, model: nn.Module) -> dict[str, _Wanted]:
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    expected = {
        key: _Wanted("floats" if tensor.is_floating_point() else "others", tuple(tensor.shape), tensor.device.type == "meta")
        for key, tensor in model.state_dict().items()
    }
    for name in record.precisions:
        linear = linears.get(name)
        if linear is None or linear.in_features % max(record.block_size, record.rotations.get(name, 0)):
            raise ModelError(
                f"{RECORD!r} lists the layer {name!r}, which {type(model).__name__} does not have in this shape; the "
                f"checkpoint was written from {record.model}: take config.json and weights from one place"
            )
        shapes = layer_shapes(linear.in_features, linear.out_features, record.block_size)
        expected |= {name + suffix: _Wanted("bytes", shape) for suffix, shape in shapes.items()}
        if name in record.equalized:
            expected[name + EQUALIZER] = _Wanted("exponents", (linear.in_features,))
    return expected


def _more(keys: list[str]) -> str:
    return f", and {len(keys) - 1} more are" if len(keys) > 1 else ""
