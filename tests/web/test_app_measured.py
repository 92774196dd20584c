"""The last tab's results: kept from what the benches wrote, read again, and drawn."""

import json
import re
from pathlib import Path

import pytest

from sedialect.bench.speed.results import Part, Row
from sedialect.cli.main import main
from sedialect.sedialect_core.errors import InputError

pytest.importorskip("gradio", reason="the app's tests need Gradio: pip install 'sedialect[app]'")
from sedialect.sedialect_core.storage.marked import marked
from sedialect.web import kept_results as measured
from sedialect.web import trial
from sedialect.web.parts import results_charts
from sedialect.web.tabs import benchmark as benchmark_tab

ROOT = Path(__file__).parents[2]
SMALL = ["--pairs", "2", "--steps", "2", "--height", "64", "--width", "64", "--num-frames", "5", "--forced-steps", "1"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder as `measured/` is, of two real runs."""
    folder = tmp_path_factory.mktemp("measured")
    quality, speed = folder / "q", folder / "s"
    arms = ["--arms", "^MXFP4-32$|w4a4 B=16$|w4a16 B=16$", "--metrics", "velocity,psnr"]
    assert main(["bench", "quality", *SMALL, *arms, "--output", str(quality)]) == 0
    timed = ["--layers", "--arms", "w4a4", "--no-compile"]
    assert main(["bench", "speed", "--quick", *timed, "--output", str(speed)]) == 0
    measured.keep([quality, speed], folder / "kept")
    return folder


def test_what_is_kept_of_quality_is_the_means_and_where_they_were_measured(kept):
    written = json.loads((kept / "q" / "quality.json").read_text(encoding="utf-8"))
    quality = measured.read_quality(kept / "kept")
    assert [arm.name for arm in quality.arms] == [arm["name"] for arm in written["arms"]]
    assert quality.metrics == ("velocity", "psnr") and quality.base == written["base"]
    for arm, data in zip(quality.arms, written["arms"], strict=True):
        assert list(arm.means["psnr"]) == data["means"]["psnr"] and arm.weight_bits == data["weight_bits"]
    assert "2 pairs of prompt and seed, 5 frames of 64x64, 2 steps." in quality.conditions
    assert written["date"] in quality.conditions and written["device"] in quality.conditions
    text = (kept / "kept" / "quality.json").read_text(encoding="utf-8")
    assert "prompt" not in text and str(kept) not in text and len(text) < 4000


def test_every_arm_has_its_dot_where_its_mean_is(kept):
    quality = measured.read_quality(kept / "kept")
    page = benchmark_tab.measured_quality(quality, "velocity", list(quality.groups))
    centres = [float(x) for x in re.findall(r'class="sd-dot[^"]*" style="left:([0-9.]+)%', page)]
    means = [arm.means["velocity"].mean for arm in quality.arms]
    assert len(centres) == len(means) == 3
    assert sorted(range(3), key=lambda n: centres[n]) == sorted(range(3), key=lambda n: means[n])
    assert page.count("<tr>") == 4 and f"{means[0]:.4g}" in page and "Lower is nearer" in page
    one = benchmark_tab.measured_quality(quality, "psnr", ["peers"])
    assert one.count("sd-dot") == 1 and "MXFP4-32" in one and "w4a16" not in one
    assert "None of these arms" in benchmark_tab.measured_quality(quality, "psnr", [])


def test_layers_are_drawn_with_how_many_times_as_fast_they_are(kept):
    parts = measured.read_speed(kept / "kept")
    part = parts["layers"]
    page = benchmark_tab.measured_speed(parts)
    assert "Linear layers" in page and "Transformer blocks" not in page and part.where["date"] in page
    case = part.cases[0]
    ours, base = (part.number(case, arm, "ms") for arm in ("w4a4", "BF16"))
    assert f"{base / ours:.2f}x" in page and page.count("<svg") == len(part.cases)


def test_many_pictures_are_shown_when_they_are_asked_for_and_ours_stand_together():
    arms = ("BF16", "torchao FP8 rows", "w4a4", "GGUF Q4_0", "w4a8")
    cases = [f"case {number}" for number in range(benchmark_tab.MANY + 1)]
    rows = [Row(case, arm, numbers={"ms": 1.0 + number}) for case in cases for number, arm in enumerate(arms)]
    where = {"device": "none", "date": "today"}
    few = benchmark_tab.measured_speed({"layers": Part("layers", where, [row for row in rows if row.case in cases[1:]])})
    many = benchmark_tab.measured_speed({"layers": Part("layers", where, rows)})
    assert "<details>" not in few and f"<summary>{len(cases)} shapes</summary>" in many
    shown = [row.arm for row in results_charts.fastest(Part("layers", where, rows), cases[0])]
    assert shown == ["BF16", "w4a4", "w4a8", "torchao FP8 rows", "GGUF Q4_0"]


def test_without_results_the_page_says_which_command_makes_them(tmp_path):
    assert measured.read_quality(tmp_path) is None and measured.read_speed(tmp_path) == {}
    assert "sedialect bench speed" in benchmark_tab.measured_speed({})


def test_a_file_of_something_else_is_named(tmp_path):
    (tmp_path / "quality.json").write_text('{"arms": []}', encoding="utf-8")
    with pytest.raises(InputError, match=r"quality\.json is no result of `sedialect bench quality`"):
        measured.read_quality(tmp_path)
    with pytest.raises(InputError, match=r"holds no results"):
        measured.keep([tmp_path / "elsewhere"], tmp_path)


@pytest.mark.parametrize(("low", "high"), [(0, 0.64), (17.3, 31.8), (9.95, 10), (3, 3), (0, 1e-5), (0, 12345)])
def test_ticks_are_few_and_span_the_values(low, high):
    ticks = results_charts.round_ticks(low, high)
    assert ticks[0] <= low <= high <= ticks[-1] and 2 <= len(ticks) <= 9


def test_the_page_has_a_place_for_what_a_trial_found():
    page = ROOT / "docs/app.md"
    assert "\nnew\n" in marked(page.read_text(encoding="utf-8"), {trial.PART: "new"}, page)


def test_a_trial_tells_how_memory_grew():
    found = str(trial.Trial(4.25, 30.0, (500_000_000, 600_000_000, 630_000_000)))
    assert "page after 4.2 s" in found and "after 3 630 MB: +5.0%" in found
