"""The app's line: one run at a time, its progress, its end, and what becomes of results."""

import threading

import pytest
import torch
from app_server import PATIENCE, wait_for

pytest.importorskip("gradio", reason="the app's tests need Gradio: pip install 'sedialect[app]'")
from sedialect.sedialect_core.errors import InputError, SeDialectError
from sedialect.sedialect_core.inspection.denoisers import denoisers
from sedialect.sedialect_core.video.sampling import Request, sample
from sedialect.web.server import results
from sedialect.web.server.results import Latest, Results
from sedialect.web.server.studio import Stopped, Studio


def test_a_model_that_fails_to_load_is_told_and_tried_again(served):
    attempts = []

    def load():
        attempts.append(1)
        if len(attempts) == 1:
            raise KeyError("a surprise")
        if len(attempts) == 2:
            raise InputError("cannot load the pipeline 'there': no such folder")
        return served.service.studio._pipe

    studio = Studio(load)
    studio.start_loading()
    wait_for(lambda: studio.failed, "the failure")
    assert not studio.ready and studio.failed == "loading failed; the server's log says why"
    with pytest.raises(SeDialectError, match="cannot load the pipeline 'there'"):
        run(studio, lambda pipe, watch: None)
    assert "cannot load the pipeline 'there'" in studio.failed
    assert run(studio, lambda pipe, watch: "done") == "done" and studio.ready and not studio.failed


def run(studio, work, **limits):
    with studio.run(work, **{"steps": 2, "stages": 1, "seconds": PATIENCE, **limits}) as started:
        list(started.follow())
    if started.error:
        raise started.error
    return started.result


@pytest.fixture
def studio(served):
    return served.service.studio


def test_runs_never_overlap(studio):
    inside, most, gate = [], [], threading.Event()

    def work(pipe, watch):
        inside.append(1)
        most.append(len(inside))
        gate.wait(0.2)
        inside.pop()

    threads = [threading.Thread(target=run, args=(studio, work)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]


def test_the_line_tells_the_place_and_has_an_end(served):
    gate, pipe = threading.Event(), served.service.studio._pipe
    studio = Studio(lambda: pipe, waiting=1)
    settings = {"steps": 1, "stages": 1, "seconds": PATIENCE}
    with (
        studio.run(lambda pipe, watch: gate.wait(PATIENCE), **settings) as first,
        studio.run(lambda pipe, watch: "mine", **settings) as second,
    ):
        wait_for(lambda: studio._lock.locked(), "the first run")
        assert next(second.follow()).stage == "in line: 1 before yours"
        with (
            pytest.raises(InputError, match="the line is full, 1 are waiting already"),
            studio.run(lambda pipe, watch: None, **settings),
        ):
            pass
        first.stop()
        assert first.progress.stage == "cancelling"
        gate.set()
        list(second.follow())
        assert second.result == "mine" and not studio._line[1:]


def test_leaving_the_page_ends_a_visitor_s_runs(served):
    service, gate = served.service, threading.Event()
    with service.studio.run(lambda pipe, watch: gate.wait(PATIENCE), steps=1, stages=1, seconds=PATIENCE):
        wait_for(lambda: service.studio._lock.locked(), "the first run")
        jobs = service.compare(
            "someone", {"prompt": "a ball", "width": 64, "height": 64, "num_frames": 5}, "default", {}, ""
        )
        assert next(jobs).stage == "in line: 1 before yours"
        service.left("someone")
        with pytest.raises(Stopped):
            list(jobs)
        gate.set()


def test_a_run_in_line_can_be_stopped_and_one_that_takes_too_long_is(studio):
    gate = threading.Event()
    with studio.run(lambda pipe, watch: gate.wait(PATIENCE), steps=1, stages=1, seconds=PATIENCE):
        wait_for(lambda: studio._lock.locked(), "the first run")
        with studio.run(lambda pipe, watch: pytest.fail("never its turn"), steps=1, stages=1, seconds=PATIENCE) as second:
            second.stop()
            assert list(second.follow()) in ([], [second.progress])
        assert isinstance(second.error, Stopped)
        gate.set()

    def endless(pipe, watch):
        request = Request("a ball", steps=500, height=64, width=64, num_frames=5)
        sample(pipe, denoisers(pipe), request, "16 bit", watch)

    gate.clear()
    with pytest.raises(InputError, match="^this took longer than 0 s and was stopped; ask for fewer steps or frames"):
        run(studio, endless, seconds=0.2)


def test_progress_tells_steps_seconds_and_a_picture_that_moves(studio):
    seen = []

    def work(pipe, watch):
        watch.on_stage("16 bit")
        for step in (1, 2, 3):
            watch.on_step(step, torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(step)))
            seen.append(watch.progress)

    run(studio, work, steps=3, stages=2)
    assert [(progress.stage, progress.step, progress.steps) for progress in seen] == [("16 bit", n, 3) for n in (1, 2, 3)]
    assert all(progress.seconds_left > 0 for progress in seen), "the second video is still to come"
    assert seen[-1].previews["16 bit"].startswith("data:image/webp;base64,")


def test_of_large_things_the_last_visitors_alone_are_remembered():
    latest = Latest(2)
    for visitor in ("a", "b", "a", "c"):
        latest.put(visitor, visitor.upper())
    assert (latest.get("a"), latest.get("b"), latest.get("c")) == ("A", None, "C")
    latest.drop("a")
    latest.drop("nobody")
    assert latest.get("a") is None


def test_results_are_replaced_run_out_and_are_few(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(results.time, "monotonic", lambda: now[0])
    kept = Results()
    try:
        first, other = kept.new_folder("a"), kept.new_folder("b")
        for folder in (first, other):
            folder.mkdir()
        second = kept.new_folder("a")
        second.mkdir()
        assert not first.exists() and other.exists() and second.exists(), "a visitor has one result"
        kept.left("b")
        now[0] += results.GRACE_SECONDS + 1
        kept.left("nobody")
        assert not other.exists() and second.exists()
        for number in range(results.KEPT):
            kept.new_folder(str(number)).mkdir()
        assert not second.exists() and len(list(kept.root.iterdir())) == results.KEPT
    finally:
        kept.remove_all()
    assert not kept.root.exists()
