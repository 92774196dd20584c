"""The app from the side of programs: its endpoints, its bounds, and what it does when something goes wrong."""

import errno
import json
import os
import subprocess
import sys
import threading
import tomllib
from dataclasses import fields
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from app_server import free_port, idle, serving, wait_for
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet

gradio = pytest.importorskip("gradio", reason="the app's tests need Gradio: pip install 'sedialect[app]'")
import httpx  # noqa: E402  # comes with Gradio
from gradio_client import Client  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402

from sedialect.sedialect_core import comparison  # noqa: E402
from sedialect.sedialect_core.comparison import compare  # noqa: E402
from sedialect.sedialect_core.config import SeDialectConfig  # noqa: E402
from sedialect.sedialect_core.errors import InputError, SeDialectError  # noqa: E402
from sedialect.sedialect_core.integrations.pipelines import denoisers  # noqa: E402
from sedialect.sedialect_core.sampling import Request, sample  # noqa: E402
from sedialect.web import results  # noqa: E402
from sedialect.web.app import Settings, serve  # noqa: E402
from sedialect.web.guard import MAX_BODY  # noqa: E402
from sedialect.web.limits import bundled_offer, checked_config, checked_request  # noqa: E402
from sedialect.web.results import Latest, Results  # noqa: E402
from sedialect.web.studio import Stopped, Studio  # noqa: E402

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def served():
    with serving() as server:
        yield server


@pytest.fixture
def client(served, tmp_path):
    connected = Client(served.address, verbose=False, download_files=str(tmp_path))
    yield connected
    connected.close()


def test_programs_find_three_endpoints_and_what_may_be_asked(client, served):
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {"/about", "/compare", "/encode_block"}
    about = client.predict(api_name="/about")
    assert about["ready"] and about["failed"] == "" and about["offer"]["max_frames"] == 33
    assert about["settings"]["formatbook"][0] and about["settings"]["semantic_window"] == "2, 2, 2"
    operators = {"skip", "formatbook_digest"}
    assert set(about["settings"]) == {field.name for field in fields(SeDialectConfig)} - operators


def test_a_comparison_by_the_api_is_the_library_s(client, served):
    numbers, files = client.predict(
        prompt="a red ball moves left", seed=3, preset="compact", settings={"candidates": "all"}, api_name="/compare"
    )
    request = checked_request(
        served.service.offer, "a red ball moves left", seed=3, steps=2, guidance_scale=2, width=64, height=64, num_frames=5
    )
    config = SeDialectConfig.preset("compact", candidates="all")
    with served.service.studio.pipeline(lambda: None) as pipe:
        expected = compare(pipe, request, config, watch=None, restore=True)
    assert numbers["config"] == json.loads(json.dumps(config.to_dict()))
    assert numbers["psnr_db"] == pytest.approx(expected.fidelity.psnr)
    assert numbers["measured"]["psnr_db"] == pytest.approx(expected.fidelity.psnr)
    assert [name.rpartition("/")[2] for name in files] == [
        "16-bit.mp4",
        "quantized.mp4",
        "side-by-side.mp4",
        "comparison.json",
    ]
    with av.open(files[0]) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert frames.shape == expected.original.frames.shape
    assert abs(frames.astype(float) - expected.original.frames).mean() < 6, "H.264 takes a little away"


BAD = {
    "empty": ({"prompt": "  "}, "the prompt is empty"),
    "long": ({"prompt": "x" * 10_000}, "the prompt has 10000 characters; at most 1000"),
    "wide": ({"width": 100_000}, "width is 100000; it must lie between 64 and 128"),
    "odd": ({"height": 70}, "height is 70; choose a multiple of 16"),
    "frames": ({"num_frames": 0}, "frames is 0; it must lie between 1 and 33"),
    "steps": ({"steps": 1e12}, "steps is 1e\\+12; it must lie between 1 and 50"),
    "half a step": ({"steps": 2.5}, "steps is 2.5; give a whole number"),
    "guidance": ({"guidance_scale": -1}, "guidance is -1"),
    "preset": ({"preset": "best"}, "no preset 'best'; there are default"),
    "a file": ({"settings": {"formatbook": "/etc/passwd"}}, "formatbook is '/etc/passwd'; choose one of"),
    "a pattern": ({"settings": {"skip": ["(a+)+$"]}}, "no setting 'skip' is offered here"),
    "no settings": ({"settings": [1]}, "settings must be an object"),
    "many layers": ({"keep": "a," * 200}, "the list of layers has 400 characters"),
    "a large window": ({"settings": {"semantic_window": "99, 2, 2"}}, "semantic_window is 99; it must lie between 0 and 8"),
    "dense windows": ({"settings": {"semantic_window": [8, 8, 8], "semantic_spacing": "1 1 1"}}, "too much memory"),
    "no numbers": ({"settings": {"protected_steps": 3}}, "protected_steps is '3'; give whole numbers, separated by commas"),
    "a number too few": ({"settings": {"protected_steps": "3"}}, r"protected_steps is \(3,\); give 2 integers"),
    "no precision": ({"settings": {"layer_precisions": "attn2"}}, r"'attn2' is no layer with its precision \(w4a4"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_bad_inputs_are_named_before_anything_runs(client, served, changes, message, monkeypatch):
    monkeypatch.setattr(served.service.studio, "run", lambda *a, **k: pytest.fail("nothing may run"))
    with pytest.raises(AppError, match=message):
        client.predict(**{"prompt": "a ball", **changes}, api_name="/compare")


def test_layers_can_be_left_in_16_bit_by_plain_parts_of_their_names():
    config = checked_config("default", {}, "attn2, blocks.0.")
    assert config.skips("blocks.3.attn2.to_q") and config.skips("blocks.0.ffn") and not config.skips("blocks.1.ffn")
    assert not config.skips("blocksx0x"), "a dot is a dot"


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60), st.floats(), st.floats(), st.floats(), st.floats(), st.floats())
def test_whatever_is_asked_is_refused_in_a_sentence_or_within_the_bounds(prompt, seed, steps, guidance, side, frames):
    offer = bundled_offer()
    try:
        request = checked_request(offer, prompt, prompt, seed, steps, guidance, side, side, frames)
    except InputError as error:
        assert len(str(error)) < 200
        return
    assert 1 <= request.steps <= offer.max_steps and 1 <= request.num_frames <= offer.max_frames
    assert offer.min_side <= request.width == request.height <= offer.max_side
    assert request.width * request.height * request.num_frames <= offer.max_pixels and request.prompt


def test_what_about_says_of_the_settings_may_be_sent_back(client):
    offered = client.predict(api_name="/about")["settings"]
    default = SeDialectConfig()
    values = {name: getattr(default, name) if isinstance(value, list) else value for name, value in offered.items()}
    assert all(values[name] in value for name, value in offered.items() if isinstance(value, list))
    assert checked_config("default", values) == SeDialectConfig()
    assert checked_config("default", {"layer_precisions": "blocks.0. = w4a8"}).precision_of("blocks.0.x") == "w4a8"


def test_two_visitors_at_once_each_get_their_own(served, tmp_path):
    prompts = ["a red ball moves left", "a small green star moves up"]
    clients = [Client(served.address, verbose=False, download_files=str(tmp_path / str(n))) for n in range(2)]
    jobs = [
        client.submit(prompt=prompt, seed=n, api_name="/compare")
        for n, (client, prompt) in enumerate(zip(clients, prompts, strict=True))
    ]
    found = [job.result(timeout=120) for job in jobs]
    assert [numbers["request"]["prompt"] for numbers, _ in found] == prompts
    assert [numbers["request"]["seed"] for numbers, _ in found] == [0, 1]
    videos = [Path(files[0]).read_bytes() for _, files in found]
    assert videos[0] != videos[1]
    for client in clients:
        client.close()


def test_cancelling_stops_the_sampling_and_the_next_run_works(client, served):
    forwards = []
    handle = served.service.studio._pipe.transformer.register_forward_pre_hook(lambda *_: forwards.append(1))
    job = client.submit(prompt="a ball", steps=50, num_frames=33, api_name="/compare")
    wait_for(lambda: len(forwards) > 3, "sampling")
    job.cancel()
    wait_for(lambda: idle(served), "the end of the run", 20)
    made = len(forwards)
    assert made < 60, "of 200"
    numbers, _ = client.predict(prompt="a ball", api_name="/compare")
    assert numbers["request"]["steps"] == 2 and len(forwards) == made + 8
    handle.remove()


def test_only_results_can_be_fetched_and_nothing_is_taken_in(served, client):
    _, files = client.predict(prompt="a ball", api_name="/compare")
    route = f"{served.address.rstrip('/')}/gradio_api"
    assert files
    for path in ("/etc/passwd", __file__, str(served.service.results.root.parent), "../../etc/passwd"):
        assert httpx.get(f"{route}/file={path}").status_code in (403, 404)
    assert httpx.get(f"{route}/file=http://127.0.0.1:1/x").text == "this app fetches nothing from other servers"
    assert httpx.post(f"{route}/upload", files={"files": b"x"}).text == "this app takes no files"
    assert httpx.post(f"{route}/queue/join", content=b"x" * (MAX_BODY + 1)).status_code == 403
    for path in ("/sedialect-player/../app.py", "/sedialect-player/%2e%2e/app.py"):
        assert httpx.get(served.address.rstrip("/") + path).status_code == 404
    assert "createPlayer" in httpx.get(f"{served.address.rstrip('/')}/sedialect-player/player.js").text


def test_a_full_disk_is_told_and_leaves_nothing_behind(client, served, monkeypatch):
    before = set(served.service.results.root.iterdir())

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(comparison, "write_mp4", full)
    with pytest.raises(
        AppError, match=r"^this server has no place for the result \(No space left on device\); try again later$"
    ):
        client.predict(prompt="a ball", api_name="/compare")
    assert set(served.service.results.root.iterdir()) <= before and idle(served)


def test_a_bug_is_no_traceback_for_visitors_and_the_server_lives_on(client, served, monkeypatch, caplog):
    with monkeypatch.context() as patched:
        patched.setattr(comparison, "fidelity", lambda *_: 1 / 0)
        with pytest.raises(AppError, match="This failed inside the server"):
            client.predict(prompt="a ball", api_name="/compare")
    assert "division by zero" in caplog.text
    assert idle(served) and client.predict(prompt="a ball", api_name="/compare")[1]


def test_a_block_is_explained_and_wrong_numbers_are_told(client):
    page = client.predict(numbers="1 2 -3 0.5 " * 4, role="weight", block_size=16, api_name="/encode_block")
    assert "Choose a dialect" in page and "NVFP4" in page
    assert "not a multiple of the block size 16" in client.predict(numbers="1 2 3", api_name="/encode_block")
    assert "give numbers, separated" in client.predict(numbers="<b>one</b>", api_name="/encode_block")
    assert "&lt;b&gt;" in client.predict(numbers="<b>one</b>", api_name="/encode_block")
    assert "infinite" in client.predict(numbers="1e99 " * 16, api_name="/encode_block")


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
    with studio.run(work, **{"steps": 2, "stages": 1, "seconds": 60, **limits}) as started:
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
    settings = {"steps": 1, "stages": 1, "seconds": 60}
    with (
        studio.run(lambda pipe, watch: gate.wait(30), **settings) as first,
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
    with service.studio.run(lambda pipe, watch: gate.wait(30), steps=1, stages=1, seconds=60):
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
    with studio.run(lambda pipe, watch: gate.wait(30), steps=1, stages=1, seconds=60):
        wait_for(lambda: studio._lock.locked(), "the first run")
        with studio.run(lambda pipe, watch: pytest.fail("never its turn"), steps=1, stages=1, seconds=60) as second:
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


def test_a_space_installs_what_the_app_needs_and_runs_this_file():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["diffusers"], *extras["demo"]]
    wanted = (ROOT / "docs/space/requirements.txt").read_text(encoding="utf-8").split()
    assert wanted == [name for name in needed if not name.startswith("sedialect")]
    front = (ROOT / "docs/space/README.md").read_text(encoding="utf-8").split("---")[1]
    settings = dict(line.split(": ", 1) for line in front.strip().splitlines())
    assert (ROOT / settings["app_file"]).is_file() and settings["sdk"] == "gradio"
    (needs,) = (name for name in extras["app"] if name.startswith("gradio"))
    assert settings["sdk_version"] in SpecifierSet(needs.removeprefix("gradio"))


def test_the_app_runs_from_a_clone_that_is_not_installed(tmp_path):
    port = free_port()
    environment = {**os.environ, "PORT": str(port)}
    command = [sys.executable, str(ROOT / "web" / "app.py")]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=tmp_path)
    try:
        wait_for(lambda: answers(port) or process.poll() is not None, "the page", 90)
        assert process.poll() is None, (tmp_path / "log").read_text(encoding="utf-8")
    finally:
        process.terminate()
        process.wait(timeout=30)


def answers(port):
    try:
        return httpx.get(f"http://127.0.0.1:{port}/").status_code == 200
    except httpx.TransportError:
        return False


def test_a_taken_port_is_told(served):
    port = int(served.address.rstrip("/").rpartition(":")[2])
    with pytest.raises(InputError, match=f"cannot serve on 127.0.0.1:{port} .* choose another --port"):
        serve(Settings(port=port, device="cpu"))


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
