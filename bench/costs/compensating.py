"""How long a layer's calibrated encoding takes, and what it brings, on random correlated inputs."""

from collections.abc import Callable

import torch

from ...kernels import reference
from ...kernels.compensation import DAMPING, factorize
from ...kernels.dialect_blocks import encode_calibrated_rows
from ...sedialect_core.formatbook import Formatbook
from ..speed.timing import timed

RANK = 64  # directions that most of the inputs' energy lies in
CHUNK = 4096


def measure_compensating(rows: int, width: int, tokens: int, device: str, seed: int = 0) -> str:
    """A markdown table for one random weight [rows, width] and `tokens` calibration rows.

    Errors are of the output on other rows than those of the moment, relative to its energy.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    weight, directions = normal(rows, width) * width**-0.5, normal(RANK, width)
    sizes = normal(width).exp()

    def read(count: int) -> torch.Tensor:
        return (normal(count, RANK) @ directions * RANK**-0.5 + 0.5 * normal(count, width)) * sizes

    tables = Formatbook.builtin("sedialect-32").tables(weight.device)
    moment, moment_s = timed(lambda: _moment(read, tokens, width, device), weight.device)
    plain, plain_s = timed(lambda: reference.encode_weight_rows(weight, tables, 16), weight.device)
    factor, factor_s = timed(lambda: factorize(moment, 16, DAMPING), weight.device)
    assert factor is not None
    result, encode_s = timed(lambda: encode_calibrated_rows(weight, moment, factor, tables, 16), weight.device)
    unseen = read(CHUNK)
    wanted = (unseen @ weight.T).square().sum()
    errors = []
    for encoded in (plain, result.rows):
        decoded = reference.decode_rows(encoded.codes, encoded.meta, tables) * encoded.scale.unsqueeze(1)
        errors.append(float((unseen @ (decoded - weight).T).square().sum() / wanted))
    peak = f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB" if torch.device(device).type == "cuda" else "-"
    lines = [
        f"| weight | moment of {tokens:,} rows, s | factor, s | plain, s | calibrated (with plain), s | peak memory "
        "| error, plain | error, calibrated |",
        "|---|---|---|---|---|---|---|---|",
        f"| {rows} x {width} | {moment_s:.1f} | {factor_s:.1f} | {plain_s:.1f} | {encode_s:.1f} | {peak} "
        f"| {errors[0]:.2e} | {errors[1]:.2e} |",
    ]
    return "\n".join(lines)


def _moment(read: Callable[[int], torch.Tensor], tokens: int, width: int, device: str) -> torch.Tensor:
    moment = torch.zeros(width, width, device=device)
    for start in range(0, tokens, CHUNK):
        part = read(min(CHUNK, tokens - start))
        moment.addmm_(part.T, part)
    return moment / tokens
