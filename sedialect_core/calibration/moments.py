"""The job: run prompts through a 16-bit pipeline and keep what its linears read, as moments.

Moments are large: an input of 5,120 channels has one of 105 MB. Where all of them together do not fit, the prompts are run
several times, and each pass watches as many inputs as memory holds. A pass that was interrupted goes on behind the last
prompt that was saved.
"""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from ..calibrated import InputStatistics, groups_of, plain_name
from ..config import SeDialectConfig
from ..errors import InputError, ModelError
from ..integrations.checks import check_ready
from ..integrations.denoisers import denoisers
from ..plan import make_plan
from ..sampling import Request, Watch, generate
from .cache import INDEX, RESOLUTION, CalibrationCache, Input, load_statistics, save_statistics
from .capture import Steps, Target, spread_rows, watching
from .fingerprint import fingerprint_of
from .prompts import SELF, requests_of

SAMPLE = 4  # rows kept of each input that is seen, by which rotations are judged
SEQUENCES = ("video", "joint", "frame", "place", "either")  # streams whose tokens must outnumber the channels
SAVE_EVERY = 300.0  # seconds between two savings of an unfinished pass
PARTIAL = "unfinished"
USED = 0.5  # of the free memory that moments may take where no limit is given


def calibrate(
    pipe: Any,
    prompts: str | Sequence[str | Request] = SELF,
    *,
    config: SeDialectConfig | None = None,
    folder: str | Path | None = None,
    every: int = 2,
    memory: float | None = None,
    device: str | None = None,
    save_every: float = SAVE_EVERY,
    progress: bool = True,
    watch: Watch | None = None,
) -> CalibrationCache:
    """Learn what the linears of a 16-bit pipeline read. The pipeline is not changed.

    Args:
        prompts: "self" for those that come with sedialect, or texts or requests; a text is sampled in 20 steps at the
            pipeline's own size.
        config: which layers will be quantized.
        folder: keep it there, and go on there after an interruption; in memory when not given.
        every: look at every `every`-th sampling step.
        memory: GB (10^9 bytes) of moments at once; half of what is free when not given.
        device: where moments are summed up, such as "cpu"; where each layer computes when not given.
        save_every: seconds after which an unfinished pass is saved, between prompts.
        watch: is told each prompt as a stage, and each forward.

    Raises:
        InputError: too few tokens, a non-finite input, too little memory, or a folder with another calibration.
        ModelError: the pipeline has no transformer, or is in a state in which it cannot be quantized.

    Example:
        >>> cache = calibrate(pipe, ["a red ball rolls", "rain on a lake"], folder="wan-calibration")
        >>> pipe.enable_sedialect(calibration=cache)
    """
    requests = requests_of(pipe, prompts)
    if every < 1:
        raise InputError(f"every is {every}; look at every step with 1, at every second with 2")
    models = denoisers(pipe)
    for name, model in models.items():
        check_ready(name, model)
    cache = _open(pipe, models, requests, config or SeDialectConfig(), every, Path(folder) if folder else None)
    place = torch.device(device if device is not None else getattr(pipe, "_execution_device", "cpu"))
    limit = _free_bytes(place) * USED if memory is None else memory * 1e9
    passes = _passes(cache.missing(), limit, _Unfinished.find(cache.folder))
    total = len(passes) * len(requests)
    with _own_bar(pipe), tqdm(total=total, desc="Calibrating", unit="prompt", disable=not progress) as bar:
        for inputs in passes:
            _Pass(pipe, models, cache, inputs, every, device, save_every, watch or Watch()).run(requests, bar)
    return cache


def calibration_of(
    pipe: Any, given: CalibrationCache | str | Path | Sequence[str | Request], config: SeDialectConfig, progress: bool = True
) -> CalibrationCache:
    """The calibration that `enable_sedialect(calibration=...)` asks for: made now, or one that there is.

    Raises:
        InputError: there is none in the folder, or it is of another model; or as `calibrate` says.
        ModelError: as `calibrate` says.
    """
    if isinstance(given, Path) or (isinstance(given, str) and given != SELF):
        given = CalibrationCache.load(given)
    if not isinstance(given, CalibrationCache):
        return calibrate(pipe, given, config=config, progress=progress)
    models = denoisers(pipe)
    given.check_models(models)
    for name in models:
        given.component(name)  # which raises where it is not finished
    return given


def _open(
    pipe: Any,
    models: Mapping[str, nn.Module],
    requests: Sequence[Request],
    config: SeDialectConfig,
    every: int,
    folder: Path | None,
) -> CalibrationCache:
    """The calibration to be made, or the one in the folder if it is the same."""
    inputs = tuple(entry for name, model in models.items() for entry in _inputs(name, model, config))
    sizes = {tuple(getattr(request, name) for name in RESOLUTION) for request in requests}
    if len(sizes) > 1:
        raise InputError("the requests have several resolutions; calibrate at one")
    fingerprint = {**fingerprint_of(pipe, models, requests), "every": str(every)}
    cache = CalibrationCache(fingerprint, sizes.pop(), inputs, folder)
    if folder is not None and (folder / INDEX).exists():
        found = CalibrationCache.load(folder)
        found.check_same(cache)
        return found
    cache.begin()
    return cache


def _inputs(component: str, model: nn.Module, config: SeDialectConfig) -> Iterator[Input]:
    for group in groups_of(make_plan(model, config).quantized):
        names = tuple(plain_name(layer.name) for layer in group)
        yield Input(component, names, group[0].in_features, group[0].stream)


@contextmanager
def _own_bar(pipe: Any) -> Iterator[None]:
    """The pipeline's progress bar, which sampling for us switches off, is as it was afterwards."""
    before = pipe.__dict__.get("_progress_bar_config")
    try:
        yield
    finally:
        pipe.__dict__.pop("_progress_bar_config", None)
        if before is not None:
            pipe._progress_bar_config = before


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
        found = [cls(int(path.suffix[1:]), path) for path in folder.glob(f"{PARTIAL}.*")] if folder is not None else []
        return max(found, key=lambda one: one.prompts, default=None)

    @property
    def names(self) -> set[str]:
        return {path.name.removesuffix(".safetensors") for path in self.folder.iterdir()}


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
    moment: torch.Tensor | None = None
    peak: torch.Tensor | None = None
    rows: list[torch.Tensor] = field(default_factory=list)
    count: int = 0
    seen: set[tuple[float, float]] = field(default_factory=set)  # in this prompt: the text is read anew in every step

    def add(self, rows: torch.Tensor) -> None:
        """Rows [M, K]; equal ones of one prompt count once."""
        wide = rows.float()
        mark = (float(wide.sum(dtype=torch.float64)), float(wide.square().sum(dtype=torch.float64)))
        if not abs(mark[1]) < float("inf"):
            raise _NotFinite
        if mark in self.seen:
            return
        self.seen.add(mark)
        place = self.device or rows.device  # what was resumed lies on the CPU until now
        product, top = (wide.T @ wide).to(place), wide.abs().amax(0).to(place)
        self.moment = product if self.moment is None else self.moment.to(place).add_(product)
        self.peak = top if self.peak is None else torch.maximum(self.peak.to(place), top)
        self.rows.append(spread_rows(rows, SAMPLE).cpu())
        self.count += len(rows)

    def so_far(self) -> InputStatistics:
        """Sums, in place of means; zeros where nothing was read."""
        if self.moment is None or self.peak is None:
            nothing = torch.zeros(self.width)
            return InputStatistics(nothing.expand(self.width, -1), nothing, nothing[None][:0], 0)
        return InputStatistics(self.moment, self.peak, torch.cat(self.rows), self.count)

    def finish(self) -> InputStatistics:
        """The statistics."""
        sums = self.so_far()
        return replace(sums, moment=sums.moment / max(1, self.count))

    def resume(self, sums: InputStatistics) -> None:
        """Go on from what `so_far` gave."""
        if sums.count:
            self.moment, self.peak, self.rows, self.count = sums.moment, sums.peak, [sums.rows], sums.count


@dataclass
class _Pass:
    """Some of the inputs, watched while all prompts are run."""

    pipe: Any
    models: Mapping[str, nn.Module]
    cache: CalibrationCache
    inputs: Sequence[Input]
    every: int
    device: str | None
    save_every: float
    watch: Watch

    def __post_init__(self) -> None:
        self.sums = {entry.name: _Sums(entry.width, self.device) for entry in self.inputs}
        self.where = ""

    def run(self, requests: Sequence[Request], bar: Any) -> None:
        """Run the prompts that are left, and keep what came of all."""
        done = self._resume()
        bar.update(done)
        saved = time.monotonic()
        for number, request in enumerate(requests[done:], done + 1):
            self.watch.on_stage(f"calibrating: prompt {number} of {len(requests)}")
            self._watch(request, number)
            bar.update()
            if number < len(requests) and time.monotonic() - saved >= self.save_every:
                self._save(number)
                saved = time.monotonic()
        self._check_counts(len(requests))
        for entry in self.inputs:
            self.cache.put(entry, self.sums[entry.name].finish())
        if self.cache.folder is not None:
            for folder in (*self.cache.folder.glob(f"{PARTIAL}.*"), *self.cache.folder.glob(f".{PARTIAL}.*")):
                shutil.rmtree(folder)

    def _watch(self, request: Request, number: int) -> None:
        targets = [Target(entry.name, self._linear(entry), True) for entry in self.inputs]
        for sums in self.sums.values():
            sums.seen.clear()
        steps: Mapping[str, Steps] = {}

        def add(name: str, rows: torch.Tensor) -> None:
            self.where = name
            self.sums[name].add(rows)

        try:
            with watching(self.models, targets, self.every, add, rows=None) as steps, _heeded(self.models, self.watch):
                generate(self.pipe, request, "", "latent", progress=False)
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
        model, name = self.models[entry.component], entry.layers[0]
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
            if entry.stream in SEQUENCES and 0 < count < entry.width:
                needed = -(-entry.width * prompts // count)
                raise InputError(
                    f"{entry.name} has {entry.width} channels and read {count} tokens in {prompts} prompts at every "
                    f"{self.every}. step, too few for a moment of that size; give {needed} prompts at least, larger videos"
                    + (", or every=1" if self.every > 1 else "")
                )

    def _save(self, number: int) -> None:
        """Keep the sums behind prompt `number`; whole or not at all."""
        if self.cache.folder is None:
            return
        older = list(self.cache.folder.glob(f"{PARTIAL}.*"))
        staged = self.cache.folder / f".{PARTIAL}.{number}"
        shutil.rmtree(staged, ignore_errors=True)
        for name, sums in self.sums.items():
            save_statistics(staged / f"{name}.safetensors", sums.so_far())
        staged.rename(self.cache.folder / staged.name[1:])
        for folder in older:
            shutil.rmtree(folder)

    def _resume(self) -> int:
        """Take up what an interrupted pass over these inputs has saved; the number of prompts that it had run."""
        unfinished = _Unfinished.find(self.cache.folder)
        if unfinished is None or unfinished.names != self.sums.keys():
            return 0
        for name, sums in self.sums.items():
            sums.resume(load_statistics(unfinished.folder / f"{name}.safetensors", sums.width))
        return unfinished.prompts
