"""From a model's folder to a quantized one, tensor by tensor: neither the old model nor the new one is ever whole in memory.

Work is done in a hidden folder beside the output, part by part, and a killed run goes on behind the last whole part. The
output appears in one move when everything in it is there. One process at a time works on an output: `only_one`.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from ..config import SeDialectConfig
from ..errors import InputError, ModelError, shown
from ..plan.layers import LayerPlan, Plan
from ..plan.rules import check_quantizes, make_plan
from ..progress import shown_bar
from ..quantize.weights import Calibration, EncodedLayer, WeightEncoder, groups_of
from ..storage.atomic import check_room, sync, write_tensors, write_text
from ..storage.digests import tensor_digest
from ..storage.paths import check_place, on_another_disk, place
from ..storage.reading import Fields, parse_object
from .format import Stored, check_contents, layer_shapes, named_book, read_contents, read_headers
from .integrity import check_undamaged, damaged_keys
from .record import RECORD, Record
from .skeleton import skeleton
from .source import WEIGHTS, Component

DTYPES = ("bfloat16", "float16", "float32")
ENCODED = "sedialect_encoded"  # in the header of a file: what became of the layers in it
DIGESTS = "sedialect_digests"  # and the digests of its tensors
LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What is to be done to all components.

    Args:
        part_bytes: how large a file may grow before the next is begun; what a killed run loses at most.
        calibrations: what the layers of each component read, by the component's name.
        calibrated_on: what they are of, in a few words; part of what tells this work from other work.
    """

    config: SeDialectConfig
    output: Path
    dtype: str = "bfloat16"
    device: str = "cpu"
    part_bytes: int = 2_000_000_000
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    calibrated_on: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", place(self.output))

    @property
    def staging(self) -> Path:
        """Where the work is done: on the output's own disk, so that moves end it."""
        beside = self.output if on_another_disk(self.output) else self.output.parent
        return beside / f".{self.output.name}.unfinished"

    @property
    def is_taken(self) -> bool:
        """Whether something other than unfinished work is at the output's place already."""
        if not self.output.is_dir():
            return self.output.exists()
        return any(path != self.staging for path in self.output.iterdir())

    def digest(self, component: Component) -> str:
        """What tells this piece of work from any other: settings and source files, by size and time."""
        files = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in component.files]
        parts = [self.config.to_dict(), self.dtype, dict(component.config), files]
        parts += [self.calibrated_on] if self.calibrated_on else []
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def convert(components: tuple[Component, ...], job: Job) -> dict[str, Plan]:
    """Quantize the components into `job.output`; one lies in the folder itself, several in subfolders of their names.

    Returns the plan of each. What an earlier, killed run has finished is not done again; nor is a finished output.

    Raises:
        InputError: the output holds something else, the disk has too little room, or a file is damaged.
        ModelError: weights and config.json do not belong together, or nothing can be quantized.
        EncodeError: a weight holds NaN or Inf.
    """
    tasks = [_Task(component, job, folder) for component, folder in zip(components, _folders(components), strict=True)]
    check_place(job.output)
    if job.is_taken:
        for task in tasks:
            task.check_done(job.output / task.folder)
    else:
        _check_staging(job, {task.folder for task in tasks})
        check_room(job.output, sum(task.bytes_left() for task in tasks))
        for task in tasks:
            task.run()
    return {task.component.name: task.carried_out() for task in tasks}


def weights_of(components: Sequence[Component]) -> list[str]:
    """Patterns of the files of weights that stand where these are pushed to: what is left of another model's is deleted
    there, for an index or a shard of it would be loaded in place of the new one."""
    places = ("" if folder == "." else f"{folder}/" for folder in _folders(components))
    names = (".safetensors", ".safetensors.index.json", "-?????-of-?????.safetensors")
    return [f"{place}{WEIGHTS}{name}" for place in places for name in names]


def _folders(components: Sequence[Component]) -> list[str]:
    return [component.name if len(components) > 1 else "." for component in components]


def publish(job: Job, card: str) -> None:
    """Add the card and move the finished work to its place. Where it stands there already, a card of its own is kept.

    Raises:
        InputError: the folder cannot be written.
    """
    if not job.staging.exists():
        if not (job.output / "README.md").exists():
            write_text(job.output / "README.md", card)
        return
    if not (job.output / "README.md").exists():
        write_text(job.staging / "README.md", card)
    try:
        if job.output.exists():
            _move_into(job)
        else:
            job.staging.rename(job.output)
        sync(job.output.absolute().parent)
    except OSError as error:
        raise InputError(f"cannot move {job.staging} to {job.output}: {error.strerror or error}; move it by hand") from None


def _move_into(job: Job) -> None:
    """Move what is finished into a folder that is there, whoever stands in it; weights first, by which a rerun knows it."""
    finished = [path for path in job.staging.iterdir() if not path.name.startswith(f".{WEIGHTS}")]
    for path in sorted(finished, key=lambda path: (path.suffix != ".safetensors" and path.is_file(), path.name)):
        path.rename(job.output / path.name)
    shutil.rmtree(job.staging)


class _Task:
    """One component on its way: parts are files of whole tensors, and say by themselves what is done."""

    def __init__(self, component: Component, job: Job, folder: str) -> None:
        self.component, self.job, self.folder = component, job, folder
        self.where = component.name or str(component.files[0].parent)
        self.model = skeleton(component.config, self.where)
        self.book = named_book(job.config)
        self.settings = replace(job.config, formatbook=self.book.name, formatbook_digest=self.book.digest)
        self.plan = make_plan(self.model, self.settings)
        check_quantizes(self.plan)
        self.digest = job.digest(component)
        self.layers = {f"{layer.name}.weight": layer for layer in self.plan.quantized}
        self.groups = {layer.name: group for group in groups_of(self.plan.quantized) for layer in group}
        calibration = job.calibrations.get(component.name)
        self.encoder = WeightEncoder(self.book, self.settings.candidates, calibration, f"{self.where}: ")
        self.ahead: dict[str, EncodedLayer] = {}  # encoded with a layer that reads the same input, before its turn
        self.done: dict[str, LayerPlan] = {}
        self.digests: dict[str, str] = {}
        self.source = _check_source(component, self.model, self.where)
        self.dtype: torch.dtype = getattr(torch, job.dtype)
        self.staging = job.staging / folder

    def check_done(self, folder: Path) -> None:
        """Accept the finished output of this very task.

        Raises:
            InputError: it is anything else.
        """
        files = sorted(folder.glob(f"{WEIGHTS}*.safetensors"))
        if not files or read_headers(files)[1].get("sedialect_job") != self.digest:
            raise InputError(f"{folder} holds other files already; choose another --output, or remove it")
        self._check_whole(files)
        self._recall(files)

    def _check_whole(self, files: list[Path]) -> None:
        contents = read_contents(files)
        check_contents(contents, self.model)
        check_undamaged(damaged_keys(contents.record.digests, contents.file_of), contents.file_of)

    def carried_out(self) -> Plan:
        """The plan, with what became of each layer."""
        notes = (*self.plan.notes, self.job.calibrated_on) if self.job.calibrated_on else self.plan.notes
        layers = tuple(self.done.get(layer.name, layer) for layer in self.plan.layers)
        return replace(self.plan, layers=layers, notes=notes)

    def parts(self) -> list[Path]:
        """Finished parts, in order.

        Raises:
            InputError: they are of other settings, or of another model.
        """
        found = []
        for path in sorted(self.staging.glob(f"{WEIGHTS}*.safetensors")):
            try:
                said = read_headers([path])[1]
            except InputError:
                break  # what comes behind a damaged part is made again with it
            if said.get("sedialect_job") != self.digest:
                raise InputError(
                    f"{self.staging} holds unfinished work with other settings or weights; remove it to start anew"
                )
            found.append(path)
        return found

    def _sound_parts(self) -> list[Path]:
        """Finished parts whose tensors are as they were written; from the first damaged one on, parts are removed."""
        sound = []
        for path in self.parts():
            tensors, metadata = read_headers([path])
            digests = parse_object(metadata.get(DIGESTS, "{}"), f"{path}: {DIGESTS!r}")
            file_of = dict.fromkeys(tensors.keys() - {RECORD}, str(path))
            if file_of.keys() != digests.keys() or any(damaged_keys(digests, file_of)):
                break
            self.digests |= digests
            sound.append(path)
        for path in sorted(self.staging.glob(f"{WEIGHTS}*.safetensors")):
            if path not in sound:
                LOG.warning("%s is damaged, or stands behind a damaged file; it is made again", path)
                path.unlink()
        return sound

    def bytes_left(self) -> int:
        """How much is still to be written."""
        done = read_headers(self.parts())[0]
        return sum(self._size(key, stored) for key, stored in self.source.items() if key not in done)

    def run(self) -> None:
        """Write what is missing, then index, names and config.json.

        Raises:
            InputError: what is there cannot be finished, or the disk is full.
        """
        if (self.staging / "config.json").exists():
            self._check_finished()
            return
        self.staging.mkdir(parents=True, exist_ok=True)
        for path in self.staging.glob(f".{WEIGHTS}*"):
            path.unlink()  # half a part, left by a run that was killed
        parts = self._sound_parts()
        self._recall(parts)
        done = set(read_headers(parts)[0])
        todo = [key for key in self.source if key not in done]
        if RECORD in done and todo:
            raise InputError(f"{self.staging} says that it is complete, and lacks {todo[0]!r}; remove it to start anew")
        for tensors in self._batches(todo) if RECORD not in done else ():
            number = len(parts) + 1
            parts.append(self._write(tensors, self.staging / f"{WEIGHTS}-{number:05d}.safetensors"))
        self._finish(parts)

    def _check_finished(self) -> None:
        """Look over a component that an earlier run has finished."""
        files = sorted(self.staging.glob(f"{WEIGHTS}*.safetensors"))
        try:
            self.parts()
            self._check_whole(files)
        except (InputError, ModelError) as error:
            raise InputError(f"{self.staging} cannot be finished ({error}); remove it to start anew") from None
        self._recall(files)

    def _recall(self, files: Iterable[Path]) -> None:
        """What became of the layers in these files, by their headers."""
        for path in files:
            where = f"{path}: {ENCODED!r}"
            for name, changes in parse_object(read_headers([path])[1].get(ENCODED, "{}"), where).items():
                layer, said = self.layers.get(f"{name}.weight"), Fields(changes, where)
                if layer is None or said.data.keys() != layer.outcome.keys():
                    raise said.wrong(f"it tells of {shown(name)} what cannot be")
                outcome = {key: said.get(key, type(value)) for key, value in layer.outcome.items()}
                self.done[name] = replace(layer, **outcome)

    def _batches(self, todo: list[str]) -> Iterator[dict[str, torch.Tensor]]:
        """Encoded tensors, as many as one part holds; the record, which says what became of all, comes last."""
        batch: dict[str, torch.Tensor] = {}
        total = sum(_elements(stored) for stored in self.source.values())
        start = total - sum(_elements(self.source[key]) for key in todo)
        with shown_bar(f"Quantizing {self.where}", total, "w", initial=start) as bar:
            for key in todo:
                batch |= self._encoded(key)
                bar.update(_elements(self.source[key]))
                if sum(tensor.nbytes for tensor in batch.values()) >= self.job.part_bytes:
                    yield batch
                    batch = {}
        yield {**batch, RECORD: torch.empty(0, dtype=torch.uint8)}  # filled in when it is written

    def _encoded(self, key: str) -> dict[str, torch.Tensor]:
        """What is stored for a tensor of the source."""
        layer = self.layers.get(key)
        if layer is None:
            tensor = self._read(key)
            dtype = self._dtype_of(key) if tensor.is_floating_point() else tensor.dtype
            return {key: tensor.to(dtype).contiguous()}
        if layer.name not in self.ahead:
            found = self.encoder.encode(self.groups[layer.name], self._weight)
            self.ahead |= {item.plan.name: item for item in found}
        self.done[layer.name], encoded = self.ahead.pop(layer.name)
        return {key + suffix: value.cpu().contiguous() for suffix, value in encoded.stored.items()}

    def _weight(self, layer: LayerPlan) -> torch.Tensor:
        return self._read(f"{layer.name}.weight").to(self.job.device)

    def _read(self, key: str) -> torch.Tensor:
        with safe_open(self.source[key].file, framework="pt") as opened:
            return opened.get_tensor(key)

    def _dtype_of(self, key: str) -> torch.dtype:
        kept = getattr(self.model, "_keep_in_fp32_modules", None) or ()
        return torch.float32 if set(key.split(".")) & set(kept) else self.dtype

    def _size(self, key: str, stored: Stored) -> int:
        layer: LayerPlan | None = self.layers.get(key)
        if layer is None:
            return _elements(stored) * self._dtype_of(key).itemsize
        shapes = layer_shapes(layer.in_features, layer.out_features, layer.block_size or 1)
        return sum(rows * columns for rows, columns in shapes.values()) + (layer.in_features if layer.equalized else 0)

    def _write(self, tensors: dict[str, torch.Tensor], path: Path) -> Path:
        told = {layer.name: self.done[layer.name].outcome for key, layer in self.layers.items() if key in tensors}
        record = Record.of(self.carried_out(), self.book)
        digests = {key: tensor_digest(tensor) for key, tensor in tensors.items() if key != RECORD}
        self.digests |= digests
        if RECORD in tensors:
            tensors = {**tensors, RECORD: replace(record, digests=dict(sorted(self.digests.items()))).to_tensor()}
        ours = {"sedialect_job": self.digest, ENCODED: json.dumps(told), DIGESTS: json.dumps(digests)}
        return write_tensors(path, tensors, {"format": "pt", **record.metadata(), **ours})

    def _finish(self, parts: list[Path]) -> None:
        """Look over what was written, name it as diffusers does, and close with config.json, whose presence says done."""
        if len(parts) == 1:
            names = [f"{WEIGHTS}.safetensors"]
        else:
            names = [f"{WEIGHTS}-{number:05d}-of-{len(parts):05d}.safetensors" for number in range(1, len(parts) + 1)]
        files = [path.rename(path.with_name(name)) for path, name in zip(parts, names, strict=True)]
        contents = read_contents(files)
        check_contents(contents, self.model)
        if len(files) > 1:
            where = {key: Path(stored.file).name for key, stored in contents.tensors.items()}
            index = {"metadata": {"total_size": sum(path.stat().st_size for path in files)}, "weight_map": where}
            write_text(
                self.staging / f"{WEIGHTS}.safetensors.index.json", json.dumps(index, indent=2, sort_keys=True) + "\n"
            )
        config = {key: value for key, value in self.component.config.items() if key != "_name_or_path"}
        config["quantization_config"] = self.settings.to_dict()
        write_text(self.staging / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")


def _check_source(component: Component, model: nn.Module, where: str) -> dict[str, Stored]:
    """The tensors of the source that the model has a place for."""
    found, _ = read_headers(component.files)
    state = model.state_dict()
    missing = [key for key, tensor in state.items() if key not in found and tensor.device.type == "meta"]
    if missing:
        raise ModelError(f"{where}: the key {missing[0]!r} is missing ({len(missing)} in all); the folder is incomplete")
    for key, stored in found.items():
        if key in state and stored.shape != tuple(state[key].shape):
            raise ModelError(
                f"{stored.file}: {key!r} is {list(stored.shape)}, and config.json makes it {list(state[key].shape)}; take "
                "both from one place"
            )
    return {key: stored for key, stored in found.items() if key in state}


def _check_staging(job: Job, folders: set[str]) -> None:
    """Unfinished work on other components would be published with this."""
    found = {path.relative_to(job.staging).parent.as_posix() for path in job.staging.rglob(f"*{WEIGHTS}*.safetensors")}
    if found - folders:
        raise InputError(f"{job.staging} holds unfinished work on other components; remove it to start anew")


def _elements(stored: Stored) -> int:
    return torch.Size(stored.shape).numel()
