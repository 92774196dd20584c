"""Sections of run_comfyui_gpu.py that answer one question each: what the first run of a process does otherwise, whose
attention runs under `--use-sage-attention`, and what training a LoRA takes."""

import json
from pathlib import Path

from comfyui_gpu_runs import FILES, OURS, Run, Setup, compared, measured
from comfyui_gpu_sections import Deadline, Rows, attempt, warm_up
from comfyui_measuring import GIB, Peak, Row
from comfyui_server import Server
from comfyui_training import trained

EXERCISES = ("none", "attention", "convolution", "products")
"""What runs before the first run of a process. The kind after which the first run is as the second is the cause.

Attention is the likeliest: ComfyUI names an order of libraries around each call (`comfy.ops.scaled_dot_product_attention`),
and torch's `priority_order` (ATen/native/transformers/cuda/sdp_utils.cpp) sets another, with cuDNN first, when it is asked
for the first time in a process on compute capability 9.0 or 10.0; ComfyUI's order holds from the second call on."""
OURS_8BIT = "SeDialect, attention 8bit"
SAGE = "--use-sage-attention"
FEW, MORE = 2, 5  # steps of two trainings: what starting takes is in both


def first(setup: Setup, deadline: Deadline) -> Rows:
    """Three runs in a new process, module by module, after nothing, and after one kind of work each."""
    for kind in EXERCISES:
        row = Row("first", "16 bit", f"before it: {kind}")
        yield attempt(row, lambda row=row, kind=kind: _in_a_new_process(setup, deadline, row, kind), deadline.left, 10)


def _in_a_new_process(setup: Setup, deadline: Deadline, row: Row, kind: str) -> Row:
    with setup.server(*setup.flags, patience=deadline.left) as server:
        return _three_runs(setup, server, row, kind)


def _three_runs(setup: Setup, server: Server, row: Row, kind: str) -> Row:
    width, height, frames = setup.video
    exercise = Run(setup)
    said = {"frames": (frames - 1) // 4 + 1, "height": height // 8, "width": width // 8}
    exercise.add("SeDialectTestExercise", work=kind, dim=setup.size.dim, hidden=setup.size.hidden, **said)
    server.run(exercise.nodes)
    runs = [_traced(setup, server, f"{kind}_{number}") for number in range(3)]
    row.latents = "same" if runs[0]["latents"] == runs[1]["latents"] else "first run differs"
    row.note = f"first and second: {difference(*runs[:2])}; second and third: {difference(*runs[1:])}"
    row.more["settings"] = [run["settings"] for run in runs]
    return row


def _traced(setup: Setup, server: Server, name: str) -> dict:
    graph = Run(setup)
    model = graph.add("SeDialectTestTraced", model=graph.model("16 bit"), run=name)
    sampled = graph.plain(model, steps=1)
    node = graph.add("SeDialectTestTrace", samples=sampled, run=name)
    return json.loads(server.run(graph.nodes).text(node[0]))


def difference(one: dict, other: dict) -> str:
    """The first call of a module whose numbers differ, and how many do; settings of torch that differ."""
    calls, others = one["calls"], other["calls"]
    if [call[:2] for call in calls] != [call[:2] for call in others]:
        return f"other calls, {len(calls)} and {len(others)}"
    wrong = [f"{call[0]} {call[1]}" for call, same in zip(calls, others, strict=True) if call != same]
    changed = [key for key, value in one["settings"].items() if other["settings"][key] != value]
    said = f"{len(wrong)} of {len(calls)} differ, the first is {wrong[0]}" if wrong else "same"
    return f"{said}; settings: {', '.join(changed)}" if changed else said


def sage(setup: Setup, deadline: Deadline) -> Rows:
    """Seconds of a step with ComfyUI's attention and SageAttention's, in 16 bit and with our layers, and who was called."""
    references: dict[str, Path] = {}
    for flags in ((), (SAGE,)):
        with setup.server(*setup.flags, *flags, patience=deadline.left) as server:
            warm_up(setup, server, "16 bit")
            for name in ("16 bit", OURS, OURS_8BIT):
                row = Row("sage", name, " ".join(flags))
                yield attempt(row, lambda row=row, server=server: _with_sage(setup, server, row, references))


def _with_sage(setup: Setup, server: Server, row: Row, references: dict[str, Path]) -> Row:
    row, file = measured(setup, server, row, f"sage_{row.model}_{row.flags}", counting=True)
    row.latents = compared(file, references.get(row.model)) or "reference"
    references.setdefault(row.model, file)
    calls = row.more.pop("sage")
    row.note = f"calls of SageAttention: {calls['self']} self, {calls['cross']} cross, {calls['failed']} failed"
    return row


def training(setup: Setup, deadline: Deadline) -> Rows:
    """Seconds of a step of *Train LoRA* over each model, in both of its ways to add a LoRA, and memory. The process's first
    attention would run by another library when it is recomputed (see `first`), which ends in an error: so it is not here."""
    with setup.server(*setup.flags, patience=deadline.left) as server:
        warm_up(setup, server, OURS)
        for name in (OURS, *FILES):
            for bypass in (True, False):
                row = Row("training", name, "bypass_mode" if bypass else "")
                yield attempt(row, lambda row=row, bypass=bypass: _trained(setup, server, row, bypass), deadline.left, 20)


def _trained(setup: Setup, server: Server, row: Row, bypass: bool) -> Row:
    setup.free(server)
    for number, steps in enumerate((FEW, FEW, MORE)):  # the first compiles kernels, and counts for nothing
        graph, before = _training(setup, row.model, steps, bypass, number), row.run
        with Peak(setup.gpu) as peak:
            row.run = server.run(graph.nodes).seconds
    row.step, row.peak = (row.run - before) / (MORE - FEW), peak.most / GIB
    return row


def _training(setup: Setup, name: str, steps: int, bypass: bool, seed: int) -> Run:
    graph = Run(setup)
    width, height, frames = setup.video
    latents = graph.add("EmptyHunyuanLatentVideo", width=width, height=height, length=frames, batch_size=1)
    settings = {"steps": steps, "bypass_mode": bypass, "seed": seed, "checkpoint_depth": 2}  # each block is recomputed
    lora = trained(graph, graph.model(name), latents, graph.prompt("a"), **settings)
    graph.add("SaveLoRA", lora=lora, prefix=f"loras/{name}_{bypass}_{seed}".replace(" ", "_"))
    return graph
