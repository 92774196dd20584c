"""Videos that say their own frame number in their pixels, and the pages and server that show them to a real browser."""

import functools
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sedialect.sedialect_core.video.mp4 import write_mp4

ROOT = Path(__file__).parents[2]
FRAMES, HEIGHT, WIDTH, FPS, BITS, CELL = 33, 96, 160, 24, 6, 10
LEFT, RIGHT = (40, 70, 200), (200, 60, 40)  # what tells the sides apart
SERIES = [
    {"name": "PSNR", "unit": "dB", "values": [30 + frame / 10 for frame in range(FRAMES)]},
    {"name": "SSIM", "unit": "", "values": [None, *[0.9] * (FRAMES - 1)]},
]

# `read()` gives the frame numbers that stand in the left and the right half of the canvas, as pixels.
PAGE = """<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<link rel="icon" href="data:,"><style>body{margin:8px}</style><div id="box"></div>
<script type="module">
import { createPlayer } from "/js/player.js";
Object.assign(window, { createPlayer, events: [], seen: [] });
window.listen = (box, events) => {
  for (const name of ["ready", "frame", "error"])
    box.addEventListener(`sedialect:${name}`, ({ detail }) => events.push([name, detail.frame ?? detail.message ?? detail]));
};
window.pixel = (x, y, canvas = document.querySelector("canvas")) =>
  [...canvas.getContext("2d").getImageData(x * canvas.width, y * canvas.height, 1, 1).data].slice(0, 3);
window.read = (side) => {
  let number = 0;
  for (let bit = 0; bit < BITS; bit++) {
    const x = (side * WIDTH) / 2 + (bit + 1.5) * CELL, y = HEIGHT - 1.5 * CELL;
    if (pixel(x / WIDTH, y / HEIGHT)[1] > 128) number |= 1 << bit;
  }
  return number;
};
const box = document.querySelector("#box");
listen(box, events);
box.addEventListener("sedialect:frame", ({ detail }) => {
  if (window.watching) seen.push([performance.now(), detail.frame, read(0), read(1)]);
});
const side = (name, label) => ({ src: `/${name}.mp4`, label });
window.options = { left: side("left", "16 bit"), right: side("right", "4 bit"), fps: FPS, frames: FRAMES };
window.open_ = (more = {}) => (window.player = createPlayer(box, { ...options, ...more }));
window.loaded = true;
</script>"""


def clip(colour: tuple[int, int, int], frames: int = FRAMES) -> np.ndarray:
    """Frames [T, H, W, 3] of one colour, with their number in binary at the bottom of either half."""
    video = np.empty((frames, HEIGHT, WIDTH, 3), np.uint8)
    video[:] = colour
    for number in range(frames):
        for half in (0, WIDTH // 2):
            for bit in range(BITS):
                x = half + (bit + 1) * CELL
                video[number, HEIGHT - 2 * CELL : HEIGHT - CELL, x : x + CELL] = 255 if number >> bit & 1 else 0
    return video


def write_videos(folder: Path) -> None:
    """left.mp4, right.mp4, a short one, and files that are none."""
    write_mp4(folder / "left.mp4", clip(LEFT), FPS)
    write_mp4(folder / "right.mp4", clip(RIGHT), FPS)
    write_mp4(folder / "short.mp4", clip(RIGHT, FRAMES - 10), FPS)
    (folder / "text.mp4").write_text("not a video", encoding="utf-8")
    damaged = bytearray((folder / "right.mp4").read_bytes())
    damaged[len(damaged) // 2 :] = b""
    (folder / "half.mp4").write_bytes(damaged)
    names = {"BITS": BITS, "CELL": CELL, "WIDTH": WIDTH, "HEIGHT": HEIGHT, "FPS": FPS, "FRAMES": FRAMES}
    values = "".join(f"const {name} = {value};" for name, value in names.items())
    page = PAGE.replace('<script type="module">', f'<script>{values}</script><script type="module">')
    (folder / "page.html").write_text(page, encoding="utf-8")


class Handler(http.server.SimpleHTTPRequestHandler):
    """A folder of videos, and the player's modules under /js/. Plain: it answers no range requests."""

    def translate_path(self, path: str) -> str:
        """Files of `web/js` or of the folder."""
        name = path.split("?")[0].lstrip("/")
        return str(ROOT / "web" / name) if name.startswith("js/") else super().translate_path(path)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server on the folder."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def start(page: Any, **options: Any) -> None:
    """Show both videos, and wait until they are there."""
    page.evaluate("more => void open_(more)", options)
    page.wait_for_function("events.some(([name]) => name === 'ready')")


def at(page: Any, frame: int) -> None:
    """Wait until this frame is drawn; both halves must say so."""
    page.wait_for_function(f"player.frame === {frame}")
    assert page.evaluate("[read(0), read(1)]") == [frame, frame]


def bluish(pixel: list[int]) -> bool:
    """Whether a pixel is the left video's."""
    return pixel[2] > pixel[0]
