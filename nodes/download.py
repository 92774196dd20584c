"""A quantized model from the Hugging Face Hub into ComfyUI's model folder."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from ..sedialect_core.errors import InputError
from ..sedialect_core.storage.atomic import check_writable, replacing
from ..sedialect_core.storage.hub import check_file_name, download, is_repo_id, list_files
from .comfy.checkpoints import INDEX

WEIGHTS = ".safetensors"


def download_model(
    repository: str, revision: str | None, folder: Path, progress: Callable[[int, int], None], check: Callable[[], None]
) -> Path:
    """The (first) weight file of a repository, below `folder`; what is there already is not fetched again.

    Args:
        progress: told how many files are there, of how many.
        check: called between files; raises where the user has cancelled.

    Raises:
        InputError: there is no such repository, it holds no quantized model, or the folder cannot be written.
    """
    if not is_repo_id(repository):
        raise InputError(f"{repository!r} is no repository on the Hub: write owner/name, as in me/wan-sedialect")
    check_writable(folder)
    listed = list_files(repository, revision=revision)
    names = _wanted([check_file_name(name) for name in listed], repository)
    commit = revision
    target = folder / repository.replace("/", "--")
    for number, name in enumerate(names):
        check()
        progress(number, len(names))
        found = download(repository, name, revision=commit)
        commit = found.commit  # all of one version
        _place(found.path, target / found.commit[:12] / Path(name).name)
    progress(len(names), len(names))
    return target / str(commit)[:12] / Path(names[0]).name


def _wanted(listed: list[str], repository: str) -> list[str]:
    """Weights, the first of them first, and the config.json beside them, of the one model in a repository."""
    weights = sorted(name for name in listed if name.endswith(WEIGHTS))
    folders = {Path(name).parent for name in weights}
    if (Path("transformer")) in folders:
        folders = {Path("transformer")}
    if len(folders) != 1:
        found = ", ".join(sorted(str(folder) for folder in folders)) or "none"
        raise InputError(f"{repository!r} has weights in {found}; a repository with one quantized transformer is needed")
    (place,) = folders
    here = [name for name in listed if Path(name).parent == place]
    beside = [name for name in here if name.endswith(INDEX) or Path(name).name == "config.json"]
    return [*(name for name in weights if name in here), *beside]


def _place(source: Path, target: Path) -> None:
    """Link a file of the Hub's cache into the model folder, or copy it where the disk does not link."""
    if target.is_file() and target.stat().st_size == source.stat().st_size:
        return
    with replacing(target) as temporary:
        temporary.unlink()
        try:
            os.link(source.resolve(), temporary)
        except OSError:
            shutil.copyfile(source, temporary)
