"""Attention in 8 bit in diffusers' models: which calls run so and why not; compiled, in parallel, alone, in files."""

from types import SimpleNamespace

import pytest
import tiny_models
import torch
from quantized_pipelines import quantized
from several_processes import run_together
from tiny_pipelines import build, generate
from torch._dynamo.testing import CompileCounter

from sedialect import SeDialectConfig, quantize_model
from sedialect.kernels import attention_support, flash3
from sedialect.sedialect_core.errors import ModelError
from sedialect.sedialect_core.integrations.semantics import ATTENDING, reguide
from sedialect.sedialect_core.semantics import attending, probe

feature = pytest.mark.feature
ALONE = {"precision": "16bit", "attention": "8bit"}
# Some of the classes that have long self-attention.
RUNNING = (
    "WanTransformer3DModel",
    "WanVACETransformer3DModel",
    "SkyReelsV2Transformer3DModel",
    "HunyuanVideoTransformer3DModel",
    "HunyuanVideo15Transformer3DModel",
    "MotifVideoTransformer3DModel",
    "LTXVideoTransformer3DModel",
    "LTX2VideoTransformer3DModel",
    "CogVideoXTransformer3DModel",
    "MochiTransformer3DModel",
    "CosmosTransformer3DModel",
    "Kandinsky5Transformer3DModel",
    "AllegroTransformer3DModel",
)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """These models' sequences and heads count as long and of a size that the kernel takes; functions are put back."""
    monkeypatch.setattr(attention_support, "LEAST_TOKENS", 8)
    monkeypatch.setattr(attention_support, "HEAD_SIZES", (16, 32, 48))
    yield
    probe.unwatch_functions()
    torch._dynamo.reset()


def attended(model: torch.nn.Module) -> dict[str, str | None]:
    """Why the last call of each module that is to run in 8 bit did not."""
    return {name: one.last for name, one in model.__dict__.get(ATTENDING, {}).items()}


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@torch.no_grad()
@pytest.mark.parametrize("name", RUNNING)
def test_long_self_attention_of_a_family_runs_in_8_bit(name):
    model, inputs = tiny_models.TINY[name]()
    exact = model(**inputs)[0]
    plan = quantize_model(model, SeDialectConfig(**ALONE))
    output = model(**inputs)[0]
    ran = attended(model)
    assert ran and set(ran.values()) == {""}
    assert set(ran) == {one.name for one in plan.attentions if one.runs == "8bit"}
    assert 0 < distance(output, exact) < 0.03


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(tiny_models.TINY))
def test_every_attention_of_every_family_has_its_reason(name):
    model, _ = tiny_models.TINY[name]()
    try:
        plan = quantize_model(model, SeDialectConfig(attention="8bit"))
    except ModelError as error:
        pytest.skip(str(error))
    told = {one.name: one for one in plan.attentions}
    assert all(one.reason and one.runs in ("8bit", "16bit") for one in told.values())
    assert all(one.runs == "16bit" for one in told.values() if "cross_att" in one.name or ".attn2" in one.name)
    assert "attention" in str(plan)


@torch.no_grad()
def test_padding_is_left_out_as_in_16_bit():
    """HunyuanVideo masks its text's padding; what stands there must not matter."""
    model, inputs = tiny_models.TINY["HunyuanVideoTransformer3DModel"]()
    quantize_model(model, SeDialectConfig(**ALONE))
    inputs["encoder_attention_mask"] = torch.ones_like(inputs["encoder_attention_mask"])
    inputs["encoder_attention_mask"][:, 4:] = 0
    before = model(**inputs)[0]
    inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"].clone()
    inputs["encoder_hidden_states"][:, 4:] += 1.0
    assert distance(model(**inputs)[0], before) < 1e-5


def test_which_calls_stay_in_16_bit_and_why(monkeypatch):
    one = attending.Attending("8bit", attending.Flags())
    q = torch.randn(2, 3, 20, 32)
    keys = torch.ones(2, 20, dtype=torch.bool)

    def why(*tensors, kind="8bit", **more):
        one.kind = kind
        return one.refusal(attending.Call(*(tensors or (q, q, q)), **more))

    assert why() == ""
    assert why(causal=True) == "causal" and why(dropout=True) == "with dropout"
    assert "gradients" in why(q.clone().requires_grad_(), q, q)
    assert "heads" in why(q, q[:, :1], q[:, :1])
    assert "types" in why(q, q, q.bfloat16())
    assert "fewer than 8 tokens" in why(q[:, :, :4], q, q)
    assert "heads of 64 channels" in why(*[torch.randn(1, 1, 20, 64)] * 3)
    assert "FlashAttention-3" in why(kind="fp8", mask=keys)
    one.kind = "8bit"
    split, over = attending.Call(q, q, q, keys, keys_alone=True), SimpleNamespace(ring_degree=2)
    assert one.in_parallel(split, SimpleNamespace(context_parallel_config=over)) is None
    assert one.last == "masked, and split by Ring"
    one.flags.protected_now = True
    assert why() == "a protected step"


@pytest.mark.parametrize(
    ("mask", "keys_alone", "pairs", "read"),
    [
        ((2, 20), True, False, True),
        ((20, 20), False, False, False),
        ((1, 20), False, False, True),
        ((2, 1, 1, 20), False, False, True),
        ((1, 1, 1, 20), False, False, True),
        ((2, 3, 1, 20), False, False, False),
        ((2, 1, 20, 20), False, False, False),
        ((2, 1, 20, 20), False, True, True),
        ((2, 1, 1, 21), False, False, False),
    ],
)
def test_which_masks_say_no_more_than_which_keys_count(mask, keys_alone, pairs, read):
    q = torch.randn(2, 3, 20, 32)
    given = torch.ones(mask, dtype=torch.bool)
    given[..., 5:9] = False
    if pairs:
        given = given & given.transpose(2, 3)
    found = attending.key_mask(attending.Call(q, q, q, given, keys_alone=keys_alone), pairs)
    assert (found is not None) == read
    if found is not None:
        assert found.shape == (2, 20) and found.sum(1).tolist() == [16, 16] and not found[:, 5:9].any()
    assert attending.key_mask(attending.Call(q, q, q, given.float(), keys_alone=keys_alone), pairs) is None


def test_attention_alone_leaves_a_16_bit_model(tmp_path):
    pipe, arguments = build("wan")
    before = generate(pipe, arguments)
    pipe.enable_sedialect(**ALONE)
    after = generate(pipe, arguments)
    assert 0 < distance(after, before) < 0.05
    report = str(pipe.sedialect_report())
    assert "all left as they are" in report and "2 of 4 in 8bit" in report and "16 bit by the settings" in report
    pipe.transformer.to(torch.float64).to(torch.float32)  # quantized models refuse to be cast
    pipe.transformer.save_pretrained(tmp_path)
    assert "quantization_config" not in (tmp_path / "config.json").read_text()
    pipe.enable_sedialect(**ALONE)  # again changes nothing
    assert torch.equal(generate(pipe, arguments), after)
    pipe.disable_sedialect()
    assert torch.equal(generate(pipe, arguments), before)


def test_a_quantized_model_keeps_its_attention_in_files(tmp_path):
    pipe, arguments = quantized(attention="8bit")
    before = generate(pipe, arguments)
    assert not torch.equal(before, generate(*quantized()))
    pipe.transformer.save_pretrained(tmp_path)
    pipe.transformer = type(pipe.transformer).from_pretrained(tmp_path, torch_dtype=torch.float32)
    assert pipe.transformer.config.quantization_config.attention == "8bit"
    assert set(attended(pipe.transformer)) == {"blocks.0.attn1", "blocks.1.attn1"}
    assert torch.equal(generate(pipe, arguments), before)


def test_attention_is_switched_in_a_quantized_model_and_saved(tmp_path):
    pipe, arguments = quantized()
    before = generate(pipe, arguments)
    pipe.enable_sedialect(**ALONE)
    switched = generate(pipe, arguments)
    assert torch.equal(switched, generate(*quantized(attention="8bit")))
    pipe.transformer.save_pretrained(tmp_path)
    assert '"attention": "8bit"' in (tmp_path / "config.json").read_text()
    reguide(pipe.transformer, attention="16bit")
    assert torch.equal(generate(pipe, arguments), before)


def test_nothing_to_store_is_refused():
    config = SeDialectConfig(**ALONE)
    with pytest.raises(ModelError, match="nothing to store"):
        from sedialect.sedialect_core.plan.rules import check_quantizes, make_plan

        check_quantizes(make_plan(build("wan")[0].transformer, config))
    with pytest.raises(ModelError, match="has no layer to quantize"):
        build("wan")[0].enable_sedialect(precision="16bit", progress=False)


def test_fp8_without_its_kernel_is_refused_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr(flash3, "MODULES", ("sedialect_has_no_such_module",))
    flash3.kernel.cache_clear()
    pipe, _ = build("wan")
    try:
        with pytest.raises(ModelError, match="pip install fa3-fwd"):
            pipe.enable_sedialect(precision="16bit", attention="fp8", progress=False)
        with pytest.raises(ModelError, match="pip install fa3-fwd"):
            pipe.enable_sedialect(attention="fp8", progress=False)
    finally:
        flash3.kernel.cache_clear()
    assert not pipe.transformer.__dict__.get(ATTENDING) and not getattr(pipe.transformer, "is_quantized", False)


def test_fp8_on_a_cpu_says_where_it_runs(monkeypatch):
    monkeypatch.setattr(flash3, "kernel", lambda: (print, "flash_attn_interface"))
    q = torch.randn(1, 2, 20, 32)
    with pytest.raises(RuntimeError, match="H100 and H200.*attention='8bit'"):
        flash3.attention_fp8(q, q, q)


def test_what_flash_attention_gets_is_the_input_in_fp8():
    x = torch.randn(2, 3, 50, 64)
    x[0, 1, 7, 3], x[1, 2, 8, 4] = torch.inf, torch.nan
    cast, descale = flash3.in_fp8(x)
    back = cast.float() * descale[..., None, None]
    bad = ~x.isfinite()
    assert torch.equal(back.isnan(), bad) and descale.shape == (2, 3)
    assert ((back - x)[~bad].abs() <= x[~bad].abs() / 16 + descale.amax() / 512).all()


@feature("Attention in 8 bit: torch.compile", "first", "With protected steps there are two graphs.")
@feature("Attention in 8 bit: torch.compile", "after", refused=True)
@pytest.mark.parametrize(("settings", "graphs"), [({}, 1), ({"protected_steps": (1, 1)}, 2)])
@pytest.mark.parametrize("alone", [False, True])
def test_a_compiled_model_is_one_graph_or_two_where_steps_are_protected(settings, graphs, alone):
    pipe, arguments = build("wan")
    pipe.enable_sedialect(progress=False, **(ALONE if alone else {"attention": "8bit"}), **settings)
    wanted = generate(pipe, arguments, steps=5)
    counter = CompileCounter()
    pipe.transformer.compile(backend=counter, fullgraph=True)
    for _ in range(2):
        assert torch.equal(generate(pipe, arguments, steps=5), wanted)
    assert counter.frame_count == graphs
    plain, _ = build("wan")
    plain.transformer.compile(backend="eager")
    with pytest.raises(ModelError, match="is compiled; call enable_sedialect.. before torch.compile"):
        plain.enable_sedialect(progress=False, **ALONE)


@torch.no_grad()
def test_compiled_blocks_of_a_kind_are_one_graph():
    model, inputs = tiny_models.TINY["WanTransformer3DModel"]()
    quantize_model(model, SeDialectConfig(**ALONE))
    wanted, counter = model(**inputs)[0], CompileCounter()
    model.compile_repeated_blocks(backend=counter, fullgraph=True)
    assert torch.equal(model(**inputs)[0], wanted) and counter.frame_count == 1


def group_offload(pipe):
    pipe.transformer.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")


def model_offload(pipe):
    pipe.enable_model_cpu_offload(device="cpu")


@pytest.mark.parametrize(
    "order", [pytest.param(o, marks=feature("Attention in 8 bit: offloading", o)) for o in ("first", "after")]
)
@pytest.mark.parametrize("offload", [group_offload, model_offload])
def test_offloading_changes_nothing(offload, order):
    plain, arguments = build("wan")
    wanted = generate(plain.enable_sedialect(**ALONE), arguments)
    pipe, _ = build("wan")
    for step in (offload, lambda p: p.enable_sedialect(**ALONE))[:: 1 if order == "after" else -1]:
        step(pipe)
    assert torch.equal(generate(pipe, arguments), wanted)
    assert set(attended(pipe.transformer).values()) == {""}


def test_protected_steps_run_in_16_bit():
    plain = generate(*build("wan"), steps=4)
    pipe, arguments = build("wan")
    pipe.enable_sedialect(**ALONE, protected_steps=(2, 2))
    assert torch.equal(generate(pipe, arguments, steps=4), plain)
    assert set(attended(pipe.transformer).values()) == {"a protected step"}
    assert "with attention in 16 bit" in str(pipe.sedialect_report())
    pipe, arguments = build("wan")
    pipe.enable_sedialect(**ALONE, protected_steps=(1, 2))
    assert not torch.equal(generate(pipe, arguments, steps=4), plain)


@torch.no_grad()
def test_the_probe_sees_the_same_queries_and_keys():
    settings = {"salient_by": "attention", "salient_layers": "all", "precision": "w4a4"}
    received = []
    for more in ({}, {"attention": "8bit"}):
        model, inputs = tiny_models.TINY["WanTransformer3DModel"]()
        quantize_model(model, SeDialectConfig(**settings, **more))
        model(**inputs)
        received.append(model._sedialect_steps.blocks["blocks.0"].received.clone())
    assert torch.equal(*received) and bool(received[0].any())


@feature("Attention in 8 bit: attention backends", "after", "What was set runs the attention that stays in 16 bit.")
def test_a_backend_that_was_set_runs_the_rest(monkeypatch):
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    active = _AttentionBackendRegistry._active_backend
    name, ran = AttentionBackendName._NATIVE_MATH, []
    original = _AttentionBackendRegistry._backends[name]

    def backend(query, key, value, *args, **kwargs):
        ran.append((query.shape[1], key.shape[1]))
        return original(query, key, value, *args, **kwargs)

    monkeypatch.setitem(_AttentionBackendRegistry._backends, name, backend)
    pipe, arguments = build("wan")
    try:
        pipe.transformer.set_attention_backend("_native_math")
        generate(pipe, arguments)
        everything = len(ran)
        ran.clear()
        pipe.enable_sedialect(attention="16bit", progress=False)
        generate(pipe, arguments)
        assert len(ran) == everything
        ran.clear()
        pipe.enable_sedialect(**ALONE)
        generate(pipe, arguments)
        assert len(ran) == everything // 2 and all(queries != keys for queries, keys in ran)
        assert "backend _native_math, which was set, runs the attention that stays" in str(pipe.sedialect_report())
    finally:
        _AttentionBackendRegistry._active_backend = active
        probe.unwatch_functions()


def test_training_keeps_16_bit():
    pipe, _ = build("wan")
    model = pipe.transformer.requires_grad_(True)
    quantize_model(model, SeDialectConfig(**ALONE))
    latents, text = torch.randn(1, 16, 2, 8, 8), torch.randn(1, 8, 32)
    model(latents, torch.tensor([500]), text, return_dict=False)[0].sum().backward()
    assert set(attended(model).values()) == {"gradients are wanted"}
    assert model.blocks[0].attn1.to_q.weight.grad is not None


PARALLEL = """
import sys, torch, torch.distributed as dist
import sedialect
from sedialect.kernels import attention_support
from diffusers import ContextParallelConfig
from tiny_pipelines import build
attention_support.LEAST_TOKENS, attention_support.HEAD_SIZES = 4, (16, 32)
rank, kind, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
torch.accelerator.device_count = lambda: 2  # diffusers divides by it: without an accelerator it is 0
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
pipe, _ = build("wan")
model = pipe.transformer.eval()
generator = torch.Generator().manual_seed(1)
latents, text = (torch.randn(shape, generator=generator) for shape in ((1, 16, 2, 8, 8), (1, 8, 32)))
with torch.no_grad():
    pipe.enable_sedialect(precision="16bit", attention="8bit")
    run = lambda: model(latents, torch.tensor([500]), text, return_dict=False)[0]
    alone = run()
    model.enable_parallelism(config=ContextParallelConfig(**{f"{kind}_degree": 2}))
    together = run()
    last = {one.last for one in model._sedialect_attending.values()}
torch.save((alone, together, last), f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


@feature("Attention in 8 bit: context parallel (Ulysses, Ring)", "first", "Two processes over gloo, Wan.")
@pytest.mark.parametrize("kind", ["ulysses", "ring"])
def test_two_processes_compute_what_one_does(kind, tmp_path):
    for alone, together, last in run_together(PARALLEL, kind, tmp_path):
        assert last == {""}
        assert distance(together, alone) < (1e-5 if kind == "ulysses" else 0.02)
