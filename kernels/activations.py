"""What happens to a linear layer's input before the product, on every path: the specification of `ops.encode`.

Equalization, rotation, encoding, the choice of shapes that a group of tokens shares, and the residual rows of salient
tokens, both of docs/semantics.md.
"""

import torch

from . import integers, reference
from .guidance import UNGUIDED, RowGuidance
from .tables import DialectTables
from .transform import UNCHANGED, InputTransform, transform_rows


def encode_activations(
    x: torch.Tensor,
    tables: DialectTables,
    block_size: int,
    bits: int,
    candidates: str,
    guidance: RowGuidance = UNGUIDED,
    transform: InputTransform = UNCHANGED,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Operands, [M + E, K] in float32 (16 bits: as `transform_rows` gives them), and row scales, float32 [M + E], of
    activations x [M, K]; arguments as of `ops.encode`. For `products="int8"` they are whole numbers.

    Row M + e is the residual of row salient[e], encoded like any row: x_hat of that token is the sum of the two. Where
    salient[e] is -1, it is a row of zeros.
    """
    salient, group, choice, protected = guidance
    given, x = x, transform_rows(x, transform)
    if bits == 16:
        return x.clone() if x is given else x, x.new_ones(x.shape[0], dtype=torch.float32)  # an operator returns no input
    plain = bits == 8 or (protected is not None and bool(protected))
    whole = transform.products == "int8"
    allowed = None if group is None or choice is None else allowed_shapes(group, choice)

    def encode(rows: torch.Tensor, shapes: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        if plain:
            return integers.integer_rows(rows) if whole else reference.e4m3_rows(rows)
        found = reference.quantize_rows(rows, tables, block_size, candidates, shapes)
        return integers.rounded(*found) if whole else found

    operand, scale = encode(x, allowed)
    if salient is None:
        return operand, scale
    chosen = salient.clamp_min(0).long()
    residual = x[chosen].float() - operand[chosen] * scale[chosen].unsqueeze(1)
    residual = residual.masked_fill((salient < 0).unsqueeze(1), 0.0)
    extra, extra_scale = encode(residual, None)
    return torch.cat([operand, extra]), torch.cat([scale, extra_scale])


def allowed_shapes(group: torch.Tensor, choice: torch.Tensor) -> torch.Tensor:
    """Bit masks, uint8 [M, K/B], from a group a row, integer [M], and what each group took, uint8 [G, K/B].

    Rows of group -1 are in none and may take every shape.
    """
    chosen = choice[group.clamp_min(0).long()]
    return chosen.masked_fill((group < 0).unsqueeze(1), 0xFF)
