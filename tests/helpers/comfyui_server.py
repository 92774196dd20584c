"""A real ComfyUI in a process and a base folder of its own, and its HTTP API."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("models/diffusion_models", "models/loras", "models/vae", "custom_nodes", "input", "output", "temp", "user")
COMFYUI = os.environ.get("COMFYUI_DIR")
needs_comfyui = pytest.mark.skipif(not COMFYUI, reason="set COMFYUI_DIR to a ComfyUI, as make test-comfyui does")
# Flags of the server that tests share: with COMFYUI_FLAGS="" it takes the GPU.
FLAGS = tuple(os.environ.get("COMFYUI_FLAGS", "--cpu").split())
ON_CPU = "--cpu" in FLAGS
PATIENCE = 600.0  # seconds for a start or a run, on a busy machine


class Server:
    """Started by `with`; `run` queues a workflow in API form and gives what it ended with."""

    def __init__(self, comfyui: Path, python: str, base: Path, *flags: str, patience: float = PATIENCE, **more) -> None:
        """`options` are those of the interpreter, `environment` goes over that of this process."""
        self.options, self.environment = more.get("options", ()), more.get("environment", {})
        self.comfyui, self.python, self.base, self.flags, self.patience = comfyui, python, base, flags, patience
        for folder in FOLDERS:
            (base / folder).mkdir(parents=True, exist_ok=True)
        for name, target in (("sedialect", ROOT), ("sedialect_tests", ROOT / "tests" / "comfyui_pack")):
            link = base / "custom_nodes" / name
            if not link.exists():
                link.symlink_to(target, target_is_directory=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = base / "server.log"

    def __enter__(self) -> "Server":
        database = f"sqlite:///{self.base / 'user' / 'comfyui.db'}"
        command = [self.python, *self.options, str(self.comfyui / "main.py"), "--base-directory", str(self.base)]
        command += ["--port", str(self.port), "--disable-auto-launch", "--disable-metadata", "--database-url", database]
        environment = {**os.environ, "SEDIALECT_TESTS": "1", "PYTHONUNBUFFERED": "1"}
        if "--cpu" in self.flags:
            environment["OMP_NUM_THREADS"] = "1"
        environment |= self.environment
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([*command, *self.flags], stdout=log, stderr=log, env=environment, cwd=self.base)
        self._wait(lambda: self.get("/system_stats"), "start")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def get(self, path: str) -> object:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def fetch(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return answer.read()

    def post(self, path: str, data: object) -> tuple[int, dict]:
        body = json.dumps(data).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if text else {}
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def queue(self, workflow: dict) -> str:
        status, answer = self.post("/prompt", {"prompt": workflow, "client_id": uuid.uuid4().hex})
        assert status == 200, json.dumps(answer, indent=1)
        return answer["prompt_id"]

    def refusal(self, workflow: dict) -> str:
        """Why the server refuses a workflow before it runs."""
        status, answer = self.post("/prompt", {"prompt": workflow})
        assert status == 400, answer
        return json.dumps(answer)

    def wait(self, prompt: str) -> "Outcome":
        history = self._wait(lambda: self.get(f"/history/{prompt}").get(prompt), "run")
        return Outcome(history)

    def run(self, workflow: dict) -> "Outcome":
        """The outcome of a workflow, which must have ended well."""
        outcome = self.wait(self.queue(workflow))
        assert outcome.message is None, outcome.message
        return outcome

    def error(self, workflow: dict) -> str:
        """The message of a workflow that must fail."""
        outcome = self.wait(self.queue(workflow))
        assert outcome.message is not None, "the workflow ended well"
        return outcome.message

    def _wait(self, ask, what: str):
        end = time.monotonic() + self.patience
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            try:
                if found := ask():
                    return found
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                pass
            time.sleep(0.3)
        raise AssertionError(f"ComfyUI did not {what}:\n" + self.log.read_text(errors="replace")[-4000:])


class Outcome:
    """What the history says of a run."""

    def __init__(self, history: dict) -> None:
        self.outputs = history["outputs"]
        self.events = [name for name, _ in history["status"]["messages"]]
        times = [data["timestamp"] for _, data in history["status"]["messages"] if "timestamp" in data]
        self.seconds = (times[-1] - times[0]) / 1000  # by the server's clock
        failures = [data for name, data in history["status"]["messages"] if name == "execution_error"]
        self.message = failures[0]["exception_message"].strip() if failures else None

    def text(self, node: str) -> str:
        return self.outputs[node]["text"][0]

    @property
    def saved(self) -> list[Path]:
        """What Save nodes wrote, by their texts."""
        said = [shown["text"][0] for shown in self.outputs.values() if "text" in shown]
        return [Path(text.removeprefix("saved ").splitlines()[0]) for text in said if text.startswith("saved ")]


class Graph:
    """A workflow in API form, built node by node."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict] = {}

    def add(self, kind: str, **inputs: object) -> list:
        """Add a node and return its first output; `(output, number)` picks another."""
        name = str(len(self.nodes) + 1)
        self.nodes[name] = {"class_type": kind, "inputs": inputs}
        return [name, 0]


def python_of_comfyui() -> str:
    """The interpreter that ComfyUI runs in; this one, unless COMFYUI_PYTHON names another."""
    return os.environ.get("COMFYUI_PYTHON", sys.executable)
