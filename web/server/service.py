"""What the tabs do, apart from how they look: inputs checked, work run on the studio's pipeline, progress told."""

import logging
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ...bench import quality
from ...sedialect_core.calibration.cache import RESOLUTION, CalibrationCache
from ...sedialect_core.calibration.moments import calibrate
from ...sedialect_core.calibration.prompts import GLANCE, SELF
from ...sedialect_core.charts.trace import Trace, tracing
from ...sedialect_core.comparison import QUANTIZING, Comparison, compare, quantized_pipeline, write_comparison
from ...sedialect_core.config import SeDialectConfig
from ...sedialect_core.demo import unknown_words
from ...sedialect_core.errors import InputError, SeDialectError
from ...sedialect_core.formatbook import Formatbook
from ...sedialect_core.inspection.denoisers import denoisers
from ...sedialect_core.video.differences import Measured, measure
from ...sedialect_core.video.mp4 import Frames
from ...sedialect_core.video.sampling import Request, computed_in, sample
from ..measures import rows
from ..parts.heat import png
from .limits import Offer, checked_config, checked_request
from .listening import Listeners
from .results import Latest, Results
from .studio import Progress, Run, Stopped, Studio

LOG = logging.getLogger(__name__)
SIXTEEN = "16 bit"
INSIDES = 8  # visitors whose last look inside is kept: up to tens of megabytes each
QUICK_PAIRS, QUICK_STEPS = 2, 3
NOT_CALIBRATED, GLANCED, CALIBRATED = "none", GLANCE, SELF  # what of its inputs is known where a model is quantized
COMPARE, LOOK, BENCH = "compare", "look", "bench"  # what a visitor may have in the line, one of each
SHOWN_RATIO, SHOWN_SIMILARITY = 0.1, 0.9  # of semantics that are switched on to be seen
THUMBNAIL = 96  # pixels, about


@dataclass(frozen=True)
class Finished:
    """A comparison on disk: its files, what was measured, and what it was asked for."""

    request: Request
    config: SeDialectConfig
    folder: Path
    fps: int
    rows: list[tuple[str, str, str, str]]
    measured: Measured
    numbers: dict[str, Any] = field(repr=False)
    notes: tuple[str, ...] = ()
    calibration: str = NOT_CALIBRATED

    @property
    def files(self) -> tuple[Path, Path, Path, Path]:
        """16 bit, quantized, side by side, and the numbers."""
        names = ("16-bit.mp4", "quantized.mp4", "side-by-side.mp4", "comparison.json")
        first, second, both, numbers = (self.folder / name for name in names)
        return first, second, both, numbers


@dataclass(frozen=True)
class Inside:
    """What the layers of a run did, and small pictures of its video, one for each frame of tokens."""

    title: str
    trace: Trace
    thumbnails: tuple[str, ...]
    steps: int
    shapes: int


@dataclass(frozen=True)
class BenchResult:
    """What the quick bench found: a picture as PNG, and its tables in Markdown."""

    picture: bytes
    table: str


@dataclass(frozen=True)
class Service:
    """A server's pipeline, what it offers, and where its results lie.

    Args:
        calibration: the operator's, by which weights may be encoded; the bundled model calibrates itself when first asked,
            and any model glances at one prompt.
    """

    studio: Studio
    offer: Offer
    results: Results
    bundled: bool
    name: str
    calibration: CalibrationCache | None = None
    insides: Latest[Inside] = field(default_factory=lambda: Latest(INSIDES))
    learnt: dict[str, CalibrationCache] = field(default_factory=dict)
    """What the model has learnt of itself: a calibration, if it is the bundled one, and the last glance."""
    listeners: Listeners = field(default_factory=Listeners)
    _runs: dict[tuple[str, str], Run[Any]] = field(default_factory=dict)
    _gate: threading.Lock = field(default_factory=threading.Lock)

    @property
    def calibrations(self) -> tuple[str, ...]:
        """By what visitors may have the model quantized."""
        calibrates = self.bundled or self.calibration is not None
        return (NOT_CALIBRATED, GLANCED, *([CALIBRATED] if calibrates else []))

    def compare(
        self,
        session: str,
        asked: dict[str, Any],
        preset: str,
        settings: dict[str, Any],
        keep: str,
        calibration: str = NOT_CALIBRATED,
    ) -> Iterator[Progress | Finished]:
        """Both videos of a request: progress while they are made, then the result.

        Raises:
            SeDialectError: the inputs are out of bounds, or the model, the pipeline or the disk fails.
        """
        request, config = checked_request(self.offer, **asked), checked_config(preset, settings, keep)
        if calibration not in self.calibrations:
            if calibration == CALIBRATED:
                raise InputError("this server has no calibration of its model; its operator can give one: --calibration DIR")
            raise InputError(f"calibration is {str(calibration)[:40]!r}; choose one of {', '.join(self.calibrations)}")

        def work(pipe: Any, run: Run[Finished]) -> Finished:
            found = self._calibration(pipe, run, calibration, request)
            comparison = compare(pipe, request, config, watch=run, restore=True, calibration=found)
            run.on_stage("writing")
            return self._write(session, comparison, self._notes(pipe, request), calibration)

        yield from self._follow(session, COMPARE, work, steps=request.steps, stages=2)

    def stop(self, session: str, job: str) -> None:
        """End a visitor's run of this kind, if there is one; whoever follows it is told so."""
        run = self._runs.get((session, job))
        if run is not None:
            run.stop()

    def left(self, session: str) -> None:
        """A visitor has closed the page."""
        for job in (COMPARE, LOOK, BENCH):
            self.stop(session, job)
        self.results.left(session)
        self.insides.drop(session)

    def look_inside(self, session: str, finished: Finished, semantics: bool = False) -> Iterator[Progress | Inside]:
        """The quantized half of a comparison once more, with what its layers do: progress, then the result, which is kept.

        `semantics` makes it with saliency and groups, whether the comparison had them or not.

        Raises:
            SeDialectError: the model or the pipeline fails.
        """
        request, config = finished.request, finished.config
        if semantics:
            config = with_semantics(config)

        def work(pipe: Any, run: Run[Inside]) -> Inside:
            models = denoisers(pipe)
            found = self._calibration(pipe, run, finished.calibration, request)
            run.on_stage(QUANTIZING)
            quantized = quantized_pipeline(pipe, config, True, progress=run, calibration=found)
            with quantized, tracing(models, request.steps) as trace:
                frames = sample(pipe, models, request, config.precision, run).frames
            shapes = Formatbook.resolve(config.formatbook).shapes
            also = " with saliency and groups" if config != finished.config else ""
            title = f"{config.label}{also}: {request.prompt}"
            inside = Inside(title, trace, thumbnails(frames, trace), request.steps, shapes)
            self.insides.put(session, inside)
            return inside

        yield from self._follow(session, LOOK, work, steps=request.steps, stages=1)

    def quick_bench(self, session: str) -> Iterator[Progress | BenchResult]:
        """The quick arms of `sedialect bench quality` on a few prompts: progress, then the result.

        Raises:
            SeDialectError: the model fails, or this server serves another one than the bundled.
        """
        if not self.bundled:
            raise InputError("the quick bench knows the bundled model alone; use sedialect bench quality --model")
        arms = quality.choose(None, quality.BASE, quick=True)
        steps = QUICK_STEPS * (len(arms) + 1)

        def work(pipe: Any, run: Run[BenchResult]) -> BenchResult:
            device = str(pipe.device)
            changes = {"steps": QUICK_STEPS}
            job = quality.bundled_job(
                QUICK_PAIRS,
                changes,
                metrics="velocity",
                forced_steps=QUICK_STEPS,
                batch=QUICK_PAIRS,
                device=device,
                dtype=computed_in(pipe)["dtype"],
            )
            run.on_stage(f"measuring {len(arms)} arms")
            with tempfile.TemporaryDirectory() as scratch, counted(denoisers(pipe), run, steps):
                results = quality.run(job, arms, Path(scratch), pipe)
                _, _, picture = quality.write_results(job, results, quality.BASE, Path(scratch))
                return BenchResult(picture.read_bytes(), quality.markdown(job, results, quality.BASE))

        yield from self._follow(session, BENCH, work, steps=steps, stages=1)

    def _calibration(self, pipe: Any, run: Run[Any], kind: str, request: Request) -> CalibrationCache | None:
        """The operator's, or what the model learns of itself, once for all visitors; a glance once for each size."""
        if kind == NOT_CALIBRATED:
            return None
        if kind == CALIBRATED and self.calibration is not None:
            return self.calibration
        size = {name: getattr(request, name) for name in RESOLUTION} if kind == GLANCED else {}
        known = self.learnt.get(kind)
        if known is None or (size and known.resolution != tuple(size.values())):
            self.learnt[kind] = calibrate(pipe, kind, size=size, progress=False, watch=run)
        return self.learnt[kind]

    def _follow(self, session: str, job: str, work: Any, *, steps: int, stages: int) -> Iterator[Any]:
        with ExitStack() as stack:
            with self._gate:
                self._check_alone(session)
                run: Run[Any] = stack.enter_context(
                    self.studio.run(work, steps=steps, stages=stages, seconds=self.offer.seconds)
                )
                self._runs[session, job] = run
            self.listeners.begins(session)
            try:
                for news in run.follow():
                    if self.listeners.gone(session):
                        LOG.info("a run is ended: nobody reads what is told of it")
                        raise Stopped
                    yield news
            finally:
                self.listeners.ends(session)
                if self._runs.get((session, job)) is run:
                    del self._runs[session, job]
        if run.error is not None:
            raise explained(run.error) from run.error
        yield run.result

    def _check_alone(self, session: str) -> None:
        """Refuse a second run of one visitor: whoever else waits would wait for both.

        Raises:
            InputError: there is one, of this session or from this address.
        """
        address = self.listeners.address(session)
        for (other, _), run in self._runs.items():
            same = other == session if session else False
            if not run.stopping and (same or (address and self.listeners.address(other) == address)):
                raise InputError("a run of yours is in line or being made already; wait for it, or cancel it")

    def _write(self, session: str, comparison: Comparison, notes: tuple[str, ...], calibration: str) -> Finished:
        fps = self.offer.fps
        measured = measure(comparison.quantized.frames, comparison.original.frames, fps)
        folder = self.results.new_folder(session)
        try:
            write_comparison(comparison, folder, fps)
        except InputError as error:  # it names the folder, which is nobody's business
            LOG.error("%s", error)
            self.results.drop(folder)
            why = getattr(error.__cause__, "strerror", None) or "it cannot be written"
            raise InputError(f"this server has no place for the result ({why}); try again later") from error
        numbers = {**comparison.to_dict(), "calibration": calibration, "measured": measured.values}
        lines = rows(comparison, measured)
        return Finished(comparison.request, comparison.config, folder, fps, lines, measured, numbers, notes, calibration)

    def _notes(self, pipe: Any, request: Request) -> tuple[str, ...]:
        unknown = unknown_words(request.prompt, pipe.tokenizer) if self.bundled else []
        if not unknown:
            return ()
        return (f"The bundled model does not know: {', '.join(unknown)}. It knows coloured shapes that move.",)


def with_semantics(config: SeDialectConfig) -> SeDialectConfig:
    """The same with saliency by attention and groups; what it has of them stays. Only 4-bit inputs have any."""
    if config.precision != "w4a4":
        return config
    likeness = config.semantic_similarity if config.semantic else SHOWN_SIMILARITY
    return config.override(
        semantic=True,
        semantic_similarity=likeness,
        salient_by=config.salient_by if "attention" in config.salient_by else "attention",
        salient_ratio=config.salient_ratio or SHOWN_RATIO,
    )


@contextmanager
def counted(models: Mapping[str, nn.Module], run: Run[Any], steps: int) -> Iterator[None]:
    """Take forwards for steps while the block runs, two to one for guidance, and let each be the place to stop at."""
    made = 0

    def before(*_: object) -> None:
        nonlocal made
        run.on_forward()
        made += 1
        run.count(min(steps, (made + 1) // 2))

    handles = [model.register_forward_pre_hook(before) for model in models.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def thumbnails(frames: Frames, trace: Trace) -> tuple[str, ...]:
    """One small picture of the video for each frame of tokens."""
    count = trace.grid[0] if trace.grid else 0
    places = [round(number * (len(frames) - 1) / max(1, count - 1)) for number in range(count)]
    thinning = max(1, frames.shape[1] // THUMBNAIL)
    return tuple(png(frames[place, ::thinning, ::thinning]) for place in places)


def explained(error: BaseException) -> BaseException:
    """An error as visitors are told it: what they, or the operator, can mend."""
    if isinstance(error, SeDialectError):
        return error
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return SeDialectError("the server's memory is too small for this; ask for fewer or smaller frames")
    return error
