"""No silence: what is done is told when it begins, and time is told while nothing else is."""

import io
import itertools
import sys
import threading
import time

import pytest
from comfyui_stand_in import forget, modules
from tiny_pipelines import build

from sedialect import SeDialectConfig
from sedialect.sedialect_core import demo, progress
from sedialect.sedialect_core.comparison import compare
from sedialect.sedialect_core.progress import Console, Watch, beating, shown_bar
from sedialect.sedialect_core.video.compute_dtype import choose_dtype
from sedialect.sedialect_core.video.sampling import Request, load_pipeline, sample

LIMIT = 3.0  # seconds of silence that nobody has to bear
SLOW = 4.0


class Stamped(io.StringIO):
    """stderr that knows when it was written to."""

    def __init__(self) -> None:
        super().__init__()
        self.times = [time.monotonic()]

    def write(self, text: str) -> int:
        self.times.append(time.monotonic())
        return super().write(text)


class Told(Watch):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.stages, self.phases, self.counts, self.steps = [], [], [], []

    def on_stage(self, label):
        self.stages.append(label)

    def on_phase(self, label, total=None, unit="it"):
        self.phases.append((label, total))

    def on_count(self, done):
        self.counts.append(done)

    def on_step(self, step, latents):
        self.steps.append(step)


REQUEST = Request("a red ball", steps=2, height=32, width=48, num_frames=5)


def test_every_phase_of_a_comparison_is_told_in_order():
    pipe, watch = build("wan")[0], Told()
    compare(pipe, REQUEST, SeDialectConfig(), watch=watch)
    assert watch.stages == ["16 bit", "quantizing", "w4a4", "measuring"]
    (_, weights) = watch.phases[3]
    assert watch.phases == [
        ("16 bit: encoding the prompt", None),
        ("16 bit", 2),
        ("16 bit: decoding", None),
        ("Quantizing WanTransformer3DModel", weights),
        ("w4a4: encoding the prompt", None),
        ("w4a4", 2),
        ("w4a4: decoding", None),
        ("measuring", None),
    ]
    assert watch.steps == [1, 2, 1, 2] and watch.counts[-1] == weights
    assert "decode" not in vars(pipe.vae), "nothing is left on the autoencoder"


def test_the_bundled_demo_with_a_decoding_of_four_seconds_is_never_silent(monkeypatch):
    """Gaps between what reaches stderr; the slow call sleeps, so that the machine's speed does not matter."""
    pipe = load_pipeline(demo.MODEL, choose_dtype("cpu"), "cpu")
    decode, times = pipe.vae.decode, []

    def slow(*args, **kwargs):
        times.append(time.monotonic())
        time.sleep(SLOW)
        times.append(time.monotonic())
        return decode(*args, **kwargs)

    monkeypatch.setattr(pipe.vae, "decode", slow)
    stderr = Stamped()
    monkeypatch.setattr(sys, "stderr", stderr)
    request = Request("a red ball moves left", steps=1, height=32, width=32, num_frames=5)
    with Console() as watch:
        compare(pipe, request, SeDialectConfig.preset("plain"), watch=watch)
    assert len(times) == 4 and all(b - a >= SLOW for a, b in zip(times[::2], times[1::2], strict=True))
    for start, end in zip(times[::2], times[1::2], strict=True):
        during = [start, *(moment for moment in stderr.times if start < moment < end), end]
        assert max(b - a for a, b in itertools.pairwise(during)) < LIMIT
    lines = stderr.getvalue().splitlines()
    for label in ("16 bit: encoding the prompt", "16 bit: decoding", "Quantizing Wan", "w4a4: decoding", "measuring"):
        assert any(line.startswith(label) for line in lines), label
    assert pipe.vae.decode is slow and not beats()


def beats() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "sedialect-beat"]


def test_the_thread_beats_and_ends_with_its_block_also_after_an_error():
    again = threading.Semaphore(0)
    with pytest.raises(KeyError), beating(again.release, 0.01):
        assert all(again.acquire(timeout=30) for _ in range(3)) and beats()
        raise KeyError
    assert not beats()


def test_beats_are_at_most_three_seconds_apart():
    assert max(progress.BEAT, progress.LINE_BEAT) + 0.5 < LIMIT


def test_an_error_while_sampling_ends_the_bar_and_leaves_the_pipeline(monkeypatch):
    pipe = build("wan")[0]

    def fail(*args, **kwargs):
        raise MemoryError("too large")

    monkeypatch.setattr(pipe.vae, "decode", fail)
    with pytest.raises(MemoryError):
        sample(pipe, {"transformer": pipe.transformer}, REQUEST, "16 bit")
    assert not beats() and pipe.vae.decode is fail and not pipe.transformer._forward_pre_hooks


def test_where_stderr_is_no_terminal_each_drawing_is_a_line(capsys):
    with shown_bar("16 bit", 2) as bar:
        bar.update(2)
    with shown_bar("loading"):
        pass
    with shown_bar("hidden", 3, disable=True):
        pass
    out, error = capsys.readouterr()
    lines = error.splitlines()
    assert out == "" and "\r" not in error and all(lines)
    assert lines[0].startswith("16 bit:   0%") and any(line.startswith("16 bit: 100%") for line in lines)
    assert "loading: 00:00" in lines and "hidden" not in error


def test_a_node_says_what_it_does_and_how_long(tmp_path, monkeypatch):
    forget()
    for name, module in modules(tmp_path).items():
        monkeypatch.setitem(sys.modules, name, module)
    from sedialect.nodes.comfy import text as comfy_text
    from sedialect.nodes.progress import Progress

    with Progress("loading") as shown:
        shown.on_beat()
        shown.on_phase("writing", 4)
        shown.on_count(2)
    assert comfy_text.shown[0] == "loading" and comfy_text.shown[1].startswith("loading: 0 s")
    assert comfy_text.shown[2] == "writing" and not beats()
    forget()


def test_the_app_tells_the_phase_how_much_of_it_is_done_and_for_how_long():
    from sedialect.web.parts import markup
    from sedialect.web.server.studio import Run

    run = Run(steps=2, stages=1, seconds=60, ahead=lambda: 0)
    run.on_stage("w4a4")
    run.on_phase("w4a4: decoding")
    run._phase_started -= 7
    run.on_beat()
    shown = markup.progress(run.progress, ())
    assert '<strong aria-live="polite">w4a4</strong><span>w4a4: decoding</span>' in shown and "7 s" in shown
    run.on_phase("Quantizing Wan", 10)
    run.on_count(5)
    assert run.progress.phase == "Quantizing Wan: 50%" and run.progress.seconds == 0
    run.stop()
