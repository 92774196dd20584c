"""Operands of INT8 matrix units: the specification in plain torch, and the path on CPUs.

A dialect's value is half_units * 2^-delta times its row scale. In units of 2^-3 of that scale it is an integer of at most
120 wherever delta is 3 or less; smaller blocks are rounded, to the nearest, ties to even. Rows of 8 bits have their maximum
at 127. Sums of products are exact in int32: K * 127^2 is below 2^31 for every K below 133,144.
"""

import torch

from . import reference
from .reference import EncodedRows
from .tables import DialectTables

INTEGERS = 127  # the largest of INT8, both signs
# Of block sizes: the squared error of cells by that of codes, of normal and Student's t numbers.
GAIN_BY_CHOICE = {16: 1.8, 32: 1.45}
INTEGER_LIFT = 3  # operands of dialects are multiplied by 2^INTEGER_LIFT, and their row scales divided by it


def rounded(operand: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Operands of dialects [M, K] as whole numbers in their own dtype, and their row scales [M]."""
    return (operand * 2.0**INTEGER_LIFT).round_(), scale * 2.0**-INTEGER_LIFT


def integer_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers up to 127, float32 [M, K], and row scales, float32 [M], of x [M, K]; see `reference.rows_up_to`."""
    scaled, scale = reference.rows_up_to(x, INTEGERS)
    return scaled.round_(), scale


def decode_rows(weight: EncodedRows, tables: DialectTables) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight's operands, int8 [N, K], and the row scales that belong to them, float32 [N]."""
    operand, scale = rounded(reference.decode_rows(weight.codes, weight.meta, tables), weight.scale)
    return operand.to(torch.int8), scale


def scaled_product(
    operand: torch.Tensor, row_scale: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """(operand * row_scale) @ (weight * scale).T, float32 [M, N], of int8 [M, K] and [N, K]; the sums are exact.

    In float64, which holds them: `torch._int_mm` saturates on CPUs without VNNI, and integer products are slower.
    """
    sums = operand.double() @ weight.double().t()
    return sums.float().mul_(row_scale.unsqueeze(1)).mul_(scale)


def rounding_loss(weight: EncodedRows, tables: DialectTables) -> float:
    """What rounding a weight's operands to integers adds to the squared error of its code, as a part of that.

    The code's own error is taken from the codes: a number may lie anywhere between the points halfway to the neighbours of
    its magnitude, so that it is off by a twelfth of that distance squared on average; and it is less by what the encoder
    gains by choosing among dialects. Of two codes and their meta byte there are 65,536 cases, which are looked up.
    """
    added, own = _errors_of_pairs(tables)
    rows, blocks = weight.meta.shape
    case = weight.meta.unsqueeze(2).to(torch.int32) * 256 + weight.codes.view(rows, blocks, -1).to(torch.int32)
    scale = weight.scale.double().square()
    sums = [float((table[case].flatten(1).sum(1).double() * scale).sum()) for table in (added, own)]
    gain = 12 * GAIN_BY_CHOICE[weight.codes.shape[1] * 2 // blocks]
    return sums[0] * gain / max(sums[1], torch.finfo(torch.float64).tiny)


def _errors_of_pairs(tables: DialectTables) -> tuple[torch.Tensor, torch.Tensor]:
    """Of meta << 8 | codes: the squared error that rounding adds to both numbers, and the squared widths of both cells, in
    units of the row scale; float32 [65536]."""
    meta = torch.arange(256, device=tables.half_units.device)
    dialect, unit = meta & 31, torch.exp2(-(meta >> 5).float()).unsqueeze(1)
    known = len(tables.half_units)
    values = tables.half_units.float()[dialect.clamp(max=known - 1)] * unit
    lost = (values - (values * 2.0**INTEGER_LIFT).round() * 2.0**-INTEGER_LIFT).square()
    width = (_cell_widths(tables)[dialect.clamp(max=known - 1)] * unit).square()

    def pairs(of_code: torch.Tensor) -> torch.Tensor:
        both = torch.cat([of_code, of_code], dim=1)  # bit 3 is the sign
        return (both.unsqueeze(1) + both.unsqueeze(2)).flatten()

    return pairs(lost), pairs(width)


def _cell_widths(tables: DialectTables) -> torch.Tensor:
    """How far apart the halfway points around each magnitude of a dialect are, in half units, float32 [D, 8]."""
    values = tables.half_units.float()
    mirrored = torch.cat([-values[:, 1:2], values, 2 * values[:, -1:] - values[:, -2:-1]], dim=1)
    return (mirrored[:, 2:] - mirrored[:, :-2]) / 2
