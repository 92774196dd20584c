"""Renders clip specs into video tensors, a batch at a time, on whatever device is at hand.

A spec leaves details open (where exactly, how large exactly); those are drawn here from the given random generator. They
vary little on purpose, and backgrounds do not vary at all: the model then has little to guess, its few parameters go into
what captions say, and two runs that should agree are not told apart by the phase of a stripe.
"""

import math
import random

import torch
from torch import Tensor

from .captions import PATTERNS, TEXTURES, ClipSpec, ObjectSpec
from .shapes import coverage, distance, shade, shape_table, texture

SIZE = 128
FRAMES = 33

_RGB = {
    "red": (0.93, 0.18, 0.17),
    "orange": (1.0, 0.52, 0.08),
    "yellow": (1.0, 0.87, 0.15),
    "green": (0.2, 0.78, 0.25),
    "cyan": (0.2, 0.86, 0.9),
    "blue": (0.16, 0.4, 0.98),
    "purple": (0.62, 0.27, 0.9),
    "pink": (1.0, 0.5, 0.75),
    "white": (0.97, 0.97, 0.97),
}
_BACKDROP_RGB = {
    "gray": (0.4, 0.41, 0.44),
    "blue": (0.16, 0.26, 0.5),
    "green": (0.15, 0.38, 0.24),
    "purple": (0.33, 0.21, 0.47),
    "red": (0.48, 0.16, 0.17),
    "teal": (0.1, 0.4, 0.42),
    "orange": (0.6, 0.35, 0.15),
    "pink": (0.6, 0.34, 0.46),
}
_RADIUS = {"small": 15.0, "medium": 21.0, "large": 28.0}
_DIRECTION = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_CLOUDS = ((0.3, 62.0, 0.1), (1.0, 97.0, 0.7), (1.7, 71.0, 0.4), (2.3, 108.0, 0.9), (2.9, 83.0, 0.2))  # angle, wave, phase
_PATH_KEYS = ("x", "y", "vx", "vy", "orbit", "spin", "phase", "hop", "swing", "r0", "r1", "angle", "turn")


def _velocity(motion: str) -> tuple[float, float]:
    vx = sum(_DIRECTION[word][0] for word in motion.split())
    vy = sum(_DIRECTION[word][1] for word in motion.split())
    norm = math.hypot(vx, vy)
    return vx / norm, vy / norm


def _path(item: ObjectSpec, rng: random.Random, zoom: float) -> dict[str, float]:
    """Draw the free numbers of one object's path (see `_centre` for how they are used)."""
    row = dict.fromkeys(_PATH_KEYS, 0.0)
    row |= {"x": rng.gauss(0, 5), "y": rng.gauss(0, 5), "phase": rng.gauss(0, 0.2), "angle": rng.gauss(0, 0.04)}
    if item.motion in ("clockwise", "counterclockwise"):
        row |= {"orbit": rng.uniform(25, 29), "spin": 1.0 if item.motion == "clockwise" else -1.0}
    elif item.motion == "bounce":
        row |= {"hop": rng.uniform(28, 32), "x": rng.gauss(0, 8), "y": rng.uniform(14, 18)}
    elif item.motion == "swing":
        row |= {"swing": rng.uniform(0.4, 0.45), "x": rng.gauss(0, 4)}
    elif item.motion != "still":
        vx, vy = _velocity(item.motion)
        span, aside = rng.uniform(60, 66), rng.gauss(0, 7)
        row |= {"vx": vx * span, "vy": vy * span, "x": -vy * aside, "y": vx * aside}
    radius = _RADIUS[item.size] * rng.uniform(0.97, 1.03)
    grow = {"growing": (0.72, 1.35), "shrinking": (1.35, 0.72)}.get(item.change, (1.0, 1.0))
    row |= {"r0": radius * grow[0] / zoom**0.5, "r1": radius * grow[1] * zoom**0.5}
    row["turn"] = 3.6 if item.change == "turning" else 0.0
    return row


def _separate(main: dict[str, float], other: dict[str, float], rng: random.Random) -> None:
    """Push two paths apart far enough that both objects are seen, near enough that one passes the other."""
    gap = (main["r0"] + main["r1"] + other["r0"] + other["r1"]) / 2 * rng.uniform(0.5, 0.7)
    angle = rng.gauss(0.6, 0.2)
    for row, sign in ((main, -0.5), (other, 0.5)):
        row["x"] += sign * gap * math.cos(angle)
        row["y"] += sign * gap * math.sin(angle)


def _columns(rows: list[dict[str, float]], device: torch.device) -> dict[str, Tensor]:
    table = torch.tensor([[row[key] for key in rows[0]] for row in rows], dtype=torch.float32, device=device)
    return {key: table[:, i].view(-1, 1, 1, 1) for i, key in enumerate(rows[0])}


def _centre(path: dict[str, Tensor], time: Tensor) -> tuple[Tensor, Tensor]:
    """Where the object is, in pixels from the middle of the picture; `time` runs from 0 to 1."""
    turn = 2 * math.pi * time
    around = path["phase"] + path["spin"] * turn
    x = path["x"] + path["vx"] * (time - 0.5) + path["orbit"] * torch.cos(around)
    y = path["y"] + path["vy"] * (time - 0.5) + path["orbit"] * torch.sin(around)
    y = y - path["hop"] * torch.sin(turn + path["phase"]).abs()
    lean = path["swing"] * torch.sin(turn + path["phase"])
    rope = 62.0 * (path["swing"] != 0)
    return x + rope * torch.sin(lean), y + rope * (torch.cos(lean) - 0.88)


def _grid(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    steps = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) * (SIZE / size) - SIZE / 2
    return steps.view(1, 1, 1, -1), steps.view(1, 1, -1, 1)


def _paint(video: Tensor, items: list[ObjectSpec], path: dict[str, Tensor], time: Tensor) -> Tensor:
    """Draw one object per clip over `video` (clip, 3, frame, height, width), with a soft shadow below it."""
    device = video.device
    grid_x, grid_y = _grid(video.shape[-1], device)
    centre_x, centre_y = _centre(path, time)
    radius = path["r0"] * (path["r1"] / path["r0"]) ** time
    angle = path["angle"] + path["turn"] * time
    cos, sin = torch.cos(angle), torch.sin(angle)
    dx, dy = grid_x - centre_x, grid_y - centre_y
    table = shape_table([item.shape for item in items], device)

    def field_at(px: Tensor, py: Tensor) -> Tensor:
        return distance(px * cos + py * sin, py * cos - px * sin, radius, table)

    shadow = coverage(field_at(dx - 4.0, dy - 5.0), width=12.0) * 0.4
    video = video * (1 - shadow.unsqueeze(1))
    field = field_at(dx, dy)
    kind = torch.tensor([TEXTURES.index(item.texture) for item in items], device=device).view(-1, 1, 1, 1)
    share = texture(dx * cos + dy * sin, dy * cos - dx * sin, radius, kind)
    first = torch.tensor([_RGB[item.colour] for item in items], device=device).view(-1, 3, 1, 1, 1)
    pale = torch.tensor([item.colour in ("white", "yellow", "cyan") for item in items], device=device).view(-1, 1, 1, 1, 1)
    second = torch.where(pale, first * 0.42, first * 0.25 + 0.75)
    ball = torch.tensor([item.shape == "ball" for item in items], device=device).view(-1, 1, 1, 1)
    brightness, highlight = shade(dx, dy, field, radius, ball)
    colour = torch.lerp(first, second, share.unsqueeze(1)) * brightness.unsqueeze(1) + highlight.unsqueeze(1)
    return torch.lerp(video, colour.clamp(0, 1), coverage(field).unsqueeze(1))


def _scene(spec: ClipSpec) -> dict[str, float]:
    """The numbers of one background; panning moves it against the camera's direction."""
    dx, dy = _DIRECTION.get(spec.camera, (0, 0))
    zoom = {"in": 1.7, "out": 1 / 1.7}.get(spec.camera, 1.0)
    return {"kind": PATTERNS.index(spec.pattern), "pan_x": 44.0 * dx, "pan_y": 44.0 * dy, "zoom": zoom}


def _clouds(x: Tensor, y: Tensor) -> Tensor:
    total = torch.zeros_like(x + y)
    for angle, wave, phase in _CLOUDS:
        total = total + torch.cos(2 * math.pi * ((x * math.cos(angle) + y * math.sin(angle)) / wave + phase))
    return torch.sigmoid(total * 1.2)


def _background(specs: list[ClipSpec], scene: dict[str, Tensor], time: Tensor, size: int) -> Tensor:
    device = time.device
    grid_x, grid_y = _grid(size, device)
    zoom = scene["zoom"] ** (time - 0.5)
    x = grid_x / zoom + scene["pan_x"] * (time - 0.5)
    y = grid_y / zoom + scene["pan_y"] * (time - 0.5)
    period = 26.0
    smooth = 0.5 + 0.5 * torch.cos(2 * math.pi * (x * 0.5 + y) / 230)
    stripes = coverage(torch.sin(2 * math.pi * (x + y) / (1.5 * period)) * (1.5 * period / (2 * math.pi * 1.42)), 1.6)
    cell_x, cell_y = torch.remainder(x, period) - period / 2, torch.remainder(y, period) - period / 2
    dots = coverage(torch.sqrt(cell_x.square() + cell_y.square()) - 6.0, 1.6)
    grid = coverage(period / 2 - torch.maximum(cell_x.abs(), cell_y.abs()) - 1.8, 1.6)
    share = smooth
    for name, field in (("striped", stripes), ("dotted", dots), ("grid", grid), ("cloudy", _clouds(x, y))):
        share = torch.where(scene["kind"] == PATTERNS.index(name), field, share)
    base = torch.tensor([_BACKDROP_RGB[spec.backdrop] for spec in specs], device=device).view(-1, 3, 1, 1, 1)
    return torch.lerp(base * 0.84, (base * 1.22 + 0.04).clamp(0, 1), share.unsqueeze(1))


def render(
    specs: list[ClipSpec],
    rng: random.Random,
    device: torch.device | str = "cpu",
    frames: int = FRAMES,
    size: int = SIZE,
) -> Tensor:
    """Render specs to a float tensor (clip, 3, frames, size, size) with values in [-1, 1].

    A smaller `size` shows the same picture more coarsely and fewer `frames` sample the same motion more sparsely,
    which is what quick tests want.
    """
    device = torch.device(device)
    time = torch.linspace(0, 1, frames, device=device).view(1, -1, 1, 1)
    zooms = [{"in": 1.25, "out": 0.8}.get(spec.camera, 1.0) for spec in specs]
    mains = [_path(spec.main, rng, zoom) for spec, zoom in zip(specs, zooms, strict=True)]
    others = [_path(spec.other or spec.main, rng, zoom) for spec, zoom in zip(specs, zooms, strict=True)]
    for spec, main, other in zip(specs, mains, others, strict=True):
        if spec.other is not None:
            _separate(main, other, rng)
    scene = _columns([_scene(spec) for spec in specs], device)
    video = _background(specs, scene, time, size)
    paths = _columns(mains, device), _columns(others, device)
    for order in ("behind", "main", "front"):
        rows = [i for i, spec in enumerate(specs) if order == "main" or (spec.other is not None and spec.order == order)]
        if rows:
            chosen = [specs[i] for i in rows]
            items = [spec.other if order != "main" and spec.other else spec.main for spec in chosen]
            path = {key: column[rows] for key, column in paths[order != "main"].items()}
            video[rows] = _paint(video[rows], items, path, time)
    return video.clamp(0, 1) * 2 - 1
