"""The sections of run_comfyui_gpu.py. Each yields rows as they come, and a row that fails is a row with its reason."""

import importlib.util
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from comfyui_gpu_runs import FILES, OURS, OURS_LORA, Run, Setup, compared, fill, measured
from comfyui_measuring import GIB, Peak, Row, anonymous
from comfyui_server import Server

ROOT = Path(__file__).parents[2]
Rows = Iterator[Row]
Wanted = list[tuple[float | None, str]]  # GB that are left, and one of MODELS
TOO_SMALL = 3.0  # GiB that no video of 720p and 81 frames can be computed in
LARGE = (1280, 720, 81)
PROMPTS = 20
ROOM = 20.0  # GB that are left while they run
NO_TIME = "not run: no time left"
# Held against diffusers in float32 on the CPU, number by number; about the memory of a process without a GPU; into layers
# of a MODEL of which dynamic VRAM samples a copy, where conditionings have hooks; by ComfyUI's Save Model, which makes
# integers want gradients under dynamic VRAM; of a video in H.264, which is the same on a CPU.
CPU_ALONE = (
    "layers_choose_and_answer",
    "layers_of_a_compiled_model",
    "most_attended_tokens",
    "same_groups_are_formed",
    "test_memory_of",
    "batched_and_separate_conditionings",
    "core_save_and_our_load_agree",
    "compare_saves_two_videos",
)


class Deadline:
    """When a section has to end."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return max(0.0, self.end - time.monotonic())


def reason(error: Exception) -> str:
    """The last line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if any(sign.isalnum() for sign in line)]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:300]


def attempt(row: Row, run: Callable[[], Row], left: float = math.inf, needed: float = 0.0) -> Row:
    """What a run gives, or the row with the reason why it gave nothing: also where fewer seconds are left than it needs."""
    if left < needed:
        row.note = NO_TIME
        return row
    try:
        return run()
    except Exception as error:  # noqa: BLE001 - whatever happens to one row, the others are wanted
        row.note, row.more["error"] = reason(error), str(error)[-3000:]
        return row


def suite(setup: Setup, deadline: Deadline, tests: list[str], workers: int) -> Rows:
    """The tests of `make test-comfyui`, with this GPU in place of the CPU; each worker has a server of its own."""
    environment = {**os.environ, "COMFYUI_DIR": str(setup.comfyui), "COMFYUI_PYTHON": setup.python}
    environment["COMFYUI_FLAGS"] = " ".join(setup.flags)
    environment["COMFYUI_SHARED"] = "1"
    report = setup.base / "suite.txt"
    chosen = f"not ({' or '.join(CPU_ALONE)})"
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-rfE", "-k", chosen, *tests]
    command += ["--durations=20"]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(workers), "--dist", "worksteal"]
    with report.open("wb") as file:
        try:
            subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=file, timeout=deadline.left, check=False)
            ended = ""
        except subprocess.TimeoutExpired:
            ended = "stopped at its time limit; "
    lines = report.read_text(errors="replace").splitlines()
    said = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    counts = next((line for line in reversed(lines) if " passed" in line or " failed" in line), "no test ended")
    yield Row("suite", "tests", " ".join(setup.flags), note=ended + counts.strip("= "))
    yield from (Row("suite", "", "", note=line) for line in said)


def save_ours(setup: Setup, deadline: Deadline) -> Rows:
    """Quantize the 16-bit file and save it."""
    with setup.server(*setup.flags, patience=deadline.left) as server:
        graph = Run(setup)
        quantized = graph.add("SeDialectQuantize", model=graph.model("16 bit"), preset="default")
        graph.add("SeDialectSave", model=quantized, filename_prefix="diffusion_models/ours", names="ComfyUI")
        start = time.monotonic()
        with Peak(setup.gpu) as peak:
            (path,) = server.run(graph.nodes).saved
        setup.quantized = path.name
        seconds = time.monotonic() - start
    yield Row("vram", "Quantize, then Save", "", run=seconds, peak=peak.most / GIB)


def vram(setup: Setup, deadline: Deadline, left: list[float], models: list[str]) -> Rows:
    """Models under dynamic VRAM and without it, with all memory and with less."""
    caps: list[float | None] = [None, *left] if not setup.gpu.cpu else [None]
    few = [cap for cap in caps if cap in (None, min(left, default=None), _middle(left))]
    references: dict[str, Path] = {}
    for flags, some in (((), caps), (("--disable-dynamic-vram",), few)):
        yield from _ways("vram", setup, deadline, flags, [(cap, model) for cap in some for model in models], references)


def flags(setup: Setup, deadline: Deadline, left: list[float], models: list[str]) -> Rows:
    """Models under other flags that say where weights are kept; with the least memory, where the flag reserves none."""
    least: list[float | None] = [min(left, default=None)]
    reserve = f"{setup.gpu.total / GIB - _middle(left):.1f}" if not setup.gpu.cpu else "1"
    references: dict[str, Path] = {}
    wanted: list[tuple[tuple[str, ...], list[float | None]]] = [((), [None]), (("--reserve-vram", reserve), [None])]
    if not setup.gpu.cpu:  # ComfyUI takes them on a GPU alone
        wanted += [(("--lowvram",), least), (("--disable-dynamic-vram", "--lowvram"), least)]
    for said, caps in wanted:
        yield from _ways("flags", setup, deadline, said, [(cap, model) for cap in caps for model in models], references)


def _middle(left: list[float]) -> float:
    return left[len(left) // 2] if left else 12.0


def _ways(
    section: str,
    setup: Setup,
    deadline: Deadline,
    flags: tuple[str, ...],
    wanted: Wanted,
    references: dict[str, Path],
) -> Rows:
    """Rows of one set of flags; a server that has died is started again for the rows that are left."""
    wanted = list(wanted)
    while wanted:
        why = NO_TIME
        if deadline.left >= 20:
            try:
                yield from _while_it_lives(section, setup, deadline, flags, wanted, references)
                continue
            except AssertionError as error:
                why = f"ComfyUI did not start; {reason(error)}"
        yield from (Row(section, name, " ".join(flags), _left(cap), note=why) for cap, name in wanted)
        return


def _while_it_lives(
    section: str,
    setup: Setup,
    deadline: Deadline,
    flags: tuple[str, ...],
    wanted: Wanted,
    references: dict[str, Path],
) -> Rows:
    with setup.server(*setup.flags, *flags, patience=deadline.left) as server:
        warm_up(setup, server, OURS)
        while wanted and server.process.poll() is None and deadline.left >= 20:
            cap, name = wanted.pop(0)
            server.patience = min(120.0, deadline.left)
            row = Row(section, name, " ".join(flags), _left(cap))
            yield attempt(row, lambda row=row, cap=cap: _one(setup, server, row, cap, references))
            if "ComfyUI did not" in row.more.get("error", ""):
                return


def _left(cap: float | None) -> str:
    return "all" if cap is None else f"{cap:g} GB"


def _one(setup: Setup, server: Server, row: Row, cap: float | None, references: dict[str, Path]) -> Row:
    setup.free(server)
    setup.gpu.leave(cap)
    run = f"{row.model}_{row.flags}_{row.left}"
    row, file = measured(setup, server, row, run)
    row.latents = compared(file, references.setdefault(row.model, file)) if row.model in references else "reference"
    references.setdefault(row.model, file)
    return row


def warm_up(setup: Setup, server: Server, model: str) -> None:
    """The first run of a process, which counts for nothing: it compiles kernels, and its first attention may run by another
    library than all later ones, of whatever model it is (see `comfyui_gpu_questions.first`)."""
    graph = Run(setup)
    graph.sample(graph.model(model), f"warm_{time.monotonic()}", steps=1)
    graph.add("SeDialectTestSage", samples=graph.sampled)  # its calls are not those of the run after it
    server.run(graph.nodes)


def session(setup: Setup, deadline: Deadline) -> Rows:
    """What a long session does: freeing, switching, an error, a cancelled run, and twenty prompts in a row."""
    with setup.server(*setup.flags, patience=deadline.left) as server:
        warm_up(setup, server, OURS_LORA)
        first = Row("session", OURS_LORA, "", note="second run")
        first, reference = measured(setup, server, first, "session_first")
        yield first
        yield from _many(setup, server, deadline)

        def again(what: str, prepare: Callable[[], str]) -> Row:
            row = Row("session", OURS_LORA, "", note=what)

            def run() -> Row:
                said = prepare()
                filled, file = measured(setup, server, row, f"session_{what}")
                filled.latents, filled.note = compared(file, reference), f"{what}{said}"
                return filled

            return attempt(row, run)

        yield again("after /free", lambda: setup.free(server) or "")
        yield again("after the 16-bit model and FP8 ran", lambda: _others(setup, server))
        yield again("after a cancelled run", lambda: _cancel(setup, server))
        if not setup.gpu.cpu:
            yield again("after an out-of-memory half way", lambda: _overflow(setup, server))


def _others(setup: Setup, server: Server) -> str:
    for number, name in enumerate(FILES):
        measured(setup, server, Row("session", name, ""), f"session_other_{number}_{time.monotonic()}")
    return ""


def _cancel(setup: Setup, server: Server) -> str:
    graph = Run(setup)
    _, file = graph.sample(graph.model(OURS_LORA), "session_cancelled", steps=200, seed=8)
    prompt = server.queue(graph.nodes)
    while prompt not in [entry[1] for entry in server.get("/queue")["queue_running"]]:
        time.sleep(0.05)
    time.sleep(2.0)
    server.post("/interrupt", {})
    outcome = server.wait(prompt)
    if "execution_interrupted" not in outcome.events or file.exists():
        raise AssertionError(f"the run was not cancelled: {outcome.events}")
    return ""


def _overflow(setup: Setup, server: Server) -> str:
    """A video too large for what is left of the memory; what ComfyUI says of it."""
    setup.free(server)
    setup.gpu.leave(TOO_SMALL)
    graph = Run(setup)
    graph.sample(graph.model(OURS_LORA), "session_overflow", video=LARGE)
    try:
        message = server.error(graph.nodes)
    finally:
        setup.gpu.leave(None)
    return f" ({message.splitlines()[0][:80]})"


def _many(setup: Setup, server: Server, deadline: Deadline) -> Rows:
    """Memory after each of many prompts that switch between models, which together do not fit into what is left."""
    setup.free(server)
    setup.gpu.leave(ROOM)
    held, names = [], (OURS, "16 bit", OURS_LORA, "FP8 of ComfyUI")
    row = Row("session", "all four in turn", "", left=_left(None if setup.gpu.cpu else ROOM))

    def run() -> Row:
        for number in range(PROMPTS):
            if deadline.left < 10:
                raise TimeoutError(f"no time left after {number} prompts")
            graph = Run(setup)
            graph.sample(graph.model(names[number % len(names)]), f"many_{number}", seed=number, steps=2)
            server.run(graph.nodes)
            held.append((anonymous(server.process.pid) / GIB, setup.gpu.taken() / GIB))
        return row

    filled = attempt(row, run)
    filled.more["held"] = [[round(value, 3) for value in pair] for pair in held]
    if len(held) > 8:
        middle, last = held[7], held[len(held) // 4 * 4 - 1]  # the same model ran last
        filled.peak = max(pair[1] for pair in held)
        filled.note += (
            f"{len(held)} prompts: the process holds {middle[0]:.2f} GiB after 8 and {last[0]:.2f} after {len(held)}, "
            f"the GPU {middle[1]:.2f} and {last[1]:.2f}"
        )
    yield filled


def two(setup: Setup, deadline: Deadline) -> Rows:
    """MultiGPU CFG Split beside one GPU: the two halves of guidance batched, as prompts of one length are, and apart."""
    with setup.server(*setup.flags, patience=deadline.left) as server:
        devices = len(server.get("/system_stats")["devices"])
        if devices < 2:
            yield Row("two", "", "", note=f"not run: ComfyUI sees {devices} device")
            return
        for name in ("16 bit", OURS, OURS_LORA):
            for tokens in (512, 479):
                warm_up(setup, server, name)
                yield from _split(setup, server, name, tokens)


def _split(setup: Setup, server: Server, name: str, tokens: int) -> Rows:
    files: list[Path] = []
    kind = "batched on one GPU" if tokens == 512 else "apart"
    for gpus in (1, 2):
        row = Row("two", name, f"{gpus} GPU, halves {kind}")

        def run(row: Row = row, gpus: int = gpus) -> Row:
            setup.free(server)
            graph = Run(setup)
            model = graph.model(name)
            model = graph.add("MultiGPU_WorkUnits", model=model, max_gpus=2) if gpus == 2 else model
            negative = graph.prompt("b", tokens)
            node, file = graph.sample(model, f"two_{name}_{gpus}_{tokens}", cfg=3.0, negative=negative)
            fill(row, server.run(graph.nodes), node)
            row.latents = compared(file, files[0]) if files else "reference"
            files.append(file)
            return row

        yield attempt(row, run)
