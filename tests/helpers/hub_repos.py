"""What the Hub stand-in keeps: repositories of commits of files, and how git names their contents."""

import hashlib
import json
from dataclasses import dataclass, field

LFS_SUFFIXES = (".safetensors", ".bin", ".png")
LFS_SIZE = 1_000_000


class Answer(Exception):
    """An error answer, raised from anywhere in a handler."""

    def __init__(self, status: int, message: str, code: str | None = None, body: dict | None = None, **headers: str) -> None:
        super().__init__(message)
        self.status, self.body = status, {"error": message, **(body or {})}
        self.headers = {"X-Error-Message": message, **headers} | ({"X-Error-Code": code} if code else {})


@dataclass
class Blob:
    """One file's content and how git names it."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """What git calls it: an LFS file's is that of its pointer."""
        size = len(self.content)
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {size}\n".encode()
        content = pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass
class Commit:
    """The whole tree after a commit."""

    sha: str
    message: str
    files: dict[str, Blob]
    parent: str | None


@dataclass
class Repo:
    """Commits, and branches that point to them."""

    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, message: str, files: dict[str, Blob]) -> Commit:
        parent = self.branches.get(branch)
        seed = json.dumps([parent, message, {name: blob.oid for name, blob in files.items()}, len(self.commits)])
        new = Commit(hashlib.sha1(seed.encode()).hexdigest(), message, files, parent)
        self.commits[new.sha] = new
        self.branches[branch] = new.sha
        return new

    def at(self, revision: str) -> Commit:
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise Answer(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]


def is_lfs(name: str, size: int) -> bool:
    """Whether the Hub keeps a file of this name and size in large file storage."""
    return name.endswith(LFS_SUFFIXES) or size > LFS_SIZE


def details(blob: Blob) -> dict:
    """A file's entry in listings."""
    lfs = {"oid": blob.sha256, "sha256": blob.sha256, "size": len(blob.content), "pointerSize": 130}
    return {"oid": blob.oid, "blobId": blob.oid, "size": len(blob.content)} | ({"lfs": lfs} if blob.lfs else {})
