"""Two clones of a MODEL in two threads, as MultiGPU CFG Split runs them, in a real ComfyUI on the CPU under two names.

COMFYUI_DIR names it, as for test_comfyui.py. On GPUs: `run_comfyui_gpu.py two`.
"""

import pytest
import torch
from comfyui_server import needs_comfyui
from comfyui_workflows import PROMPT, Workflow, samples

pytestmark = needs_comfyui
SETTINGS = {
    "16 bit": None,
    "plain": {"preset": "plain"},
    "second terms by attention": {"preset": "default", "salient_by": "attention", "salient_layers": "all"},
    "second terms by norm": {"preset": "default", "salient_by": "norm"},
    "groups": {"preset": "plain", "semantic": "on"},
    "protected steps": {"preset": "plain", "protected_first": 1, "protected_last": 1},
    "attention alone": {"precision": "16bit", "attention": "8bit"},
    "attention in 8 bit": {"preset": "weight-only", "attention": "8bit"},
}


def guided(graph: Workflow, model: list) -> list:
    """Sampled with guidance, whose halves are kept apart: a hook without effect hangs on one of them."""
    hooks = graph.add("CreateHookLoraModelOnly", lora_name="lora.safetensors", strength_model=1e-9)
    said = {"cond_NEW": graph.prompt(PROMPT), "strength": 1.0, "set_cond_area": "default", "hooks": hooks}
    latent = graph.latent(frames=33, size=128)  # 576 tokens: attention is long from 512
    return graph.sample(model, steps=3, latent=latent, positive=graph.add("ConditioningSetProperties", **said))


@pytest.mark.parametrize("lora", [False, True], ids=["", "with a LoRA"])
@pytest.mark.parametrize("name", SETTINGS)
def test_two_threads_give_what_one_gives(server, graph, name, lora):
    settings = SETTINGS[name]
    model = graph.model() if settings is None else graph.quantize(graph.model(), **settings)
    model = graph.lora(model) if lora else model
    split = graph.add("SeDialectTestSplit", model=model)
    latents = [guided(graph, one) for one in (model, split, split)]
    files = [graph.keep(latent, f"threads_{number}") for number, latent in enumerate(latents)]
    report = graph.add("SeDialectReport", model=split, samples=latents[1]) if settings else None
    outcome = server.run(graph.nodes)
    one, two, again = map(samples, files)
    assert one.isfinite().all() and torch.equal(one, two) and torch.equal(two, again)
    if report is not None and "attention" in settings:
        assert "8 of 16 in 8bit" in outcome.text(report[0]) and "stayed in 16 bit" not in outcome.text(report[0])
