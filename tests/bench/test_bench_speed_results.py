"""Results of the speed bench: several are merged, and shown as tables, pieces by kind, and a line to send."""

import pytest
from speed_trials import part

from sedialect.bench.speed import rendering
from sedialect.bench.speed.pieces import kind_of
from sedialect.bench.speed.results import NOT_MEASURED, Part, Row, read_parts
from sedialect.bench.speed.summary import summary
from sedialect.sedialect_core.errors import InputError


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
