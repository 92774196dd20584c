"""Many videos: a worker makes its share of a work list, one after the other; each GPU has one.

Workers do not talk to each other: which videos are a worker's, and their noise, follow from the list alone, and what is
finished from the files. So they may run under any launcher, stop at any time, and be started again, fewer or more of them.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..config import SeDialectConfig
from ..errors import InputError, shortened
from ..inspection.denoisers import denoisers
from ..integrations.pipelines import enable_sedialect
from ..progress import Watch, shown_bar
from ..video.compute_dtype import choose_dtype
from ..video.mp4 import check_rate, to_bytes
from ..video.sampling import Request, generate, load_pipeline
from ..video.work_list import Item, share, work_list
from ..video.workers import Place
from .finished import DONE, Record, is_done, keep_to_job, progress, write_done, write_failed, write_manifest


@dataclass(frozen=True)
class VideoBatch:
    """What is to be made: with which model and settings, of which prompts, and where it goes.

    config   None: the model as it is, in 16 bit or quantized already
    request  settings of all videos; its prompt and seed do not matter
    """

    model: str
    prompts: tuple[str, ...]
    output: Path
    config: SeDialectConfig | None = None
    samples: int = 1
    request: Request = field(default_factory=lambda: Request(prompt="-"))
    fps: int = 16
    dtype: str | None = None

    def __post_init__(self) -> None:
        check_rate(self.fps)

    def items(self) -> list[Item]:
        """The work list."""
        return work_list(self.prompts, self.samples, self.request)

    def rows(self) -> list[dict[str, Any]]:
        """The same as rows for Ray Data: columns `prompt` and `index`."""
        return [{"prompt": item.request.prompt, "index": item.index} for item in self.items()]

    def job(self) -> dict[str, Any]:
        """What decides how a video looks, for `finished.keep_to_job`."""
        request = {name: value for name, value in asdict(self.request).items() if name not in ("prompt", "seed")}
        config = None if self.config is None else self.config.to_dict()
        return {"model": self.model, "config": config, "request": request, "fps": self.fps, "dtype": self.dtype}


class GenerateVideos:
    """One worker: a pipeline on one device. Called with rows, as Ray Data calls it, or with single items.

    Example:
        >>> batch = VideoBatch("me/wan-sedialect", ("a red ball", "a blue cube"), Path("/videos"), samples=5)
        >>> ray.data.from_items(batch.rows()).map_batches(
        ...     GenerateVideos, fn_constructor_args=(batch,), batch_size=1, num_gpus=1, concurrency=8
        ... ).take_all()
    """

    def __init__(self, batch: VideoBatch, device: str | torch.device = "auto", worker: int = 0) -> None:
        """Load the pipeline, and quantize it if the batch says so and it is not.

        Raises:
            InputError: it cannot be loaded, or the output holds videos of other settings.
            SeDialectError: it cannot be quantized.
        """
        self.batch, self.worker = batch, worker
        self.items = {(item.request.prompt, item.index): item for item in batch.items()}
        keep_to_job(batch.output, batch.job())
        name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else str(device)
        self.pipe = load_pipeline(batch.model, choose_dtype(name, batch.dtype), name)
        quantized = any(getattr(model, "is_quantized", False) for model in denoisers(self.pipe).values())
        if batch.config is not None and not quantized:
            enable_sedialect(self.pipe, batch.config, progress=False)

    def __call__(self, rows: dict[str, Any]) -> dict[str, list[Any]]:
        """Make the videos of rows, in columns `prompt` and `index`; gives columns of their records.

        Raises:
            InputError: a row is none of the batch's.
        """
        records = []
        for prompt, index in zip(rows["prompt"], rows["index"], strict=True):
            item = self.items.get((str(prompt), int(index)))
            if item is None:
                raise InputError(
                    f"sample {index} of {str(prompt)!r} is none of this batch's; pass the rows of `batch.rows()`"
                )
            records.append(self.make(item))
        names = ("prompt", "index", "status", "file", "error")
        return {name: [record.get(name, "") for record in records] for name in names}

    def make(self, item: Item, watch: Watch | None = None) -> Record:
        """Make one video, unless it is there; gives its record. Whatever fails is written into it, and raises nothing."""
        folder = self.batch.output
        if is_done(folder, item):
            return {"prompt": item.request.prompt, "index": item.index, "status": DONE, "file": f"{item.name}.mp4"}
        started = time.monotonic()
        try:
            video = generate(self.pipe, item.request, item.name, progress=False, watch=watch or Watch())
            frames = to_bytes(video.frames[0])
            return write_done(folder, item, frames, self.batch.fps, time.monotonic() - started, self.worker)
        except Exception as error:  # noqa: BLE001  # one video that fails, for whatever reason, does not stop the rest
            return write_failed(folder, item, error, self.worker)


def run_worker(place: Place, batch: VideoBatch) -> None:
    """Make one worker's share; the first shows how far all are.

    Raises:
        InputError: some videos of the share failed.
        SeDialectError: as of `GenerateVideos`.
    """
    items = batch.items()
    keep_to_job(batch.output, batch.job())  # also where all is done: with other settings, nothing would be
    mine = [item for item in share(items, place.rank, place.processes) if not is_done(batch.output, item)]
    failed: list[Record] = []
    if mine:
        make = GenerateVideos(batch, place.own_device(), place.rank)
        with shown_bar("videos of all workers", len(items), "video", disable=place.rank > 0) as bar:
            for item in mine:
                _show(bar, batch.output, items)
                record = make.make(item, _Showing(bar, batch.output, items) if place.rank == 0 else None)
                failed += [record] * (record["status"] != DONE)
            _show(bar, batch.output, items)
    write_manifest(batch.output, items)
    if failed:
        first = f"{failed[0]['file']}: {shortened(failed[0]['error'])}"
        raise InputError(f"{len(failed)} of {len(mine)} videos failed, the first, {first}; run the command again")


class _Showing(Watch):
    """Draws the bar of all workers anew at every step of this one."""

    def __init__(self, bar: Any, folder: Path, items: Sequence[Item]) -> None:
        self.bar, self.folder, self.items, self.seen = bar, folder, items, 0.0

    def on_step(self, step: int, latents: torch.Tensor) -> None:
        if time.monotonic() - self.seen > 5:  # seconds: a list may be long, and its files far away
            _show(self.bar, self.folder, self.items)
            self.seen = time.monotonic()


def _show(bar: Any, folder: Path, items: Sequence[Item]) -> None:
    if bar.disable:
        return
    found = progress(folder, items)
    bar.update(found[DONE] - bar.n)
    bar.set_postfix_str(f"{found['failed']} failed" if found["failed"] else "")


def prompts_of(pairs: Iterable[tuple[str, int]]) -> tuple[str, ...]:
    """The prompts of a file without its seeds: noise follows from prompt and index."""
    return tuple(prompt for prompt, _ in pairs)
