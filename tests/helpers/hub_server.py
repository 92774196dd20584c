"""A small Hugging Face Hub on 127.0.0.1, enough for the real `huggingface_hub` client over HTTP.

The fixture `hub` of conftest.py hands it out, emptied before each test. `conftest.py` sets HF_ENDPOINT and HF_HOME before
anything imports `huggingface_hub`, so that the client in this process talks to it; `hub.env()` is the same for a subprocess.

    hub.add("me/book", {"formatbook.json": b"..."})    what someone else uploaded; returns the commit
    hub.files("me/book", "main"), hub.log("me/book")    what is there now, and the commit messages
    hub.token, hub.reader, hub.stranger                 tokens: of "me" (write), read only, of another user
    hub.requests                                        (method, path, Range header) of every request
    hub.cut("book.json", after=100, times=1)            the connection breaks after 100 bytes of the body, in or out
    hub.corrupt("book.json")                            other bytes of the same length under the same ETag
    hub.refuse("/commit/", 503, times=1)                answer with this status
    hub.env(HF_HUB_OFFLINE="1")                         the environment of a subprocess that uses this Hub
    hub.forget()                                        empty the client's cache
"""

import base64
import hashlib
import json
import os
import re
import shutil
import socket
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from hub_repos import Answer, Blob, Repo, details, is_lfs

DATE = "2026-01-01T00:00:00.000Z"


class User(NamedTuple):
    """Whose token it is."""

    name: str
    writes: bool


class _Server(ThreadingHTTPServer):
    hub: "Hub"


@dataclass
class Fault:
    """Something that goes wrong with requests whose path holds `part`, `times` times (-1: always)."""

    kind: str
    part: str
    value: int
    times: int


class Hub:
    """The Hub and what tests may do to it; the module's docstring lists it all."""

    token, reader, stranger = "hf_owner", "hf_reader", "hf_stranger"

    def __init__(self, home: Path) -> None:
        self.home = home
        self.lock = threading.RLock()
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.reset()
        threading.Thread(target=self._server.serve_forever, daemon=True, name="hub").start()

    def reset(self) -> None:
        """No repositories, no faults, no requests, and nothing in the client's cache."""
        self.users = {self.token: User("me", True), self.reader: User("me", False), self.stranger: User("them", True)}
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, str | None]] = []
        self.forget()

    def forget(self) -> None:
        """Empty the client's cache."""
        shutil.rmtree(self.home / "hub", ignore_errors=True)

    def variables(self) -> dict[str, str]:
        """The environment variables that point a client here."""
        quiet = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(self.home), **quiet}

    def env(self, **more: str) -> dict[str, str]:
        """The environment of a subprocess that uses this Hub, without a token unless HF_TOKEN is given."""
        return {**os.environ, **self.variables(), **more}

    def add(self, repo_id: str, files: dict[str, bytes], branch: str = "main", private: bool = False) -> str:
        """Commit files as if someone had uploaded them, whatever their names; a new branch begins at main."""
        with self.lock:
            repo = self.repos.setdefault(repo_id, Repo(private))
            before = repo.commits[repo.branches.get(branch, repo.branches["main"])].files if repo.branches else {}
            new = {name: Blob(content, is_lfs(name, len(content))) for name, content in files.items()}
            return repo.commit(branch, f"Add {', '.join(files)}", {**before, **new}).sha

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a revision."""
        return {name: blob.content for name, blob in self.repos[repo_id].at(revision).files.items()}

    def log(self, repo_id: str, revision: str = "main") -> list[str]:
        """The commit messages, newest first."""
        repo, messages = self.repos[repo_id], []
        sha: str | None = repo.at(revision).sha
        while sha is not None:
            messages.append(repo.commits[sha].message)
            sha = repo.commits[sha].parent
        return messages

    def cut(self, part: str, after: int, times: int = 1) -> None:
        """Break the connection after so many bytes of the body, of what is downloaded or uploaded."""
        self.faults.append(Fault("cut", part, after, times))

    def corrupt(self, part: str) -> None:
        """Serve other bytes of the same length under the same ETag."""
        self.faults.append(Fault("corrupt", part, 0, -1))

    def refuse(self, part: str, status: int, times: int = 1) -> None:
        """Answer with this status."""
        self.faults.append(Fault("refuse", part, status, times))

    def fault(self, kind: str, path: str) -> Fault | None:
        """The fault that strikes this request, which is used up by it."""
        with self.lock:
            for found in self.faults:
                if found.kind == kind and found.part in path and found.times:
                    found.times -= 1
                    return found
        return None


REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
REVISION = r"(?P<revision>[^/?]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("GET", rf"/api/models/{REPO}/refs", "refs"),
    ("GET", rf"/api/models/{REPO}/tree/{REVISION}(?:/(?P<path>.*))?", "tree"),
    ("POST", rf"/api/models/{REPO}/paths-info/{REVISION}", "paths_info"),
    ("POST", rf"/api/models/{REPO}/preupload/{REVISION}", "preupload"),
    ("POST", rf"/api/models/{REPO}/commit/{REVISION}", "commit"),
    ("POST", rf"/api/models/{REPO}/branch/{REVISION}", "branch"),
    ("GET", rf"/api/models/{REPO}(?:/revision/{REVISION})?", "info"),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/lfs/upload/(?P<oid>\w+)", "upload"),
    ("POST", r"/lfs/verify/(?P<oid>\w+)", "verify"),
    ("GET|HEAD", rf"/{REPO}/resolve/{REVISION}/(?P<path>.+)", "resolve"),
    ("GET|HEAD", rf"/cdn/{REPO}/(?P<revision>\w+)/(?P<path>.+)", "cdn"),
]


class Handler(BaseHTTPRequestHandler):
    """One connection. Each method named in ROUTES answers one kind of request."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """All methods go one way."""
        hub = self.server.hub
        hub.requests.append((self.command, self.path, self.headers.get("Range")))
        try:
            self.body = self._read()
            if fault := hub.fault("refuse", self.path):
                raise Answer(fault.value, "refused by the test")
            for methods, pattern, name in ROUTES:
                if self.command in methods.split("|") and (found := re.fullmatch(pattern, urlsplit(self.path).path)):
                    with hub.lock:
                        answer = getattr(self, name)(**{k: v and unquote(v) for k, v in found.groupdict().items() if k})
                    return self._send(*answer) if isinstance(answer, tuple) else self._json(200, answer)
            raise Answer(404, f"the stand-in knows no {self.command} {self.path}")
        except Answer as error:
            self._json(error.status, error.body, error.headers)
        except ConnectionError:
            self.close_connection = True

    do_HEAD = do_POST = do_PUT = do_GET

    # Who asks, and for what.

    def _user(self) -> User | None:
        scheme, _, token = (self.headers.get("Authorization") or "").partition(" ")
        if not scheme:
            return None
        if token not in self.server.hub.users:
            raise Answer(401, "Invalid credentials in Authorization header")
        return self.server.hub.users[token]

    def _repo(self, repo_id: str, write: bool = False) -> Repo:
        user, repo = self._user(), self.server.hub.repos.get(repo_id)
        owner = user is not None and user.name == repo_id.split("/")[0]
        if repo is None or (repo.private and not owner):
            raise Answer(404 if user else 401, "Repository not found", "RepoNotFound")
        if write:
            self._may_write(repo_id)
        return repo

    def _may_write(self, repo_id: str) -> None:
        user = self._user()
        if user is None:
            raise Answer(401, "Invalid username or password.")
        if not user.writes or user.name != repo_id.split("/")[0]:
            raise Answer(403, f"You don't have the rights to write to {repo_id}")

    # The answers: JSON, or (status, headers, body).

    def whoami(self) -> object:
        user = self._user()
        if user is None:
            raise Answer(401, "Invalid username or password.")
        return {"type": "user", "name": user.name, "orgs": [], "auth": {"type": "access_token"}}

    def create(self) -> object:
        asked, user = json.loads(self.body), self._user()
        repo_id = f"{asked.get('organization') or (user.name if user else 'me')}/{asked['name']}"
        self._may_write(repo_id)
        url = f"{self.server.hub.url}/{repo_id}"
        if repo_id in self.server.hub.repos:
            raise Answer(409, "You already created this model repo", body={"url": url})
        repo = Repo(asked.get("private", False) or asked.get("visibility") == "private")
        repo.commit("main", "initial commit", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", False)})
        self.server.hub.repos[repo_id] = repo
        return {"url": url, "name": repo_id, "id": repo_id}

    def validate(self) -> object:
        return {"errors": [], "warnings": []}

    def info(self, repo: str, revision: str | None) -> object:
        found = self._repo(repo)
        commit = found.at(revision or "main")
        blobs = "blobs" in parse_qs(urlsplit(self.path).query)
        siblings = [{"rfilename": name, **(details(blob) if blobs else {})} for name, blob in commit.files.items()]
        known = {"id": repo, "modelId": repo, "sha": commit.sha, "private": found.private, "siblings": siblings}
        return {"_id": "0", "tags": [], "downloads": 0, "likes": 0, "createdAt": DATE, "lastModified": DATE, **known}

    def refs(self, repo: str) -> object:
        branches = self._repo(repo).branches
        listed = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in branches.items()]
        return {"branches": listed, "tags": [], "converts": []}

    def tree(self, repo: str, revision: str, path: str | None) -> object:
        files = self._repo(repo).at(revision).files
        inside = {name: blob for name, blob in files.items() if not path or name.startswith(path.rstrip("/") + "/")}
        return [{"type": "file", "path": name, **details(blob)} for name, blob in inside.items()]

    def paths_info(self, repo: str, revision: str) -> object:
        files, form = self._repo(repo).at(revision).files, self.body.decode()
        asked = json.loads(form)["paths"] if form.startswith("{") else parse_qs(form)["paths"]
        return [{"type": "file", "path": name, **details(files[name])} for name in asked if name in files]

    def branch(self, repo: str, revision: str) -> object:
        found = self._repo(repo, write=True)
        if revision in found.branches:
            raise Answer(409, "Reference already exists")
        found.branches[revision] = found.at(json.loads(self.body or b"{}").get("startingPoint", "main")).sha
        return {}

    def preupload(self, repo: str, revision: str) -> object:
        there = self._repo(repo, write=True).at(revision).files
        asked = json.loads(self.body)["files"]

        def mode(file: dict) -> dict:
            kind = "lfs" if is_lfs(file["path"], file["size"]) else "regular"
            old = there.get(file["path"])
            oid = old and (old.sha256 if old.lfs else old.oid)
            return {"path": file["path"], "uploadMode": kind, "shouldIgnore": False, "oid": oid}

        return {"files": [mode(file) for file in asked]}

    def batch(self, repo: str) -> object:
        self._repo(repo, write=True)
        hub = self.server.hub

        def instructions(wanted: dict) -> dict:
            oid = wanted["oid"]
            if oid in hub.objects:
                return wanted
            actions = {"upload": {"href": f"{hub.url}/lfs/upload/{oid}"}, "verify": {"href": f"{hub.url}/lfs/verify/{oid}"}}
            return {**wanted, "actions": actions}

        return {"transfer": "basic", "objects": [instructions(wanted) for wanted in json.loads(self.body)["objects"]]}

    def upload(self, oid: str) -> tuple:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Answer(400, "the content has another digest")
        self.server.hub.objects[oid] = self.body
        return 200, {}, b""

    def verify(self, oid: str) -> object:
        if len(self.server.hub.objects.get(oid, b"")) != json.loads(self.body)["size"]:
            raise Answer(422, "not uploaded")
        return {}

    def commit(self, repo: str, revision: str) -> object:
        found = self._repo(repo, write=True)
        if revision not in found.branches:
            raise Answer(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        files, message = dict(found.at(revision).files), ""
        for line in self.body.splitlines():
            kind, value = (entry := json.loads(line))["key"], entry["value"]
            if kind == "header":
                message = value["summary"]
            elif kind == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif kind == "lfsFile":
                if value["oid"] not in self.server.hub.objects:
                    raise Answer(400, f"{value['path']} was not uploaded")
                files[value["path"]] = Blob(self.server.hub.objects[value["oid"]], True)
            elif kind == "deletedFile":
                files.pop(value["path"])
            elif kind == "deletedFolder":
                files = {name: blob for name, blob in files.items() if not name.startswith(value["path"].rstrip("/") + "/")}
        new = found.commit(revision, message, files)
        return {"success": True, "commitOid": new.sha, "commitUrl": f"{self.server.hub.url}/{repo}/commit/{new.sha}"}

    def resolve(self, repo: str, revision: str, path: str) -> tuple:
        commit = self._repo(repo).at(revision)
        if path not in commit.files:
            raise Answer(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": commit.sha})
        blob = commit.files[path]
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{blob.oid}"'}
        if not blob.lfs:
            return 200, headers, blob.content
        linked = {"X-Linked-ETag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.content))}
        return 302, {**headers, **linked, "Location": f"{self.server.hub.url}/cdn/{repo}/{commit.sha}/{path}"}, b""

    def cdn(self, repo: str, revision: str, path: str) -> tuple:
        blob = self.server.hub.repos[repo].commits[revision].files[path]
        return 200, {"X-Repo-Commit": revision, "ETag": f'"{blob.etag}"'}, blob.content  # as the client follows on one host

    # Bytes in and out.

    def _read(self) -> bytes:
        """The request's body, in chunks or of known length."""
        cut = self.server.hub.fault("cut", self.path) if self.command in ("PUT", "POST") else None
        if cut is not None:
            self.rfile.read(min(cut.value, int(self.headers.get("Content-Length") or cut.value)))
            self._hang_up()
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _json(self, status: int, answer: object, headers: dict[str, str] | None = None) -> None:
        self._send(status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(answer).encode())

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        hub, content = self.server.hub, self.command == "GET" and status == 200
        if content and hub.fault("corrupt", self.path):
            body = bytes([body[0] ^ 1]) + body[1:]
        if content and (wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")):
            first, last = int(wanted[1]), min(int(wanted[2] or len(body)), len(body) - 1)
            headers = {**headers, "Content-Range": f"bytes {first}-{last}/{len(body)}"}
            status, body = 206, body[first : last + 1]
        self.send_response(status)
        for name, value in {"Accept-Ranges": "bytes", **headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if status in (200, 206) and self.command == "GET" and (cut := hub.fault("cut", self.path)):
            self.wfile.write(body[: cut.value])
            self.wfile.flush()
            self._hang_up()
        self.wfile.write(body)

    def _hang_up(self) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)
        raise ConnectionAbortedError("as the test wants it")
