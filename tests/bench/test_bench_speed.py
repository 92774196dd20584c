"""The speed bench: that it counts what models count, treats all arms alike, loses nothing, and says what it left out."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from sedialect.bench.peers import layers as peer_layers
from sedialect.bench.speed import arms, block_kinds, blocks, layers, models, rendering, run
from sedialect.bench.speed.block_kinds import QUICK_BLOCKS
from sedialect.bench.speed.pieces import kind_of, measure_pieces
from sedialect.bench.speed.results import NOT_MEASURED, PARTS, Part, Row, read_parts
from sedialect.bench.speed.shapes import HUNYUAN_720P, LTX, QUICK_LAYERS, WAN_480P
from sedialect.bench.speed.summary import summary
from sedialect.bench.speed.timing import FEWEST, WARM_UPS, Clock, time_calls, time_long_calls
from sedialect.bench.speed.trials import EAGER, Trials
from sedialect.cli.main import main
from sedialect.kernels import ops, reference
from sedialect.sedialect_core.config import SeDialectConfig
from sedialect.sedialect_core.errors import InputError
from sedialect.sedialect_core.linear import SeDialectLinear
from sedialect.sedialect_core.plan.rules import make_plan
from sedialect.sedialect_core.shared_input import SharedInput
from sedialect.sedialect_core.storage.marked import marked, marks

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


def linears(count: int = 1, width: int = 64) -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(width, width, dtype=torch.bfloat16).requires_grad_(False) for _ in range(count)]


def arm(name: str) -> arms.Arm:
    return arms.choose_arms([name])[-1]


def trials(folder: Path | None = None, seconds: float = 60) -> Trials:
    return Trials(Part("layers", {"device": "test"}, folder=folder), Clock(seconds), CPU)


# Shapes


def test_tokens_are_what_the_models_make_of_the_pipelines_latents():
    from diffusers import HunyuanVideoTransformer3DModel, WanTransformer3DModel
    from diffusers.pipelines.ltx.pipeline_ltx import LTXPipeline

    with torch.device("meta"):
        wan = WanTransformer3DModel(num_layers=1).patch_embedding(torch.empty(1, 16, 21, 60, 104))
        hunyuan = HunyuanVideoTransformer3DModel(num_layers=1, num_single_layers=1).x_embedder(
            torch.empty(1, 16, 33, 90, 160)
        )
        ltx = LTXPipeline._pack_latents(torch.empty(1, 128, 21, 16, 22), 1, 1)
    assert wan.flatten(2).shape[2] == WAN_480P.tokens == 32_760
    assert hunyuan.shape[1] == HUNYUAN_720P.tokens == 118_800
    assert ltx.shape[1] == LTX.tokens == 7_392


# Arms


def test_readers_of_one_input_share_its_encoding_and_their_outputs_are_their_own(monkeypatch):
    encoded = []
    monkeypatch.setattr(ops, "encode", lambda *a, encode=ops.encode, **k: encoded.append(a[0]) or encode(*a, **k))
    x = torch.randn(8, 64).bfloat16()
    with torch.no_grad():
        together = arm("w4a4").together(linears(3), rows=8)(x)
        assert len(encoded) == 1
        alone = [arm("w4a4").together([linear], rows=8)(x) for linear in linears(3)]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


def test_the_more_is_decomposed_the_smaller_the_error():
    x = torch.randn(200, 64).bfloat16()
    with torch.no_grad():
        exact = arm("BF16").together(linears(), rows=200)(x)
        names = ("w4a4", "w4a4 + 10% decomposed", "w4a4 + 25% decomposed", "w4a8")
        errors = [float((arm(name).together(linears(), rows=200)(x) - exact).norm()) for name in names]
    assert errors == sorted(errors, reverse=True) and errors[0] > 1.02 * errors[2]


@pytest.mark.parametrize(("rows", "ratio"), [(1, 0.1), (7, 0.25), (32_760, 0.1), (10, 1.0)])
def test_salient_rows_are_as_many_as_asked_for_and_all_different(rows, ratio):
    salient = arms.FixedRows(rows, ratio, CPU).salient
    assert len(salient.unique()) == len(salient) == math.ceil(ratio * rows)
    assert salient.min() >= 0 and salient.max() < rows and salient.dtype == torch.int32


def test_peers_replace_the_very_layers_that_ours_quantizes():
    class Marked(nn.Linear):
        pass

    def mark(linear: nn.Linear) -> nn.Module:
        return Marked(linear.in_features, linear.out_features)

    for kind in block_kinds.QUICK_BLOCKS:
        ours, peers = (block_kinds.make_model(kind, CPU) for _ in range(2))
        arm("w4a4").model(ours, kind.rows)
        arms.Arm("marked", mark).model(peers, kind.rows)
        kinds = ((ours, SeDialectLinear), (peers, Marked))
        names = [{name for name, one in model.named_modules() if isinstance(one, cls)} for model, cls in kinds]
        assert names[0] == names[1] != set()


def test_guides_know_how_many_rows_each_stream_has():
    kind = next(kind for kind in block_kinds.QUICK_BLOCKS if kind.name == "tiny-single")
    model = block_kinds.make_model(kind, CPU)
    arm("w4a4 + 10% decomposed").model(model, kind.rows)
    plan = {layer.name: layer for layer in make_plan(block_kinds.make_model(kind, CPU), SeDialectConfig()).quantized}
    counts = {}
    for name, layer in model.named_modules():
        if isinstance(layer, SeDialectLinear):
            counts.setdefault(plan[name].stream, set()).add(
                0 if layer.guide is None else len(layer.guide(torch.empty(0)).salient)
            )
    assert counts["joint"] == {math.ceil(0.1 * kind.sequence)} and counts["video"] == {math.ceil(0.1 * kind.rows["video"])}
    assert counts["text"] == counts["vector"] == {0}


def test_an_unknown_arm_or_case_is_an_error_that_lists_what_there_is(tmp_path):
    with pytest.raises(InputError, match="no arm 'w2a2'; there are 'BF16', 'w4a4'"):
        arms.choose_arms(["w2a2"])
    with pytest.raises(InputError, match="--blocks has no 'wan'; there are tiny-wan"):
        run.measure_speed(run.Choice({"blocks": ["wan"]}, quick=True), CPU, tmp_path, {})
    assert not list(tmp_path.iterdir())


def test_models_keep_in_float32_what_diffusers_keeps():
    model = block_kinds.make_model(block_kinds.QUICK_BLOCKS[0], CPU)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert dtypes["blocks.0.scale_shift_table"] == torch.float32 and dtypes["blocks.0.attn1.to_q.weight"] == torch.bfloat16


# Peers: their packages are no dependency; where they are installed, they are held to what they promise.


def test_q4_0_is_ggmls_layout():
    """Block by block: a float16 scale, then low nibbles for the first half; values are scale * (number - 8)."""
    torch.manual_seed(0)
    weight = torch.randn(8, 64)
    weight[0, :32] = 0
    packed = peer_layers.q4_0(weight).view(8, 2, 18)
    scale = packed[..., :2].contiguous().view(torch.float16).float()
    numbers = torch.cat([packed[..., 2:] & 15, packed[..., 2:] >> 4], -1).float() - 8
    back = (scale * numbers).view(8, 64)
    step = scale.abs().expand(8, 2, 32).reshape(8, 64)
    assert ((back - weight).abs() <= step * 1.01).all() and torch.equal(back[0, :32], weight[0, :32])
    largest = weight.view(8, 2, 32).abs().argmax(-1, keepdim=True)
    found = back.view(8, 2, 32).gather(-1, largest), weight.view(8, 2, 32).gather(-1, largest)
    assert torch.allclose(*found, rtol=1e-3)


def test_q4_0_is_what_the_gguf_package_makes():
    gguf = pytest.importorskip("gguf")
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(0))
    wanted = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType.Q4_0)
    assert torch.equal(peer_layers.q4_0(weight), torch.from_numpy(wanted))


@pytest.mark.parametrize(
    ("name", "package", "most"),
    [
        ("bitsandbytes NF4", "bitsandbytes", 0.12),
        ("GGUF Q4_0", "gguf", 0.1),
        ("SDNQ int8", "sdnq", 0.02),
        ("SDNQ uint4", "sdnq", 0.1),
    ],
)
def test_peers_that_are_installed_run_on_the_same_weights(name, package, most):
    pytest.importorskip(package)
    x = torch.randn(64, 256).bfloat16()
    with torch.no_grad():
        exact = linears(width=256)[0](x)
        error = float((arm(name).together(linears(width=256), 64)(x) - exact).norm() / exact.norm())
    assert 0.001 < error < most


# Trials


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


def test_parts_are_measured_from_what_costs_little_to_what_compiles(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(run, "_measure", lambda name, cases, trials, *_: begun.append((name, trials.clock.seconds)))
    run.measure_speed(run.Choice(dict.fromkeys(PARTS), quick=True, seconds=100), CPU, tmp_path, {})
    assert [name for name, _ in begun] == ["kernels", "attention", "layers", "enabling", "blocks", "pieces", "models"]
    assert begun[-1][1] == pytest.approx(100, rel=0.05)  # nothing was used, so all is left for the last


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


# Results


def part(*rows: Row, device: str = "H200") -> Part:
    return Part("layers", {"device": device}, list(rows))


def test_of_two_results_the_measured_one_stays_and_then_the_later(tmp_path):
    first = part(Row("a", "x", numbers={"ms": 1.0}), Row("b", "x", numbers={"ms": 2.0}), Row("c", "x", note="failed"))
    second = part(
        Row("a", "x", note=f"{NOT_MEASURED}no time"), Row("b", "x", numbers={"ms": 3.0}), Row("c", "x", numbers={"ms": 4.0})
    )
    first.save(tmp_path / "1"), second.save(tmp_path / "2")
    merged = read_parts([tmp_path / "1", tmp_path / "2"])["layers"]
    assert [merged.number(case, "x", "ms") for case in "abc"] == [1.0, 3.0, 4.0]


def test_results_of_two_machines_are_not_mixed(tmp_path):
    part(Row("a", "x")).save(tmp_path / "1"), part(Row("a", "x"), device="H100").save(tmp_path / "2")
    with pytest.raises(InputError, match="measured on H200 and on H100"):
        read_parts([tmp_path / "1", tmp_path / "2"])


@pytest.mark.parametrize("text", ["", "[]", '{"part": "layers"}', '{"part": "layers", "where": {}, "rows": [{"cas": 1}]}'])
def test_files_that_are_no_results_are_named(tmp_path, text):
    with pytest.raises(InputError, match="holds no results"):
        read_parts([tmp_path])
    (tmp_path / "layers.json").write_text(text)
    with pytest.raises(InputError, match=r"layers.json is no result"):
        read_parts([tmp_path])


def test_the_floor_is_the_longer_of_bytes_and_operations():
    rates = [Row("device", "copy", numbers={"GB/s": 4000.0}), Row("device", "BF16 product", numbers={"TFLOP/s": 700.0})]
    kernels = Part("kernels", {}, [*rates, Row("device", "FP8 product", numbers={"TFLOP/s": 1400.0})])
    assert rendering.floor_ms(kernels, 8e9, 0, "") == pytest.approx(2.0)
    assert rendering.floor_ms(kernels, 4e9, 4.2e12, "w4a4") == pytest.approx(3.0)
    assert rendering.floor_ms(kernels, 4e9, 4.2e12, "BF16 product") == pytest.approx(6.0)
    assert rendering.floor_ms(None, 1, 1, "") is None


def test_a_row_that_was_not_measured_is_in_the_table_with_its_reason():
    text = rendering.layers(
        part(Row("x", "BF16", numbers={"ms": 2.0}), Row("x", "peer", note="peer is not installed")), None
    )
    assert "| BF16 | 2.000 | 1.00 |" in text and "peer is not installed" in text


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("attention_kernel", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "attention"),
        ("query_kernel", "quantizing queries, keys, values"),
        ("encode_kernel", "encoding"),
        ("decode_kernel", "decoding"),
        ("nvjet_qqtst_128x256_128x6_2x1_v_bz_coopA_NTT", "product"),
        ("int8_kernel", "product"),
        ("triton_poi_fused_gelu_0", "other"),
    ],
)
def test_a_kernel_is_told_by_its_name(kernel, kind):
    assert kind_of(kernel) == kind


def test_the_pieces_of_a_block_are_summed_by_kind_and_named_from_a_hundredth_on():
    spent = {"attention_kernel": 6.0, "nvjet_a": 2.0, "nvjet_b": 1.0, "triton_poi_fused_gelu_0": 0.95, "tiny": 0.05}
    text = rendering.pieces(part(Row("x", "w4a4", "compiled", spent)))
    assert "**x, w4a4**: 10.00 ms" in text and "| product | all | 3.000 | 30.0% |" in text
    assert "| other | all | 1.000 | 10.0% |" in text
    assert "| other | `triton_poi_fused_gelu_0` | 0.950 | 9.5% |" in text and "tiny" not in text


def test_a_compiled_block_is_taken_to_pieces():
    one = part()
    chosen = arms.choose_arms(["w4a4"])
    measure_pieces(Trials(one, Clock(100), CPU), QUICK_BLOCKS[:1], chosen, {arm.name for arm in chosen})
    assert [row.arm for row in one.rows] == ["BF16", "w4a4"] and all(sum(row.numbers.values()) > 0 for row in one.rows)
    encodes = [any("encode" in name for name in row.numbers) for row in one.rows]
    assert encodes == [False, True]


def test_a_card_of_no_table_gets_a_line_to_send():
    rows = [
        Row("x", "BF16", numbers={"ms": 3.0}),
        Row("x", "BF16", "compiled", {"ms": 2.0}),
        Row("x", "w4a4", numbers={"ms": 1.6}),
        Row("x", "peer", note="not installed"),
        Row("x", "BF16, again", numbers={"ms": 2.1}),
        Row("y", "w4a4", numbers={"ms": 1.0}),
    ]
    where = {"device": "NVIDIA GeForce RTX 3090", "versions": {"torch": "2.13.0"}, "date": "2026-11-28"}
    where |= {"path": "triton: why", "gpu": {"compute capability": "8.6"}}
    line = summary(Part("layers", where, rows))
    assert line is not None and "\n" not in line and "y" not in line.split("|")[2:]
    assert line.startswith("NVIDIA GeForce RTX 3090; torch 2.13.0; 2026-11-28. Compute capability 8.6; triton: why")
    assert line.endswith("| x: w4a4 1.25")
    assert summary(Part("layers", where | {"device": "NVIDIA H100 80GB HBM3"}, rows)) is None
    assert summary(Part("layers", where | {"device": "x86_64 CPU, 2 threads"}, rows)) is None


def test_the_page_has_a_place_for_every_part():
    text = (ROOT / "docs/results/speed.md").read_text(encoding="utf-8")
    sections = {rendering.place(name): "new" for name in (*PARTS, "shapes", "picture")}
    assert marked(text, sections, "speed.md").count("\nnew\n") == len(sections)


# The command


def test_the_command_measures_prints_draws_and_can_be_asked_again(tmp_path, capsys):
    pytest.importorskip("PIL")
    arguments = [
        "--quick",
        "--no-compile",
        "--arms",
        "w4a4",
        "w4a4 + 10% decomposed",
        "GGUF Q4_0",
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(["bench", "speed", *arguments]) == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {f"{name}.json" for name in PARTS} | {"speed.md", "speed.png"}
    parts = read_parts([tmp_path / "out"])
    failed = {
        (name, row.arm, row.note)
        for name, one in parts.items()
        for row in one.rows
        if not row.numbers and row.arm != "GGUF Q4_0" and name != "attention"  # most of its kernels need a GPU
    }
    assert failed == set()
    measured = {row.arm for row in parts["attention"].rows if row.numbers}
    assert "8bit" in measured and all(row.note for row in parts["attention"].rows if not row.numbers)
    assert {len([row for row in parts[name].rows if row.arm == "GGUF Q4_0"]) for name in ("layers", "blocks")} == {2, 3}
    page = tmp_path / "page.md"
    page.write_text("\n".join(mark for name in (*PARTS, "shapes", "picture") for mark in marks(rendering.place(name))))
    again = ["--results", str(tmp_path / "out"), "--output", str(tmp_path / "again"), "--write", str(page)]
    assert main(["bench", "speed", *again]) == 0
    assert (tmp_path / "again" / "speed.md").read_text() == (tmp_path / "out" / "speed.md").read_text()
    assert "| wan-14b, wan-1.3b | 832x480, 81 frames |" in page.read_text() and "tiny-dual" in page.read_text()
    assert (
        "](speed.png)" in page.read_text()
        and (tmp_path / "speed.png").read_bytes() == (tmp_path / "out" / "speed.png").read_bytes()
    )


def test_seconds_that_are_over_still_give_whole_tables(tmp_path):
    assert main(["bench", "speed", "--quick", "--layers", "--seconds", "0", "--output", str(tmp_path)]) == 0
    rows = read_parts([tmp_path])["layers"].rows
    assert rows and all(row.note.startswith(NOT_MEASURED) for row in rows)


# The plain cast


def test_the_plain_cast_compiles_for_gpus_that_have_fp8():
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sedialect.bench.speed.cast_kernel import cast_rows

    signature = {"x_ptr": "*bf16", "y_ptr": "*fp8e4nv", "scale_ptr": "*fp32", "K": "i32", "WIDTH": "constexpr"}
    for capability in (89, 90, 100):
        source = ASTSource(cast_rows, signature, {"WIDTH": 2048})
        assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("width", [1536, 5120, 13824])
def test_the_plain_cast_is_the_cast(width):
    from sedialect.bench.speed.cast_kernel import WARPS, cast

    x = torch.randn(37, width, device="cuda", dtype=torch.bfloat16)
    operand, scale = reference.e4m3_rows(x)
    for warps in WARPS:
        y, row_scale = cast(x, warps)
        assert torch.allclose(row_scale, scale, rtol=1e-6)
        difference = (y.float() * row_scale[:, None] - operand * scale[:, None]).norm() / x.float().norm()
        assert difference < 1e-3
