"""What `fit` compiles: places it, runs the same, and can be undone. The compiler itself is inductor's C++ for CPUs."""

import pytest
import torch
from quantized_pipelines import close, layers, load_lora
from tiny_pipelines import build, generate

from sedialect import SeDialectConfig
from sedialect.kernels.capabilities import Refusals
from sedialect.sedialect_core.integrations import fitting
from sedialect.sedialect_core.plan.fit import ALL, TURNS, Choice, Option
from sedialect.sedialect_core.quantize.checks import is_compiled

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
TINY = {"height": 32, "width": 48, "num_frames": 5}
GROUPS = {
    "salient_ratio": 0.25,
    "salient_by": "attention",
    "semantic": True,
    "semantic_window": (1, 2, 2),
    "semantic_similarity": 0.3,
    "refresh_every": 2,
}


def chosen(place: str) -> Choice:
    return Choice(12, Option(SeDialectConfig(), False, place, False, {"steps": 1}, compiled=True), (5, 32, 48))


@pytest.fixture
def traced(monkeypatch):
    """Graphs are traced and run as they are: compiling takes long, and is not ours."""
    compile_block = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_block(self, backend="aot_eager"))
    torch._dynamo.reset()


@pytest.mark.parametrize("settings", [{"precision": "w4a8"}, GROUPS], ids=["quality", "second terms and groups"])
def test_compiled_blocks_with_models_that_take_turns_give_the_same(settings):
    torch._dynamo.reset()
    pipe, arguments = build("wan")
    pipe.enable_sedialect(SeDialectConfig(**settings), progress=False)
    wanted = generate(pipe, arguments, steps=3)
    fitting.place(pipe, chosen(TURNS), CPU)  # with the compiler that users have
    assert all(block._compiled_call_impl is not None for block in pipe.transformer.blocks)
    assert not is_compiled(pipe.text_encoder) and not is_compiled(pipe.vae)
    for _ in range(2):
        assert close(generate(pipe, arguments, steps=3), wanted)


def test_both_transformers_are_compiled_once(traced):
    pipe, arguments = build("wan-2.2")
    pipe.enable_sedialect(progress=False)
    wanted = generate(pipe, arguments)
    for _ in range(2):
        fitting.place(pipe, chosen(ALL), CPU)
    first = [pipe.transformer.blocks[0]._compiled_call_impl, pipe.transformer_2.blocks[0]._compiled_call_impl]
    fitting.place(pipe, chosen(ALL), CPU)
    assert first == [pipe.transformer.blocks[0]._compiled_call_impl, pipe.transformer_2.blocks[0]._compiled_call_impl]
    assert close(generate(pipe, arguments), wanted)


def test_loras_and_group_offloading_afterwards_give_the_same(traced):
    results = []
    for compiled in (False, True):
        pipe, arguments = build("wan")
        pipe.enable_sedialect(progress=False)
        if compiled:
            fitting.place(pipe, chosen(ALL), CPU)
            generate(pipe, arguments)
        load_lora(pipe)
        results.append(generate(pipe, arguments))
        pipe.transformer.enable_group_offload(onload_device=CPU, offload_type="block_level", num_blocks_per_group=1)
        results.append(generate(pipe, arguments))
    assert close(results[2], results[0]) and close(results[3], results[0])


def test_disabling_leaves_a_pipeline_that_runs_and_is_not_compiled(traced, monkeypatch):
    pipe, arguments = build("wan")
    wanted = generate(pipe, arguments)
    monkeypatch.setattr(fitting, "tell", lambda choice: None)
    pipe.enable_sedialect(fit="12GB", keep_original=True)
    fitting.place(pipe, chosen(TURNS), CPU)
    generate(pipe, arguments)
    assert is_compiled(pipe.transformer)
    pipe.disable_sedialect()
    assert not is_compiled(pipe.transformer) and not layers(pipe.transformer)
    assert torch.equal(generate(pipe, arguments), wanted)
    pipe.enable_sedialect(progress=False)
    assert "fit" not in str(pipe.sedialect_report()).splitlines()[0], "an earlier choice is not told again"


def test_what_users_compile_themselves_stays_theirs(traced):
    pipe, arguments = build("wan")
    pipe.enable_sedialect(progress=False, keep_original=True)
    pipe.transformer.blocks[0].compile()
    pipe.disable_sedialect()
    assert is_compiled(pipe.transformer) and generate(pipe, arguments).isfinite().all()


@pytest.mark.parametrize(("missing", "compiled"), [(None, True), ("the package triton is not installed", False)])
def test_without_triton_nothing_is_compiled_and_the_choice_says_why(missing, compiled, monkeypatch):
    monkeypatch.setattr(fitting, "refusals", lambda device: Refusals(None, missing, None))
    monkeypatch.setattr(fitting, "_multiplies_in_8_bit", lambda device: True)
    pipe, _ = build("wan")
    seen = []
    monkeypatch.setattr(fitting.Fitter, "choose", lambda self, card, config, **given: seen.append(given) or chosen(ALL))
    choice = fitting.choose(pipe, 12, None, video=TINY, device=torch.device("cuda"))
    assert seen[0]["compiling"] is compiled
    assert any("left out: the package triton is not installed; install it" in note for note in choice.notes) is not compiled
    fitting.choose(pipe, 12, None, video=TINY, device=torch.device("cuda"), compiling=False)
    assert seen[1]["compiling"] is False


def test_compile_false_reaches_the_choice(monkeypatch):
    pipe, _ = build("wan")
    seen = []
    choose = fitting.choose
    monkeypatch.setattr(
        "sedialect.sedialect_core.integrations.pipelines.choose",
        lambda *args, **given: seen.append(given["compiling"]) or choose(*args, **given),
    )
    pipe.enable_sedialect(fit="80GB", compile=False, progress=False)
    assert seen == [False]
