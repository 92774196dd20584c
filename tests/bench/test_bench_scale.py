"""`sedialect bench scale`, tiny, in processes on the CPU."""

import json
import os
import subprocess
import sys

import pytest
import torch
from interruptible import PATIENCE
from torch import nn

from sedialect.bench.scale.cases import HUNYUAN, QUICK_TOKENS, WAN, Case, Way, case_of, check, ways_of
from sedialect.bench.scale.forecast import exchanged, forecast, render_forecast, saved_in_8_bit
from sedialect.bench.scale.results import Measured, Row, read, render, render_wire
from sedialect.bench.scale.wire import decoded, encoded, parted
from sedialect.cli.main import main
from sedialect.sedialect_core.errors import InputError
from sedialect.sedialect_core.video.workers import run_processes

CASE = Case(40, 32_760)
GPU = {"device": "a GPU", "gpu": {"compute capability": "9.0"}, "versions": {}, "date": "2026-11-28"}
WIRE = {"BF16, s": 4e-3, "FP8, s": 3e-3, "coding, s": 1e-3, "FP8, distance": 0.02}


def test_the_command_measures_one_process_and_several_in_one_run(tmp_path):
    command = [sys.executable, "-P", "-m", "sedialect", "bench", "scale", "--quick", "--device", "cpu", "--gpus", "2"]
    command += ["--no-compile", "--arms", "default", "--output", str(tmp_path)]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    (run,) = read([tmp_path])
    assert [(row.arm, row.way) for row in run.rows] == [
        (arm, way) for arm in ("BF16", "default") for way in ("1", "Ulysses 2", "Ring 2")
    ]
    assert all(row.numbers["s"] > 0 for row in run.rows)
    assert all(row.numbers["distance"] == 0 for row in run.rows if row.way == "Ulysses 2")
    assert all(row.numbers["distance"] < 1e-6 for row in run.rows if row.way == "Ring 2")
    assert 0 < run.wire["FP8, distance"] < 0.04 and run.wire["BF16, s"] > 0
    assert "s a step" not in render(run) and not render_wire([run])  # on a CPU they say nothing
    assert (tmp_path / "scale.md").read_text(encoding="utf-8").strip() == render(run)
    document = tmp_path / "page.md"
    document.write_text(f"<!-- bench scale: {run.name} -->\n<!-- /bench scale: {run.name} -->\n", encoding="utf-8")
    assert main(["bench", "scale", "--results", str(tmp_path), "--output", str(tmp_path), "--write", str(document)]) == 0
    assert render(run) in document.read_text(encoding="utf-8")


def test_a_process_that_fails_ends_the_run_with_a_sentence(capfd):
    with pytest.raises(InputError, match=r"process \d of 2 failed, and the others were stopped"):
        run_processes(json.dumps, 2, "cpu")  # which has no words for a place
    assert "not JSON serializable" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("case", "processes", "arms", "says"),
    [
        (CASE, 11, (), "32760 tokens cannot be split evenly over 11"),
        (case_of(WAN, tokens=75_600), 16, (), "40 heads cannot be split evenly over 16"),
        (case_of(HUNYUAN), 16, (), "24 heads cannot be split evenly over 16"),
        (CASE, 2, ("fast",), "no arm 'fast'"),
    ],
)
def test_what_cannot_be_measured_is_refused_before(case, processes, arms, says):
    with pytest.raises(InputError, match=says):
        check(case, processes, arms)
    check(CASE, 8, ("BF16", "default", "quality, attention 8bit"))
    check(case_of(HUNYUAN), 8, ("BF16",))


@pytest.mark.parametrize(
    ("model", "given", "says"),
    [
        (WAN, {"tokens": 1000}, "--tokens is 1000; Wan-14B has 32760 and 75600"),
        (HUNYUAN, {"tokens": 32_760}, "--tokens is 32760; HunyuanVideo has 118800"),
        (WAN, {"layers": -1}, "--layers is -1; it must be at least 1"),
        (HUNYUAN, {"layers": 2}, "--layers is 2; it must be at least 3"),
    ],
)
def test_cases_that_there_are_not_are_refused(model, given, says):
    with pytest.raises(InputError, match=says):
        case_of(model, **given)


def test_a_document_without_a_place_is_refused_before_anything_is_measured(tmp_path, capsys):
    document = tmp_path / "page.md"
    document.write_text("<!-- bench scale: 2 x 128 -->\n<!-- /bench scale: 2 x 128 -->\n", encoding="utf-8")
    command = ["bench", "scale", "--quick", "--device", "cpu", "--gpus", "2", "--model", "hunyuan", "--write", str(document)]
    assert main([*command, "--output", str(tmp_path / "out")]) == 2
    assert "must hold <!-- bench scale: 2 x 128, HunyuanVideo -->" in capsys.readouterr().err


@pytest.mark.parametrize(("model", "words"), [(WAN, "8 layers, 32,760"), (HUNYUAN, "3 layers, 118,800")])
def test_a_case_is_as_large_as_its_model(model, words):
    assert words in case_of(model).shape
    tiny = case_of(model, quick=True)
    inputs = tiny.inputs(torch.device("cpu"))
    built = tiny.build(torch.device("cpu"))
    blocks = {name: module for name, module in built.named_modules() if "blocks." in name and "refiner" not in name}
    weights = [one.weight for name, one in blocks.items() if isinstance(one, nn.Linear) and "norm" not in name]
    assert sum(weight.numel() for weight in weights) == tiny.weights
    assert built(**inputs)[0].shape == inputs["hidden_states"].shape and tiny.tokens == QUICK_TOKENS


def test_ways_to_split():
    assert ways_of(1) == () and ways_of(2) == (Way(2), Way(1, 2)) and ways_of(3) == (Way(3),)
    assert [way.name for way in ways_of(8)] == ["Ulysses 8", "Ring 2 x Ulysses 4"]
    assert [way.name for way in ways_of(8, HUNYUAN)] == ["Ulysses 8"]  # its attention has a mask


@pytest.mark.parametrize("x", [torch.randn(6, 8, 16), torch.zeros(6, 8, 16)])
def test_what_goes_over_the_wire_in_8_bit_comes_out_near(x):
    x = x.to(torch.bfloat16)
    sent = encoded(x, 4)
    assert sent.shape == (4, 6, 2, 16 + 4) and sent.dtype == torch.uint8
    wanted, found = parted(x, 4), decoded(sent)
    assert found.dtype == torch.bfloat16 and (found - wanted).norm() <= 0.04 * wanted.norm()
    assert torch.equal(wanted[3, :, 1], x[:, 7])


def test_the_wires_table_has_a_line_for_each_run_on_gpus(tmp_path):
    rows = [Row("BF16", "eager", "1", {"s": 1.6}), Row("BF16", "eager", "Ulysses 2", {"s": 1.0, "distance": 0.0})]
    wan = Measured(CASE, 2, GPU, rows, WIRE)
    hunyuan = Measured(case_of(HUNYUAN), 2, GPU, rows, WIRE)
    page = tmp_path / "page.md"
    page.write_text(
        "".join(f"<!-- bench scale: {x} -->\n<!-- /bench scale: {x} -->\n" for x in (wan.name, hunyuan.name, "wire"))
    )
    for run in (wan, hunyuan):
        (tmp_path / run.name).mkdir()
        run.write(tmp_path / run.name)
    folders = [str(tmp_path / run.name) for run in (wan, hunyuan)]
    assert main(["bench", "scale", "--results", *folders, "--output", str(tmp_path), "--write", str(page)]) == 0
    lines = [line for line in render_wire([wan, hunyuan]).splitlines() if line.startswith("| 2 |")]
    bound = f"{saved_in_8_bit(CASE, 2, 1.6):.1%}"
    assert lines[0].split(" | ")[2:] == ["4.000", "3.000", "1.000", "16.0%", "4.0%", f"{bound} |"]
    assert len(lines) == 2 and "HunyuanVideo-shaped" in lines[1]
    text = page.read_text(encoding="utf-8")
    assert render(wan) in text and render(hunyuan) in text and render_wire([wan, hunyuan]) in text


def test_ratios_and_distances_stand_beside_those_of_one_and_of_bf16():
    numbers = {("BF16", "1"): 4.0, ("BF16", "Ulysses 2"): 2.2, ("plain", "1"): 3.0, ("plain", "Ulysses 2"): 1.6}
    rows = [Row(arm, "eager", way, {"s": s, "distance": s / 1e3}) for (arm, way), s in numbers.items()]
    rows.append(Row("plain", "eager", "Ring 2", {}, "no"))
    run = Measured(CASE, 2, GPU, rows)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in render(run).splitlines() if line.startswith("|")]
    plain = next(line for line in lines if line[0] == "plain" and line[2] == "Ulysses 2")
    assert plain[3:5] == ["1.600", "1.88"] and plain[6:9] == ["1.38", "1.6e-03", "2.2e-03"]
    assert lines[-1][2:4] == ["Ring 2", "no"]


def test_the_forecast_counts_what_goes_over_the_wire():
    assert exchanged(CASE, 2) == (40 * 4 * 32_760 / 2 * 5120 * 2 / 2, 0)
    assert exchanged(CASE, 64)[1] == 40 * 2 * 32_760 * 7 / 8 * 5120 / 8 * 2
    assert exchanged(CASE, 8, 4)[1] == 40 * 2 * 32_760 / 2 * 5120 / 4 * 2
    assert forecast(CASE, 8, 4.0, 4) > forecast(CASE, 8, 4.0)
    assert 0.01 < saved_in_8_bit(CASE, 2, 2.4) < 0.02
    times = [4.0 / forecast(CASE, count, 4.0) for count in (2, 4, 8)]
    assert 1.8 < times[0] < 2 and 3.3 < times[1] < 4 and 5 < times[2] < 8
    assert len(render_forecast(CASE, 4.0).splitlines()) == 8


def test_the_forecast_is_printed_and_put_into_documents(tmp_path, capsys):
    document = tmp_path / "page.md"
    document.write_text("<!-- bench scale: forecast -->\n<!-- /bench scale: forecast -->\n", encoding="utf-8")
    assert main(["bench", "scale", "--forecast", "4", "--layers", "40", "--write", str(document)]) == 0
    assert render_forecast(CASE, 4.0) in capsys.readouterr().out
    assert render_forecast(CASE, 4.0) in document.read_text(encoding="utf-8")
    assert main(["bench", "scale", "--forecast", "0"]) == 2


def test_two_runs_of_one_case_are_one_table(tmp_path):
    ulysses = [Row("BF16", "eager", "1", {"s": 1.6}), Row("BF16", "eager", "Ulysses 2", {}, "not measured")]
    ring = [
        Row("BF16", "eager", "1", {"s": 1.7}),
        Row("BF16", "eager", "Ulysses 2", {"s": 0.9}),
        Row("BF16", "eager", "Ring 2", {}),
    ]
    runs = [Measured(CASE, 2, GPU, ulysses), Measured(CASE, 2, GPU, ring, WIRE), Measured(case_of(WAN), 2, GPU, ring)]
    folders = [tmp_path / str(number) for number in range(3)]
    for run, folder in zip(runs, folders, strict=True):
        folder.mkdir()
        run.write(folder)
    (both,) = read(folders[:2])
    assert [(row.way, row.numbers.get("s")) for row in both.rows] == [("1", 1.6), ("Ulysses 2", 0.9), ("Ring 2", None)]
    assert both.wire == WIRE and read([folders[0], folders[0]])[0].rows == ulysses
    with pytest.raises(InputError, match="2 holds 2 x 32760 like another folder, but of another number of layers"):
        read(folders)


def test_files_of_others_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no scale\.json"):
        read([tmp_path])
    (tmp_path / "scale.json").write_text(json.dumps({"rows": 3}), encoding="utf-8")
    with pytest.raises(InputError, match="is no result of"):
        read([tmp_path])
