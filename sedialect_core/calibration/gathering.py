"""Running what is asked for, and summing up what linears read meanwhile, as moments.

Moments are large: an input of 5,120 channels has one of 105 MB. Where all of them together do not fit, everything is run
several times, and each pass watches as many inputs as memory holds. A pass that was interrupted goes on behind the last
prompt that was saved. What a prompt is, and how it is run, is the caller's: a pipeline's call, or ComfyUI's sampler.
"""

import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config import SeDialectConfig
from ..errors import InputError, ModelError
from ..inspection.linears import plain_name
from ..plan.rules import LinearTypes, make_plan
from ..progress import Watch, shown_bar
from ..quantize.weights import InputStatistics, groups_of
from ..storage.atomic import REMEDY, check_room
from ..storage.locking import only_one
from .cache import INDEX, CalibrationCache, Input, load_statistics, save_statistics
from .capture import Steps, Target, spread_rows, watching

SAMPLE = 4  # rows kept of each input that is seen, by which equalizing and rotating are judged
GLANCED = 32  # the same for a glance, which sees few inputs
CHUNK = 8192  # rows that are made float32 together
SEQUENCES = ("video", "joint", "frame", "place", "either")  # streams whose tokens must outnumber the channels
SAVE_EVERY = 300.0  # seconds between two savings of an unfinished pass
PARTIAL = "unfinished"
SAVED = re.compile(rf"\.?{PARTIAL}\.(\d{{1,6}})")  # with a dot while it is being written
USED = 0.5  # of the free memory that moments may take where no limit is given


@dataclass(frozen=True)
class Run:
    """What is run, and what of it is seen.

    models   the networks, by component, whose linears are watched
    prompts  what is run, one after another
    sample   runs one of them
    every    every how many sampling steps are looked at
    device   where moments are summed up; None: where each layer computes

    Raises:
        InputError: `every` is no number of steps.
    """

    models: Mapping[str, nn.Module]
    prompts: Sequence[Any]
    sample: Callable[[Any], object]
    every: int
    device: str | None = None

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InputError(f"every is {self.every}; look at every step with 1, at every second with 2")


def gather(
    run: Run,
    cache: CalibrationCache,
    place: torch.device,
    memory: float | None = None,
    *,
    save_every: float = SAVE_EVERY,
    progress: bool = True,
    watch: Watch | None = None,
) -> CalibrationCache:
    """Fill a calibration with what is still missing in it, or in the one in its folder, which is returned.

    Args:
        place: whose memory the moments take.
        memory: GB (10^9 bytes) of moments at once; half of what is free when not given.
        save_every: seconds after which an unfinished pass is saved, between prompts.
        watch: is told each prompt as a stage, and each forward.

    Raises:
        InputError: too few tokens, a non-finite input, too little memory or room on the disk; or the folder holds another
            calibration, or another process is writing there.
        ModelError: nothing was read.
    """
    with only_one(cache.folder / INDEX) if cache.folder is not None else nullcontext():
        cache = cache.opened()
        _remove_cut_off(cache)
        limit = _free_bytes(place) * USED if memory is None else memory * 1e9
        passes = _passes(cache.missing(), limit, _Unfinished.find(cache.folder))
        _check_room(cache, passes)
        with shown_bar("Calibrating", len(passes) * len(run.prompts), "prompt", disable=not progress) as bar:
            for inputs in passes:
                _Pass(run, cache, inputs, save_every, watch or Watch()).carry_out(bar)
        _remove_unfinished(cache)
    return cache


def inputs_of(
    component: str, model: nn.Module, config: SeDialectConfig, linear_types: LinearTypes = (nn.Linear,)
) -> Iterator[Input]:
    """The inputs of the linears that `config` would quantize."""
    for group in groups_of(make_plan(model, config, linear_types=linear_types).quantized):
        names = tuple(plain_name(layer.name) for layer in group)
        yield Input(component, names, group[0].in_features, group[0].stream)


@contextmanager
def _heeded(models: Mapping[str, nn.Module], watch: Watch) -> Iterator[None]:
    """Before each forward, whoever follows the run may stop it."""
    handles = [model.register_forward_pre_hook(lambda *_: watch.on_forward()) for model in models.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class _Unfinished:
    """What an interrupted pass has left: how many prompts it had run, and the sums of its inputs in files of their names."""

    prompts: int
    folder: Path

    @classmethod
    def find(cls, folder: Path | None) -> "_Unfinished | None":
        """The latest in a calibration's folder."""
        found = [cls(number, path) for number, path in _saved(folder) if not path.name.startswith(".")]
        return max(found, key=lambda one: one.prompts, default=None)

    @property
    def names(self) -> set[str]:
        return {path.name.removesuffix(".safetensors") for path in self.folder.iterdir()}


def _saved(folder: Path | None) -> list[tuple[int, Path]]:
    """The folders of unfinished passes, each with its number of prompts, also those that were cut off in the writing."""
    inside = folder.iterdir() if folder is not None else ()
    found = [(SAVED.fullmatch(path.name), path) for path in inside if path.is_dir() and not path.is_symlink()]
    return [(int(name[1]), path) for name, path in found if name is not None]


def _remove_unfinished(cache: CalibrationCache) -> None:
    for _, folder in _saved(cache.folder):
        shutil.rmtree(folder)


def _remove_cut_off(cache: CalibrationCache) -> None:
    """What a process that was killed while it wrote has left: files of gigabytes, under names that nothing looks for."""
    begun = {f".{entry.name}" for entry in cache.inputs}
    for path in cache.folder.glob(".*-*.safetensors") if cache.folder is not None else ():
        if path.name.rpartition("-")[0] in begun:
            path.unlink()


def _passes(inputs: Sequence[Input], limit: float, unfinished: _Unfinished | None = None) -> list[list[Input]]:
    """Inputs in order, as many in a pass as the limit in bytes holds; first those of an unfinished pass."""
    begun = unfinished.names if unfinished is not None else set()
    first = [entry for entry in inputs if entry.name in begun]
    passes = [first] if first else []
    room = 0.0
    for entry in inputs:
        if entry in first:
            continue
        if entry.bytes > limit:
            raise InputError(
                f"the moment of {entry.name} ({entry.width} channels) takes {entry.bytes / 1e9:.2f} GB, and "
                f"{limit / 1e9:.2f} GB are allowed; raise `memory`, or sum up elsewhere: device='cpu'"
            )
        if entry.bytes > room:
            passes.append([])
            room = limit
        passes[-1].append(entry)
        room -= entry.bytes
    return passes


def _check_room(cache: CalibrationCache, passes: Sequence[Sequence[Input]]) -> None:
    """Without a folder, all moments stay in main memory until the last is there. On a disk, the sums of an unfinished pass
    lie beside them."""
    if cache.folder is not None:
        by_pass = [sum(entry.bytes for entry in inputs) for inputs in passes]
        check_room(cache.folder, sum(by_pass) + max(by_pass, default=0))
        return
    total, free = sum(entry.bytes for entry in cache.inputs), _free_bytes(torch.device("cpu"))
    if total > free:
        raise InputError(
            f"the moments of all {len(cache.inputs)} inputs take {total / 1e9:.1f} GB, and {free / 1e9:.1f} GB of main "
            "memory are free; keep them on disk: sedialect.calibrate(pipe, folder=...), then calibration=that folder"
        )


def _free_bytes(place: torch.device) -> int:
    """Of a GPU, or of the main memory."""
    if place.type == "cuda":
        return torch.cuda.mem_get_info(place)[0]
    import psutil

    return int(psutil.virtual_memory().available)


class _NotFinite(Exception):
    """Raised inside the pipeline, which takes an error of ours for one of its own arguments."""


@dataclass
class _Sums:
    """One input's statistics on their way."""

    width: int
    device: str | None
    diagonal: bool = False
    moment: torch.Tensor | None = None
    peak: torch.Tensor | None = None
    rows: list[torch.Tensor] = field(default_factory=list)
    count: int = 0
    seen: set[tuple[float, float]] = field(default_factory=set)  # in this prompt: the text is read anew in every step

    def add(self, rows: torch.Tensor) -> None:
        """Rows [M, K]; equal ones of one prompt count once."""
        mark = _mark(rows)
        if not abs(mark[1]) < float("inf"):
            raise _NotFinite
        if mark in self.seen:
            return
        self.seen.add(mark)
        place = self.device or rows.device  # what was resumed lies on the CPU until now
        product = (_squares(rows) if self.diagonal else _product(rows)).to(place)
        top = rows.abs().amax(0).float().to(place)
        self.moment = product if self.moment is None else self.moment.to(place).add_(product)
        self.peak = top if self.peak is None else torch.maximum(self.peak.to(place), top)
        self.rows.append(spread_rows(rows, GLANCED if self.diagonal else SAMPLE).cpu())
        self.count += len(rows)

    def so_far(self) -> InputStatistics:
        """Sums, in place of means; zeros where nothing was read."""
        if self.moment is None or self.peak is None:
            nothing = torch.zeros(self.width)
            moment = nothing if self.diagonal else nothing.expand(self.width, -1)
            return InputStatistics(moment, nothing, nothing[None][:0], 0)
        return InputStatistics(self.moment, self.peak, torch.cat(self.rows), self.count)

    def finish(self) -> InputStatistics:
        """The statistics."""
        sums = self.so_far()
        return replace(sums, moment=sums.moment / max(1, self.count))

    def resume(self, sums: InputStatistics) -> None:
        """Go on from what `so_far` gave."""
        if sums.count:
            self.moment, self.peak, self.rows, self.count = sums.moment, sums.peak, [sums.rows], sums.count


def _mark(rows: torch.Tensor) -> tuple[float, float]:
    """By which equal rows [M, K] are known: their sum, and that of their squares."""
    parts = (part.float() for part in rows.split(CHUNK))
    sums = [torch.stack((part.sum(dtype=torch.float64), part.square().sum(dtype=torch.float64))) for part in parts]
    total, energy = torch.stack(sums).sum(0).tolist()
    return total, energy


def _squares(rows: torch.Tensor) -> torch.Tensor:
    """The diagonal of X^T X of rows [M, K], float32 [K]."""
    squares = (part.float().square().sum(0) for part in rows.split(CHUNK))
    return torch.stack(list(squares)).sum(0) if len(rows) else torch.zeros(rows.shape[1], device=rows.device)


def _product(rows: torch.Tensor) -> torch.Tensor:
    """X^T X of rows [M, K], float32 [K, K]."""
    if rows.is_cuda and rows.dtype != torch.float32 and "dtype" in torch.ops.aten.mm.overloads():
        # Many times faster. Tensor cores keep fewer digits while they add up: 20,000 rows lose 3e-5 of the moment (H100), a
        # thousandth of what damping adds to it.
        return torch.mm(rows.T, rows, out_dtype=torch.float32)
    product = torch.zeros(rows.shape[1], rows.shape[1], device=rows.device)
    for part in rows.split(CHUNK):
        wide = part.float()
        product.addmm_(wide.T, wide)
    return product


@dataclass
class _Pass:
    """Some of the inputs, watched while all prompts are run."""

    plan: Run
    cache: CalibrationCache
    inputs: Sequence[Input]
    save_every: float
    watch: Watch

    def __post_init__(self) -> None:
        self.sums = {entry.name: _Sums(entry.width, self.plan.device, entry.diagonal) for entry in self.inputs}
        self.where = ""

    def carry_out(self, bar: Any) -> None:
        """Run the prompts that are left, and keep what came of all."""
        prompts, done = self.plan.prompts, self._resume()
        bar.update(done)
        saved = time.monotonic()
        for number, prompt in enumerate(prompts[done:], done + 1):
            label = f"calibrating: prompt {number} of {len(prompts)}"
            self.watch.on_stage(label)
            self.watch.on_phase(label)
            self._watch(prompt, number)
            bar.update()
            if number < len(prompts) and time.monotonic() - saved >= self.save_every:
                self._save(number)
                saved = time.monotonic()
        self._check_counts(len(prompts))
        for entry in self.inputs:
            self.cache.put(entry, self.sums[entry.name].finish())
        _remove_unfinished(self.cache)

    def _watch(self, prompt: Any, number: int) -> None:
        targets = [Target(entry.name, self._linear(entry), True) for entry in self.inputs]
        for sums in self.sums.values():
            sums.seen.clear()
        steps: Mapping[str, Steps] = {}

        def add(name: str, rows: torch.Tensor) -> None:
            self.where = name
            self.sums[name].add(rows)

        try:
            models = self.plan.models
            with watching(models, targets, self.plan.every, add, rows=None) as steps, _heeded(models, self.watch):
                self.plan.sample(prompt)
        except _NotFinite:
            step = steps[self.where.partition(".")[0]].number + 1
            raise InputError(
                f"{self.where}: what it reads in step {step} of prompt {number} holds NaN or Inf; the 16-bit model does not "
                "compute soundly here: try dtype=torch.float32, or other prompts"
            ) from None
        except torch.OutOfMemoryError:
            raise InputError(
                f"out of GPU memory while calibrating, with {sum(entry.bytes for entry in self.inputs) / 1e9:.1f} GB of "
                "moments; set `memory` lower, sum up elsewhere with device='cpu', or sample smaller videos"
            ) from None

    def _linear(self, entry: Input) -> nn.Linear:
        model, name = self.plan.models[entry.component], entry.layers[0]
        wrapped = model.get_submodule(name)
        linear = getattr(wrapped, "base_layer", wrapped)
        assert isinstance(linear, nn.Linear)
        return linear

    def _check_counts(self, prompts: int) -> None:
        counts = {entry.name: self.sums[entry.name].count for entry in self.inputs}
        if not any(counts.values()):
            raise ModelError("no quantizable layer was called while sampling; the pipeline does not use its transformer")
        for entry in self.inputs:
            count = counts[entry.name]
            if not entry.diagonal and entry.stream in SEQUENCES and 0 < count < entry.width:
                needed = -(-entry.width * prompts // count)
                raise InputError(
                    f"{entry.name} has {entry.width} channels and read {count} tokens in {prompts} prompts at every "
                    f"{self.plan.every}. step, too few for a moment of that size; give {needed} prompts at least, larger "
                    "videos" + (", or every=1" if self.plan.every > 1 else "")
                )

    def _save(self, number: int) -> None:
        """Keep the sums behind prompt `number`; whole or not at all."""
        if self.cache.folder is None:
            return
        older = [path for _, path in _saved(self.cache.folder)]
        staged = self.cache.folder / f".{PARTIAL}.{number}"
        shutil.rmtree(staged, ignore_errors=True)
        for name, sums in self.sums.items():
            save_statistics(staged / f"{name}.safetensors", sums.so_far())
        target = self.cache.folder / staged.name[1:]
        shutil.rmtree(target, ignore_errors=True)  # of other inputs, or damaged: it would have been taken up
        try:
            staged.rename(target)
        except OSError as error:
            raise InputError(f"cannot write {target}: {error.strerror}; {REMEDY}") from None
        for folder in older:
            if folder != target:
                shutil.rmtree(folder, ignore_errors=True)

    def _resume(self) -> int:
        """Take up what an interrupted pass over these inputs has saved; the number of prompts that it had run."""
        unfinished = _Unfinished.find(self.cache.folder)
        if unfinished is None or not self.sums.keys() <= unfinished.names or unfinished.prompts >= len(self.plan.prompts):
            return 0  # some of its inputs may be there already, where a process was killed between them
        for entry in self.inputs:
            found = load_statistics(unfinished.folder / f"{entry.name}.safetensors", entry)
            self.sums[entry.name].resume(found)
        return unfinished.prompts
