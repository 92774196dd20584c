"""The nodes in a ComfyUI on a GPU: `python tests/helpers/run_comfyui_gpu.py --comfyui DIR --output FOLDER SECTION ...`.

suite    the tests of `make test-comfyui`, less those in a browser, of installing, of text encoders and of a process's memory
vram     a Wan of random weights in 16 bit, in ComfyUI's FP8 and by SeDialect Load, under ComfyUI's ways to keep weights and
         with less and less memory: seconds of a step, peak, and whether the latents are the same
flags    the same under --lowvram and --reserve-vram
session  twenty prompts in a row, /free, switching models, cancelling, an out-of-memory half way
two      MultiGPU CFG Split beside one GPU
first    what the first run of a process does otherwise: the first module whose numbers differ from the second run's
sage     --use-sage-attention beside ComfyUI's attention: seconds of a step, and whose attention runs
training seconds of a step of Train LoRA, and memory

With --tiny --cpu all of it runs on a CPU with a tiny model. Results are printed, and written to FOLDER after every row, as
JSON and Markdown; --write puts the tables of such a JSON into docs/comfyui.md.
"""

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import comfyui_gpu_questions as questions
import comfyui_gpu_sections as sections
from comfyui_big_models import Size, bytes_of
from comfyui_gpu_runs import MODELS, Setup
from comfyui_measuring import GIB, Gpu, Row, table, writing_speed
from comfyui_server import python_of_comfyui

SECONDS = {"suite": 220, "vram": 420, "flags": 120, "session": 150, "two": 150, "first": 90, "sage": 60, "training": 120}
SECTIONS = tuple(SECONDS)
NOT_ON_GPUS = ("browser", "clip", "installs", "memory", "sage", "shipped", "templates", "threads", "widgets")
SUITE = tuple(
    f"tests/nodes/{path.name}"
    for path in sorted((Path(__file__).parents[1] / "nodes").glob("test_comfyui*.py"))
    if path.stem.removeprefix("test_comfyui_") not in NOT_ON_GPUS
)
SIZES = {"wan14b": Size(40, 5120, 13824), "tiny": Size(2, 256, 512)}
FILES_A_LAYER = 1.0 + 0.5 + 0.3  # 16 bit, FP8, ours: bytes on the disk beside those of 16 bit
PAGE = Path(__file__).parents[2] / "docs" / "comfyui.md"


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all of them by default")
    parser.add_argument("--comfyui", type=Path, help="folder of ComfyUI")
    parser.add_argument("--python", default=python_of_comfyui(), help="interpreter that ComfyUI runs in")
    parser.add_argument("--flags", default="", help='flags for every start of ComfyUI, as in "--front-end-root DIR"')
    parser.add_argument("--output", type=Path, help="where results go")
    parser.add_argument(
        "--base",
        type=Path,
        help="ComfyUI's base folder, kept for another call: models in it are used again; else a temporary one",
    )
    parser.add_argument("--cpu", action="store_true", help="run on the CPU")
    parser.add_argument("--tiny", action="store_true", help="a model of two layers")
    parser.add_argument("--layers", type=int, default=40, help="of the model; fewer if the disk is too small or slow")
    parser.add_argument("--writing", type=float, default=120, help="seconds that writing the models may take")
    parser.add_argument("--left", type=float, nargs="*", default=[8, 12, 16, 24], help="GB of memory that are left")
    parser.add_argument("--which", nargs="*", choices=MODELS, default=list(MODELS), help="models of the section vram")
    parser.add_argument("--video", type=int, nargs=3, help="width, height and frames")
    parser.add_argument("--steps", type=int, default=4, help="of each run")
    parser.add_argument("--seconds", type=float, nargs="*", default=[], help="limits of the sections, in their order")
    parser.add_argument(
        "--workers", type=int, default=6, help="processes of the section suite, each with a ComfyUI of its own"
    )
    parser.add_argument(
        "--tests",
        nargs="*",
        default=list(SUITE),
        help="files of the section suite",
    )
    parser.add_argument("--write", type=Path, help="put the tables of a result JSON into docs/comfyui.md, and run nothing")
    return parser.parse_args()


def size_for(parsed: argparse.Namespace, folder: Path) -> Size:
    """The model, with as many layers as the disk has room and time for."""
    size = SIZES["tiny" if parsed.tiny else "wan14b"]
    if parsed.tiny:
        return size
    whole, bare = bytes_of(size), bytes_of(size._replace(layers=0))
    layer = (whole - bare) / size.layers * FILES_A_LAYER
    room, speed = shutil.disk_usage(folder).free - 2 * GIB, writing_speed(folder)
    fits = int((min(room, parsed.writing * speed) - bare * FILES_A_LAYER) / layer)
    print(f"{folder}: {room / GIB:.0f} GiB free, {speed / GIB:.2f} GiB/s; room and time for {fits} layers", flush=True)
    return size._replace(layers=max(1, min(parsed.layers, fits)))


def setup_for(parsed: argparse.Namespace, base: Path) -> Setup:
    """What the sections are given, without models."""
    video = tuple(parsed.video or ((64, 64, 5) if parsed.tiny else (832, 480, 33)))
    flags = (*parsed.flags.split(), *(("--cpu",) if parsed.cpu else ()))
    size = SIZES["tiny"] if parsed.tiny else SIZES["wan14b"]._replace(layers=parsed.layers)
    return Setup(parsed.comfyui.resolve(), parsed.python, base, Gpu(parsed.cpu), size, video, parsed.steps, flags)


def run(parsed: argparse.Namespace, setup: Setup) -> list[Row]:
    """All rows, printed as they come."""
    rows: list[Row] = []
    asked = parsed.sections or list(SECTIONS)
    limits = {**SECONDS, **dict(zip(asked, parsed.seconds, strict=False))}

    def take(found: sections.Rows) -> None:
        try:
            for row in found:
                rows.append(row)
                print(table([row]).splitlines()[-1], flush=True)
                keep(parsed, setup, rows)
        except Exception as error:  # noqa: BLE001 - the other sections are wanted all the same
            rows.append(Row("error", "", "", note=sections.reason(error), more={"error": str(error)[-3000:]}))
            print(rows[-1].note, flush=True)

    for name in asked:
        start = time.monotonic()
        if name != "suite" and not setup.quantized and not setup.written_before():
            setup.size = size_for(parsed, setup.base)
            setup.write_models()
            print(f"{setup.size}, written in {time.monotonic() - start:.0f} s", flush=True)
            take(sections.save_ours(setup, sections.Deadline(180)))
            setup.note_written()
        deadline = sections.Deadline(limits[name])
        kept = parsed.left, parsed.which
        more = {"suite": (parsed.tests, parsed.workers), "vram": kept, "flags": kept}.get(name, ())
        take(getattr(questions if hasattr(questions, name) else sections, name)(setup, deadline, *more))
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
        keep(parsed, setup, rows)
    return rows


def where(setup: Setup) -> str:
    """Machine, versions and date."""
    from sedialect.sedialect_core.environment import environment, machine_line

    version = (setup.comfyui / "comfyui_version.py").read_text(encoding="utf-8").rpartition("=")[2].strip().strip('"')
    width, height, frames = setup.video
    model = f"Wan of random weights, {setup.size.layers} layers of {setup.size.dim}"
    return f"*{model}; {width}x{height}x{frames}, {setup.steps} steps; ComfyUI {version}; {machine_line(environment())}*"


def parts(result: dict) -> dict[str, str]:
    """The text of each section that ran, by the name of its place in the document."""
    found: dict[str, str] = {}
    for name in result["sections"]:
        mine = [Row(**row) for row in result["rows"] if row["section"] == name]
        shown = "\n".join(f"* {row.note}" for row in mine) if name == "suite" else table(mine)
        if mine:
            found[f"comfyui {name}"] = f"{shown}\n\n{result['where']}"
    return found


def keep(parsed: argparse.Namespace, setup: Setup, rows: list[Row]) -> None:
    """Write what there is so far."""
    if parsed.output is None:
        return
    parsed.output.mkdir(parents=True, exist_ok=True)
    sections = parsed.sections or list(SECTIONS)
    result = {"where": where(setup), "sections": sections, "rows": [row.to_dict() for row in rows]}
    (parsed.output / "comfyui.json").write_text(json.dumps(result, indent=1))
    (parsed.output / "comfyui.md").write_text("\n\n".join(parts(result).values()))
    for log in ("server.log", "suite.txt"):
        if (setup.base / log).exists():
            shutil.copy(setup.base / log, parsed.output / log)


def main() -> int:
    """Run the sections, or write what was run before."""
    parsed = arguments()
    if parsed.write is not None:
        from sedialect.sedialect_core.storage.marked import write_marked

        write_marked(PAGE, parts(json.loads(parsed.write.read_text())))
        return 0
    if parsed.comfyui is None or not (parsed.comfyui / "comfyui_version.py").exists():
        print(f"--comfyui must name a ComfyUI, not {parsed.comfyui}", file=sys.stderr)
        return 2
    if wrong := [name for name in parsed.sections if name not in SECTIONS]:
        print(f"there is no section {wrong[0]!r}; choose of {', '.join(SECTIONS)}", file=sys.stderr)
        return 2
    with contextlib.ExitStack() as stack:
        base = parsed.base or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        base.mkdir(parents=True, exist_ok=True)
        setup = setup_for(parsed, base.resolve())
        rows = run(parsed, setup)
        print(f"\n{table(rows)}\n\n{where(setup)}")
    return 1 if any(row.section == "error" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
