"""The app from the side of programs: its endpoints, its bounds, and what it does when something goes wrong."""

import errno
import json
import os
import subprocess
import sys
import tomllib
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import av
import numpy as np
import pytest
from app_server import PATIENCE, free_port, idle, wait_for
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet

gradio = pytest.importorskip("gradio", reason="the app's tests need Gradio: pip install 'sedialect[app]'")
import httpx  # noqa: E402  # comes with Gradio
from gradio_client import Client  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402

from sedialect.sedialect_core import comparison  # noqa: E402
from sedialect.sedialect_core.calibration import moments  # noqa: E402
from sedialect.sedialect_core.comparison import compare  # noqa: E402
from sedialect.sedialect_core.config import SeDialectConfig  # noqa: E402
from sedialect.sedialect_core.errors import InputError  # noqa: E402
from sedialect.sedialect_core.video.sampling import Request  # noqa: E402
from sedialect.web.app import Settings, serve  # noqa: E402
from sedialect.web.server.guard import MAX_BODY  # noqa: E402
from sedialect.web.server.limits import bundled_offer, checked_config, checked_request  # noqa: E402
from sedialect.web.server.service import Service  # noqa: E402

ROOT = Path(__file__).parents[2]


def connect(served, folder):
    """A program's connection that waits, for an answer comes after a step of the model."""
    return Client(served.address, verbose=False, download_files=str(folder), httpx_kwargs={"timeout": PATIENCE})


@pytest.fixture
def client(served, tmp_path):
    connected = connect(served, tmp_path)
    yield connected
    connected.close()


def test_programs_find_three_endpoints_and_what_may_be_asked(client, served):
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {"/about", "/compare", "/encode_block"}
    about = client.predict(api_name="/about")
    assert about["calibrations"] == ["none", "glance", "self"]
    assert about["ready"] and about["failed"] == "" and about["offer"]["max_frames"] == 33
    assert about["settings"]["formatbook"][0] and about["settings"]["semantic_window"] == "2, 2, 2"
    operators = {"skip", "formatbook_digest", "profile_megabytes"}
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
    "a large window": ({"settings": {"semantic_window": "99, 2, 2"}}, "semantic_window is 99; it must lie between 1 and 8"),
    "dense windows": ({"settings": {"semantic_window": [8, 8, 8], "semantic_spacing": "1 1 1"}}, "too much memory"),
    "no numbers": ({"settings": {"protected_steps": 3}}, "protected_steps is 3; give numbers, separated by commas"),
    "a number too few": ({"settings": {"protected_steps": "3"}}, r"protected_steps is \(3,\); give 2 integers"),
    "memory": ({"settings": {"profile_megabytes": 10**9}}, "no setting 'profile_megabytes' is offered here"),
    "no part": ({"settings": {"refresh_at": "0, 1.5"}}, "refresh_at is 1.5; it must lie between 0 and 1"),
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


@settings(max_examples=60)
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
    assert checked_config("default", {"refresh_at": "0, 0.5"}).refresh_at == (0, 0.5)
    assert checked_config("default", {"layer_precisions": "blocks.0. = w4a8"}).precision_of("blocks.0.x") == "w4a8"


def test_two_visitors_at_once_each_get_their_own(served, tmp_path):
    prompts = ["a red ball moves left", "a small green star moves up"]
    clients = [connect(served, tmp_path / str(n)) for n in range(2)]
    jobs = [
        client.submit(prompt=prompt, seed=n, api_name="/compare")
        for n, (client, prompt) in enumerate(zip(clients, prompts, strict=True))
    ]
    found = [job.result(timeout=PATIENCE) for job in jobs]
    assert [numbers["request"]["prompt"] for numbers, _ in found] == prompts
    assert [numbers["request"]["seed"] for numbers, _ in found] == [0, 1]
    videos = [Path(files[0]).read_bytes() for _, files in found]
    assert videos[0] != videos[1]
    for client in clients:
        client.close()


def test_cancelling_stops_the_sampling_and_the_next_run_works(client, served):
    with slowed(served) as forwards:
        job = client.submit(prompt="a ball", steps=50, num_frames=33, api_name="/compare")
        wait_for(lambda: len(forwards) > 3, "sampling")
        job.cancel()
        wait_for(lambda: idle(served), "the end of the run")
        made = len(forwards)
        assert forwards.count("too late") <= 1 and made < 200
    with slowed(served, 0) as forwards:
        numbers, _ = client.predict(prompt="a ball", api_name="/compare")
        assert numbers["request"]["steps"] == 2 and len(forwards) == 8


@contextmanager
def slowed(served, seconds=1.0):
    """Counts forwards of the model. Each waits until the run is to stop, or that long: no machine is too fast to be stopped.

    One that begins after the wish is "too late": the run's own check, which comes after, ends that one.
    """
    forwards, studio = [], served.service.studio

    def count(*_):
        stop = studio._line[0]._stop
        forwards.append("too late" if stop.is_set() else "")
        stop.wait(seconds)

    handle = studio._pipe.transformer.register_forward_pre_hook(count)
    try:
        yield forwards
    finally:
        handle.remove()


@pytest.fixture
def small_calibration(served, monkeypatch):
    """A few small videos to calibrate with, none of them sampled yet."""
    texts = ("a red ball moves left", "a small green star moves up", "a blue cube sinks")
    requests = [Request(text, n, 8, height=64, width=64, num_frames=13) for n, text in enumerate(texts)]
    monkeypatch.setattr(moments, "requests_of", lambda *_: requests)
    served.service.learnt.clear()
    yield
    served.service.learnt.clear()


def test_calibrated_weights_are_learnt_once_and_are_the_library_s(client, served, small_calibration, monkeypatch):
    sampled = []
    once = moments.generate
    monkeypatch.setattr(moments, "generate", lambda *args, **kwargs: (sampled.append(args[1]), once(*args, **kwargs)))
    asked = {"prompt": "a red ball moves left", "seed": 3, "preset": "weight-only", "api_name": "/compare"}
    plain, calibrated, again = (client.predict(**asked, calibration=kind)[0] for kind in ("none", "self", "self"))
    assert [numbers["calibration"] for numbers in (plain, calibrated, again)] == ["none", "self", "self"]
    assert len(sampled) == 3, "once for all visitors"
    assert calibrated["psnr_db"] == again["psnr_db"] != plain["psnr_db"]
    with served.service.studio.pipeline(lambda: None) as pipe:
        request, config = Request(**calibrated["request"]), SeDialectConfig.preset("weight-only")
        expected = compare(pipe, request, config, restore=True, calibration=served.service.learnt["self"])
    assert calibrated["psnr_db"] == pytest.approx(expected.fidelity.psnr)


def test_a_glance_is_taken_once_for_a_size_and_of_any_model(client, served, monkeypatch):
    served.service.learnt.clear()
    sampled = []
    once = moments.generate
    monkeypatch.setattr(moments, "generate", lambda *args, **kwargs: (sampled.append(args[1]), once(*args, **kwargs)))
    asked = {"prompt": "a red ball moves left", "width": 64, "height": 64, "steps": 2, "api_name": "/compare"}
    first, again, other = (client.predict(**asked, num_frames=n, calibration="glance")[0] for n in (5, 5, 9))
    assert [(one.steps, one.num_frames) for one in sampled] == [(4, 5), (4, 9)]
    assert first["calibration"] == "glance" and first["psnr_db"] == again["psnr_db"]
    glance = served.service.learnt.pop("glance")
    assert glance.resolution == (64, 64, 9) and all(entry.diagonal for entry in glance.inputs)
    with served.service.studio.pipeline(lambda: None) as pipe:
        expected = compare(pipe, Request(**other["request"]), SeDialectConfig(), restore=True, calibration=glance)
    assert other["psnr_db"] == pytest.approx(expected.fidelity.psnr)
    anothers = Service(served.service.studio, served.service.offer, served.service.results, False, "another")
    assert anothers.calibrations == ("none", "glance")
    with pytest.raises(AppError, match="calibration is 'much'; choose one of none, glance, self"):
        client.predict(**asked, calibration="much")


def test_cancelling_while_the_model_calibrates_leaves_nothing_half_learnt(client, served, small_calibration):
    with slowed(served) as forwards:
        job = client.submit(prompt="a ball", calibration="self", api_name="/compare")
        wait_for(lambda: len(forwards) > 2, "sampling")
        job.cancel()
        wait_for(lambda: idle(served), "the end of the run")
    assert not served.service.learnt and forwards.count("too late") <= 1 and len(forwards) < 48
    assert not any(module._forward_pre_hooks for module in served.service.studio._pipe.transformer.modules())


def test_other_models_are_calibrated_by_their_operator_alone(served):
    other = Service(served.service.studio, served.service.offer, served.service.results, False, "another")
    with pytest.raises(InputError, match="no calibration of its model; its operator can give one: --calibration DIR"):
        asked = {"prompt": "a ball", "width": 64, "height": 64, "num_frames": 5}
        next(other.compare("", asked, "default", {}, "", calibration="self"))
    with pytest.raises(InputError, match="holds no calibration"):
        serve(Settings(port=free_port(), device="cpu", calibration="no-such-folder"))


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
        wait_for(lambda: answers(port) or process.poll() is not None, "the page")
        assert process.poll() is None, (tmp_path / "log").read_text(encoding="utf-8")
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE)


def answers(port):
    try:
        return httpx.get(f"http://127.0.0.1:{port}/").status_code == 200
    except httpx.TransportError:
        return False


def test_a_taken_port_is_told(served):
    port = int(served.address.rstrip("/").rpartition(":")[2])
    with pytest.raises(InputError, match=f"cannot serve on 127.0.0.1:{port} .* choose another --port"):
        serve(Settings(port=port, device="cpu"))
