"""What a quantized model's files hold, byte by byte, and the checks before the first of them is believed.

Everything a reader needs travels in the tensors, because loaders and converters drop the rest: one uint8 tensor, `RECORD`,
holds as JSON the formatbook and each quantized layer's precision. The safetensors metadata repeats what people and the Hub
want to see. Nothing here knows diffusers, and nothing is ever unpickled.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ...kernels.transform import LARGEST_EXPONENT
from ..config import SeDialectConfig
from ..errors import FormatbookError, InputError, ModelError
from ..formatbook import Formatbook
from ..linear import SeDialectLinear
from ..plan.layers import Plan
from ..quantize.apply import set_submodule
from ..settings.table import BLOCK_SIZES, PRECISIONS, ROTATIONS

FORMAT_VERSION = 1
RECORD = "sedialect_record"
SCALE = ".weight_scale"
EQUALIZER = ".weight_equalizer"
STATISTICS = ("weights", "inputs")  # by which exponents are chosen
FLOATS = ("F64", "F32", "F16", "BF16")
DAMAGED = "download it again, or have it written again"


@dataclass(frozen=True)
class Record:
    """What a checkpoint says about itself.

    Args:
        model: the class that it was written from; for messages only, since classes get renamed.
        precisions: of each quantized layer, by name.
        rotations: sizes of the Hadamard blocks, of each rotated layer, by name.
        equalized: by which statistics the exponents were chosen, "weights" or "inputs", of each equalized layer, by name.
    """

    model: str
    block_size: int
    formatbook: Formatbook
    precisions: Mapping[str, str]
    rotations: Mapping[str, int] = field(default_factory=dict)
    equalized: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: Plan, formatbook: Formatbook) -> "Record":
        """The record of a model that `plan` was carried out on; layers that peft had wrapped go by their own names."""
        layers = {layer.name.replace(".base_layer", ""): layer for layer in plan.quantized}
        precisions = {name: layer.precision or "" for name, layer in layers.items()}
        rotations = {name: layer.rotation for name, layer in layers.items() if layer.rotation}
        equalized = {name: layer.equalized for name, layer in layers.items() if layer.equalized}
        return cls(plan.model, plan.config.block_size, formatbook, precisions, rotations, equalized)

    def of_layers(self, names: Collection[str]) -> "Record":
        """The record of these layers alone: projections that were fused and unfused again are gone.

        Raises:
            ModelError: one of them is not recorded, so that its precision is unknown.
        """
        for name in names:
            if name not in self.precisions:
                raise ModelError(
                    f"the layer {name!r} was quantized outside of sedialect's plan; quantize the whole model anew"
                )
        return replace(
            self,
            precisions={name: value for name, value in self.precisions.items() if name in names},
            rotations={name: value for name, value in self.rotations.items() if name in names},
            equalized={name: value for name, value in self.equalized.items() if name in names},
        )

    def renamed(self, rename: Callable[[str], str]) -> "Record":
        """The same for layers of other names."""
        return replace(
            self,
            precisions={rename(name): value for name, value in self.precisions.items()},
            rotations={rename(name): value for name, value in self.rotations.items()},
            equalized={rename(name): value for name, value in self.equalized.items()},
        )

    def to_tensor(self) -> torch.Tensor:
        """The record as the bytes of its JSON form, uint8 [n]."""
        data: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "model": self.model,
            "block_size": self.block_size,
            "formatbook": self.formatbook.to_dict(),
            "formatbook_digest": self.formatbook.digest,
            "layers": _names_by_value(self.precisions),
        }
        if self.rotations:
            data["rotations"] = _names_by_value(self.rotations)
        if self.equalized:
            data["equalized"] = _names_by_value(self.equalized)
        return torch.frombuffer(bytearray(json.dumps(data, separators=(",", ":")).encode()), dtype=torch.uint8)

    @classmethod
    def from_tensor(cls, tensor: torch.Tensor, where: str) -> "Record":
        """The record that a file holds; errors call the file `where`.

        Raises:
            InputError: it is damaged, or of a version that this sedialect does not read.
        """
        key = f"{where}: {RECORD!r}"
        try:
            data: dict[str, Any] = json.loads(tensor.numpy().tobytes())
            version = data["format_version"]
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{key} is damaged ({error}); {DAMAGED}") from None
        if version != FORMAT_VERSION:
            raise InputError(
                f"{key} is of format version {version!r}; this sedialect reads {FORMAT_VERSION}: update sedialect"
            )
        try:
            book = Formatbook.from_dict(data["formatbook"])
            precisions = {str(name): precision for precision, names in data["layers"].items() for name in names}
            rotations = {str(name): int(size) for size, names in data.get("rotations", {}).items() for name in names}
            equalized = {str(name): str(by) for by, names in data.get("equalized", {}).items() for name in names}
            record = cls(str(data["model"]), data["block_size"], book, precisions, rotations, equalized)
            digest = data["formatbook_digest"]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{key} is damaged ({error}); {DAMAGED}") from None
        record._check(key, digest)
        return record

    def _check(self, key: str, digest: str) -> None:
        if self.block_size not in BLOCK_SIZES or not self.precisions or set(self.precisions.values()) - set(PRECISIONS):
            raise InputError(f"{key} names a block size or a precision that does not exist; {DAMAGED}")
        if set(self.rotations.values()) - set(ROTATIONS[1:]) or self.rotations.keys() - self.precisions.keys():
            raise InputError(f"{key} names a rotation or a rotated layer that does not exist; {DAMAGED}")
        if set(self.equalized.values()) - set(STATISTICS) or self.equalized.keys() - self.precisions.keys():
            raise InputError(f"{key} names an equalized layer or statistics that do not exist; {DAMAGED}")
        self.check_digest(digest, key)

    def check_digest(self, digest: str, where: str) -> None:
        """Compare the book with a digest that stands at `where`; an empty one is no claim.

        Raises:
            InputError: it is another book's.
        """
        if digest and digest != self.formatbook.digest:
            raise InputError(
                f"{where} gives the formatbook digest {digest[:12]}…, but the book in {RECORD!r} has "
                f"{self.formatbook.digest[:12]}…; the files do not belong together: {DAMAGED}"
            )

    def metadata(self) -> dict[str, str]:
        """What the header of each file says, for people and for the Hub's viewer."""
        counts = {p: sum(value == p for value in self.precisions.values()) for p in PRECISIONS}
        return {
            "sedialect_version": str(FORMAT_VERSION),
            "sedialect_block_size": str(self.block_size),
            "sedialect_formatbook": self.formatbook.name,
            "sedialect_formatbook_digest": self.formatbook.digest,
            "sedialect_layers": ", ".join(f"{count} {precision}" for precision, count in counts.items() if count),
        }


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
        InputError: a file is no safetensors file, or is cut off.
    """
    tensors: dict[str, Stored] = {}
    metadata: dict[str, str] = {}
    for file in map(str, files):
        if not file.endswith(".safetensors"):
            raise InputError(f"{file} is no safetensors file, and sedialect reads no other")
        try:
            with safe_open(file, framework="pt") as opened:
                metadata |= opened.metadata() or {}
                for key in opened.keys():  # noqa: SIM118  # no mapping
                    part = opened.get_slice(key)
                    tensors[key] = Stored(file, part.get_dtype(), tuple(part.get_shape()))
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file} cannot be read ({error}); {DAMAGED}") from None
    return tensors, metadata


def read_contents(files: Iterable[str | Path]) -> Contents:
    """Look into the files of a quantized checkpoint without reading its weights.

    Raises:
        InputError: a file is damaged, is not sedialect's, or contradicts itself.
    """
    names = [str(file) for file in files]
    tensors, metadata = read_headers(names)
    if RECORD not in tensors:
        raise InputError(f"{', '.join(names)}: the key {RECORD!r} is missing, so this is no checkpoint of sedialect's")
    file = tensors[RECORD].file
    with safe_open(file, framework="pt") as opened:
        record = Record.from_tensor(opened.get_tensor(RECORD), file)
    record.check_digest(metadata.get("sedialect_formatbook_digest", ""), f"the header of {file}")
    return Contents(tensors, record, metadata)


def check_contents(contents: Contents, model: nn.Module, ignored: Iterable[str] = ()) -> None:
    """Compare a checkpoint with the model that it is to be loaded into, before anything is changed.

    Args:
        model: with its float layers still in place.
        ignored: regular expressions of keys that may be there in vain.

    Raises:
        ModelError: a key is missing, superfluous, or has another shape or type; the first is named, with its file.
    """
    record, tensors = contents.record, contents.tensors
    expected = _expected(record, model)
    file = tensors[RECORD].file
    name = type(model).__name__
    origin = (
        f"the weights are of a {record.model}, and config.json describes {'another' if name == record.model else 'a'} {name}"
    )
    patterns = [re.compile(pattern) for pattern in ignored]
    missing = sorted(key for key, tensor in expected.items() if tensor.needed and key not in tensors)
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
    _check_exponents(contents)


def _check_exponents(contents: Contents) -> None:
    for name in contents.record.equalized:
        key = name + EQUALIZER
        file = contents.tensors[key].file
        with safe_open(file, framework="pt") as opened:
            check_exponents(opened.get_tensor(key), f"{file}: {key!r}")


def check_exponents(exponents: torch.Tensor, where: str) -> None:
    """Compare an equalizer with what one may be.

    Raises:
        InputError: an exponent is too large.
    """
    most = int(exponents.to(torch.int32).abs().max())
    if most > LARGEST_EXPONENT:
        raise InputError(f"{where} holds the exponent {most}, and they go to {LARGEST_EXPONENT}; {DAMAGED}")


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


def _names_by_value(values: Mapping[str, Any]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name, value in values.items():
        names.setdefault(str(value), []).append(name)
    return names


def _more(keys: list[str]) -> str:
    return f", and {len(keys) - 1} more are" if len(keys) > 1 else ""
