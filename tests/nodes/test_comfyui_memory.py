"""Memory of a real ComfyUI while our nodes come and go. COMFYUI_DIR names it."""

import json
import time
from pathlib import Path

import comfyui_models
import pytest
from comfyui_server import needs_comfyui
from comfyui_workflows import Workflow

pytestmark = needs_comfyui
DEEP = "deep.safetensors"
BLOCKS = 5


@pytest.fixture(scope="module")
def weights(base) -> int:
    """Bytes of a model in float32, as ComfyUI has it on a CPU, and its file for all tests."""
    path = base / "models" / "diffusion_models" / DEEP
    comfyui_models.tiny_wan(path, blocks=BLOCKS, dim=1024, hidden=4096)
    return 2 * path.stat().st_size


def resident(server) -> int:
    """Bytes that the process has of its own, without files that it maps."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))


def free(server) -> int:
    """What is resident after /free."""
    server.post("/free", {"unload_models": True, "free_memory": True})
    time.sleep(4)
    return resident(server)


def test_what_a_cancelled_encoding_took_comes_back(server, base, weights):
    """glibc kept the whole model, here and after the next runs, until it was told otherwise."""
    before = free(server)
    for number in range(3):
        graph = Workflow(base)
        graph.add("SeDialectReport", model=graph.quantize(graph.model(DEEP), skip=f"never{number}"))
        prompt, end = server.queue(graph.nodes), time.monotonic() + 120
        while resident(server) < before + 0.8 * weights:
            assert time.monotonic() < end, "the model was never there"
            time.sleep(0.2)
        time.sleep(2)
        server.post("/interrupt", {})
        assert "execution_interrupted" in server.wait(prompt).events
        left = free(server) - before
        assert left < 0.3 * weights, f"cancelled {number + 1} times, {left / 1e6:.0f} MB stay"


def test_twenty_prompts_with_model_switches_leave_memory_flat(server, base, weights):
    files, taken = ("tiny_high.safetensors", "tiny_low.safetensors", "bundled_wan.safetensors"), []
    for number in range(20):
        graph = Workflow(base)
        model = graph.model(files[number % 3])
        model = graph.lora(model, strength=number / 20) if number % 3 == 2 else model
        quantized = graph.quantize(model, block_size="32" if number % 2 else "16")
        graph.add("SeDialectReport", model=quantized)
        memory = graph.add("SeDialectTestMemory", model=quantized)
        kept = json.loads(server.run(graph.nodes).text(memory[0]))["kept"]
        assert len(kept) == 1, "codes of models that are gone"
        taken.append(resident(server))
    grown = max(taken[12:]) - max(taken[3:12])
    assert grown < 40e6, f"{grown / 1e6:.0f} MB more: {[round(count / 1e6) for count in taken]}"
