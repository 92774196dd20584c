"""What rounding to 4 bit leaves of a LoRA that is fused into a quantized weight, by how strong it is beside that weight."""

import torch

from ...sedialect_core.codec import encode

BOOK = "sedialect-32"
RATIOS = (0.01, 0.03, 0.1, 0.3, 1.0)
ROWS, COLUMNS, RANK = 512, 1024, 16


def measure_fusing(seed: int = 0) -> str:
    """A markdown table: rounding error and remaining effect of a Gaussian LoRA on a Gaussian weight, encoded before."""
    generator = torch.Generator().manual_seed(seed)
    weight = encode(torch.randn(ROWS, COLUMNS, generator=generator), formatbook=BOOK).dequantize()
    lora = torch.randn(ROWS, RANK, generator=generator) @ torch.randn(RANK, COLUMNS, generator=generator)
    lora *= weight.norm() / lora.norm()
    errors, effects = [], []
    for ratio in RATIOS:
        wanted = ratio * lora
        done = encode(weight + wanted, formatbook=BOOK).dequantize() - weight
        errors.append(f"{float((done - wanted).norm() / wanted.norm()):.0%}")
        effects.append(f"{float((done * wanted).sum() / wanted.square().sum()):.0%}")
    rows = [
        ["LoRA's norm / weight's norm", *(f"{ratio:.0%}" for ratio in RATIOS)],
        ["---"] * (len(RATIOS) + 1),
        ["rounding error of fusing / LoRA's norm", *errors],
        ["of the LoRA's effect remains (projection)", *effects],
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
