"""LoRAs of all kinds on quantized layers in a real ComfyUI: beside the codes, never rounded into them. COMFYUI_DIR names it,
as for test_comfyui.py."""

import json

import pytest
import torch
from comfyui_server import ON_CPU, needs_comfyui
from comfyui_workflows import PROMPT, Workflow, answers, assert_near, distance, samples
from safetensors.torch import load_file

pytestmark = needs_comfyui


@pytest.mark.parametrize("order", ["before", "behind"])
def test_a_lora_is_added_beside_the_codes(server, graph, order):
    """Both orders give the same layers: codes of the 16-bit weight, and the LoRA in full precision on top."""
    plain = graph.layers(graph.quantize(graph.model()), f"{order}_plain")
    model = graph.model()
    chained = graph.quantize(graph.lora(model)) if order == "before" else graph.lora(graph.quantize(model))
    path = graph.layers(chained, f"{order}_lora")
    server.run(graph.nodes)
    weights = load_file(graph.base / "models" / "loras" / "lora.safetensors")
    base, changed = answers(plain), answers(path)
    for name in base:
        up, down = (weights[f"diffusion_model.{name}.lora_{part}.weight"] for part in ("up", "down"))
        x = torch.randn(5, down.shape[1], generator=torch.Generator().manual_seed(down.shape[1]))
        assert_near(changed[name] - base[name], x @ down.T @ up.T, exactly=1e-3, roughly=0.03)


def test_a_weak_lora_has_its_whole_effect_and_strength_scales_it(server, graph):
    """1 % of a weight is far below what 4 bits can hold: merged and rounded it would be noise."""
    quantized = graph.quantize(graph.model())
    files = {s: graph.layers(graph.lora(quantized, "weak.safetensors", s), f"weak{s}") for s in (0.0, 0.5, 1.0, -1.0)}
    plain = graph.layers(quantized, "weak_off")
    server.run(graph.nodes)
    base, found = answers(plain), {s: answers(path) for s, path in files.items()}
    for name in base:
        assert torch.equal(found[0.0][name], base[name])
        effect = found[1.0][name] - base[name]
        assert 0.001 < distance(found[1.0][name], base[name]) < 0.1
        # In bfloat16 a third of so small an effect is rounding; merged into 4 bits it would be lost in it.
        assert_near(found[0.5][name] - base[name], effect / 2, exactly=1e-3, roughly=0.6)
        assert_near(found[-1.0][name] - base[name], -effect, exactly=1e-3, roughly=0.5)


def test_loras_add_up_and_come_off(server, graph):
    quantized = graph.quantize(graph.model())
    both = graph.layers(graph.lora(graph.lora(quantized), "second.safetensors"), "both")
    one, other = (
        graph.layers(graph.lora(quantized), "one"),
        graph.layers(graph.lora(quantized, "second.safetensors"), "other"),
    )
    off = graph.layers(quantized, "off")
    server.run(graph.nodes)
    both, one, other, off = map(answers, (both, one, other, off))
    for name in off:
        assert_near(both[name] - off[name], one[name] + other[name] - 2 * off[name], exactly=1e-3, roughly=0.05)


def test_low_vram_gives_the_same_layers(server, graph):
    """ComfyUI then casts every layer when it runs, and applies LoRAs in the cast: ours must not be rounded there either."""
    model = graph.lora(graph.quantize(graph.model()))
    full, low = graph.layers(model, "full"), graph.layers(model, "low", budget=1)
    server.run(graph.nodes)
    full, low = answers(full), answers(low)
    assert all(torch.equal(full[name], low[name]) for name in full)


def test_all_of_a_weight_that_is_copied_for_each_use_is_pinned(server, graph):
    """Codes, meta and row scales; what ComfyUI does by itself for the codes. All of it is let go of again."""
    node = graph.add("SeDialectTestPinned", model=graph.quantize(graph.model()))
    pinned, released, stored = json.loads(server.run(graph.nodes).text(node[0]))
    assert pinned == released == stored and len(stored) == 3 * 81


def test_a_bypass_lora_does_what_a_lora_does(server, graph):
    """It adds its product behind the layer, which rounds otherwise in bfloat16. Inputs in 16 bit keep that small, where 4
    bit round some of them the other way. Fastened to the 16-bit MODEL before, it is off again when that is quantized."""
    graph.keep(graph.sample(graph.lora(graph.model(), bypass=True), steps=1), "sixteen")
    server.run(graph.nodes)
    graph = Workflow(graph.base)
    quantized = graph.quantize(graph.model(), preset="weight-only")
    kept = [
        graph.keep(graph.sample(model, steps=1), name)
        for name, model in (
            ("off", quantized),
            ("normal", graph.lora(quantized)),
            ("bypass", graph.lora(quantized, bypass=True)),
        )
    ]
    server.run(graph.nodes)
    off, normal, bypass = map(samples, kept)
    assert distance(normal, off) > 0.3
    assert distance(bypass, normal) < (1e-4 if ON_CPU else 0.02)


def test_a_dora_works(server, graph):
    quantized = graph.quantize(graph.model())
    with_dora = graph.lora(quantized, "dora.safetensors")
    dora, report = graph.layers(with_dora, "dora"), graph.add("SeDialectReport", model=with_dora)
    off = graph.layers(quantized, "dora_off")
    text = server.run(graph.nodes).text(report[0])
    assert "speed: 80 layers have a LoRA of another kind" in text
    assert ("speed: on cpu quantized layers save memory" in text) == ON_CPU
    dora, off = answers(dora), answers(off)
    assert all(0.05 < distance(dora[name], off[name]) < 1 for name in off)


def test_neither_save_node_puts_a_lora_into_the_codes(server, graph):
    """ComfyUI's would round the sum to 4 bit, and only where it has not loaded the layer: not so with ours."""
    quantized = graph.quantize(graph.model())
    model = graph.lora(quantized)
    graph.keep(graph.sample(model, steps=1), "loaded")
    graph.add("ModelSave", model=model, filename_prefix="diffusion_models/with_lora")
    graph.add("SeDialectSave", model=model, filename_prefix="diffusion_models/ours_with_lora", names="ComfyUI")
    plain = graph.layers(quantized, "without_lora")
    server.run(graph.nodes)
    for file in (graph.base / "output" / "diffusion_models").glob("*with_lora*"):
        again = Workflow(graph.base)
        path = again.layers(again.add("SeDialectLoad", file=file.name), file.stem)
        server.run(again.nodes)
        before, after = load_file(plain), load_file(path)
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_lora_by_hooks_on_the_conditioning_works(server, graph):
    """Only the conditionings that carry the hook feel it, and switching between them leaves the codes as they are."""
    quantized = graph.quantize(graph.model())
    hooks = graph.add("CreateHookLoraModelOnly", lora_name="lora.safetensors", strength_model=1.0)
    texts = [graph.prompt(PROMPT), graph.prompt("")]
    hooked = [
        graph.add("ConditioningSetProperties", cond_NEW=text, strength=1.0, set_cond_area="default", hooks=hooks)
        for text in texts
    ]
    both = graph.keep(graph.sample(quantized, steps=1, positive=hooked[0], negative=hooked[1]), "hook_both")
    one = graph.keep(graph.sample(quantized, steps=1, positive=hooked[0]), "hook_one")
    normal, plain = (
        graph.keep(graph.sample(graph.lora(quantized), steps=1), "hook_normal"),
        graph.keep(graph.sample(quantized, steps=1), "hook_off"),
    )
    server.run(graph.nodes)
    both, one, normal, plain = map(samples, (both, one, normal, plain))
    assert distance(both, normal) < 0.02 < distance(one, normal) and distance(one, plain) > 0.02
