"""What a calibration has seen: statistics of every input of a model's linears, in memory or in a folder.

A folder holds `calibration.json`, which says of what model and requests it is and which layers read which input, and one
safetensors file for each input. It grows input by input; what is there is whole.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..errors import InputError, shortened, shown
from ..formatbook.matching import weights_digest
from ..quantize.weights import Calibration, InputStatistics
from ..storage.atomic import write_tensors, write_text
from ..storage.digests import tensor_digest
from ..storage.paths import expanded, is_file
from ..storage.reading import DIGITS, Fields, check_regular, read_object

FORMAT_VERSION = 1
INDEX = "calibration.json"
AGAIN = "calibrate again, into another folder"
TENSORS = ("moment", "peak", "rows")
ROW_DTYPES = ("F64", "F32", "F16", "BF16")
RESOLUTION = ("height", "width", "num_frames")
FINGERPRINT = ("weights", "model", "model_class", "prompts", "prompt_count", "date")
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,109}")  # of which no path is made that leaves its folder
MAX_INPUTS, MAX_LAYERS, MAX_WIDTH = 20_000, 20_000, 1 << 20


@dataclass(frozen=True)
class Input:
    """One input: what makes it, by component, and which layers read it, the first of which is watched.

    diagonal  only the diagonal of its moment is summed up, as for a glance
    """

    component: str
    layers: tuple[str, ...]
    width: int
    stream: str
    diagonal: bool = False

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.component}.{self.layers[0]}"

    @property
    def bytes(self) -> int:
        """Size of its moment."""
        return math.prod(self.moment_shape) * 4

    @property
    def moment_shape(self) -> list[int]:
        """Of what is kept of its moment."""
        return [self.width] if self.diagonal else [self.width, self.width]


@dataclass(frozen=True)
class CalibrationCache:
    """Statistics by input.

    Args:
        fingerprint: of what model and prompts.
        resolution: height, width and number of frames that were asked for; None where the pipeline's own were taken.
        inputs: all that there are to be.
        folder: where they are kept; None for memory.
    """

    fingerprint: Mapping[str, str]
    resolution: tuple[int | None, ...]
    inputs: tuple[Input, ...]
    folder: Path | None = None
    _kept: dict[str, InputStatistics] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def load(cls, folder: str | Path) -> "CalibrationCache":
        """Open what `calibrate(folder=...)` wrote. Moments are read when they are needed, one at a time.

        Raises:
            InputError: there is no calibration, or it is damaged or of another version.
        """
        folder = expanded(folder)
        path = folder / INDEX
        if not is_file(path):
            raise InputError(f"{shown(str(folder))} holds no calibration (no {INDEX} is there); pass the folder of one")
        said = Fields(read_object(path, remedy=AGAIN), str(path), AGAIN)
        version = said.get("format_version", int)
        if version != FORMAT_VERSION:
            raise InputError(f"{path} is of version {version!r}; this sedialect reads {FORMAT_VERSION}: update sedialect")
        inputs = tuple(_input(entry, said) for entry in said.items("inputs", dict, most=MAX_INPUTS))
        if len({entry.name for entry in inputs}) < len(inputs):
            raise said.wrong("two inputs have one name")
        fingerprint, resolution = said.get("fingerprint", dict), said.get("resolution", list)
        if any(type(fingerprint.get(key)) is not str for key in FINGERPRINT):
            raise said.wrong(f"its fingerprint lacks a text of {', '.join(FINGERPRINT)}")
        if len(resolution) != len(RESOLUTION) or any(type(size) not in (int, type(None)) for size in resolution):
            raise said.wrong(f"'resolution' is {shown(resolution)}")
        return cls(fingerprint, tuple(resolution), inputs, Path(folder))

    def opened(self) -> "CalibrationCache":
        """This one, begun; or the one in its folder, if that is the same.

        Raises:
            InputError: the folder holds another one, or cannot be written.
        """
        if self.folder is not None and (self.folder / INDEX).exists():
            found = CalibrationCache.load(self.folder)
            found.check_same(self)
            return found
        self._begin()
        return self

    def _begin(self) -> None:
        """Write the index, where there is a folder."""
        if self.folder is not None:
            data = {
                "format_version": FORMAT_VERSION,
                "fingerprint": dict(self.fingerprint),
                "resolution": self.resolution,
                "inputs": [asdict(entry) for entry in self.inputs],
            }
            write_text(self.folder / INDEX, json.dumps(data, indent=1) + "\n")

    def missing(self) -> list[Input]:
        """The inputs that are not there yet."""
        return [entry for entry in self.inputs if not self._has(entry)]

    def put(self, entry: Input, statistics: InputStatistics) -> None:
        """Keep an input's statistics, in main memory where there is no folder.

        Raises:
            InputError: the folder cannot be written, or the disk is full.
        """
        if self.folder is None:
            parts = {name: getattr(statistics, name).cpu() for name in TENSORS}
            self._kept[entry.name] = InputStatistics(**parts, count=statistics.count)
        else:
            save_statistics(self._path(entry), statistics)

    def component(self, name: str) -> Calibration:
        """The statistics of one component's layers, as `quantize_layers` takes them.

        Raises:
            InputError: some are still missing, since the calibration was interrupted; or a file is damaged.
        """
        if missing := self.missing():
            raise InputError(
                f"the calibration in {self.folder} is not finished: {len(missing)} of {len(self.inputs)} inputs are "
                "missing; run it again and it goes on"
            )
        for entry in self.inputs if self.folder is not None else ():
            with _opened(self._path(entry), entry):
                pass  # better found out now than when half of the model is quantized
        return _Component(self, {layer: entry for entry in self.inputs if entry.component == name for layer in entry.layers})

    def check_models(self, models: Mapping[str, nn.Module]) -> None:
        """Refuse transformers that this was not made with.

        Raises:
            InputError: they have other weights.
        """
        digests = ",".join(weights_digest(model) for model in models.values())
        if digests != self.fingerprint["weights"]:
            raise InputError(
                f"the calibration is of other weights ({self.fingerprint['model']}, {self.fingerprint['model_class']}, "
                f"{self.fingerprint['date']}); calibrate this model, or load the one that was calibrated"
            )

    def check_same(self, other: "CalibrationCache") -> None:
        """Refuse to go on with another calibration's work.

        Raises:
            InputError: it is of another model, resolution, or other requests; the message says which.
        """
        there = f"{self.folder} holds a calibration"
        if self.fingerprint["weights"] != other.fingerprint["weights"]:
            raise InputError(f"{there} of another model ({self.fingerprint['model']}); {AGAIN}")
        if self.resolution != other.resolution:
            sizes = (dict(zip(RESOLUTION, part.resolution, strict=True)) for part in (self, other))
            raise InputError(f"{there} at another resolution ({next(sizes)}, not {next(sizes)}); {AGAIN}")
        if self.fingerprint["prompts"] != other.fingerprint["prompts"] or self.inputs != other.inputs:
            raise InputError(f"{there} with other prompts, steps or settings; {AGAIN}")

    def describe(self) -> str:
        """One line for a plan."""
        size = "x".join(str(value) for value in self.resolution if value is not None) or "the pipeline's own size"
        if self.fingerprint.get("read") == "sentences":
            return f"calibrated with {self.fingerprint['prompt_count']} sentences on {self.fingerprint['date']}"
        if all(entry.diagonal for entry in self.inputs):
            return f"equalized by a glance at one prompt at {size} on {self.fingerprint['date']}"
        return f"calibrated with {self.fingerprint['prompt_count']} prompts at {size} on {self.fingerprint['date']}"

    def read(self, entry: Input) -> InputStatistics:
        """An input's statistics.

        Raises:
            InputError: its file is damaged.
        """
        if self.folder is None:
            return self._kept[entry.name]
        return load_statistics(self._path(entry), entry)

    def _has(self, entry: Input) -> bool:
        return entry.name in self._kept if self.folder is None else self._path(entry).is_file()

    def _path(self, entry: Input) -> Path:
        assert self.folder is not None
        return self.folder / f"{entry.name}.safetensors"


def _input(entry: dict[str, Any], index: Fields) -> Input:
    """An input as the index has it. Component and layer become the name of a file, and so must be plain names."""
    said = Fields(entry, f"{index.where}: an entry of 'inputs'", AGAIN)
    said.only(*(field.name for field in fields(Input)))
    component, layers = said.text("component"), said.items("layers", str, most=MAX_LAYERS)
    for name in (component, *layers):
        if PLAIN.fullmatch(name) is None:
            raise said.wrong(f"{shown(name)} is no name of a component or layer")
    width = said.get("width", int)
    if not layers or not 1 <= width <= MAX_WIDTH:
        raise said.wrong(f"it has no layers, or {width:,} channels; 1 to {MAX_WIDTH:,} are possible")
    return Input(component, tuple(layers), width, said.text("stream"), said.get("diagonal", bool, False))


class _Component(Mapping[str, InputStatistics]):
    """Statistics of one component, read when they are asked for."""

    def __init__(self, cache: CalibrationCache, inputs: Mapping[str, Input]) -> None:
        self.cache, self.inputs = cache, inputs

    def __getitem__(self, layer: str) -> InputStatistics:
        return self.cache.read(self.inputs[layer])

    def __iter__(self) -> Iterator[str]:
        return iter(self.inputs)

    def __len__(self) -> int:
        return len(self.inputs)


def save_statistics(path: Path, statistics: InputStatistics) -> None:
    """Write one input's statistics, whole or not at all.

    Raises:
        InputError: the folder cannot be written, or the disk is full.
    """
    tensors = {name: getattr(statistics, name).cpu().contiguous() for name in TENSORS}
    write_tensors(path, tensors, {"count": str(statistics.count), "digest": _digest(tensors, statistics.count)})


def load_statistics(path: Path, entry: Input) -> InputStatistics:
    """What `save_statistics` wrote.

    Raises:
        InputError: the file is damaged, or its input has another width.
    """
    with _opened(path, entry) as opened:
        tensors, said = {name: opened.get_tensor(name) for name in TENSORS}, opened.metadata()
        statistics = InputStatistics(**tensors, count=int(said["count"]))
        if said.get("digest") != _digest(tensors, statistics.count):
            raise ValueError("it differs from its digest")
        if not (statistics.peak.isfinite().all() and statistics.rows.isfinite().all()):
            raise ValueError("peak or rows hold NaN or Inf")
        return statistics


def _digest(tensors: Mapping[str, torch.Tensor], count: int) -> str:
    """Of a file of statistics, in one word."""
    return "-".join((str(count), *(tensor_digest(tensors[name]) for name in TENSORS)))


@contextmanager
def _opened(path: Path, entry: Input) -> Iterator[Any]:
    """A file of statistics, its header checked."""
    try:
        with safe_open(check_regular(path), framework="pt") as opened:
            parts = [opened.get_slice(name) for name in TENSORS]
            (moment, peak, rows), dtypes = [part.get_shape() for part in parts], [part.get_dtype() for part in parts]
            if [moment, peak] != [entry.moment_shape, [entry.width]] or len(rows) != 2 or rows[1] != entry.width:
                raise ValueError(f"a moment of {moment} and rows of {rows}, not of {entry.width} channels")
            if dtypes[:2] != ["F32", "F32"] or dtypes[2] not in ROW_DTYPES:
                raise ValueError(f"tensors of {', '.join(dtypes)}, where floating-point numbers belong")
            count = (opened.metadata() or {})["count"]
            if not count.isdecimal() or len(count) > DIGITS:
                raise ValueError(f"a count of {shown(count)}")
            yield opened
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({shortened(error)}); remove it and calibrate again") from None
