"""`sedialect verify`: all checks of a quantized model's files, and no model."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, SeDialectError
from ..storage import hub
from .format import read_contents, read_headers
from .integrity import check_codes, check_covered, check_undamaged, damaged_keys
from .record import RECORD

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Verified:
    """One quantized model: where it is, how many tensors and layers it has, and what is wrong, or ""."""

    where: str
    tensors: int
    layers: int
    bytes: int
    wrong: str


def verify(model: str) -> list[Verified]:
    """Check every quantized model in a file, a folder and those below it, or a repository on the Hub.

    Raises:
        InputError: there is none, or the repository cannot be had.
    """
    groups = list(_groups(model))
    found = [_verified(where, files) for where, files in groups if _is_quantized(files)]
    if not found:
        raise InputError(f"{model} holds no model that sedialect has quantized; pass the folder, file or repository of one")
    return found


def _groups(model: str) -> Iterator[tuple[str, list[Path]]]:
    """Files that belong to one model, by where they lie."""
    place = Path(model)
    if place.is_file():
        yield model, [place]
        return
    if place.is_dir():
        files = sorted(place.rglob(f"*{SUFFIX}"))
    elif hub.is_repo_id(model):
        names = [hub.check_file_name(name) for name in hub.list_files(model) if name.endswith(SUFFIX)]
        files, commit = [], None
        for name in sorted(names):
            path, commit = hub.download(model, name, revision=commit)
            files.append(path)
    else:
        raise InputError(f"{model!r} is neither a file, a folder nor the name of a repository on the Hub; check it")
    for folder in dict.fromkeys(path.parent for path in files):
        yield str(folder), [path for path in files if path.parent == folder]


def _is_quantized(files: list[Path]) -> bool:
    """Whether a record is there; files that cannot be read may have been one's."""
    try:
        return RECORD in read_headers(files)[0]
    except InputError:
        return True


def _verified(where: str, files: list[Path]) -> Verified:
    size = sum(path.stat().st_size for path in files)
    tensors, layers, wrong = 0, 0, ""
    try:
        contents = read_contents(files)
        record = contents.record
        tensors, layers = len(contents.tensors), len(record.precisions)
        check_codes(record, contents.file_of)
        if not record.digests:
            raise InputError(
                f"{files[0]} has no digests, since another program has written it; save it again with sedialect"
            )
        check_covered(record, contents.tensors, str(files[0]))
        check_undamaged(damaged_keys(record.digests, contents.file_of), contents.file_of)
    except SeDialectError as error:
        wrong = str(error)
    return Verified(where, tensors, layers, size, wrong)
