"""`enable_sedialect` and its siblings on real diffusers pipelines, and the states in which they must refuse."""

import copy
import subprocess
import sys

import pytest
import torch
from quantized_pipelines import layers, lora
from tiny_pipelines import PIPELINES, build, generate

from sedialect import SeDialectConfig, SeDialectLinear
from sedialect.sedialect_core.errors import ConfigError, ModelError


@pytest.mark.parametrize("family", PIPELINES)
def test_enabled_pipelines_generate_and_disabling_restores_them_bit_for_bit(family):
    pipe, arguments = build(family)
    plain = generate(pipe, arguments)
    assert pipe.enable_sedialect(keep_original=True, progress=False) is pipe
    quantized = generate(pipe, arguments)
    assert quantized.shape == plain.shape and quantized.isfinite().all() and not torch.equal(quantized, plain)
    assert torch.equal(quantized, generate(pipe, arguments))
    pipe.disable_sedialect()
    assert torch.equal(generate(pipe, arguments), plain)
    assert not layers(pipe.transformer)
    pipe.enable_sedialect(progress=False)
    assert torch.equal(generate(pipe, arguments), quantized)


def test_both_experts_of_wan_22_are_quantized_and_reported():
    pipe, arguments = build("wan-2.2")
    pipe.enable_sedialect(preset="compact", progress=False)
    assert len(layers(pipe.transformer)) == len(layers(pipe.transformer_2)) == 20
    assert {layer.block_size for layer in layers(pipe.transformer_2)} == {32}
    report = pipe.sedialect_report()
    assert [model.component for model in report.models] == ["transformer", "transformer_2"]
    generate(pipe, arguments)


def test_the_report_counts_what_is_there():
    pipe, _ = build("wan")
    before = sum(p.numel() * p.element_size() for p in (*pipe.transformer.parameters(), *pipe.transformer.buffers()))
    pipe.enable_sedialect(progress=False)
    after = sum(p.numel() * p.element_size() for p in (*pipe.transformer.parameters(), *pipe.transformer.buffers()))
    (model,) = pipe.sedialect_report().models
    assert (model.bytes_before, model.bytes_after) == (before, after)
    stored = sum(
        t.numel() for layer in layers(pipe.transformer) for t in (layer.weight, layer.weight_meta, layer.weight_scale)
    )
    weights = sum(layer.in_features * layer.out_features for layer in layers(pipe.transformer))
    assert model.weight_bits == pytest.approx(8 * stored / weights)
    text = str(pipe.sedialect_report())
    for part in ("20 in w4a4, 6 left in 16 bit", "universal-32", "cpu, reference", "blocks.*.attn1.to_q", "output head"):
        assert part in text


def test_progress_is_shown_and_can_be_silenced(capfd):
    pipe, _ = build("wan")
    pipe.enable_sedialect()
    assert "Quantizing WanTransformer3DModel: 100%" in capfd.readouterr().err
    pipe, _ = build("wan")
    pipe.enable_sedialect(progress=False)
    assert capfd.readouterr().err == ""


def test_settings_come_from_a_config_a_preset_or_overrides():
    pipe, _ = build("wan")
    pipe.enable_sedialect(SeDialectConfig(precision="w4a8"), block_size=32, progress=False)
    assert {(layer.precision, layer.block_size) for layer in layers(pipe.transformer)} == {("w4a8", 32)}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"preset": "best"}, ConfigError, "no preset 'best'"),
        ({"salience": 1}, ConfigError, "no setting 'salience'"),
        ({"config": SeDialectConfig(), "preset": "quality"}, ModelError, "not both"),
    ],
)
def test_bad_settings_are_refused_and_nothing_is_changed(arguments, error, message):
    pipe, _ = build("wan")
    with pytest.raises(error, match=message):
        pipe.enable_sedialect(**arguments)
    assert not layers(pipe.transformer)


def test_without_originals_disabling_is_refused_and_the_pipeline_goes_on():
    pipe, arguments = build("wan")
    pipe.enable_sedialect(progress=False)
    with pytest.raises(ModelError, match="transformer kept no 16-bit layers; load it again"):
        pipe.disable_sedialect()
    assert layers(pipe.transformer)
    generate(pipe, arguments)


def test_what_was_not_enabled_has_no_report_and_cannot_be_disabled():
    pipe, _ = build("wan")
    for method in (pipe.sedialect_report, pipe.disable_sedialect):
        with pytest.raises(ModelError, match="transformer is not quantized by sedialect; call pipe.enable_sedialect"):
            method()


def test_enabling_twice_is_refused():
    pipe, _ = build("wan")
    pipe.enable_sedialect(progress=False)
    with pytest.raises(ModelError, match="transformer is quantized by sedialect already; call pipe.disable_sedialect"):
        pipe.enable_sedialect()


def test_pipelines_without_a_transformer_are_refused():
    import diffusers

    unet = diffusers.UNet2DModel(block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    pipe = diffusers.DDPMPipeline(unet=unet, scheduler=diffusers.DDPMScheduler())
    with pytest.raises(ModelError, match=r"DDPMPipeline has no transformer among its components \(unet, scheduler\)"):
        pipe.enable_sedialect()


def test_when_one_expert_cannot_be_quantized_neither_is():
    pipe, _ = build("wan-2.2")
    pipe.transformer_2.compile()
    with pytest.raises(ModelError, match="transformer_2 is compiled; call enable_sedialect.. before torch.compile"):
        pipe.enable_sedialect()
    assert not layers(pipe.transformer)


def compile_whole(pipe):
    pipe.transformer = torch.compile(pipe.transformer)


def compile_blocks(pipe):
    pipe.transformer.compile_repeated_blocks()


def offload_groups(pipe):
    pipe.transformer.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")


def cast_layerwise(pipe):
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def mark_as_foreign(pipe):
    pipe.transformer.is_quantized = True


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (compile_whole, "is compiled"),
        (compile_blocks, "is compiled"),
        (offload_groups, "is offloaded by groups"),
        (cast_layerwise, "layerwise casting"),
        (mark_as_foreign, "is quantized already .another quantizer.; load its 16-bit weights"),
    ],
)
def test_states_that_swapping_layers_would_break_are_refused(spoil, message):
    pipe, _ = build("wan")
    spoil(pipe)
    with pytest.raises(ModelError, match=message):
        pipe.enable_sedialect()
    assert not layers(pipe.transformer)


def test_sequential_offload_first_is_refused():
    import accelerate

    pipe, _ = build("wan")
    accelerate.cpu_offload(pipe.transformer, torch.device("cpu"), offload_buffers=True)
    with pytest.raises(ModelError, match="quantize first, then enable offloading"):
        pipe.enable_sedialect()


@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_group_offload_afterwards_changes_nothing(kind):
    pipe, arguments = build("wan")
    pipe.enable_sedialect(progress=False)
    before = generate(pipe, arguments)
    blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    pipe.transformer.enable_group_offload(onload_device=torch.device("cpu"), offload_type=kind, **blocks)
    assert torch.allclose(generate(pipe, arguments), before, atol=1e-6)


def test_sequential_offload_afterwards_changes_nothing():
    import accelerate

    for family in ("wan", "hunyuan"):  # with and without a parameter of the model's own: buffers would stay behind
        pipe, arguments = build(family)
        pipe.enable_sedialect(progress=False)
        before = generate(pipe, arguments)
        accelerate.cpu_offload(pipe.transformer, torch.device("cpu"), offload_buffers=True)
        assert all(p.device.type == "meta" for layer in layers(pipe.transformer) for p in layer.parameters())
        assert torch.equal(generate(pipe, arguments), before)


def test_casting_and_fusing_a_quantized_model_are_refused(tmp_path):
    pipe, arguments = build("wan")
    pipe.enable_sedialect(keep_original=True, progress=False)
    before = generate(pipe, arguments)
    with pytest.raises(ValueError, match="quantized"):
        pipe.transformer.to(torch.bfloat16)
    with pytest.raises(ModelError, match="fuse_qkv_projections would join packed codes"):
        pipe.transformer.fuse_qkv_projections()
    assert torch.equal(generate(pipe, arguments), before)
    pipe.disable_sedialect()
    pipe.transformer.save_pretrained(tmp_path / "model")
    pipe.transformer.to(torch.bfloat16)


def test_projections_that_were_fused_before_are_quantized():
    pipe, arguments = build("wan")
    pipe.transformer.fuse_qkv_projections()
    fused = generate(pipe, arguments)
    pipe.enable_sedialect(progress=False)
    names = {name for name, module in pipe.transformer.named_modules() if isinstance(module, SeDialectLinear)}
    assert "blocks.0.attn1.to_qkv" in names
    assert (generate(pipe, arguments) - fused).norm() < 0.5 * fused.norm()


def test_copies_of_a_quantized_pipeline_run_alike():
    pipe, arguments = build("wan")
    pipe.enable_sedialect(progress=False)
    before = generate(pipe, arguments)
    pipe.transformer = copy.deepcopy(pipe.transformer)
    assert torch.equal(generate(pipe, arguments), before)


def test_a_lora_works_on_quantized_layers_whether_loaded_before_or_after():
    pipe, arguments = build("wan")
    pipe.enable_sedialect(progress=False)
    without = generate(pipe, arguments)
    pipe.load_lora_weights(lora(scale=1.0))
    after = generate(pipe, arguments)
    pipe.unload_lora_weights()
    assert torch.equal(generate(pipe, arguments), without)

    pipe, arguments = build("wan")
    pipe.load_lora_weights(lora(scale=1.0))
    plain = generate(pipe, arguments)
    pipe.enable_sedialect(keep_original=True, progress=False)
    before = generate(pipe, arguments)
    assert torch.allclose(before, after, atol=1e-5)
    assert not torch.allclose(before, without, atol=1e-3)
    names = {name for name, module in pipe.transformer.named_modules() if isinstance(module, SeDialectLinear)}
    assert "blocks.0.attn1.to_q.base_layer" in names and not any("lora_" in name for name in names)
    pipe.disable_sedialect()
    assert torch.equal(generate(pipe, arguments), plain)


def test_originals_come_back_even_if_a_lora_was_unloaded_in_between():
    pipe, arguments = build("wan")
    plain = generate(pipe, arguments)
    pipe.load_lora_weights(lora(scale=1.0))
    pipe.enable_sedialect(keep_original=True, progress=False)
    pipe.unload_lora_weights()
    pipe.disable_sedialect()
    assert torch.equal(generate(pipe, arguments), plain)


def run(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize("order", ["import sedialect, diffusers", "import diffusers, sedialect"])
def test_pipelines_gain_the_methods_in_either_order_of_imports(order):
    assert run(
        f"{order}\nfrom diffusers import DiffusionPipeline, ModularPipeline\n"
        "print(*(hasattr(c, 'enable_sedialect') for c in (DiffusionPipeline, ModularPipeline)))"
    ) == ["True", "True"]


def test_modules_kept_in_float32_stay_so():
    pipe, _ = build("wan")
    pipe.transformer.to(torch.bfloat16)
    pipe.transformer.condition_embedder.time_embedder.to(torch.float32)
    pipe.enable_sedialect(progress=False)
    assert pipe.transformer.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32
    assert {layer.compute_dtype for layer in layers(pipe.transformer)} == {torch.bfloat16}
