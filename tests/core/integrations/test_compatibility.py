"""Features of diffusers that people use with video transformers, on quantized ones; docs/compatibility.md is made of this.

Offloading and LoRAs have files of their own, test_offloading.py and test_lora.py.
"""

import copy
import io
import pickle

import diffusers
import pytest
import torch
from diffusers.hooks import LayerSkipConfig, apply_layer_skip
from diffusers.hooks.layerwise_casting import DEFAULT_SKIP_MODULES_PATTERN
from offloads import compile_blocks, compile_whole
from quantized_pipelines import WEIGHT_ONLY, close, layers, quantized, twin
from several_processes import run_together
from tiny_pipelines import build, generate

from sedialect import SeDialectLinear
from sedialect.sedialect_core.errors import ModelError

feature = pytest.mark.feature


def orders(name, note="", values=()):
    """Parameters for both orders, each marked for its cell of the table."""
    return [pytest.param(order, *values, marks=feature(name, order, note)) for order in ("first", "after")]


# Layerwise casting

CASTING = feature(
    "Layerwise casting",
    "first",
    "Pass `skip_modules_classes=(SeDialectLinear,)`: diffusers would round our biases to 8 bit. After it, weights are 8 bit "
    "already: enable sedialect instead.",
)


@CASTING
def test_layerwise_casting_of_what_is_not_quantized():
    settings = {**WEIGHT_ONLY, "skip": ("ffn",)}  # Wan leaves everything but these and the quantized layers uncast
    pipe, arguments = quantized(**settings)
    plain = twin(skip=("ffn",))
    before = generate(pipe, arguments)
    types = {"storage_dtype": torch.float8_e4m3fn, "compute_dtype": torch.float32}
    pipe.transformer.enable_layerwise_casting(**types, skip_modules_classes=(SeDialectLinear,))
    kept = (*DEFAULT_SKIP_MODULES_PATTERN, *pipe.transformer._skip_layerwise_casting_patterns)
    plain.transformer.enable_layerwise_casting(**types, skip_modules_pattern=(*kept, "attn"))
    assert {layer.bias.dtype for layer in layers(pipe.transformer)} == {torch.float32}
    assert pipe.transformer.blocks[0].ffn.net[2].weight.dtype == torch.float8_e4m3fn
    cast = generate(pipe, arguments)
    assert close(cast, generate(plain, arguments)) and not torch.equal(cast, before)


@feature("Layerwise casting", "after", refused=True)
def test_enabling_after_layerwise_casting_is_refused():
    pipe, _ = build("wan")
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    with pytest.raises(ModelError, match="layerwise casting"):
        pipe.enable_sedialect(progress=False)


# Caches


def first_block(pipe, steps):
    return diffusers.FirstBlockCacheConfig(threshold=0.2)


def mag(pipe, steps):
    return diffusers.MagCacheConfig(num_inference_steps=steps, threshold=1.0, mag_ratios=[1.0] * steps, retention_ratio=0.2)


def broadcast(pipe, steps):
    return diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        cross_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 1001),
        cross_attention_timestep_skip_range=(-1, 1001),
        current_timestep_callback=lambda: pipe._current_timestep,
    )


def taylor(pipe, steps):
    return diffusers.TaylorSeerCacheConfig(
        cache_interval=2,
        disable_cache_before_step=2,
        taylor_factors_dtype=torch.float32,
        cache_identifiers=[r"^blocks\..*\.attn1$"],  # its own patterns name no layer of Wan
    )


def faster(pipe, steps):
    """As for models with guidance in two calls: the part of it that reads both halves of a batch is off."""
    return diffusers.FasterCacheConfig(
        spatial_attention_timestep_skip_range=(-1, 950),
        attention_weight_callback=lambda _: 0.5,
        is_guidance_distilled=True,
        current_timestep_callback=lambda: pipe._current_timestep,
    )


CACHES = {
    "FasterCache": faster,
    "FirstBlockCache": first_block,
    "MagCache": mag,
    "TaylorSeer": taylor,
    "Pyramid Attention Broadcast": broadcast,
}


@pytest.mark.parametrize(("order", "name"), [case for name in CACHES for case in orders(name, values=[name])])
def test_caches_skip_what_they_skip_in_the_decoded_model(order, name):
    steps = 6
    pipe, arguments = build("wan")
    plain = twin()
    if order == "first":
        pipe.enable_sedialect(progress=False, **WEIGHT_ONLY)
    for each in (pipe, plain):
        each.transformer.enable_cache(CACHES[name](each, steps))
    if order == "after":
        pipe.enable_sedialect(progress=False, **WEIGHT_ONLY)
    cached, wanted = (generate(each, arguments, steps) for each in (pipe, plain))
    assert torch.equal(generate(pipe, arguments, steps), cached)
    pipe.transformer.disable_cache()
    whole = generate(pipe, arguments, steps)
    skipped = (whole - cached).abs().max()
    assert skipped > 1e-3, "nothing was skipped"
    assert (cached - wanted).abs().max() < 0.01 * skipped  # reused residuals amplify what the order of sums changes
    assert torch.equal(whole, generate(*quantized(**WEIGHT_ONLY), steps))


@pytest.mark.parametrize("order", orders("Layer skip (skip layer guidance)", "Blocks and feed-forwards."))
@pytest.mark.parametrize("parts", [{}, {"skip_ff": True, "skip_attention": False}])
def test_layers_are_skipped_as_in_the_decoded_model(order, parts):
    pipe, arguments = build("wan")
    plain = twin()
    if order == "first":
        pipe.enable_sedialect(progress=False, **WEIGHT_ONLY)
    before = generate(pipe, arguments)
    for each in (pipe, plain):
        apply_layer_skip(each.transformer, LayerSkipConfig(indices=[0], fqn="blocks", skip_attention_scores=False, **parts))
    if order == "after":
        pipe.enable_sedialect(progress=False, **WEIGHT_ONLY)
    found = generate(pipe, arguments)
    assert close(found, generate(plain, arguments)) and not close(found, before)


# Compiling


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    ("apply", "graphs"),
    [
        pytest.param(compile_whole, 1, marks=feature("torch.compile, whole model", "first")),
        pytest.param(compile_blocks, 1, marks=feature("torch.compile, repeated blocks", "first")),
    ],
)
def test_compiled_models_are_one_graph_for_all_steps(apply, graphs):
    pipe, arguments = quantized()
    before = generate(pipe, arguments, 4)
    apply(pipe)
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert torch.allclose(generate(pipe, arguments, 4), before, rtol=0, atol=5e-3)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == graphs and not counters["graph_break"]


@pytest.mark.parametrize(
    "apply",
    [
        pytest.param(compile_whole, marks=feature("torch.compile, whole model", "after", refused=True)),
        pytest.param(compile_blocks, marks=feature("torch.compile, repeated blocks", "after", refused=True)),
    ],
)
def test_enabling_after_compiling_is_refused(apply):
    pipe, _ = build("wan")
    apply(pipe)
    with pytest.raises(ModelError, match="is compiled; call enable_sedialect.. before torch.compile"):
        pipe.enable_sedialect(progress=False)


# The VAE, attention, several processes


def tile(pipe):
    size = {"tile_sample_min_height": 16, "tile_sample_min_width": 16}
    pipe.vae.enable_tiling(**size, tile_sample_stride_height=12, tile_sample_stride_width=12)


def slice_batch(pipe):
    pipe.vae.enable_slicing()


@pytest.mark.parametrize(
    ("order", "apply"), [*orders("VAE tiling", values=[tile]), *orders("VAE slicing", values=[slice_batch])]
)
def test_the_vae_is_not_concerned(order, apply):
    pipe, arguments = build("wan")
    plain = twin()
    apply(plain)
    for step in (apply, lambda p: p.enable_sedialect(progress=False, **WEIGHT_ONLY))[:: 1 if order == "after" else -1]:
        step(pipe)
    assert close(generate(pipe, arguments), generate(plain, arguments))


@pytest.fixture
def backend_restored():
    """`set_attention_backend` sets the default of the whole process, not only that of the model."""
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as registry

    active = registry._active_backend
    yield
    registry._active_backend = active


@pytest.mark.usefixtures("backend_restored")
@pytest.mark.parametrize("order", orders("Attention backends", "`native` and `_native_math`; others need a GPU."))
@pytest.mark.parametrize("backend", ["native", "_native_math"])
def test_attention_backends(backend, order):
    pipe, arguments = build("wan")
    plain = twin()
    for each in (plain, pipe):
        if order == "first" and each is pipe:
            pipe.enable_sedialect(progress=False, **WEIGHT_ONLY)
        each.transformer.set_attention_backend(backend)
    if order == "after":
        pipe.enable_sedialect(progress=False, **WEIGHT_ONLY)
    assert {block.attn1.processor._attention_backend for block in pipe.transformer.blocks} == {backend}
    assert close(generate(pipe, arguments), generate(plain, arguments))


PARALLEL = """
import sys, torch, torch.distributed as dist
import sedialect
from diffusers import ContextParallelConfig
from tiny_pipelines import build
rank, order, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
torch.accelerator.device_count = lambda: 2  # diffusers divides by it: without an accelerator it is 0
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
pipe, _ = build("wan")
model = pipe.transformer.eval()
config = ContextParallelConfig(ulysses_degree=2)
generator = torch.Generator().manual_seed(1)
latents, text = (torch.randn(shape, generator=generator) for shape in ((1, 16, 2, 4, 6), (1, 8, 32)))
with torch.no_grad():
    run = lambda: model(latents, torch.tensor([500]), text, return_dict=False)[0]
    if order == "first":
        pipe.enable_sedialect(progress=False)
        alone = run()
        model.enable_parallelism(config=config)
    else:
        model.enable_parallelism(config=config)
        pipe.enable_sedialect(progress=False)
        alone = None
    together = run()
torch.save((alone, together), f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.parametrize(
    "order",
    orders("Context parallel (Ulysses)", "Two processes over gloo, Wan."),
)
def test_two_processes_compute_what_one_does(order, tmp_path):
    results = run_together(PARALLEL, order, tmp_path)
    pipe, _ = quantized()
    generator = torch.Generator().manual_seed(1)
    latents, text = (torch.randn(shape, generator=generator) for shape in ((1, 16, 2, 4, 6), (1, 8, 32)))
    with torch.no_grad():
        wanted = pipe.transformer.eval()(latents, torch.tensor([500]), text, return_dict=False)[0]
    for _, together in results:
        assert torch.allclose(together, wanted, rtol=0, atol=1e-6 * float(wanted.abs().max()))


# Copies


@feature("copy.deepcopy", "first")
@pytest.mark.parametrize("keep_original", [False, True])
def test_deep_copies_are_whole_and_independent(keep_original):
    pipe, arguments = quantized(keep_original=keep_original)
    before, original = generate(pipe, arguments), pipe.transformer
    pipe.transformer = copy.deepcopy(original)
    for layer in layers(original):
        layer.weight.data.zero_()
    assert torch.equal(generate(pipe, arguments), before)
    if keep_original:
        pipe.disable_sedialect()
        assert torch.equal(generate(pipe, arguments), generate(*build("wan")))


@feature("pickle, torch.save", "first")
@pytest.mark.parametrize("keep_original", [False, True])
def test_pickles_are_whole(keep_original):
    pipe, arguments = quantized(keep_original=keep_original)
    before = generate(pipe, arguments)
    pipe.transformer = pickle.loads(pickle.dumps(pipe.transformer))
    assert torch.equal(generate(pipe, arguments), before)
    buffer = io.BytesIO()
    torch.save(pipe.transformer, buffer)
    buffer.seek(0)
    pipe.transformer = torch.load(buffer, weights_only=False)
    assert torch.equal(generate(pipe, arguments), before)
    assert "20 in w4a4" in str(pipe.sedialect_report())


@feature("state_dict round trip", "first")
@pytest.mark.parametrize("assign", [False, True])
def test_state_dicts_go_from_one_model_to_another(assign):
    source, arguments = quantized()
    target, _ = quantized()
    for parameter in target.transformer.parameters():
        parameter.data.zero_()
    target.transformer.load_state_dict(source.transformer.state_dict(), assign=assign)
    assert torch.equal(generate(target, arguments), generate(source, arguments))


@feature("`NewPipeline(**pipe.components)`", "first")
def test_another_pipeline_takes_over_the_components():
    pipe, arguments = quantized()
    before = generate(pipe, arguments)
    other = diffusers.WanPipeline(**pipe.components)
    other.set_progress_bar_config(disable=True)
    assert torch.equal(generate(other, arguments), before)
    assert "20 in w4a4" in str(other.sedialect_report())


@feature(
    "`NewPipeline.from_pipe(pipe)`",
    "first",
    "diffusers casts every component, to float32 unless told otherwise, and refuses that for quantized models: use "
    "`NewPipeline(**pipe.components)`.",
    refused=True,
)
def test_from_pipe_is_refused_because_it_casts():
    pipe, arguments = quantized()
    before = generate(pipe, arguments)
    with pytest.raises(ValueError, match="Casting a quantized model"):
        diffusers.WanVideoToVideoPipeline.from_pipe(pipe)
    assert torch.equal(generate(pipe, arguments), before)


@feature("`NewPipeline.from_pipe(pipe)`", "after")
def test_enabling_on_a_pipeline_made_from_another():
    source, arguments = build("wan")
    pipe = diffusers.WanPipeline.from_pipe(source)
    pipe.set_progress_bar_config(disable=True)
    pipe.enable_sedialect(progress=False)
    assert torch.equal(generate(pipe, arguments), generate(*quantized()))
