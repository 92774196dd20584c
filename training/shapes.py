"""Distance fields, textures and shading of the objects, for whole batches of clips at once.

Everything works on tensors that broadcast to (clip, frame, height, width). Distances are in pixels, negative inside,
so one ramp of a pixel's width gives anti-aliased edges, which a small autoencoder can reproduce crisply.
"""

import math

import torch
from torch import Tensor

from .captions import SHAPES, TEXTURES

# Shapes whose outline is one straight edge repeated around the centre: corners, inner / outer radius, width factor.
_EDGED = {
    "square": (4, math.cos(math.pi / 4), 1.0),
    "triangle": (3, math.cos(math.pi / 3), 1.0),
    "star": (5, 0.5, 1.0),
    "diamond": (4, math.cos(math.pi / 4), 0.72),
    "hexagon": (6, math.cos(math.pi / 6), 1.0),
}
_SCALE = {"square": 1.2, "triangle": 1.25, "star": 1.25, "diamond": 1.3, "heart": 1.05, "cross": 1.08}
_EDGE_WIDTH = 1.3  # pixels over which an edge fades


def shape_table(names: list[str], device: torch.device) -> dict[str, Tensor]:
    """Turn shape names into the per-clip numbers that `distance` needs."""
    edged = [_EDGED.get(name, (4, math.cos(math.pi / 4), 1.0)) for name in names]
    rows = {
        "kind": [SHAPES.index(name) for name in names],
        "corners": [row[0] for row in edged],
        "inner": [row[1] for row in edged],
        "width": [row[2] for row in edged],
        "scale": [_SCALE.get(name, 1.0) for name in names],
        "tilt": [math.pi / 4 if name == "square" else 0.0 for name in names],
    }
    return {key: torch.tensor(value, dtype=torch.float32, device=device).view(-1, 1, 1, 1) for key, value in rows.items()}


def _edged_distance(x: Tensor, y: Tensor, table: dict[str, Tensor]) -> Tensor:
    """Fold the plane onto one edge between an outer and an inner corner and measure against that line."""
    half = math.pi / table["corners"]
    angle = torch.atan2(x / table["width"], -y) + table["tilt"]
    folded = (torch.remainder(angle + half, 2 * half) - half).abs()
    radius = torch.sqrt((x / table["width"]).square() + y.square() + 1e-8)
    px, py = radius * torch.cos(folded), radius * torch.sin(folded)
    end_x, end_y = table["inner"] * torch.cos(half), table["inner"] * torch.sin(half)
    length = torch.sqrt((end_x - 1).square() + end_y.square())
    return ((px - 1) * end_y - py * (end_x - 1)) / length


def _heart_distance(x: Tensor, y: Tensor) -> Tensor:
    """A square standing on its corner with two discs on its upper sides."""
    side = 0.62
    x, y = x.abs(), y - 0.14
    tip = (x + y.abs()) / math.sqrt(2) - side
    lobe = torch.sqrt((x - side / math.sqrt(2)).square() + (y + side / math.sqrt(2)).square() + 1e-8) - side
    return torch.minimum(tip, lobe)


def _cross_distance(x: Tensor, y: Tensor) -> Tensor:
    long, short = torch.maximum(x.abs(), y.abs()), torch.minimum(x.abs(), y.abs())
    return torch.maximum(long - 1.0, short - 0.36)


def distance(x: Tensor, y: Tensor, radius: Tensor, table: dict[str, Tensor]) -> Tensor:
    """Signed distance in pixels to the outline; `x` and `y` are pixels from the centre, already turned."""
    unit = radius * table["scale"]
    u, v = x / unit, y / unit
    rho = torch.sqrt(u.square() + v.square() + 1e-8)
    result = _edged_distance(u, v, table)
    kind = table["kind"]
    for name, field in (
        ("ball", rho - 1.0),
        ("ring", (rho - 0.76).abs() - 0.27),
        ("heart", _heart_distance(u, v)),
        ("cross", _cross_distance(u, v)),
    ):
        result = torch.where(kind == SHAPES.index(name), field, result)
    return result * unit


def coverage(field: Tensor, width: float = _EDGE_WIDTH) -> Tensor:
    """How much of each pixel lies inside (1) or outside (0)."""
    return (0.5 - field / width).clamp(0, 1)


def texture(x: Tensor, y: Tensor, radius: Tensor, kind: Tensor) -> Tensor:
    """Share of the second tone at each point; the pattern is fixed to the object and grows with it."""
    u, v = x / radius, y / radius
    stripe = torch.sin(u * (2 * math.pi / 0.8)) * (radius * 0.8 / (2 * math.pi))
    cell = 0.8
    du, dv = torch.remainder(u + cell / 2, cell) - cell / 2, torch.remainder(v + cell / 2, cell) - cell / 2
    spot = (0.24 - torch.sqrt(du.square() + dv.square() + 1e-8)) * radius
    check = torch.sin(u * (math.pi / 0.6)) * torch.sin(v * (math.pi / 0.6)) * (radius * 0.6 / math.pi)
    field = torch.where(kind == TEXTURES.index("spotted"), spot, stripe)
    field = torch.where(kind == TEXTURES.index("checkered"), check, field)
    return coverage(-field) * (kind != TEXTURES.index("plain"))


def shade(x: Tensor, y: Tensor, field: Tensor, radius: Tensor, is_ball: Tensor) -> tuple[Tensor, Tensor]:
    """Brightness and highlight under a light from the upper left: a sphere for balls, a bevelled tile otherwise."""
    u, v = x / radius, y / radius
    height = torch.sqrt((1 - u.square() - v.square()).clamp(0, 1))
    facing = (-0.5 * u - 0.6 * v + 0.62 * height).clamp(0, 1)
    bevel = (-field / (0.3 * radius)).clamp(0, 1)
    tile = 0.72 + 0.28 * bevel * (2 - bevel) + (-0.07 * u - 0.09 * v)
    brightness = torch.where(is_ball, 0.5 + 0.6 * facing, tile)
    highlight = torch.where(is_ball, 0.4 * facing**20, torch.zeros_like(facing))
    return brightness, highlight
