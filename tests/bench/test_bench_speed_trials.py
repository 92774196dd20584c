"""What the speed bench measures, layers to models and pieces of a block; how calls are timed; what fails or is too slow."""

import dataclasses
import json

import pytest
import torch
from speed_trials import CPU, arm, part, trials

from sedialect.bench.speed import arms, block_kinds, blocks, layers, models
from sedialect.bench.speed.block_kinds import QUICK_BLOCKS
from sedialect.bench.speed.pieces import measure_pieces
from sedialect.bench.speed.results import NOT_MEASURED, Part
from sedialect.bench.speed.shapes import QUICK_LAYERS
from sedialect.bench.speed.timing import FEWEST, WARM_UPS, Clock, time_calls, time_long_calls
from sedialect.bench.speed.trials import EAGER, Trials
from sedialect.sedialect_core.shared_input import SharedInput


def test_what_fails_is_a_row_with_the_reason():
    def fail(error: Exception) -> dict[str, float]:
        raise error

    one = trials()
    missing = one.run("case", "peer", EAGER, lambda: fail(ModuleNotFoundError("No module named 'x'", name="x")))
    broken = one.run("case", "other", EAGER, lambda: fail(AssertionError("needs | Hopper\nand more")))
    fine = one.run("case", "ours", EAGER, lambda: {"ms": 1.0})
    assert missing.note == "x is not installed" and not missing.numbers
    assert broken.note == "AssertionError: needs / Hopper"
    assert fine.numbers == {"ms": 1.0} and [row.arm for row in one.part.rows] == ["peer", "other", "ours"]


def test_nothing_is_begun_after_the_seconds_are_over():
    late = trials(seconds=-1)
    row = late.run("case", "ours", EAGER, lambda: pytest.fail("it was begun"))
    assert row.note == f"{NOT_MEASURED}the -1 seconds of this part were over"


def test_an_arm_that_takes_too_long_is_left_out_of_later_cases(monkeypatch):
    monkeypatch.setattr("sedialect.bench.speed.trials.TOO_SLOW", -1)
    slow = trials()
    assert slow.run("first", "slow", EAGER, lambda: {"ms": 1.0}).numbers
    assert slow.run("second", "slow", EAGER, lambda: pytest.fail("it was begun")).note.startswith(NOT_MEASURED)


def test_rows_are_on_disk_as_soon_as_they_are_measured(tmp_path):
    one = trials(tmp_path)
    one.run("case", "ours", EAGER, lambda: {"ms": 1.0})
    with pytest.raises(KeyboardInterrupt):
        one.run("case", "killed", EAGER, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert [row["arm"] for row in json.loads((tmp_path / "layers.json").read_text())["rows"]] == ["ours"]


def test_inputs_take_turns_and_warm_ups_are_not_timed():
    seen = []
    timing = time_calls(seen.append, ["a", "b"], CPU)
    assert len(seen) == 1 + WARM_UPS + 1 + FEWEST and timing.calls == FEWEST
    assert seen[-FEWEST:] == ["a", "b", "a"] and timing.lower <= timing.median <= timing.upper


def test_long_calls_are_timed_after_one_that_may_compile():
    seen = []
    timing, memory = time_long_calls(seen.append, ["a", "b"], CPU)
    assert seen == ["a", *"aba"] and timing.calls == FEWEST == 3 and memory == {}


def test_layers_are_held_to_float64_and_the_baseline_is_measured_twice():
    one = trials()
    layers.measure_layers(one, [QUICK_LAYERS[0]], arms.choose_arms(["w4a4", "w4a8"]), set())
    errors = {row.arm: row.numbers["error"] for row in one.part.rows}
    assert list(errors) == ["BF16", "w4a4", "w4a8", layers.AGAIN]
    assert errors["BF16"] < 0.003 < errors["w4a8"] < errors["w4a4"] < 0.15
    sizes = {row.arm: row.numbers["weight bytes"] for row in one.part.rows}
    assert sizes["w4a4"] / sizes["BF16"] == pytest.approx((4.5 + 32 / 128) / 16, rel=0.05)


def test_blocks_are_held_to_float32_and_share_one_encoding_for_q_k_v():
    kind = block_kinds.QUICK_BLOCKS[0]
    with torch.no_grad():
        bench = blocks.Bench(kind, CPU)
        plain, ours = (bench.measure(arm(name), EAGER) for name in ("BF16", "w4a4"))
        block, _ = blocks.build_block(kind, arm("w4a4"), CPU)
    assert plain["error"] < 0.02 < ours["error"] < 0.3
    assert (
        ours["covered bytes"] < 0.32 * plain["covered bytes"] and plain["covered bytes"] == plain["covered bytes in 16 bit"]
    )
    shared = [block.attn1.to_q.shared_input, block.attn1.to_k.shared_input, block.attn1.to_v.shared_input]
    assert isinstance(shared[0], SharedInput) and shared[0] is shared[1] is shared[2]


def test_compiled_blocks_of_a_model_are_one_graph():
    tiny = dataclasses.replace(models.QUICK_MODELS[0], count=10)  # more than the compiler's limit of recompilations
    one = Trials(Part("models", {}), Clock(300), CPU)
    models.measure_models(one, (tiny,), arms.choose_arms(["w4a4 + 10% decomposed"])[1:], {"w4a4 + 10% decomposed"})
    (row,) = one.part.rows
    assert row.mode == "compiled" and row.numbers["ms"] > 0 and row.note == ""


def test_a_compiled_block_is_taken_to_pieces():
    one = part()
    chosen = arms.choose_arms(["w4a4"])
    measure_pieces(Trials(one, Clock(100), CPU), QUICK_BLOCKS[:1], chosen, {arm.name for arm in chosen})
    assert [row.arm for row in one.rows] == ["BF16", "w4a4"] and all(sum(row.numbers.values()) > 0 for row in one.rows)
    encodes = [any("encode" in name for name in row.numbers) for row in one.rows]
    assert encodes == [False, True]
