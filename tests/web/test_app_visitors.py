"""Visitors whom nobody invited: callers that vanish, other sites' names and frames, and a server that is told to end."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from app_server import PATIENCE, free_port, idle, wait_for

gradio = pytest.importorskip("gradio", reason="the app's tests need Gradio: pip install 'sedialect[app]'")
import httpx  # noqa: E402  # comes with Gradio

from sedialect.sedialect_core.errors import InputError  # noqa: E402
from sedialect.web.server import listening  # noqa: E402
from sedialect.web.server.guard import Guard, allowed_names  # noqa: E402
from sedialect.web.server.listening import address_of  # noqa: E402
from sedialect.web.server.studio import Stopped  # noqa: E402

ASKED = {"prompt": "a ball", "width": 64, "height": 64, "num_frames": 5}
LISTED = ["a ball", 0, 2, 5.0, 64, 64, 5, "", "default", {}, "", "none"]


def route(served) -> str:
    return f"{served.address.rstrip('/')}/gradio_api"


def test_callers_that_post_and_vanish_are_ended_and_the_next_visitor_starts(served, monkeypatch):
    """No stream is ever opened for these posts: Gradio goes on for them, and the line notices that nobody reads."""
    monkeypatch.setattr(listening, "PATIENCE", 3.0)
    service, gate = served.service, threading.Event()
    with service.studio.run(lambda pipe, watch: gate.wait(PATIENCE), steps=1, stages=1, seconds=PATIENCE):
        wait_for(lambda: service.studio._lock.locked(), "the first run")
        codes = [httpx.post(f"{route(served)}/call/compare", json={"data": LISTED}).status_code for _ in range(10)]
        assert codes == [200] * 10
        wait_for(lambda: sum(not run.stopping for run in service.studio._line) > 5, "the posts in line")
        wait_for(lambda: sum(not run.stopping for run in service.studio._line) == 1, "their end")
        gate.set()
    started = time.monotonic()
    jobs = service.compare("third", ASKED, "default", {}, "")
    wait_for(lambda: "line" not in next(jobs).stage, "the start")
    assert time.monotonic() - started < 10
    service.left("third")


def test_a_run_that_is_stopped_while_it_quantizes_leaves_the_pipeline_as_it_was(served):
    """Whoever comes next would find a model that is half quantized."""
    from sedialect.web.server.studio import Run

    service, stopped = served.service, []
    count = Run.on_count

    def on_count(run, done):
        if "quantizing" in run.progress.stage and len(stopped) < 3:
            stopped.append(done)
            if len(stopped) == 3:
                run.stop()
        count(run, done)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Run, "on_count", on_count)
        with pytest.raises(Stopped):
            list(service.compare("leaves", ASKED | {"steps": 1}, "default", {}, ""))
    wait_for(lambda: idle(served), "the pipeline as it was")
    assert len(stopped) == 3
    assert list(service.compare("next", ASKED | {"steps": 1}, "default", {}, ""))[-1].numbers


def test_a_run_that_is_read_goes_on(served, monkeypatch):
    monkeypatch.setattr(listening, "PATIENCE", 1.0)
    event = httpx.post(f"{route(served)}/call/compare", json={"data": LISTED}).json()["event_id"]
    with httpx.stream("GET", f"{route(served)}/call/compare/{event}", timeout=PATIENCE) as stream:
        lines = list(stream.iter_lines())
    assert "event: complete" in lines, lines[-4:]


@pytest.mark.parametrize("shares", ["session", "address"])
def test_one_visitor_has_one_run_in_line(served, shares):
    service, gate = served.service, threading.Event()
    two = "one" if shares == "session" else "two"
    for session in ("one", two):
        place = SimpleNamespace(host="192.0.2.1" if shares == "address" else "")
        service.listeners.session_of(SimpleNamespace(session_hash=session, client=place, headers={}))
    with service.studio.run(lambda pipe, watch: gate.wait(PATIENCE), steps=1, stages=1, seconds=PATIENCE):
        jobs = service.compare("one", ASKED, "default", {}, "")
        assert "line" in next(jobs).stage or "waiting" in next(jobs).stage
        with pytest.raises(InputError, match="^a run of yours is in line or being made already; wait for it, or cancel it$"):
            next(service.compare(two, ASKED, "default", {}, ""))
        service.left("one")
        again = service.compare(two, ASKED, "default", {}, "")
        next(again)
        service.left(two)
        gate.set()


def test_addresses_are_of_households_and_of_nobody_on_this_machine(monkeypatch):
    def caller(host, **headers):
        return SimpleNamespace(client=SimpleNamespace(host=host), headers=headers)

    assert address_of(caller("127.0.0.1")) == address_of(caller("::1")) == address_of(caller("testclient")) == ""
    assert address_of(caller("198.51.100.7")) == address_of(caller("::ffff:198.51.100.7")) == "198.51.100.7"
    assert address_of(caller("2001:db8::1")) == address_of(caller("2001:db8::ffff")) != address_of(caller("2001:db8:1::1"))
    said = {"x-forwarded-for": "203.0.113.9, 198.51.100.7"}
    assert address_of(caller("10.0.0.1", **said)) == "10.0.0.1"  # whoever may say it himself is not believed
    monkeypatch.setenv("SPACE_ID", "me/space")
    assert address_of(caller("10.0.0.1", **said)) == "198.51.100.7"


@pytest.mark.parametrize(
    "path",
    [
        "file=https://example.org/x",
        "file/https://example.org/x",
        "file=HTTP://127.0.0.1:1/x",
        "file/ftp:x",
        "file=%68ttps://example.org/x",
        "proxy=https://example.org",
        "monitoring",
        "profiling/summary",
        "runs",
        "upload_progress",
        "stream/a/1/2/playlist.m3u8",
    ],
)
def test_nothing_is_fetched_and_no_statistics_are_told(served, path):
    answer = httpx.get(f"{route(served)}/{path}")
    assert answer.status_code == 403 and answer.text.startswith("this app ")


@pytest.mark.parametrize("path", ["upload", "process_recording", "upload/", "stream/x", "vibe-edit", "vibe-edit/"])
def test_nothing_is_taken_in(served, path):
    answer = httpx.post(f"{route(served)}/{path}", files={"files": b"x"})
    assert answer.status_code == 403 and answer.text.startswith("this app ")


def test_other_names_for_this_machine_and_other_sites_pages_are_refused(served):
    port = served.address.rstrip("/").rpartition(":")[2]
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"):
        assert httpx.get(served.address, headers={"Host": host}).status_code == 200
    for host in (f"evil.example:{port}", "evil.example", f"localhost.evil.example:{port}", "evil.gradio.live", ""):
        answer = httpx.get(served.address, headers={"Host": host})
        assert answer.status_code == 403 and "not served under that name" in answer.text
    for origin in (
        "https://evil.example",
        "null",
        "",
        f"http://127.0.0.1:{port}@evil.example",
        f"http://127.0.0.1:{port}.evil",
    ):
        asked = {
            "json": {"data": LISTED},
            "headers": {"Origin": origin},
        }  # "null" is the origin of any site's sandboxed frame
        assert httpx.post(f"{route(served)}/call/compare", **asked).status_code == 403, origin


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, "a secret " * 500, "at most 1000 are read here"),
        (2, "a secret", "steps is 'a secret'"),
        (8, "a secret " * 500, "there are default"),
        (9, {"a secret " * 500: 1}, "is offered here"),
        (9, {"precision": "a secret " * 500}, "choose one of w4a4"),
        (9, ["a secret"], "settings must be an object"),
        (11, "a secret " * 500, "choose one of"),
    ],
)
def test_a_visitors_mistake_is_told_to_the_visitor_and_to_no_log(place, value, message, served, capfd):
    """A log with a traceback for each would be long, and hold what visitors have written."""
    data = [*LISTED[:place], value, *LISTED[place + 1 :]]
    event = httpx.post(f"{route(served)}/call/compare", json={"data": data}).json()["event_id"]
    with httpx.stream("GET", f"{route(served)}/call/compare/{event}", timeout=PATIENCE) as stream:
        told = "".join(stream.iter_text())
    error = json.loads(told.partition("data: ")[2].splitlines()[0])["error"]
    assert message in error and error.count("a secret") < 20
    logged = "".join(capfd.readouterr())
    assert "Traceback" not in logged and "secret" not in logged


def test_the_names_that_are_allowed_follow_from_where_the_server_listens():
    assert allowed_names("0.0.0.0", False, ()) is None
    assert allowed_names("0.0.0.0", False, ("a.example",)) == ("a.example",)
    assert set(allowed_names("127.0.0.1", False, ())) == {"localhost", "127.0.0.1", "::1"}
    assert ".gradio.live" in allowed_names("localhost", True, ()) and "b.example" in allowed_names(
        "::1", False, ("b.example",)
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SPACE_ID", "me/space")
        assert "frame-ancestors 'self' https://huggingface.co" in Guard(None).headers["Content-Security-Policy"]


def test_no_other_site_shows_the_page_in_a_frame(served):
    for path in ("", "gradio_api/info", "gradio_api/upload"):
        headers = httpx.get(f"{served.address.rstrip('/')}/{path}").headers
        assert "frame-ancestors 'self'" in headers["content-security-policy"] and headers["x-frame-options"] == "SAMEORIGIN"
        assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_told_to_end_removes_results(tmp_path, how):
    port = free_port()
    log = (tmp_path / "log").open("wb")
    environment = {**__import__("os").environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "sedialect", "app", "--port", str(port), "--device", "cpu"],
        env=environment,
        stdout=log,
        stderr=log,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        wait_for(lambda: process.poll() is not None or listens(port), "the page")
        (root,) = tmp_path.glob("sedialect-app-*")
        (root / "x").mkdir()
        (root / "x" / "video.mp4").write_bytes(b"a visitor's")
        wait_for(lambda: "sedialect: http" in (tmp_path / "log").read_text(), "the address")
        process.send_signal(how)
        process.wait(PATIENCE)
    finally:
        process.kill()
        log.close()
    assert not list(Path(tmp_path).glob("sedialect-app-*")), (tmp_path / "log").read_text()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
