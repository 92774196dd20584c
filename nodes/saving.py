"""Whether a file can be written below ComfyUI's output folder, told before the run that makes it."""

import os
from pathlib import Path
from typing import NamedTuple

import folder_paths

from ..sedialect_core.errors import InputError
from ..sedialect_core.storage.atomic import check_room

LONGEST = 200  # bytes of a name, so that counter and ending fit
FORBIDDEN = set('<>:"|?*') if os.name == "nt" else set()


def prefix_problem(prefix: str, output: str) -> str | None:
    """Why nothing can be written under `prefix`, a path relative to the folder `output`, and what to do; None where it can.

    Nothing is made. What ComfyUI puts in for %year% and the like does not matter to it.
    """
    folder, name = os.path.split(os.path.normpath(prefix))
    if not prefix.strip() or prefix.rstrip().endswith(("/", os.sep)) or name in ("", ".", ".."):
        return f"filename_prefix {prefix!r} names no file; write one, as in diffusion_models/my_model"
    if wrong := sorted(sign for sign in set(prefix) if sign < " " or sign in FORBIDDEN):
        return f"filename_prefix {prefix!r} holds {wrong[0]!r}, which no file name may; leave it out"
    if len(os.fsencode(name)) > LONGEST:
        return f"the name in filename_prefix has {len(os.fsencode(name))} bytes; write one of at most {LONGEST}"
    whole, root = Path(output, folder), os.path.realpath(output)
    if os.path.commonpath([root, os.path.realpath(whole)]) != root:
        return f"filename_prefix {prefix!r} leads out of the output folder {output}; write a path inside it"
    there = next(place for place in (whole, *whole.parents) if os.path.lexists(place))
    if not there.is_dir():
        return f"{there} is a file, so that no folder can be made there; choose another filename_prefix"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"the folder {there} cannot be written; choose another filename_prefix, or allow it"
    return None


class Place(NamedTuple):
    """Where a file is to be written: a folder that exists, a name without ending, and the folder as the browser names it."""

    folder: Path
    name: str
    subfolder: str


def check_prefix(prefix: str | None) -> bool | str:
    """What a node that writes answers in `validate_inputs`: True, or what is wrong. None is what another node gives."""
    return prefix is None or prefix_problem(prefix, folder_paths.get_output_directory()) or True


def place_for(prefix: str, size: int = 0, **pixels: int) -> Place:
    """The next free name under a prefix, which another node may have given.

    Args:
        size: bytes that must fit there.
        pixels: `image_width` and `image_height`, for %width% and %height%.

    Raises:
        InputError: nothing can be written there, or the disk is too full.
    """
    output = folder_paths.get_output_directory()
    if (error := prefix_problem(prefix, output)) is not None:
        raise InputError(error)
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, output, **pixels)
    check_room(Path(folder), size)
    return Place(Path(folder), f"{name}_{counter:05}_", subfolder)


def folder_problem(folder: str) -> str | None:
    """Why nothing can be written into a folder of the output folder, and what to do; None where it can."""
    place = Path(folder_paths.get_output_directory(), folder)
    there = next(one for one in (place, *place.parents) if os.path.lexists(one))
    if not there.is_dir():
        return f"{there} is a file, so that the folder {place} cannot be made; move it away"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"the folder {there} cannot be written; allow it, or start ComfyUI with another --output-directory"
    return None
