"""The video comparer of `js/`, as a Gradio component; the page imports it from its own server."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import FileData
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

SCRIPTS = Path(__file__).parent / "js"
ADDRESS = "sedialect-player"  # under the page's own address
ON_LOAD = f"""
const place = element.querySelector(".sd-player");
let player = null;
async function show() {{
  const given = props.value;
  player?.destroy();
  player = null;
  if (!given) return;
  const {{ createPlayer }} = await import(new URL("{ADDRESS}/player.js", document.baseURI));
  const dark = document.body.classList.contains("dark");
  const side = (file, label) => ({{ src: file.url, label }});
  player = createPlayer(place, {{
    left: side(given.left, given.names[0]), right: side(given.right, given.names[1]),
    fps: given.fps, frames: given.frames, series: given.series,
    theme: dark ? "dark" : "light",
  }});
}}
watch("value", show);
show();
"""


def comparer(**settings: Any) -> gr.HTML:
    """The component; its value is what `shown` gives, or None. No subclass: Gradio writes a .pyi file beside one."""
    template = '<div class="sd-player"></div>'
    return gr.HTML(html_template=template, js_on_load=ON_LOAD, apply_default_css=False, **settings)


def shown(
    left: Path, right: Path, labels: tuple[str, str], fps: float, frames: int, series: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Two videos, their labels, and numbers for each frame to be plotted under them."""
    files = {side: FileData(path=str(path)).model_dump() for side, path in (("left", left), ("right", right))}
    return {**files, "names": list(labels), "fps": fps, "frames": frames, "series": list(series)}


def routes() -> list[Mount]:
    """The route that serves the scripts, and nothing else."""
    return [Mount(f"/{ADDRESS}", StaticFiles(directory=SCRIPTS), name=ADDRESS)]
