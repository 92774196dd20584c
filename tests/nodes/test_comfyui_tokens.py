"""Salient tokens, groups and protected steps in a real ComfyUI on the CPU; COMFYUI_DIR names it, as for test_comfyui.py."""

import json
import time

import pytest
import torch
from comfyui_server import needs_comfyui
from comfyui_workflows import PROMPT, Workflow, distance, samples
from safetensors.torch import load_file

import sedialect
from sedialect.sedialect_core import demo
from sedialect.sedialect_core.checkpoint.wan_names import to_authors
from sedialect.sedialect_core.integrations.semantics import HOOK
from sedialect.sedialect_core.linear import SeDialectLinear

pytestmark = needs_comfyui
BY_NORM = {"salient_ratio": 0.25, "salient_by": "norm", "salient_layers": "all"}
BY_ATTENTION = {**BY_NORM, "salient_by": "attention"}
GROUPS = {"salient_ratio": 0.0, "semantic": "on"}


def recorded(server, graph, settings: dict, steps: int = 3, model: list | None = None, **more: object) -> tuple[dict, dict]:
    """What guided layers read, were told and answered in a run of the bundled model, and what was said of it."""
    watched = graph.add("SeDialectTestRecord", model=model or graph.quantize(graph.model(), **settings))
    path = graph.base / "temp" / "recorded.safetensors"
    sampled = graph.sample(watched, steps=steps, **more)
    node = graph.add("SeDialectTestRecorded", model=watched, samples=sampled, file=str(path))
    return load_file(path) if (said := json.loads(server.run(graph.nodes).text(node[0]))) else {}, said


@pytest.fixture(scope="module")
def reference():
    """Makes the bundled transformer quantized by sedialect in diffusers."""
    from diffusers import WanTransformer3DModel

    def make(**settings):
        model = WanTransformer3DModel.from_pretrained(demo.MODEL, subfolder="transformer", torch_dtype=torch.float32)
        sedialect.quantize_model(model, sedialect.SeDialectConfig(**settings))
        return model.eval()

    return make


def replayed(model, found: dict) -> list[dict[str, torch.Tensor]]:
    """What the layers of the reference were told when it ran on what ComfyUI's network ran on: a dictionary a forward."""
    told: list[dict[str, torch.Tensor]] = []
    for name, layer in model.named_modules():
        if isinstance(layer, SeDialectLinear) and layer.guide is not None:
            layer.guide = Noting(to_authors(name), layer.guide, told)
    for number in range(int(found["forwards"])):
        told.append({})
        said = {"timestep": found[f"{number}|t"], "encoder_hidden_states": found[f"{number}|context"]}
        with torch.no_grad():
            model(hidden_states=found[f"{number}|x"], **said)
    return told


class Noting:
    def __init__(self, name, guide, told):
        self.name, self.guide, self.told = name, guide, told

    def __call__(self, x, *transform):
        guidance = self.guide(x, *transform)
        self.told[-1] |= {f"{self.name}|{p}": t.clone() for p, t in guidance._asdict().items() if t is not None}
        return guidance


def compare_layers(found: dict, model) -> int:
    """Hold what layers chose and answered against the reference, given what they read; how many were compared."""
    model.__dict__[HOOK].flags.video_tokens = 32
    compared = 0
    for name, layer in model.named_modules():
        for number in range(int(found["forwards"])):
            key = f"{number}|{to_authors(name)}" if isinstance(layer, SeDialectLinear) and layer.guide is not None else ""
            if key:
                x = found[f"{key}|x"]
                assert set(found[f"{key}|salient"].tolist()) == set(layer.guide(x, layer.transform).salient.tolist())
                torch.testing.assert_close(found[f"{key}|y"], layer(x), rtol=1e-5, atol=1e-4)
                compared += 1
    return compared


def test_layers_choose_and_answer_what_the_reference_does(server, graph, reference):
    """Given what they read: with a second term for the tokens of the largest norm, nothing else decides."""
    found, said = recorded(server, graph, BY_NORM)
    assert said["rooms"] == 0 and compare_layers(found, reference(**BY_NORM)) == 3 * 80


def test_layers_of_a_compiled_model_do_so_too(server, graph, reference):
    settings = {"salient_ratio": 0.25, "salient_by": "norm", "salient_layers": "feed_forward"}
    watched = graph.add("SeDialectTestRecord", model=graph.quantize(graph.model(), **settings))
    compiled = graph.add("TorchCompileModel", model=watched, backend="inductor")
    path = graph.base / "temp" / "compiled.safetensors"
    graph.add("SeDialectTestRecorded", model=watched, samples=graph.sample(compiled), file=str(path))
    server.run(graph.nodes)
    # Feed-forward layers, and the keys and values of the text, whose rows all have a second term.
    assert compare_layers(load_file(path), reference(**settings)) == 2 * 8 * 4


def test_the_most_attended_tokens_are_those_of_diffusers(server, graph, reference):
    """Both networks run on the same inputs. A code that flips by a last digit changes what later layers see; up to the first
    attention there is nothing to flip."""
    found, said = recorded(server, graph, BY_ATTENTION)
    told = replayed(reference(**BY_ATTENTION), found)
    assert not said["unseen"] and said["map"].startswith("attention received")
    assert found["map"].shape == (2, 4, 4) and found["map"].min() > 0
    shared = []
    for number, layers in enumerate(told):
        for key in (key for key in layers if key.endswith("|salient")):
            ours, theirs = set(found[f"{number}|{key}"].tolist()), set(layers[key].tolist())
            assert len(ours) == len(theirs)
            if number == 0 and key.startswith("blocks.0.self_attn"):
                assert ours == theirs
            shared.append(len(ours & theirs) / len(ours))
    assert sum(shared) / len(shared) > 0.8, "by chance it would be a quarter"


def test_the_same_groups_are_formed_as_in_diffusers(server, graph, reference):
    found, said = recorded(server, graph, GROUPS)
    told = replayed(reference(semantic=True), found)
    assert not said["unseen"]
    grouped, equal = 0, []
    for number, layers in enumerate(told):
        for key in (key for key in layers if key.endswith("|group")):
            ours = found[f"{number}|{key}"]
            equal.append(float((ours == layers[key]).float().mean()))
            grouped += int((ours >= 0).sum())
            assert number > 0 or (ours == -1).all(), "nothing was seen before the first step"
    assert grouped > 0 and sum(equal) / len(equal) > 0.98


def test_batched_and_separate_conditionings_choose_alike(server, graph):
    """ComfyUI batches both where memory allows it; a hook on one of them keeps them apart."""
    settings = {**BY_ATTENTION, "refresh_every": 2}
    batched, _ = recorded(server, graph, settings, steps=2)
    apart = Workflow(graph.base)
    hooks = apart.add("CreateHookLoraModelOnly", lora_name="lora.safetensors", strength_model=1e-9)
    hooked = apart.add(
        "ConditioningSetProperties", cond_NEW=apart.prompt(PROMPT), strength=1.0, set_cond_area="default", hooks=hooks
    )
    separate, said = recorded(server, apart, settings, steps=2, positive=hooked)
    assert int(batched["forwards"]) == 2 and int(separate["forwards"]) == 4 and not said["unseen"]
    assert batched["0|cond_or_uncond"].tolist() in ([0, 1], [1, 0])
    key = "blocks.0.self_attn.q|x"
    for number in range(2):  # the first step, where all of them read the same
        kind = int(separate[f"{number}|cond_or_uncond"])
        row = batched["0|cond_or_uncond"].tolist().index(kind)
        torch.testing.assert_close(separate[f"{number}|{key}"][0], batched[f"0|{key}"][row], rtol=1e-5, atol=1e-5)
        ours = salient_of(separate, number, "blocks.0.self_attn.o", 1)[0]
        assert ours == salient_of(batched, 0, "blocks.0.self_attn.o", 2)[row]


def salient_of(found: dict, number: int, name: str, samples: int) -> list[set[int]]:
    """Places of the chosen tokens of each sample; the bundled model has 32 in these videos."""
    rows = found[f"{number}|{name}|salient"].view(samples, -1)
    return [set((row % 32).tolist()) for row in rows]


@pytest.mark.parametrize(
    ("sampler", "first", "last", "expected"),
    [
        ({"steps": 5}, 1, 2, [True, False, False, True, True]),
        ({"steps": 5, "denoise": 0.5}, 1, 2, [False, False, False, True, True]),
        ({"steps": 3, "sampler_name": "heun"}, 1, 1, [True, False, False, True, True]),
    ],
    ids=["all", "half", "two forwards a step"],
)
def test_steps_are_protected_by_their_sigma(server, graph, sampler, first, last, expected):
    found, _ = recorded(server, graph, {"protected_first": first, "protected_last": last}, **sampler)
    got = [bool(found[f"{number}|blocks.0.ffn.0|protected"]) for number in range(int(found["forwards"]))]
    sigmas = [float(found[f"{number}|sigma"][0]) for number in range(int(found["forwards"]))]
    assert got == expected, sigmas


def test_a_pair_of_samplers_shares_one_schedule(server, graph):
    """As the two models of Wan 2.2 do: the first steps are in the first sampler, the last ones in the second."""
    model = graph.quantize(graph.model(), protected_first=1, protected_last=1)
    watched = graph.add("SeDialectTestRecord", model=model)
    said = {"positive": graph.prompt(PROMPT), "negative": graph.prompt(""), "cfg": 2.0, "sampler_name": "euler"}
    said |= {"scheduler": "simple", "steps": 4, "noise_seed": 1}
    first = graph.add(
        "KSamplerAdvanced",
        model=watched,
        latent_image=graph.latent(),
        add_noise="enable",
        start_at_step=0,
        end_at_step=2,
        return_with_leftover_noise="enable",
        **said,
    )
    second = graph.add(
        "KSamplerAdvanced",
        model=watched,
        latent_image=first,
        add_noise="disable",
        start_at_step=2,
        end_at_step=10000,
        return_with_leftover_noise="disable",
        **said,
    )
    path = graph.base / "temp" / "pair.safetensors"
    graph.add("SeDialectTestRecorded", model=watched, samples=second, file=str(path))
    server.run(graph.nodes)
    found = load_file(path)
    got = [bool(found[f"{number}|blocks.0.ffn.0|protected"]) for number in range(int(found["forwards"]))]
    assert got == [True, False, False, True]


def test_every_run_starts_anew(server, graph):
    """The same run gives the same latents, behind another one of other size and behind one that was broken off."""
    settings = {**BY_ATTENTION, "semantic": "on"}
    model = graph.quantize(graph.model(), **settings)
    first = graph.keep(graph.sample(model), "first_run")
    other = graph.keep(graph.sample(model, latent=graph.latent(frames=9), seed=3), "other_run")
    server.run(graph.nodes)
    broken = Workflow(graph.base)
    model = broken.quantize(broken.model(), **settings)
    broken.keep(broken.sample(model, steps=400), "broken_run")
    prompt = server.queue(broken.nodes)
    time.sleep(4)
    server.post("/interrupt", {})
    assert "execution_interrupted" in server.wait(prompt).events
    again = Workflow(graph.base)
    model = again.quantize(again.model(), **settings)
    path = again.keep(again.sample(model, latent=again.latent()), "again_run")
    again.keep(again.sample(model, seed=10), "more_run")
    server.run(again.nodes)
    assert samples(other).isfinite().all()
    assert torch.equal(samples(path), samples(first))


def test_another_attention_override_still_runs_and_is_not_overwritten(server, graph):
    model = graph.add("SeDialectTestOverride", model=graph.quantize(graph.model(), **BY_ATTENTION))
    behind, said = recorded(server, graph, {}, model=model)
    plain, _ = recorded(server, Workflow(graph.base), BY_ATTENTION)
    assert said["overridden"] == 3 * 16 and not said["unseen"]
    assert torch.equal(behind["samples"], plain["samples"]), "the other override changes nothing by itself"


def test_caches_and_context_windows_go_with_what_is_told(server, graph):
    settings = {**BY_ATTENTION, "semantic": "on"}
    model = graph.quantize(graph.model(), **settings)
    cache = {"start_percent": 0.1, "end_percent": 0.95, "verbose": False}
    reuses, idle = (
        graph.keep(graph.sample(graph.add("EasyCache", model=model, reuse_threshold=at, **cache), steps=6), f"cached_{at}")
        for at in (1.0, 0.0)  # with less, only one of both branches of guidance leaves a step out, and either may decide
    )
    plain = graph.keep(graph.sample(model, steps=6), "plain_tokens")
    windows = {
        "context_length": 9,
        "context_overlap": 4,
        "context_schedule": "standard_uniform",
        "context_stride": 1,
        "closed_loop": False,
        "fuse_method": "pyramid",
        "freenoise": False,
        "retain_first_frame": False,
        "split_conds_to_windows": False,
    }
    context = graph.add("WanContextWindowsManual", model=model, **windows)
    long = graph.keep(graph.sample(context, latent=graph.latent(frames=33)), "long_tokens")
    lora = graph.keep(graph.sample(graph.lora(model)), "lora_tokens")
    report = graph.add("SeDialectReport", model=model)
    text = server.run(graph.nodes).text(report[0])
    assert torch.equal(samples(idle), samples(plain)), "a cache that reuses nothing changes nothing"
    assert samples(reuses).isfinite().all() and not torch.equal(samples(reuses), samples(plain)), "it has left a step out"
    assert samples(long).isfinite().all() and samples(lora).isfinite().all()
    assert "note: the attention of" not in text


def test_second_terms_and_protection_bring_a_step_nearer_to_16_bit(server, graph):
    """What tokens are told is not only noted but carried out."""
    model = graph.model()
    exact = graph.keep(graph.sample(model, steps=1), "exact")
    kinds = {"plain": {"salient_ratio": 0.0}, "protected": {"salient_ratio": 0.0, "protected_first": 1}}
    kinds["terms"] = {"salient_ratio": 1.0, "salient_layers": "all"}
    paths = {
        kind: graph.keep(graph.sample(graph.quantize(model, **settings), steps=1), f"step_{kind}")
        for kind, settings in kinds.items()
    }
    server.run(graph.nodes)
    found = {kind: distance(samples(path), samples(exact)) for kind, path in paths.items()}
    assert found["terms"] < found["plain"] and found["protected"] < found["plain"], found


def test_the_report_shows_what_the_run_before_it_showed(server, graph):
    pictures = {}
    for kind, settings in (("norm", {"salient_ratio": 0.25}), ("attention", BY_ATTENTION), ("none", {"salient_ratio": 0.0})):
        model = graph.quantize(graph.model(), **settings)
        report = graph.add("SeDialectReport", model=model, samples=graph.sample(model))
        pictures[kind] = graph.add("SaveImage", images=[report[0], 2], filename_prefix=f"saliency_{kind}")
    outcome = server.run(graph.nodes)
    texts = [shown["text"][0] for shown in outcome.outputs.values() if "text" in shown]
    assert sum("25% of the video tokens by norm" in text for text in texts) == 1
    sizes = {}
    for kind, node in pictures.items():
        (image,) = outcome.outputs[node[0]]["images"]
        sizes[kind] = (graph.base / "output" / image["filename"]).stat().st_size
    assert sizes["norm"] > 2 * sizes["none"] and sizes["attention"] > 2 * sizes["none"]


def test_a_saved_file_keeps_its_settings_and_loading_may_change_them(server, graph):
    settings = {"salient_ratio": 0.25, "protected_first": 2, "semantic": "on"}
    quantized = graph.quantize(graph.model(), **settings)
    for names in ("ComfyUI", "diffusers"):
        graph.add("SeDialectSave", model=quantized, filename_prefix=f"diffusion_models/tokens_{names}", names=names)
    graph.add("ModelSave", model=quantized, filename_prefix="diffusion_models/tokens_core")
    before = graph.keep(graph.sample(quantized), "tokens_before")
    server.run(graph.nodes)
    again = Workflow(graph.base)
    folder = graph.base / "output" / "diffusion_models"
    files = [str(path.relative_to(folder)) for path in folder.rglob("*.safetensors") if "tokens_" in str(path)]
    assert len(files) == 3
    paths, reports = [], []
    for number, file in enumerate(files):
        loaded = again.add("SeDialectLoad", file=file)
        paths.append(again.keep(again.sample(loaded), f"tokens_after{number}"))
        reports.append(again.add("SeDialectReport", model=loaded))
    changed = again.add("SeDialectLoad", file=files[0], salient_ratio=0.0, semantic="off", protected_first=0)
    reports.append(again.add("SeDialectReport", model=changed))
    outcome = server.run(again.nodes)
    for path in paths:
        assert torch.equal(samples(path), samples(before))
    *kept, other = (outcome.text(report[0]) for report in reports)
    for text in kept:
        assert "25% of the video tokens by norm" in text and "groups" in text and "the first 2" in text
    assert "second terms" not in other and "protected" not in other and "in windows of" not in other


def of_every_family(server, graph, **settings) -> dict[str, dict]:
    node = graph.add("SeDialectTestTokenFamilies", settings=json.dumps(settings))
    return json.loads(server.run(graph.nodes).text(node[0]))


GRIDS = {
    "WanModel": [3, 4, 4],
    "HunyuanVideo": [3, 4, 4],
    "LTXVModel": [3, 4, 4],
    "CogVideoXTransformer3DModel": [3, 4, 4],
    "AsymmDiTJoint": [3, 4, 4],
    "MiniTrainDIT": [3, 4, 4],
}


def test_tokens_of_every_family_are_chosen_by_norm(server, graph):
    found = of_every_family(server, graph, salient_ratio=0.25)
    assert found.keys() == {*GRIDS, "GeneralDIT", "Kandinsky5"}
    for name, family in found.items():
        chosen = {count for layer, count in family["salient"].items() if count}
        assert 2 * 12 in chosen or 2 * (12 + 7) in chosen, (name, family["salient"])
        assert family["map"] == GRIDS.get(name), name


def test_attention_of_every_known_family_is_seen(server, graph):
    by = {"salient_ratio": 0.25, "salient_by": "attention", "salient_layers": "all"}
    found = of_every_family(server, graph, **by)
    for name, grid in GRIDS.items():
        family = found[name]
        assert family["blocks"] >= 2 and not family["unseen"] and family["map"] == grid and family["spread"] > 0, (
            name,
            family,
        )
        assert any(count in (2 * 12, 2 * (12 + 7)) for count in family["salient"].values()), (name, family)
    for name in ("GeneralDIT", "Kandinsky5"):
        assert any("where its video tokens stand is unknown" in note for note in found[name]["notes"]), found[name]


def test_groups_of_every_known_family_are_formed(server, graph):
    found = of_every_family(server, graph, salient_ratio=0.0, semantic=True, semantic_similarity=-1.0)
    for name in GRIDS:
        assert found[name]["grouped"] > 0 and not found[name]["unseen"], (name, found[name])
    for name in ("GeneralDIT", "Kandinsky5"):
        assert "needs to know where the video tokens" in found[name]["refused"]
