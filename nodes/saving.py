"""Whether a file can be written below ComfyUI's output folder, told before the run that makes it."""

import os
from pathlib import Path

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
