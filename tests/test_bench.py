"""The measurements themselves: that they measure what they say, and leave everything as it was."""

import pytest
import torch
from torch import nn

from sedialect.sedialect_core import demo
from sedialect.sedialect_core.bench import quality
from sedialect.sedialect_core.bench.fusing import measure_fusing
from sedialect.sedialect_core.bench.peers import Fp8Linear
from sedialect.sedialect_core.config import SeDialectConfig
from sedialect.sedialect_core.errors import InputError


def test_the_quality_table_ranks_arms_and_leaves_the_pipeline_alone(monkeypatch):
    """Two prompts, two steps, two arms: the machinery; the committed table has all of them at full length."""
    monkeypatch.setattr(demo, "defaults", lambda: {**original, "steps": 2})
    original = {"guidance_scale": 2.0, "height": 128, "width": 128, "num_frames": 33}
    arms = [("FP8", quality.fp8), ("w4a4", quality.sedialect(SeDialectConfig(block_size=32)))]
    monkeypatch.setattr(quality, "arms", lambda: iter(arms))
    table = quality.measure_quality(2, "cpu")
    cells = [[cell.strip() for cell in line.split("|")] for line in table.splitlines() if line.startswith("| ")]
    rows = {row[1]: row for row in cells}
    psnr = {name: float(rows[name][4].split(" ± ")[0]) for name in ("FP8", "w4a4")}
    assert 100 > psnr["FP8"] > psnr["w4a4"] > 15
    assert float(rows["w4a4"][2]) == pytest.approx(4.35, abs=0.05) and rows["FP8"][2] == "8.00"
    for part in ("2 evaluation prompts", "2 steps", "torch", "diffusers"):
        assert part in table


@pytest.mark.parametrize("prompts", [0, 1, 65])
def test_prompts_out_of_range_are_refused(prompts):
    with pytest.raises(InputError, match=f"--prompts is {prompts}; choose 2 to 64"):
        quality.measure_quality(prompts, "cpu")


def test_fp8_layers_round_both_sides_to_e4m3():
    torch.manual_seed(0)
    linear, x = nn.Linear(64, 32), torch.randn(5, 64)

    def rounded(t: torch.Tensor) -> torch.Tensor:
        scale = t.abs().amax(1, keepdim=True) / 448
        return (t / scale).to(torch.float8_e4m3fn).double() * scale

    wanted = rounded(x) @ rounded(linear.weight.detach()).T + linear.bias.double()
    assert torch.allclose(Fp8Linear(linear)(x).double(), wanted, atol=1e-5)


def test_the_interval_is_students():
    assert quality.half_width([1.0, 2.0, 3.0, 4.0]) == pytest.approx(3.1824 * 1.29099 / 2, rel=1e-4)


def test_tables_go_between_their_marks_and_nowhere_else(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(f"before\n{quality.BEGIN}\nold\n{quality.END}\nafter\n")
    quality.write_between_marks(path, "new")
    assert path.read_text() == f"before\n{quality.BEGIN}\nnew\n{quality.END}\nafter\n"
    path.write_text("no marks")
    with pytest.raises(InputError, match="must hold"):
        quality.write_between_marks(path, "new")


def test_weak_loras_lose_more_when_fused():
    lines = measure_fusing().splitlines()
    errors, effects = ([int(c.strip().rstrip("%")) for c in line.split("|")[2:-1]] for line in lines[2:])
    assert errors == sorted(errors, reverse=True) and effects[0] < 20 < 95 < effects[-1]
