"""The fourth tab: what was measured before, and a small measurement now."""

import base64
import logging
import tempfile
from collections.abc import Iterator
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ..sedialect_core.bench.speed.plot import draw as draw_speed
from ..sedialect_core.bench.speed.results import PARTS, read_parts
from ..sedialect_core.errors import SeDialectError
from . import markup
from .compare_tab import MODEL_QUEUE, UNEXPECTED
from .service import BenchResult, Service
from .studio import Progress, Stopped

LOG = logging.getLogger(__name__)
# What `sedialect bench quality --output` and `sedialect bench speed --output` wrote, as it was written.
MEASURED = Path(__file__).parent / "measured"
QUICK = (
    "The velocity error of a few arms on two evaluation prompts, along a 16-bit trajectory of three steps: a minute or two "
    "on a CPU. It shows how formats are told apart; the documents have 64 pairs at every step of twenty."
)


class BenchmarkTab:
    """The tab's components and what happens in them."""

    def __init__(self, service: Service) -> None:
        self.service = service
        gr.HTML("<h2>Quality</h2>")
        picture, table = measured_quality(MEASURED / "quality")
        gr.HTML(picture)
        if table:
            with gr.Accordion("As tables", open=False):
                gr.Markdown(table, elem_classes="sd-wide")
        gr.HTML("<h2>Speed</h2>")
        gr.HTML(measured_speed(MEASURED / "speed"))
        gr.HTML(f"<h2>Measure now</h2><p>{escape(QUICK)}</p>")
        with gr.Row():
            self.run = gr.Button(
                "Run the quick bench", variant="primary", scale=2, min_width=220, interactive=service.bundled
            )
            self.stop = gr.Button("Cancel", variant="stop", scale=1, min_width=90, interactive=False)
        other = "For this model: sedialect bench quality --model PATH --prompts FILE"
        self.status = gr.HTML("" if service.bundled else markup.message(other))
        self.picture = gr.HTML(elem_id="sd-bench")
        self.table = gr.Markdown(elem_classes="sd-wide")
        outputs = [self.status, self.picture, self.table, self.run, self.stop]
        started = self.run.click(
            self.measure,
            None,
            outputs,
            concurrency_limit=1,
            concurrency_id=MODEL_QUEUE,
            show_progress="minimal",
            show_progress_on=self.status,
            trigger_mode="once",
            api_visibility="private",
        )
        self.stop.click(
            lambda: self._ended(markup.message("Cancelled.")),
            None,
            outputs,
            cancels=[started],
            queue=False,
            api_visibility="private",
        )

    def measure(self) -> Iterator[list[Any]]:
        """The quick bench, on the server's own pipeline."""
        try:
            for news in self.service.quick_bench():
                yield self._done(news) if isinstance(news, BenchResult) else self._running(news)
        except SeDialectError as error:
            yield self._ended(markup.message(f"This did not work: {error}", "error"))
        except Stopped:
            yield self._ended(markup.message("Cancelled."))
        except Exception:  # a bug: it goes to the operator's log, and the visitor can go on
            LOG.exception("the quick bench failed")
            yield self._ended(markup.message(UNEXPECTED, "error"))

    def _running(self, progress: Progress) -> list[Any]:
        status = markup.progress(progress, ())
        return [status, gr.skip(), gr.skip(), gr.update(interactive=False), gr.update(interactive=True)]

    def _done(self, result: BenchResult) -> list[Any]:
        shown = picture_of(result.picture, "velocity error of each arm")
        return [markup.message("Measured."), shown, result.table, gr.update(interactive=True), gr.update(interactive=False)]

    def _ended(self, status: str) -> list[Any]:
        return [status, gr.skip(), gr.skip(), gr.update(interactive=True), gr.update(interactive=False)]


def measured_quality(folder: Path) -> tuple[str, str]:
    """The picture and the tables that lie in a folder of results."""
    picture, table = folder / "quality.png", folder / "quality.md"
    if not (picture.is_file() and table.is_file()):
        return markup.message("Not measured yet on a GPU for this version: sedialect bench quality"), ""
    return picture_of(picture.read_bytes(), "how near to 16 bit each arm stays"), table.read_text(encoding="utf-8")


@cache
def measured_speed(folder: Path) -> str:
    """The results that lie in a folder as a picture, with the machine they were measured on."""
    if not any((folder / f"{part}.json").is_file() for part in PARTS):
        return markup.message("Not measured yet on a GPU for this version: sedialect bench speed")
    parts = read_parts([folder])
    machines = sorted({str(part.where.get("device")) for part in parts.values()})
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "speed.png"
        if not draw_speed(parts, path):
            return markup.message("The results hold no layers, blocks or models.")
        return f"<p>{escape(', '.join(machines))}</p>" + picture_of(path.read_bytes(), "milliseconds of each arm")


def picture_of(data: bytes, alt: str) -> str:
    """A PNG in the page; below its readable width it scrolls."""
    source = base64.b64encode(data).decode()
    return f'<div class="sd-scroll"><img class="sd-picture" alt="{escape(alt)}" src="data:image/png;base64,{source}"></div>'
