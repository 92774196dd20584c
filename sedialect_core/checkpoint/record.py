"""What a checkpoint says about itself: one uint8 tensor, `RECORD`, holds as JSON the formatbook, each quantized layer's
precision, and a digest of every tensor. All of it is checked here before it is believed.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import xxhash

from ..errors import FormatbookError, InputError, ModelError, shown
from ..formatbook import Formatbook
from ..inspection.linears import plain_name
from ..plan.layers import Plan
from ..settings.table import BLOCK_SIZES, PRECISIONS, ROTATIONS
from ..storage.digests import tensor_digest
from ..storage.reading import AGAIN, MAX_JSON, Fields, parse_object

FORMAT_VERSION = 1
RECORD = "sedialect_record"
STATISTICS = ("weights", "inputs")  # by which exponents are chosen
MAX_LAYERS = 20_000
MAX_NAME = 300  # characters of a layer's name
DAMAGED = AGAIN


@dataclass(frozen=True)
class Record:
    """What a checkpoint says about itself.

    Args:
        model: the class that it was written from; for messages only, since classes get renamed.
        precisions: of each quantized layer, by name.
        rotations: sizes of the Hadamard blocks, of each rotated layer, by name.
        equalized: by which statistics the exponents were chosen, "weights" or "inputs", of each equalized layer, by name.
        digests: of all other tensors of the checkpoint, by key, as `tensor_digest` makes them; empty where another program
            has written the tensors.
    """

    model: str
    block_size: int
    formatbook: Formatbook
    precisions: Mapping[str, str]
    rotations: Mapping[str, int] = field(default_factory=dict)
    equalized: Mapping[str, str] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: Plan, formatbook: Formatbook) -> "Record":
        """The record of a model that `plan` was carried out on; layers that peft had wrapped go by their own names."""
        layers = {plain_name(layer.name): layer for layer in plan.quantized}
        precisions = {name: layer.precision or "" for name, layer in layers.items()}
        rotations = {name: layer.rotation for name, layer in layers.items() if layer.rotation}
        equalized = {name: layer.equalized for name, layer in layers.items() if layer.equalized}
        return cls(plan.model, plan.config.block_size, formatbook, precisions, rotations, equalized)

    def of_layers(self, names: Collection[str]) -> "Record":
        """The record of these layers alone, without digests: projections that were fused and unfused again are gone.

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
            digests={},
        )

    def renamed(self, rename: Callable[[str], str]) -> "Record":
        """The same for layers of other names, without digests, which are of keys."""
        return replace(
            self,
            precisions={rename(name): value for name, value in self.precisions.items()},
            rotations={rename(name): value for name, value in self.rotations.items()},
            equalized={rename(name): value for name, value in self.equalized.items()},
            digests={},
        )

    def sealed(self, tensors: Mapping[str, torch.Tensor]) -> "Record":
        """The same with the digests of all tensors that are written beside it."""
        return replace(self, digests={key: tensor_digest(tensors[key]) for key in sorted(tensors.keys() - {RECORD})})

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
        if self.digests:
            data["digests"] = dict(self.digests)
        data["digest"] = record_digest(data)
        return torch.frombuffer(bytearray(_compact(data)), dtype=torch.uint8)

    @classmethod
    def from_tensor(cls, tensor: torch.Tensor, where: str) -> "Record":
        """The record that a file holds; errors call the file `where`.

        Raises:
            InputError: it is damaged, or of a version that this sedialect does not read.
        """
        key = f"{where}: {RECORD!r}"
        if tensor.dtype != torch.uint8 or tensor.ndim != 1 or tensor.numel() > MAX_JSON:
            raise InputError(f"{key} is {tensor.dtype} {list(tensor.shape)}, not the bytes of a record; {DAMAGED}")
        said = Fields(parse_object(tensor.numpy().tobytes(), key, DAMAGED), key, DAMAGED)
        version = said.get("format_version", int)
        if version != FORMAT_VERSION:
            raise InputError(
                f"{key} is of format version {version!r}; this sedialect reads {FORMAT_VERSION}: update sedialect"
            )
        said.only(*KEYS)
        try:
            book = Formatbook.from_dict(said.get("formatbook", dict))
        except FormatbookError as error:
            raise said.wrong(str(error)) from None
        record = cls(
            said.text("model", most=MAX_NAME),
            said.get("block_size", int),
            book,
            _values_by_name(said, "layers"),
            {name: _size(size) for name, size in _values_by_name(said, "rotations", {}).items()},
            _values_by_name(said, "equalized", {}),
            said.get("digests", dict, {}),
        )
        record._check(key, said.text("formatbook_digest"))
        stated = said.text("digest", "")
        if (record.digests or stated) and stated != record_digest(said.data):
            raise said.wrong("its content is not what its digest says")
        return record

    def _check(self, key: str, digest: str) -> None:
        if self.block_size not in BLOCK_SIZES or not self.precisions or set(self.precisions.values()) - set(PRECISIONS):
            raise InputError(f"{key} names a block size or a precision that does not exist; {DAMAGED}")
        if set(self.rotations.values()) - set(ROTATIONS[1:]) or self.rotations.keys() - self.precisions.keys():
            raise InputError(f"{key} names a rotation or a rotated layer that does not exist; {DAMAGED}")
        if set(self.equalized.values()) - set(STATISTICS) or self.equalized.keys() - self.precisions.keys():
            raise InputError(f"{key} names an equalized layer or statistics that do not exist; {DAMAGED}")
        if any(type(value) is not str for value in self.digests.values()):
            raise InputError(f"{key} is damaged: 'digests' holds what is no digest; {DAMAGED}")
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


KEYS = (
    "format_version",
    "model",
    "block_size",
    "formatbook",
    "formatbook_digest",
    "layers",
    "rotations",
    "equalized",
    "digests",
    "digest",
)


def _compact(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode()


def record_digest(data: Mapping[str, Any]) -> str:
    """Of a record's content but this digest."""
    return xxhash.xxh3_128(_compact({key: value for key, value in data.items() if key != "digest"})).hexdigest()


def _names_by_value(values: Mapping[str, Any]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name, value in values.items():
        names.setdefault(str(value), []).append(name)
    return names


def _values_by_name(said: Fields, key: str, default: dict[str, Any] | None = None) -> dict[str, str]:
    """The other way round; each name stands under one value, once."""
    groups = said.get(key, dict, default)
    values: dict[str, str] = {}
    for value in groups:
        for name in Fields(groups, f"{said.where}: {key!r}", DAMAGED).items(value, str, most=MAX_LAYERS):
            if name in values:
                raise said.wrong(f"{key!r} lists the layer {shown(name)} twice")
            if len(name) > MAX_NAME:
                raise said.wrong(f"{key!r} has a name of {len(name):,} characters")
            values[name] = value
    if len(values) > MAX_LAYERS:
        raise said.wrong(f"{key!r} lists {len(values):,} layers; at most {MAX_LAYERS:,} are possible")
    return values


def _size(text: str) -> int:
    """A rotation's size from a key; -1, which is none, where it is no number."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 4 else -1
