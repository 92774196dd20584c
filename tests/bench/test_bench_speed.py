"""`sedialect bench speed`: tokens of its shapes, the whole command and its page, the plain cast that it is compared with."""

from pathlib import Path

import pytest
import torch
from speed_trials import CPU

from sedialect.bench.speed import arms, rendering, run
from sedialect.bench.speed.results import NOT_MEASURED, PARTS, read_parts
from sedialect.bench.speed.shapes import HUNYUAN_720P, LTX, WAN_480P
from sedialect.cli.main import main
from sedialect.kernels import reference
from sedialect.sedialect_core.errors import InputError
from sedialect.sedialect_core.storage.marked import marked, marks

ROOT = Path(__file__).parents[2]


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


def test_an_unknown_arm_or_case_is_an_error_that_lists_what_there_is(tmp_path):
    with pytest.raises(InputError, match="no arm 'w2a2'; there are 'BF16', 'w4a4'"):
        arms.choose_arms(["w2a2"])
    with pytest.raises(InputError, match="--blocks has no 'wan'; there are tiny-wan"):
        run.measure_speed(run.Choice({"blocks": ["wan"]}, quick=True), CPU, tmp_path, {})
    assert not list(tmp_path.iterdir())


def test_parts_are_measured_from_what_costs_little_to_what_compiles(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(run, "_measure", lambda name, cases, trials, *_: begun.append((name, trials.clock.seconds)))
    run.measure_speed(run.Choice(dict.fromkeys(PARTS), quick=True, seconds=100), CPU, tmp_path, {})
    assert [name for name, _ in begun] == ["kernels", "attention", "layers", "enabling", "blocks", "pieces", "models"]
    assert begun[-1][1] == pytest.approx(100, rel=0.05)  # nothing was used, so all is left for the last


def test_the_page_has_a_place_for_every_part():
    text = (ROOT / "docs/results/speed.md").read_text(encoding="utf-8")
    sections = {rendering.place(name): "new" for name in (*PARTS, "shapes", "picture")}
    assert marked(text, sections, "speed.md").count("\nnew\n") == len(sections)


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
