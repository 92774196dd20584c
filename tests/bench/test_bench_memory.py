"""`bench speed --memory`: the bench at tiny size, its table and its picture."""

import json

import pytest
import torch
from PIL import Image

from sedialect.bench.speed import held, ways
from sedialect.bench.speed.held_report import draw_held, held_table
from sedialect.bench.speed.results import Part, Row, read_part
from sedialect.cli.main import main
from sedialect.sedialect_core.linear import SeDialectLinear
from sedialect.sedialect_core.storage.marked import marks

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
GIGA = 1e9
MEASURED = {
    "encoding bytes": 7 * GIGA,
    "step bytes": 11.5 * GIGA,
    "decoding bytes": 3 * GIGA,
    "needs bytes": 11.5 * GIGA,
    "step, s": 6.0,
    "video of 50 steps, s": 330.0,
}


def part(**numbers: float) -> Part:
    rows = [
        Row("wan-14b", held.DECODING, numbers={"decoding, s": 12.0}),
        Row("wan-14b", "sedialect, models take turns", numbers=MEASURED | numbers),
        Row("wan-14b", "GGUF Q4_0, models take turns", note="gguf is not installed"),
    ]
    return Part("memory", {"device": "a GPU", "cards": [8, 12, 16]}, rows)


def test_the_table_says_which_cards_suffice_and_why_a_row_is_empty():
    lines = held_table(part(card=12.0)).splitlines()
    assert lines[2] == (
        "| sedialect, models take turns | 7.0 | 11.5 | 3.0 | no | yes | yes | 6.00 | 5.5 | 11.7, 12.2, 2.9 |  |"
    ), "what the plan foretells stands beside"
    assert lines[3].endswith("| gguf is not installed |")
    assert "| no | refused | yes |" in held_table(part(card=16.0)), "it ran out of memory at 12, though it fits by its bytes"
    assert "12.0 s" in held_table(part()) and "extrapolated" in lines[0]


def test_runs_of_one_machine_become_one_table_in_the_order_of_the_ways(tmp_path, capsys):
    compiled = "sedialect, encoder too, compiled, models take turns"
    later = Part("memory", {"device": "a GPU", "cards": [8, 12, 16], "date": "later"}, [])
    later.rows = [Row("wan-14b", compiled, "compiled", MEASURED | {"card": 12.0, "reserved bytes": 1.0})]
    for name, each in {"first": part(card=12.0), "second": later}.items():
        (tmp_path / name).mkdir()
        each.save(tmp_path / name)
    shown = ["bench", "speed", "--memory", "--output", str(tmp_path / "out"), "--results"]
    assert main([*shown, str(tmp_path / "first"), str(tmp_path / "second")]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    assert [row.split(" | ")[0] for row in rows] == [
        f"| {compiled}",
        "| sedialect, models take turns",
        "| GGUF Q4_0, models take turns",
    ]
    assert rows[0].endswith("| 6.5, 11.0, 2.9 |  |"), "what plan foretells of compiled blocks"
    later.where["versions"] = {"torch": "0"}
    later.save(tmp_path / "second")
    assert main([*shown, str(tmp_path / "first"), str(tmp_path / "second")]) == 2
    assert "the runs differ in versions: None and {'torch': '0'}" in capsys.readouterr().err


def test_single_ways_are_measured_by_name_and_compiled_ones_are_compiled(tmp_path, capsys):
    name = "sedialect, encoder too, compiled, models take turns"
    options = ["bench", "speed", "--memory", "12", "--quick", "--device", "cpu", "--output", str(tmp_path)]
    assert main([*options, "--arms", name]) == 0
    assert [(row.arm, row.mode) for row in read_part(tmp_path / "memory.json").rows] == [
        (held.DECODING, "eager"),
        (name, "compiled"),
    ]
    way = next(way for way in ways.WAYS if way.name == name)
    pipe = ways.make_pipeline(way, ways.home(quick=True), CPU)
    assert all(block._compiled_call_impl is not None for block in pipe.transformer.blocks)
    assert main([*options, "--arms", "no way"]) == 2
    assert "--memory has no way 'no way'; there are 16 bit, blocks streamed; " in capsys.readouterr().err


def test_the_picture_has_a_bar_for_each_way(tmp_path):
    assert draw_held(part(card=12.0), tmp_path / "memory.png")
    with Image.open(tmp_path / "memory.png") as picture:
        assert picture.size[0] == 940
    nothing = Part("memory", {}, [Row("wan-14b", "GGUF Q4_0, models take turns", note="gguf is not installed")])
    assert not draw_held(nothing, tmp_path / "none.png") and not (tmp_path / "none.png").exists()


def test_cards_keep_a_gigabyte_for_the_driver():
    assert held.room_of(12) == 12 * 2**30 - 10**9


def test_ways_quantize_what_they_say():
    by_name = {way.name: way for way in ways.WAYS}
    both = ways.make_pipeline(by_name["sedialect, encoder too, models take turns"], ways.home(quick=True), CPU)
    layers = [module for module in both.text_encoder.modules() if isinstance(module, SeDialectLinear)]
    assert len(layers) == 12 and {layer.precision for layer in layers} == {"w4a16"}
    assert {m.precision for m in both.transformer.modules() if isinstance(m, SeDialectLinear)} == {"w4a8"}
    alone = ways.make_pipeline(by_name["sedialect, models take turns"], ways.home(quick=True), CPU)
    assert not any(isinstance(module, SeDialectLinear) for module in alone.text_encoder.modules())
    cast = ways.make_pipeline(by_name["FP8 by layerwise casting, models take turns"], ways.home(quick=True), CPU)
    assert cast.transformer.blocks[0].ffn.net[2].weight.dtype == torch.float8_e4m3fn


def test_the_command_measures_writes_and_fills_a_document(tmp_path, monkeypatch, capsys):
    kept = [way for way in ways.WAYS if way.name in ("16 bit, blocks streamed", "sedialect, encoder too, all on the GPU")]
    monkeypatch.setattr(ways, "WAYS", (*kept, ways.Way("an arm that fails", "no arm", ways.stay)))
    page = tmp_path / "home.md"
    page.write_text("\n".join(marks("bench speed: memory")))
    options = ["--memory", "8", "12", "--quick", "--device", "cpu", "--output", str(tmp_path / "out")]
    assert main(["bench", "speed", *options]) == 0
    found = read_part(tmp_path / "out" / "memory.json")
    assert [bool(row.numbers) for row in found.rows] == [True, True, True, False]
    assert "StopIteration" in found.rows[-1].note
    numbers = found.rows[2].numbers
    assert numbers["video of 50 steps, s"] == pytest.approx(
        numbers["encoding, s"] + 50 * numbers["step, s"] + found.rows[0].numbers["decoding, s"]
    )
    shown = ["--memory", "--results", str(tmp_path / "out"), "--output", str(tmp_path / "again"), "--write", str(page)]
    assert main(["bench", "speed", *shown]) == 0
    assert "| 16 bit, blocks streamed |" in page.read_text()
    assert main(["bench", "speed", "--memory", "1"]) == 2
    assert "--memory is 1" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "memory.json").read_text())["where"]["cards"] == [8, 12]
