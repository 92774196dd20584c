"""What of a work list is finished: a record beside each video, from which the manifest is made.

A video has its name once it is whole, and its record after that; so a process may be killed at any time, and what has a
record is never made again. Many processes write to one folder, each its own files.
"""

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import InputError, shortened
from ..storage.atomic import replacing, write_text
from ..storage.reading import read_bytes, read_object
from ..video.mp4 import Frames, write_mp4
from ..video.work_list import Item

RECORDS, MANIFEST, JOB = ".records", "manifest.json", "job.json"
DONE, FAILED = "done", "failed"
MAX_RECORD = 1 << 20  # bytes
Record = dict[str, Any]


def record_path(folder: Path, item: Item) -> Path:
    """Where an item's record lies."""
    return folder / RECORDS / f"{item.name}.json"


def is_done(folder: Path, item: Item) -> bool:
    """Whether an item's video is there, whole."""
    record = read_record(folder, item)
    if record is None or record["status"] != DONE or record["file"] != f"{item.name}.mp4":
        return False
    path = folder / f"{item.name}.mp4"
    return path.is_file() and path.stat().st_size > 0


def read_record(folder: Path, item: Item) -> Record | None:
    """An item's record, or None; one that is no JSON counts as none, and its video is made again."""
    try:
        record = read_object(record_path(folder, item), MAX_RECORD)
    except InputError:
        return None
    known = record.get("status") in (DONE, FAILED)
    return record if known and (record["status"] == FAILED or isinstance(record.get("file"), str)) else None


def write_done(folder: Path, item: Item, frames: Frames, fps: int, seconds: float, worker: int) -> Record:
    """Write an item's video, whole, and then its record."""
    path = folder / f"{item.name}.mp4"
    _remove_parts(path)
    with replacing(path) as temporary:
        write_mp4(temporary, frames, fps)
        digest = hashlib.sha256(temporary.read_bytes()).hexdigest()
    facts = {"file": path.name, "sha256": digest, "seconds": round(seconds, 3)}
    return _write(folder, item, {"status": DONE, **facts, "worker": worker})


def write_failed(folder: Path, item: Item, error: BaseException, worker: int) -> Record:
    """Write that an item failed, and why; it is tried again in the next run."""
    reason = f"{type(error).__name__}: {shortened(error, 300)}"
    return _write(folder, item, {"status": FAILED, "error": reason, "worker": worker})


def write_manifest(folder: Path, items: Sequence[Item]) -> Path:
    """Write `manifest.json`: every item of the list with its record, and how many are done, failed and left."""
    records = [read_record(folder, item) or {"status": "left"} for item in items]
    videos = [{**_of(item), **record} for item, record in zip(items, records, strict=True)]
    text = json.dumps({"counts": counts(records), "videos": videos}, indent=1, ensure_ascii=False)
    return write_text(folder / MANIFEST, f"{text}\n")


def counts(records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many are done, failed and left."""
    found = [record["status"] for record in records]
    return {status: found.count(status) for status in (DONE, FAILED, "left")}


def progress(folder: Path, items: Sequence[Item]) -> dict[str, int]:
    """The same, of what all processes have done so far."""
    return counts([read_record(folder, item) or {"status": "left"} for item in items])


def keep_to_job(folder: Path, job: Mapping[str, Any]) -> None:
    """Write what a folder's videos are made with, or see that it is the same: videos of two settings are not mixed.

    Raises:
        InputError: it is another, or cannot be written.
    """
    path, text = folder / JOB, json.dumps(job, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    if not path.is_file():
        write_text(path, text)
        return
    before = read_bytes(path, MAX_RECORD).decode(errors="replace")
    if before != text:
        old, new = before.splitlines(), text.splitlines()
        other = next(
            (f"{shortened(a.strip())} there, {shortened(b.strip())} here" for a, b in zip(old, new, strict=False) if a != b),
            "settings",
        )
        raise InputError(f"{folder} holds videos of another job: {other}; choose another --output, or the same settings")


def _remove_parts(path: Path) -> None:
    """Remove what a process that was killed has left of this very video."""
    part = re.compile(rf"\.{re.escape(path.stem)}-[a-z0-9_]{{8}}{path.suffix}")  # as `replacing` names it
    for other in path.parent.glob(".*"):
        if part.fullmatch(other.name):
            other.unlink(missing_ok=True)


def _of(item: Item) -> Record:
    return {"prompt": item.request.prompt, "index": item.index, "seed": item.request.seed, "file": f"{item.name}.mp4"}


def _write(folder: Path, item: Item, facts: Record) -> Record:
    given = {name: value for name, value in asdict(item.request).items() if value is not None}
    settings = {name: value for name, value in given.items() if name not in ("prompt", "seed")}
    written = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    record = {**_of(item), "settings": settings, **facts, "written": written}
    write_text(record_path(folder, item), json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return record
