"""`sedialect bench scale`, tiny, in processes on the CPU."""

import json
import os
import subprocess
import sys

import pytest
from interruptible import PATIENCE

from sedialect.bench.scale.cases import Case, Way, check, ways_of
from sedialect.bench.scale.forecast import exchanged, forecast, render_forecast
from sedialect.bench.scale.results import Measured, Row, read, render
from sedialect.cli.main import main
from sedialect.sedialect_core.errors import InputError
from sedialect.sedialect_core.video.workers import run_processes

WAN = Case(40, 32_760)


def test_the_command_measures_one_process_and_several_in_one_run(tmp_path):
    command = [sys.executable, "-P", "-m", "sedialect", "bench", "scale", "--quick", "--device", "cpu", "--gpus", "2"]
    command += ["--no-compile", "--arms", "default", "--output", str(tmp_path)]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    (run,) = read([tmp_path])
    assert [(row.arm, row.way) for row in run.rows] == [
        (arm, way) for arm in ("BF16", "default") for way in ("1", "Ulysses 2")
    ]
    assert all(row.numbers["s"] > 0 for row in run.rows)
    assert all(row.numbers["distance"] < 0.01 for row in run.rows if row.way != "1")
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
        (WAN, 11, (), "32760 tokens cannot be split evenly over 11"),
        (Case(40, 75_600), 16, (), "40 heads cannot be split evenly over 16"),
        (Case(40, 1000), 2, (), "--tokens is 1000"),
        (Case(0, 32_760), 2, (), "--layers is 0"),
        (WAN, 2, ("fast",), "no arm 'fast'"),
    ],
)
def test_what_cannot_be_measured_is_refused_before(case, processes, arms, says):
    with pytest.raises(InputError, match=says):
        check(case, processes, arms)
    check(WAN, 8, ("BF16", "default", "quality, attention 8bit"))


def test_ways_to_split():
    assert ways_of(1) == () and ways_of(2) == (Way(2), Way(1, 2)) and ways_of(3) == (Way(3),)
    assert [way.name for way in ways_of(8)] == ["Ulysses 8", "Ring 2 x Ulysses 4"]


def test_ratios_and_distances_stand_beside_those_of_one_and_of_bf16():
    numbers = {("BF16", "1"): 4.0, ("BF16", "Ulysses 2"): 2.2, ("plain", "1"): 3.0, ("plain", "Ulysses 2"): 1.6}
    rows = [Row(arm, "eager", way, {"s": s, "distance": s / 1e3}) for (arm, way), s in numbers.items()]
    rows.append(Row("plain", "eager", "Ring 2", {}, "no"))
    run = Measured(WAN, 2, {"device": "a GPU", "versions": {}, "date": "2026-11-28"}, rows)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in render(run).splitlines() if line.startswith("|")]
    plain = next(line for line in lines if line[0] == "plain" and line[2] == "Ulysses 2")
    assert plain[3:5] == ["1.600", "1.88"] and plain[6:9] == ["1.38", "1.6e-03", "2.2e-03"]
    assert lines[-1][2:4] == ["Ring 2", "no"]


def test_the_forecast_counts_what_goes_over_the_wire():
    assert exchanged(WAN, 2) == (40 * 4 * 32_760 / 2 * 5120 * 2 / 2, 0)
    assert exchanged(WAN, 64)[1] == 40 * 2 * 32_760 * 7 / 8 * 5120 / 8 * 2
    times = [4.0 / forecast(WAN, count, 4.0) for count in (2, 4, 8)]
    assert 1.8 < times[0] < 2 and 3.3 < times[1] < 4 and 5 < times[2] < 8
    assert len(render_forecast(WAN, 4.0).splitlines()) == 8


def test_the_forecast_is_printed_and_put_into_documents(tmp_path, capsys):
    document = tmp_path / "page.md"
    document.write_text("<!-- bench scale: forecast -->\n<!-- /bench scale: forecast -->\n", encoding="utf-8")
    assert main(["bench", "scale", "--forecast", "4", "--layers", "40", "--write", str(document)]) == 0
    assert render_forecast(WAN, 4.0) in capsys.readouterr().out
    assert render_forecast(WAN, 4.0) in document.read_text(encoding="utf-8")
    assert main(["bench", "scale", "--forecast", "0"]) == 2


def test_files_of_others_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no scale\.json"):
        read([tmp_path])
    (tmp_path / "scale.json").write_text(json.dumps({"rows": 3}), encoding="utf-8")
    with pytest.raises(InputError, match="is no result of"):
        read([tmp_path])
