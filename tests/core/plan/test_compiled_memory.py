"""What forwards take, compiled and not: the rule on small examples, and beside what was measured on GPUs."""

import itertools

import diffusers
import pytest
import torch
from tiny_models import TINY
from torch import nn
from torch.nn import functional

from sedialect import SeDialectConfig
from sedialect.sedialect_core.footprint.fitted import fitter_of
from sedialect.sedialect_core.footprint.memory import Estimator
from sedialect.sedialect_core.footprint.outline import outline_of
from sedialect.sedialect_core.plan import working_memory
from sedialect.sedialect_core.plan.fit import ALL, TURNS, Fitter
from sedialect.sedialect_core.plan.rules import make_plan
from sedialect.sedialect_core.plan.working_memory import repeated_blocks, sampling_bytes

ROWS, WIDTH = 64, 32
UNIT = ROWS * WIDTH * 2  # bytes of one activation in 16 bit


class Block(nn.Module):
    """What `forward` gives; a block that diffusers would compile."""

    def __init__(self, forward) -> None:
        super().__init__()
        self.first, self.wide = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.back = nn.Linear(4 * WIDTH, WIDTH, bias=False)
        self.body = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(self, x)


class Model(nn.Module):
    _repeated_blocks = ("Block",)

    def __init__(self, forward) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(forward)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks[0](x)


def units(forward, compiled: bool = True) -> float:
    """Peak beside the input, in activations of 16 bit."""
    model = Model(forward).to(torch.bfloat16)
    x = torch.empty(ROWS, WIDTH, dtype=torch.bfloat16, device="meta")
    model.to("meta")
    held = working_memory._peak(model, lambda: model(x), None, compiled)
    return held / UNIT


def norm(x: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(x.float(), (WIDTH,)).to(x.dtype)


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda block, x: (x.float() * 2 + 1).to(x.dtype), 1),  # one kernel, one result
        (lambda block, x: block.first(norm(x) * 2), 2),  # what a product reads, and its result
        (lambda block, x: functional.gelu(block.wide(x)), 4),  # in place
        (lambda block, x: block.back(functional.gelu(block.wide(x))), 5),
        (lambda block, x: (x.float() + block.first(norm(x)).float()).to(x.dtype), 2),  # float32 copies live in registers
        (lambda block, x: block.first(x).view(-1)[: ROWS * WIDTH].view(ROWS, WIDTH), 1),  # views are no values
        (lambda block, x: block.first(x) + block.first(norm(x)) + block.first(x * 2), 4),  # summed at the end, at once
    ],
)
def test_what_a_compiled_block_holds(forward, expected):
    assert units(forward) == pytest.approx(expected, rel=0.07)  # statistics of norms are small
    assert units(forward, compiled=False) >= units(forward) - 0.07


def test_a_value_dies_with_its_last_reader_though_python_names_it():
    def forward(block: Block, x: torch.Tensor) -> torch.Tensor:
        normed = norm(x)
        wide = block.wide(normed)  # normed is read no more
        turned = functional.gelu(wide)
        return block.back(turned)

    assert units(forward) == pytest.approx(5, rel=0.07)
    assert units(forward, compiled=False) >= 10


def test_kernels_that_fail_leave_no_hooks_behind():
    def fails(block: Block, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    model = Model(fails)
    with pytest.raises(NotImplementedError):
        working_memory._peak(model, lambda: model(torch.empty(1, device="meta")), None, True)
    assert not model.blocks[0]._forward_pre_hooks and not model.blocks[0]._forward_hooks


@pytest.mark.parametrize("name", ["wan-2.1-1.3b", "wan-2.1-14b", "hunyuan-video", "ltx-video-13b", "cogvideox-5b"])
@pytest.mark.parametrize("preset", [None, "default", "quality", "weight-only"])
def test_compiled_forwards_take_less_and_not_nothing(name, preset):
    estimator = Estimator(outline_of(name))
    model = estimator.transformers[0].model
    plan = None if preset is None else make_plan(model, SeDialectConfig.preset(preset, equalize=False))
    eager, compiled = (sampling_bytes(model, plan, estimator.size.latent, compiled=each)[0] for each in (False, True))
    if repeated_blocks(model):
        assert 0.4 * eager < compiled < 0.9 * eager
    else:
        assert compiled == eager


def measured(call) -> int:
    """Most bytes that torch had allocated on the CPU during a call, beyond what was there before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def inputs(modulation: tuple[int, ...], turns: tuple[int, ...]) -> list[torch.Tensor]:
    """Video, text and modulation in 16 bit; cosines and sines in float32, as models have them."""
    shapes = [(1, 2048, 256), (1, 32, 256), modulation]
    return [*(torch.randn(shape, dtype=torch.bfloat16) for shape in shapes), torch.randn(turns), torch.randn(turns)]


def ltx() -> tuple[nn.Module, str, list[torch.Tensor]]:
    model = diffusers.LTXVideoTransformer3DModel(
        num_attention_heads=4, attention_head_dim=64, cross_attention_dim=256, num_layers=1, caption_channels=32
    )
    return model, "transformer_blocks.0", inputs((1, 1, 6 * 256), (1, 2048, 256))


def hunyuan() -> tuple[nn.Module, str, list[torch.Tensor]]:
    sizes = {"num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1, "rope_axes_dim": (16, 24, 24)}
    model = diffusers.HunyuanVideoTransformer3DModel(
        num_attention_heads=4, attention_head_dim=64, text_embed_dim=32, pooled_projection_dim=16, **sizes
    )
    return model, "single_transformer_blocks.0", inputs((1, 256), (2048, 64))


@torch.no_grad()
@pytest.mark.parametrize("make", [ltx, hunyuan])
def test_real_blocks_take_what_is_foretold_eager_and_compiled(make):
    torch._dynamo.reset()
    model, name, given = make()
    block = model.to(torch.bfloat16).eval().get_submodule(name)
    more = [None] if make is hunyuan else []  # its mask

    def run(values: list[torch.Tensor]) -> None:
        block(*values[:3], *more, (values[3], values[4]))

    found = [measured(lambda: run(given))]
    block.compile()
    run(given)
    found.append(measured(lambda: run(given)))
    block._compiled_call_impl = None
    model.to("meta")
    for compiled, peak in zip((False, True), found, strict=True):
        values = [tensor.to("meta") for tensor in given]
        lives = working_memory._Lives([*model.parameters(), *values])
        taped = working_memory._taped([block] if compiled else [], lives)
        with torch.device("meta"), lives, working_memory._AsOnGpus({}, 0.0, lives), taped:
            run(values)
        assert lives.peak == pytest.approx(peak, rel=0.06 if compiled else 0.01)


def test_only_blocks_that_diffusers_compiles_are_counted_so():
    wan, cogvideox = (TINY[name]()[0] for name in ("WanTransformer3DModel", "CogVideoXTransformer3DModel"))
    assert repeated_blocks(wan) == list(wan.blocks) and repeated_blocks(cogvideox) == []


# Of the whole transformer of Wan 2.1 14B at 832x480, 81 frames, GB: what was measured at the peak of a step, and of it the
# weights. Compiled, on an H100 and on an H200 (docs/results/speed.md; `sedialect bench speed --models`, 2026-11-28).
COMPILED_14B = {None: (30.74, 28.64), "plain": (10.64, 8.52), "default": (11.09, 8.52)}
# Eager, of whole pipelines, on an H200 (docs/home.md): block size, text encoder in 4 bit, place; GB of encoding and steps.
PIPELINES_14B = [
    (16, True, TURNS, 6.434, 12.237),
    (16, False, TURNS, 11.640, 12.237),
    (32, True, TURNS, 6.434, 11.798),
    (16, True, ALL, 15.389, 18.900),
]


@pytest.fixture(scope="module")
def wan_14b() -> Fitter:
    return fitter_of(Estimator(outline_of("wan-2.1-14b")))


@pytest.mark.parametrize("preset", list(COMPILED_14B))
def test_compiled_steps_are_foretold_within_a_tenth(wan_14b, preset, monkeypatch):
    peak, weights = COMPILED_14B[preset]
    model = wan_14b.models["transformer"]
    plan = None if preset is None else make_plan(model, SeDialectConfig.preset(preset, equalize=False))
    found = weights + sampling_bytes(model, plan, wan_14b.latent, compiled=True)[0] / 1e9
    assert 0.99 * peak < found < 1.1 * peak
    monkeypatch.setattr(working_memory, "OPERAND_BYTES", 1)  # as on these GPUs, which have FP8 units
    found = weights + sampling_bytes(model, plan, wan_14b.latent, compiled=True)[0] / 1e9
    assert 0.96 * peak < found < 1.01 * peak


@pytest.mark.parametrize(("block_size", "encoder", "place", "encoding", "steps"), PIPELINES_14B)
def test_whole_pipelines_are_foretold_within_a_tenth(wan_14b, block_size, encoder, place, encoding, steps):
    option = wan_14b.option(SeDialectConfig.preset("quality", block_size=block_size), encoder, place, True)
    for phase, measured in (("encoding", encoding), ("steps", steps)):
        assert 0.98 * measured < option.phases[phase] / 1e9 < 1.1 * measured
