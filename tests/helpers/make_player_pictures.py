"""Writes docs/player-wipe.png and docs/player-difference.png: `python tests/helpers/make_player_pictures.py FOLDER`.

FOLDER is what `sedialect demo` wrote. The curves are computed here from both videos' pixels.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import av
import numpy as np
from browser import chromium
from player_pages import served

from sedialect.sedialect_core.video.metrics import fidelity

DOCS = Path(__file__).parents[2] / "docs"
PAGE = """<!doctype html><style>body { margin: 16px; width: 868px }</style><div id="box"></div>
<script type="module">
import { createPlayer } from "/js/player.js";
window.show = (options) => new Promise((done) => {
  box.addEventListener("sedialect:ready", done, { once: true });
  window.player = createPlayer(box, options);
});
</script>"""


def frames_of(path: Path) -> tuple[np.ndarray, float]:
    """All frames [T, H, W, 3] of a video, and its frames a second."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]), float(stream.average_rate)


def options_for(folder: Path) -> dict:
    """What the player is given, but for its theme."""
    (left, fps), (right, _) = (frames_of(folder / name) for name in ("16-bit.mp4", "quantized.mp4"))
    near = [fidelity(one[None], other[None]) for one, other in zip(right, left, strict=True)]
    series = [
        {"name": "PSNR", "unit": "dB", "values": [one.psnr for one in near]},
        {"name": "SSIM", "unit": "", "values": [one.ssim for one in near]},
    ]
    sides = {
        "left": {"src": "/16-bit.mp4", "label": "16 bit"},
        "right": {"src": "/quantized.mp4", "label": "SemanticDialect, 4 bit"},
    }
    return {**sides, "fps": fps, "frames": len(left), "series": series}


def main(folder: Path) -> None:
    """Open the player on the folder's videos and photograph it twice."""
    options = options_for(folder)
    with tempfile.TemporaryDirectory() as place, served(Path(place)) as url, chromium() as browser:
        for name in ("16-bit.mp4", "quantized.mp4"):
            shutil.copy(folder / name, place)
        Path(place, "page.html").write_text(PAGE, encoding="utf-8")
        for name, theme, button in (("wipe", "light", "Wipe"), ("difference", "dark", "Difference")):
            page = browser.new_page(viewport={"width": 900, "height": 620})
            page.goto(f"{url}/page.html")
            page.evaluate("options => show(options).then(() => {})", {**options, "theme": theme})
            page.get_by_role("button", name=button).click()
            page.evaluate(f"player.seek({options['frames'] // 2})")
            page.wait_for_function(f"player.frame === {options['frames'] // 2}")
            page.mouse.move(0, 0)
            page.locator(".sedialect-player").screenshot(path=DOCS / f"player-{name}.png")
            page.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
