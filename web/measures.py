"""The table under the two videos of a comparison."""

from ..sedialect_core.comparison import Comparison
from ..sedialect_core.plan.report import megabytes
from ..sedialect_core.video.differences import MEASURES, Measure, Measured


def rows(comparison: Comparison, measured: Measured) -> list[tuple[str, str, str, str]]:
    """Label, 16 bit, quantized, and a remark: what is shown under the videos."""
    models = comparison.report.models
    before, after = (sum(getattr(model, name) for model in models) for name in ("bytes_before", "bytes_after"))
    original, quantized = comparison.original.seconds_per_step, comparison.quantized.seconds_per_step
    cost = [
        ("Transformer memory", f"{megabytes(before)} MB", f"{megabytes(after)} MB", f"{before / after:.1f} times smaller"),
        ("Seconds a step", f"{original:.2f}", f"{quantized:.2f}", models[0].implementation),
        ("Bits a weight", "16", f"{comparison.weight_bits:.2f}", "effective, scales and dialect ids included"),
        ("Bits an activation", "16", f"{comparison.activation_bits:.2f}", "effective, in the quantized layers"),
    ]
    return cost + [_row(one, measured) for one in MEASURES]


def _row(one: Measure, measured: Measured) -> tuple[str, str, str, str]:
    if one.key in measured.missing:
        return one.label, "", "not measured", measured.missing[one.key]
    value = f"{measured.values[one.key]:.{one.digits}f} {one.unit}".strip()
    return one.label, "reference", value, one.meaning
