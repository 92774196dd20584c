"""The one pipeline of a server, and the one run that it makes at a time; the others wait for it."""

import base64
import io
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import torch

from ...sedialect_core.config import SeDialectConfig
from ...sedialect_core.errors import InputError, ModelError, SeDialectError
from ...sedialect_core.inspection.denoisers import denoisers
from ...sedialect_core.plan.rules import make_plan
from ...sedialect_core.progress import Watch, beating
from ...sedialect_core.video.mp4 import Frames
from ...sedialect_core.video.preview import CleanLatents, LatentPreview

LOG = logging.getLogger(__name__)
WAKE = 1.0  # seconds after which whoever follows a run looks up, news or not
PREVIEW_FRAMES, PREVIEW_SIDE = 12, 160
PIECE_ROWS, PIECE_COLUMNS = 8, 256  # of a layer's weight that the page may look at
WAITING, STOPPING = "waiting for the model", "cancelling"

Result = TypeVar("Result")


class Stopped(Exception):
    """The visitor cancelled the run, or left."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands. `previews` holds a picture, as a data URI, for each stage that has shown one.

    `phase` is what is done within the stage, and `seconds` how long the stage or the phase has taken, by the last beat.
    """

    stage: str = WAITING
    phase: str = ""
    seconds: float = 0.0
    step: int = 0
    steps: int = 0
    seconds_left: float | None = None
    previews: dict[str, str] = field(default_factory=dict)


class Run(Watch, Generic[Result]):
    """One piece of work on the pipeline, in the studio's thread: its progress, its result, and the wish to stop it.

    Args:
        steps: of one sampling stage.
        stages: how many sampling stages there will be, for the seconds that are left.
        seconds: after which it is stopped.
        ahead: how many runs will be made before it.
    """

    def __init__(self, steps: int, stages: int, seconds: float, ahead: Callable[[], int]) -> None:
        self.steps, self.stages, self.seconds, self._ahead = steps, stages, seconds, ahead
        self.progress = Progress(steps=steps)
        self.result: Result | None = None
        self.error: BaseException | None = None
        self._changed = threading.Condition()
        self._version, self._begun, self._ended = 0, False, False
        self._stop = threading.Event()
        self._started = self._stage_started = self._phase_started = time.monotonic()
        self._label, self._total = "", 0  # of the phase
        self._holding = False  # the time in line is nobody's fault
        self._sampled = 0
        self._preview: LatentPreview | None = None
        self._scheduler: Any = None
        self._clean: CleanLatents | None = None

    @property
    def ended(self) -> bool:
        """Whether there is a result or an error."""
        return self._ended

    @property
    def stopping(self) -> bool:
        """Whether it has ended, or was asked to."""
        return self._ended or self._stop.is_set()

    def stop(self) -> None:
        """Ask the run to end before its next forward; one that has not begun ends at once."""
        self._stop.set()
        with self._changed:
            if not self._begun and not self._ended:
                self.error, self._ended = Stopped(), True
                self._changed.notify_all()
            elif not self._ended:
                self._tell(replace(self.progress, stage=STOPPING, seconds_left=None))

    def follow(self) -> Iterator[Progress]:
        """Progress, whenever there is news, until the run has ended; in line every second, so that visitors can leave it."""
        seen = -1
        while True:
            with self._changed:
                if not self._ended and self._version == seen:
                    self._changed.wait(timeout=WAKE)
                news, seen, ended, progress = self._version != seen, self._version, self._ended, self.progress
                begun = self._begun
            if ended:
                return
            if not begun:
                seconds = time.monotonic() - self._started
                yield replace(progress, stage=place_in_line(self._ahead()), seconds=seconds)
            elif news:
                yield progress

    def on_stage(self, label: str) -> None:
        self._check()
        self._stage_started, self._clean = time.monotonic(), None
        self._begin(stage=label, phase="", step=0, seconds_left=None)

    def on_phase(self, label: str, total: int | None = None, unit: str = "it") -> None:
        self._check()
        self._label, self._total = label, total or 0
        self._begin(phase="" if label == self.progress.stage else label)

    def on_count(self, done: int) -> None:
        self._check()
        self._tell(replace(self.progress, phase=f"{self._label}: {done / max(done, self._total, 1):.0%}"))

    def on_beat(self) -> None:
        with self._changed:
            if not self._ended:
                self._tell(replace(self.progress, seconds=time.monotonic() - self._phase_started))

    def on_forward(self) -> None:
        self._check()

    def on_step(self, step: int, latents: torch.Tensor) -> None:
        self._check()
        self._sampled += step == 1
        previews = {**self.progress.previews, **self._show(step, latents)}
        self._tell(replace(self.progress, step=step, seconds_left=self._seconds_left(step), previews=previews))

    def count(self, step: int) -> None:
        """Tell a step of work that has no latents to show."""
        self._check()
        if step != self.progress.step:
            self._sampled = max(1, self._sampled)
            self._tell(replace(self.progress, step=step, seconds_left=self._seconds_left(step)))

    def carry_out(self, work: Callable[[Any, "Run[Result]"], Result], studio: "Studio") -> None:
        """Do the work when the pipeline is free, unless it was stopped before that."""
        with self._changed:
            if self._ended:
                return
            self._begun = True
        try:
            with beating(self.on_beat), studio.pipeline(self._check) as pipe:
                self._started, self._holding = time.monotonic(), True
                self._preview, self._scheduler = studio.preview, getattr(pipe, "scheduler", None)
                self.result = work(pipe, self)
        except BaseException as error:  # noqa: BLE001  # it is raised again where the run is waited for
            self.error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _check(self) -> None:
        if self._stop.is_set():
            raise Stopped
        if self._holding and time.monotonic() - self._started > self.seconds:
            raise InputError(f"this took longer than {self.seconds:.0f} s and was stopped; ask for fewer steps or frames")

    def _seconds_left(self, step: int) -> float:
        a_step = (time.monotonic() - self._stage_started) / step
        return a_step * (self.steps - step + self.steps * max(0, self.stages - self._sampled))

    def _show(self, step: int, latents: torch.Tensor) -> dict[str, str]:
        if self._preview is None:
            return {self.progress.stage: self.progress.previews.get(self.progress.stage, "")}
        if self._clean is None:
            self._clean = CleanLatents(self._scheduler)
        clean = self._clean.after_step(step, latents)
        frames = None if clean is None else self._preview.frames(clean)
        return {self.progress.stage: "" if frames is None else moving_picture(frames)}

    def _begin(self, **changes: Any) -> None:
        self._phase_started = time.monotonic()
        self._tell(replace(self.progress, seconds=0.0, **changes))

    def _tell(self, progress: Progress) -> None:
        with self._changed:
            self.progress = progress
            self._version += 1
            self._changed.notify_all()


class Studio:
    """Holds the pipeline. Loading begins when it is told to, and again at the next run where it failed.

    All work is done by one thread that lasts: with a thread a run memory grew, for each allocates in an arena of its own.

    Args:
        load: makes the pipeline; what it raises is what visitors are told.
        waiting: how many runs may stand in line behind the one that is made.
    """

    def __init__(self, load: Callable[[], Any], waiting: int = 16) -> None:
        self._load = load
        self._pipe: Any = None
        self._waiting = waiting
        self._lock, self._line_lock = threading.Lock(), threading.Lock()
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._line: list[Run[Any]] = []  # in the order in which they will be made, the one being made included
        threading.Thread(target=self._do_work, name="sedialect-work", daemon=True).start()
        self.preview: LatentPreview | None = None
        self.weights: dict[str, torch.Tensor] = {}
        """A piece of each layer's 16-bit weight, by name: to be looked at while the layers themselves are at work."""
        self.notes: list[str] = []
        self.failed = ""

    @property
    def ready(self) -> bool:
        """Whether the pipeline is in memory."""
        return self._pipe is not None

    def start_loading(self) -> None:
        """Load in the background, so that the page is there at once."""

        def load() -> None:
            with self._lock:
                self._ensure_loaded()

        self._work.put(load)

    def _do_work(self) -> None:
        while True:
            try:
                self._work.get()()
            except SeDialectError as error:
                LOG.error("loading failed: %s", error)
            except Exception:  # of loading; runs keep theirs for whoever waits. This thread must go on
                LOG.exception("loading failed")

    @contextmanager
    def pipeline(self, check: Callable[[], None]) -> Iterator[Any]:
        """The pipeline, for one run alone; `check` may end the waiting by raising.

        Raises:
            SeDialectError: it cannot be loaded.
        """
        while not self._lock.acquire(timeout=0.25):
            check()
        try:
            self._ensure_loaded()
            yield self._pipe
        finally:
            self._lock.release()

    @contextmanager
    def run(
        self, work: Callable[[Any, Run[Result]], Result], *, steps: int, stages: int, seconds: float
    ) -> Iterator[Run[Result]]:
        """A run at the end of the line, to be followed; leaving the block stops it.

        Raises:
            InputError: the line is full.
        """
        run: Run[Result] = Run(steps, stages, seconds, lambda: self._ahead_of(run))
        with self._line_lock:
            if sum(not other.ended for other in self._line) > self._waiting:
                raise InputError(f"the line is full, {self._waiting} are waiting already; try again in some minutes")
            self._line.append(run)
            self._work.put(lambda: self._carry_out(run, work))
        try:
            yield run
        finally:
            run.stop()

    def _carry_out(self, run: Run[Result], work: Callable[[Any, Run[Result]], Result]) -> None:
        try:
            run.carry_out(work, self)
        finally:
            with self._line_lock:
                self._line.remove(run)

    def _ahead_of(self, run: Run[Any]) -> int:
        with self._line_lock:
            before = self._line[: self._line.index(run)] if run in self._line else []
            return sum(not other.ended for other in before)

    def _ensure_loaded(self) -> None:
        if self._pipe is not None:
            return
        try:
            pipe = self._load()
            pipe.set_progress_bar_config(disable=True)
            self.weights = pieces_of_weights(pipe)
        except Exception as error:
            self.failed = str(error) if isinstance(error, SeDialectError) else "loading failed; the server's log says why"
            raise
        self.failed = ""
        try:
            self.preview = LatentPreview.fit(pipe)
        except ModelError as error:
            self.notes.append(str(error))
        self._pipe = pipe


def place_in_line(ahead: int) -> str:
    """What a visitor reads whose run has not begun."""
    return f"in line: {ahead} before yours" if ahead else WAITING


def pieces_of_weights(pipe: Any) -> dict[str, torch.Tensor]:
    """The corner of every weight that would be quantized, by component and layer."""
    found = {}
    for component, model in denoisers(pipe).items():
        for layer in make_plan(model, SeDialectConfig()).quantized:
            weight = model.get_submodule(layer.name).get_parameter("weight").detach()
            found[f"{component}.{layer.name}"] = weight[:PIECE_ROWS, :PIECE_COLUMNS].float().cpu().clone()
    return found


def moving_picture(frames: Frames) -> str:
    """At most PREVIEW_FRAMES frames [T, H, W, 3] as an animated WebP in a data URI."""
    from PIL import Image

    chosen = frames[:: max(1, -(-len(frames) // PREVIEW_FRAMES))]
    pictures = [Image.fromarray(frame) for frame in chosen]
    for picture in pictures:
        picture.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    file = io.BytesIO()
    pictures[0].save(file, "WEBP", save_all=True, append_images=pictures[1:], duration=160, loop=0, quality=80)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
