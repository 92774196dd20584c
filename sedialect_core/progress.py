"""Signs of life: who does work tells a `Watch` what begins and how far it is, and a thread beats while nothing is told.

One mechanism for all front ends. The library calls the methods of a `Watch`; the command line (`Console`), the app and the
ComfyUI nodes are three watches that show them; `beating` makes each show again, every second, how long the work takes, so
that one long call (loading, decoding) is no silence.
"""

import contextvars
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    import torch

BEAT = 1.0  # seconds between two signs of life on a screen
LINE_BEAT = 1.5  # and where each is a line, as in a log file
WITHOUT_END = "{desc}: {elapsed}"  # of a bar whose length nobody knows


class Watch:
    """Follows a run while it is made. This one does nothing; what a method raises stops the run and reaches the caller."""

    def on_stage(self, label: str) -> None:
        """A part of the run begins, such as one of two videos."""

    def on_phase(self, label: str, total: int | None = None, unit: str = "it") -> None:
        """What is done from now on, in words: a phase of the stage, such as decoding.

        Args:
            total: how many units `on_count` will tell, where that is known.
        """

    def on_count(self, done: int) -> None:
        """So many units of the phase are done."""

    def on_forward(self) -> None:
        """A transformer is about to be called: at least once a step, and the finest place to stop at."""

    def on_step(self, step: int, latents: "torch.Tensor") -> None:
        """The sampler has made its step number `step`, from 1, with these latents. Not every pipeline tells its steps."""

    def on_beat(self) -> None:
        """Time passes. Called by a thread of its own, while the work is wherever it is; it must not raise."""


@contextmanager
def beating(beat: Callable[[], object], every: float = BEAT) -> Iterator[None]:
    """Call `beat` every so many seconds, in a thread, until the block has ended, however it ends."""
    ended = threading.Event()

    def go_on() -> None:
        while not ended.wait(every):
            beat()

    context = contextvars.copy_context()  # ComfyUI keeps in it which node is at work
    thread = threading.Thread(target=context.run, args=(go_on,), name="sedialect-beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def shown_bar(
    desc: str, total: int | None = None, unit: str = "it", initial: int = 0, disable: bool = False
) -> Iterator[Any]:
    """A progress bar on stderr that is drawn again while nothing happens; a line each time where stderr is no terminal."""
    screen = sys.stderr.isatty()
    every = BEAT if screen else LINE_BEAT
    settings: dict[str, Any] = {"unit": unit, "unit_scale": unit == "w", "disable": disable}
    if not total:
        settings["bar_format"] = WITHOUT_END
    if not screen:
        settings |= {"file": _Lines(), "mininterval": every / 2, "ncols": 80}
    with tqdm(desc=desc, total=total, initial=initial, **settings) as bar:
        if disable:
            yield bar
        else:
            with beating(bar.refresh, every):
                yield bar


class _Lines:
    """stderr for bars where it is no terminal: each drawing is a line, and none is drawn over another."""

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line:
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()


class Console(Watch):
    """Shows each phase as a bar on stderr, while it is open: `with Console() as watch`."""

    def __init__(self) -> None:
        self._shown = ExitStack()
        self._bar: Any = None

    def __enter__(self) -> "Console":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the bar of the phase, and its thread."""
        self._shown.close()
        self._bar = None

    def on_phase(self, label: str, total: int | None = None, unit: str = "it") -> None:
        self.close()
        self._bar = self._shown.enter_context(shown_bar(label, total, unit))

    def on_count(self, done: int) -> None:
        if self._bar is not None:
            self._bar.update(done - self._bar.n)

    def on_step(self, step: int, latents: "torch.Tensor") -> None:
        self.on_count(step)


@contextmanager
def following(watch: Watch | None, progress: bool = True) -> Iterator[Watch]:
    """The watch that was given; else a console, or with `progress=False` one that shows nothing."""
    if watch is not None or not progress:
        yield watch or Watch()
    else:
        with Console() as console:
            yield console
