"""What calibration sees of a pipeline, how it is kept, and what quantizing makes of it."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from tiny_pipelines import build, generate

from sedialect import Formatbook, SeDialectConfig
from sedialect.bench.outliers import plant_outliers
from sedialect.kernels.reference import encode_weight_rows
from sedialect.kernels.rotation import rotate_rows
from sedialect.kernels.transform import UNCHANGED, transform_rows, transform_weight
from sedialect.sedialect_core import demo
from sedialect.sedialect_core.calibration import gathering, moments, prompts
from sedialect.sedialect_core.calibration.cache import INDEX, CalibrationCache
from sedialect.sedialect_core.calibration.capture import spread_rows, targets_of, watching
from sedialect.sedialect_core.calibration.moments import calibrate
from sedialect.sedialect_core.errors import InputError, ModelError
from sedialect.sedialect_core.plan.layers import LayerPlan
from sedialect.sedialect_core.quantize.apply import quantize_layers
from sedialect.sedialect_core.quantize.weights import InputStatistics, WeightEncoder
from sedialect.sedialect_core.video.sampling import Request

REQUESTS = [
    Request(text, seed=i, steps=3, height=32, width=48, num_frames=5) for i, text in enumerate(("a b", "cd", "efg", "h"))
]
QUIET = {"progress": False, "every": 1}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pipe():
    """A 16-bit pipeline that no test changes."""
    return build("wan")[0]


@pytest.fixture(scope="module")
def cache(pipe):
    return calibrate(pipe, REQUESTS, **QUIET)


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("calibration") / "kept"
    calibrate(pipe, REQUESTS, folder=path, **QUIET)
    return path


def same(one: CalibrationCache, two: CalibrationCache) -> bool:
    pairs = [(one.read(entry), two.read(entry)) for entry in one.inputs]
    parts = all(torch.equal(getattr(a, n), getattr(b, n)) for a, b in pairs for n in ("moment", "peak", "rows"))
    return one.inputs == two.inputs and parts and all(a.count == b.count for a, b in pairs)


def read_by(pipe, name: str) -> list[torch.Tensor]:
    """All rows that a layer reads, by a hook of our own; what it reads again in one prompt counts once."""
    found = []
    linear = pipe.transformer.get_submodule(name)
    for request in REQUESTS:
        seen = []
        handle = linear.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].flatten(0, 1)))
        moments.generate(pipe, request, "", "latent", progress=False)
        handle.remove()
        found += [x for i, x in enumerate(seen) if not any(torch.equal(x, other) for other in seen[:i])]
    return found


@pytest.mark.parametrize("name", ["blocks.0.attn1.to_q", "blocks.1.attn2.to_k", "blocks.1.ffn.net.2"])
def test_moments_are_those_of_all_rows_of_both_guidance_branches(pipe, cache, name):
    rows = torch.cat(read_by(pipe, name))
    statistics = cache.component("transformer")[name]
    assert statistics.count == len(rows)
    torch.testing.assert_close(statistics.moment, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)
    assert torch.equal(statistics.peak, rows.abs().amax(0))
    assert set(map(tuple, statistics.rows.tolist())) <= set(map(tuple, rows.tolist()))


def test_layers_that_read_one_input_share_its_moment(cache):
    layers = cache.component("transformer")
    assert layers["blocks.0.attn1.to_q"].moment is layers["blocks.0.attn1.to_v"].moment
    assert set(layers) == {layer for entry in cache.inputs for layer in entry.layers}
    assert len(cache.inputs) < len(layers)


def test_fewer_steps_bring_fewer_tokens(pipe, cache):
    half = calibrate(pipe, REQUESTS, progress=False, every=2)
    name = "blocks.0.ffn.net.2"
    assert half.component("transformer")[name].count * 3 == cache.component("transformer")[name].count * 2


def test_the_pipeline_stays_as_it_was(pipe):
    pipe.set_progress_bar_config(desc="mine", disable=True)
    calibrate(pipe, REQUESTS[:2], **QUIET)
    assert pipe._progress_bar_config == {"desc": "mine", "disable": True}
    assert not any(module._forward_pre_hooks for module in pipe.transformer.modules())


def test_several_passes_see_what_one_sees(pipe, cache):
    assert same(calibrate(pipe, REQUESTS, memory=40e3 / 1e9, **QUIET), cache)


def test_what_is_kept_in_a_folder_is_the_same(folder, cache):
    assert same(CalibrationCache.load(folder), cache)
    assert not [path for path in folder.iterdir() if path.is_dir()]


@pytest.mark.parametrize("memory", [None, 40e3 / 1e9])
def test_an_interrupted_run_goes_on_and_ends_the_same(pipe, folder, tmp_path, monkeypatch, memory):
    asked = []

    def interrupted(*args, **kwargs):
        asked.append(args[1].prompt)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return generate_once(*args, **kwargs)

    generate_once = moments.generate
    monkeypatch.setattr(moments, "generate", interrupted)
    settings = {"folder": tmp_path, "save_every": 0, "memory": memory, **QUIET}
    with pytest.raises(KeyboardInterrupt):
        calibrate(pipe, REQUESTS, **settings)
    with pytest.raises(InputError, match="is not finished: .* run it again and it goes on"):
        CalibrationCache.load(tmp_path).component("transformer")
    calibrate(pipe, REQUESTS, **{**settings, "memory": None})
    assert asked[3:5] == [request.prompt for request in REQUESTS[2:]]
    assert same(CalibrationCache.load(tmp_path), CalibrationCache.load(folder))


def test_a_finished_folder_asks_for_nothing_more(pipe, folder, monkeypatch):
    monkeypatch.setattr(moments, "generate", lambda *args, **kwargs: pytest.fail("sampled again"))
    calibrate(pipe, REQUESTS, folder=folder, **QUIET)


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        (
            [replace(r, height=64) for r in REQUESTS],
            r"at another resolution \(.*'height': 32.*, not .*'height': 64.*another folder",
        ),
        (REQUESTS[:3], "with other prompts, steps or settings; calibrate again, into another folder"),
    ],
)
def test_another_resolution_or_other_prompts_do_not_go_on_there(pipe, folder, requests, message):
    with pytest.raises(InputError, match=message):
        calibrate(pipe, requests, folder=folder, **QUIET)


def test_another_model_is_refused(folder):
    other, _ = build("wan")
    with torch.no_grad():
        other.transformer.proj_out.weight[:] += 1
    with pytest.raises(InputError, match="holds a calibration of another model"):
        calibrate(other, REQUESTS, folder=folder, **QUIET)
    with pytest.raises(InputError, match=r"is of other weights .*calibrate this model"):
        other.enable_sedialect(calibration=folder, progress=False)
    assert not hasattr(other.transformer, "_sedialect")


def test_what_is_not_finite_is_named_with_its_step(tmp_path):
    pipe, _ = build("wan")
    calls = []

    def spoil(module, args):
        calls.append(1)
        return (args[0] * torch.inf,) if len(calls) > 4 else None  # two forwards a step

    pipe.transformer.blocks[1].ffn.net[2].register_forward_pre_hook(spoil)
    with pytest.raises(
        InputError, match=r"transformer\.blocks\.1\.ffn\.net\.2: what it reads in step 3 of prompt 1 holds NaN or"
    ):
        calibrate(pipe, REQUESTS, **QUIET)


def test_too_few_tokens_say_how_many_prompts_are_needed(pipe):
    small = [replace(request, height=16, width=16) for request in REQUESTS[:2]]
    with pytest.raises(InputError, match=r"has 32 channels and read \d+ tokens in 2 prompts .* give \d+ prompts at least"):
        calibrate(pipe, small, progress=False, every=3)


def test_too_little_memory_says_what_to_set(pipe):
    with pytest.raises(InputError, match=r"the moment of .* raise `memory`, or sum up elsewhere: device='cpu'"):
        calibrate(pipe, REQUESTS, memory=1e-6, **QUIET)


def test_too_little_main_memory_for_all_moments_asks_for_a_folder(pipe, tmp_path, monkeypatch, folder):
    monkeypatch.setattr(gathering, "_free_bytes", lambda place: 100_000)
    with pytest.raises(
        InputError, match=r"the moments of all \d+ inputs take 0.\d GB, .* keep them on disk: .*folder=\.\.\."
    ):
        calibrate(pipe, REQUESTS, **QUIET)
    assert same(calibrate(pipe, REQUESTS, folder=tmp_path, **QUIET), CalibrationCache.load(folder))


@pytest.mark.parametrize("given", [[], "everything"])
def test_prompts_that_are_none_are_refused(pipe, given):
    with pytest.raises(InputError, match="prompts"):
        calibrate(pipe, given, **QUIET)


def test_a_folder_without_a_calibration_is_refused(pipe, folder, tmp_path):
    with pytest.raises(InputError, match="holds no calibration"):
        CalibrationCache.load(tmp_path / "nothing")
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / INDEX).write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        CalibrationCache.load(tmp_path)


def test_damaged_statistics_are_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "transformer.blocks.0.attn1.to_q.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"attn1\.to_q\.safetensors cannot be read"):
        CalibrationCache.load(tmp_path).component("transformer")["blocks.0.attn1.to_k"]


def test_a_quantized_pipeline_is_refused():
    pipe, _ = build("wan")
    pipe.enable_sedialect(progress=False)
    with pytest.raises(ModelError, match="is quantized by sedialect already"):
        calibrate(pipe, REQUESTS, **QUIET)


@pytest.mark.parametrize("rotation", [0, 16])
def test_quantizing_by_calibration_brings_outputs_nearer_to_16_bit(cache, rotation):
    config = SeDialectConfig(precision="w4a16", rotation=rotation)
    plain, calibrated, original = (build("wan")[0].transformer for _ in range(3))
    quantize_layers(plain, config)
    plan = quantize_layers(calibrated, config, calibration=cache.component("transformer"))
    lost = [0.0, 0.0]
    for layer in plan.quantized:
        assert layer.calibrated
        moment = cache.component("transformer")[layer.name].moment
        weight = original.get_submodule(layer.name).weight.detach()
        for i, model in enumerate((plain, calibrated)):
            error = (model.get_submodule(layer.name).dequantize(torch.float32) - weight).detach()
            lost[i] += float(((error @ moment) * error).sum() / ((weight @ moment) * weight).sum())
    assert lost[1] < 0.75 * lost[0]


def test_enabling_with_a_calibration_in_memory_or_in_a_folder_gives_the_same_codes(folder, cache):
    codes = []
    for given in (cache, folder, str(folder)):
        one, _ = build("wan")
        one.enable_sedialect(calibration=given, progress=False, keep_original=True)
        codes.append(one.transformer.blocks[1].attn1.to_k.weight.clone())
        assert "calibrated with 4 prompts at 32x48x5" in str(one.transformer._sedialect.plan)
    assert all(torch.equal(code, codes[0]) for code in codes)
    weight = build("wan")[0].transformer.blocks[1].attn1.to_k.weight
    tables = one.transformer.blocks[1].attn1.to_k.formatbook.tables(weight.device)
    assert not torch.equal(codes[0], encode_weight_rows(weight, tables, 16).codes)
    one.disable_sedialect()
    assert torch.equal(one.transformer.blocks[1].attn1.to_k.weight, weight)


def test_layers_that_calibration_never_saw_are_encoded_plainly_and_say_so(cache):
    model = build("wan")[0].transformer
    seen = {name: value for name, value in dict(cache.component("transformer")).items() if ".attn2." not in name}
    name = "blocks.0.ffn.net.2"
    seen[name] = replace(seen[name], moment=torch.zeros(96, 96))
    plan = quantize_layers(model, SeDialectConfig(), calibration=seen)
    reasons = {layer.name: layer.explanation for layer in plan.quantized}
    assert reasons["blocks.0.attn2.to_q"].endswith("encoded without calibration: its inputs were not seen in calibration")
    assert reasons[name].endswith("encoded without calibration: its inputs were zero, or not finite, in calibration")
    assert reasons["blocks.0.attn1.to_q"].endswith("calibrated")
    layer = model.get_submodule(name)
    weight = build("wan")[0].transformer.get_submodule(name).weight
    assert torch.equal(layer.weight, encode_weight_rows(weight, layer.formatbook.tables(weight.device), 16).codes)


def test_enabling_with_prompts_samples_them_first(monkeypatch):
    pipe, _ = build("wan-2.2")
    sampled = []
    once = moments.generate
    monkeypatch.setattr(moments, "generate", lambda *args, **kwargs: (sampled.append(args[1]), once(*args, **kwargs)))
    pipe.enable_sedialect(calibration=REQUESTS, progress=False)
    assert sampled == REQUESTS
    for expert in (pipe.transformer, pipe.transformer_2):
        assert all(layer.calibrated for layer in expert._sedialect.plan.quantized)


def test_rotations_are_taken_where_they_help_and_only_there():
    """Inputs with one outlier channel gain much by rotating at 4 bits; inputs that are rotated already do not."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 64, generator=generator)
    outliers = torch.randn(400, 64, generator=generator) * (1 + 60 * (torch.arange(64) % 16 == 3))
    chosen = []
    for rows in (outliers, rotate_rows(outliers, 16)):
        statistics = InputStatistics(rows.T @ rows / len(rows), rows.abs().amax(0), rows, len(rows))
        layer = LayerPlan("one", "attention", 64, 64, "w4a4", 16, "for a test", rotation=16)
        encoder = WeightEncoder(Formatbook.builtin(), calibration={"one": statistics})
        ((plan, _),) = encoder.encode([layer], lambda _: weight)
        chosen.append(plan.rotation)
    assert chosen == [16, 0]


def test_the_bundled_prompts_are_of_words_that_the_bundled_model_knows():
    texts = json.loads(prompts.PROMPTS.read_text(encoding="utf-8"))
    words = set((demo.MODEL / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8").split('"'))
    for text in texts["bundled"]:
        assert set(text.replace(",", " ,").split()) <= words
    assert not set(texts["bundled"]) & {prompt for prompt, _ in demo.evaluation_prompts()}
    assert len(texts["general"]) == len(set(texts["general"])) >= 8


def test_generated_videos_of_a_calibrated_pipeline_are_finite(cache):
    pipe, arguments = build("wan")
    pipe.enable_sedialect(calibration=cache, rotation=16, progress=False)
    assert torch.isfinite(torch.as_tensor(generate(pipe, arguments))).all()


def test_formatbooks_are_fitted_to_what_rotated_layers_encode(pipe):
    models, shown = {"transformer": pipe.transformer}, {}
    for rotation in (0, 16):
        targets = targets_of(models, SeDialectConfig(rotation=rotation))
        shown[rotation] = [target.weight_rows(8) for target in targets]
        with watching(models, targets, 1, lambda name, rows, part=shown[rotation]: part.append(rows)):
            moments.generate(pipe, REQUESTS[0], "", "latent", progress=False)
    assert len(shown[0]) == len(shown[16]) > 20
    for plain, rotated in zip(shown[0], shown[16], strict=True):
        assert torch.equal(rotate_rows(plain, 16), rotated)


@pytest.mark.parametrize("rotation", [0, 16])
def test_formatbooks_are_fitted_to_what_equalized_layers_encode(rotation):
    pipe, _ = build("wan")
    plant_outliers(pipe.transformer, 32)
    models, config = {"transformer": pipe.transformer}, SeDialectConfig(rotation=rotation)
    targets, read, shown = targets_of(models, config), [], []
    with (
        watching(models, targets, 1, lambda name, rows: shown.append((name, rows))),
        watching(models, [replace(target, transform=UNCHANGED) for target in targets], 1, lambda _, rows: read.append(rows)),
    ):
        moments.generate(pipe, REQUESTS[0], "", "latent", progress=False)
    weights = {target.name: target.weight_rows(8) for target in targets}
    plain = {target.name: spread_rows(target.linear.weight.detach(), 8) for target in targets}
    pipe.enable_sedialect(config, progress=False)
    layers = {name: pipe.transformer.get_submodule(name.partition(".")[2]) for name in weights}
    assert sum(layer.weight_equalizer is not None for layer in layers.values()) > 5
    for name, layer in layers.items():
        assert torch.equal(weights[name], transform_weight(plain[name], layer.transform))
    for (name, rows), whole in zip(shown, read, strict=True):
        assert torch.equal(rows, transform_rows(whole, layers[name].transform))
