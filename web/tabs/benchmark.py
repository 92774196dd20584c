"""The fourth tab: what was measured before, and a small measurement now."""

import base64
import logging
from collections.abc import Iterator
from functools import partial
from html import escape
from typing import Any

import gradio as gr

from ...bench.speed.results import Part
from ...sedialect_core.environment import machine_line
from ...sedialect_core.errors import SeDialectError
from ..kept_results import Quality, read_quality, read_speed
from ..parts import markup, results_charts
from ..server.service import BENCH, BenchResult, Service
from ..server.studio import Progress, Stopped
from .compare import ON_PIPELINE, UNEXPECTED
from .fits import Fits

LOG = logging.getLogger(__name__)
SPEED_PARTS = {"models": "Whole transformers, one step", "blocks": "Transformer blocks", "layers": "Linear layers"}
MANY = 6  # pictures of one kind that are shown unasked
SPEED_SAYS = "Milliseconds, each arm in the faster of its modes, and how many times as fast as BF16. Shorter is better."
QUICK = (
    "The velocity error of a few arms on two evaluation prompts, along a 16-bit trajectory of three steps: a minute or two "
    "on a CPU. It shows how formats are told apart; docs/quality.md has more pairs, and says how many."
)


class BenchmarkTab:
    """The tab's components and what happens in them."""

    def __init__(self, service: Service) -> None:
        self.service = service
        gr.HTML("<h2>Quality</h2>")
        self._quality()
        gr.HTML("<h2>Speed</h2>")
        gr.HTML(measured_speed(read_speed()), elem_id="sd-speed")
        Fits()
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
        self.run.click(self.measure, None, outputs, **ON_PIPELINE)
        self.stop.click(self._stop, queue=False, api_visibility="private")

    def _quality(self) -> None:
        quality = read_quality()
        if quality is None:
            gr.HTML(markup.message("Not measured yet on a GPU for this version: sedialect bench quality"))
            return
        base = next((arm.group for arm in quality.arms if arm.name == quality.base), "")
        first = [group for group in quality.groups if group in ("peers", "presets", base)] or list(quality.groups[:1])
        metrics = [(results_charts.label(metric), metric) for metric in quality.metrics]
        with gr.Row(equal_height=False):
            metric = gr.Radio(metrics, value=metrics[0][1], label="Metric")
            groups = gr.CheckboxGroup(list(quality.groups), value=first, label="Arms")
        picture = gr.HTML(measured_quality(quality, metrics[0][1], first), elem_id="sd-quality")
        for part in (metric, groups):
            part.change(
                partial(measured_quality, quality),
                [metric, groups],
                picture,
                show_progress="hidden",
                trigger_mode="always_last",
                api_visibility="private",
            )

    def measure(self, request: gr.Request) -> Iterator[list[Any]]:
        """The quick bench, on the server's own pipeline."""
        try:
            for news in self.service.quick_bench(self.service.listeners.session_of(request)):
                yield self._done(news) if isinstance(news, BenchResult) else self._running(news)
        except SeDialectError as error:
            yield self._ended(markup.message(f"This did not work: {error}", "error"))
        except Stopped:
            yield self._ended(markup.message("Cancelled."))
        except Exception:  # a bug: it goes to the operator's log, and the visitor can go on
            LOG.exception("the quick bench failed")
            yield self._ended(markup.message(UNEXPECTED, "error"))

    def _stop(self, request: gr.Request) -> None:
        self.service.stop(self.service.listeners.session_of(request), BENCH)

    def _running(self, progress: Progress) -> list[Any]:
        status = markup.progress(progress, ())
        return [status, gr.skip(), gr.skip(), gr.update(interactive=False), gr.update(interactive=True)]

    def _done(self, result: BenchResult) -> list[Any]:
        shown = picture_of(result.picture, "velocity error of each arm")
        return [markup.message("Measured."), shown, result.table, gr.update(interactive=True), gr.update(interactive=False)]

    def _ended(self, status: str) -> list[Any]:
        return [status, gr.skip(), gr.skip(), gr.update(interactive=True), gr.update(interactive=False)]


def measured_quality(quality: Quality, metric: str, groups: list[str]) -> str:
    """One metric of some groups of arms, as a picture and as a table."""
    picture = results_charts.intervals(quality, metric, groups)
    if not picture:
        return markup.message("None of these arms was measured by this metric.")
    says = f"{results_charts.METRICS[metric].better}. " if metric in results_charts.METRICS else ""
    line = f"Dots: means; bars: 95 % bootstrap intervals; dashed: {quality.base}."
    table = markup.table(
        ("", "weight bits", "activation bits", results_charts.label(metric), ""), rows_of(quality, metric, groups), ""
    )
    details = f"<details><summary>As a table</summary>{table}</details>"
    return f"<p>{escape(says.capitalize() + line)}</p>{picture}{details}<p>{escape(quality.conditions)}</p>"


def rows_of(quality: Quality, metric: str, groups: list[str]) -> list[tuple[str, str, str, str, str]]:
    """What the picture shows, in numbers: arm, bits, mean and interval."""
    return [
        (arm.name, f"{arm.weight_bits:.2f}", f"{arm.activation_bits:.2f}", f"{mean:.4g}", f"{low:.4g} to {high:.4g}")
        for arm in quality.arms
        if arm.group in groups and metric in arm.means
        for mean, low, high in [arm.means[metric]]
    ]


def measured_speed(parts: dict[str, Part]) -> str:
    """The results as pictures, with the machine they were measured on."""
    found: list[str] = []
    machines: dict[str, None] = {}
    for name, title in SPEED_PARTS.items():
        part = parts.get(name)
        if part is None:
            continue
        drawn = ((case, results_charts.bars(part, case)) for case in part.cases)
        pictures = [f"<div><h4>{escape(case)}</h4>{picture}</div>" for case, picture in drawn if picture]
        if pictures:
            panels = f'<div class="sd-panels">{"".join(pictures)}</div>'
            many = (
                f"<details><summary>{len(pictures)} shapes</summary>{panels}</details>" if len(pictures) > MANY else panels
            )
            found.append(f"<h3>{escape(title)}</h3>{many}")
            machines[machine_line(part.where, part.where.get("versions", {}))] = None
    if not found:
        return markup.message("Not measured yet on a GPU for this version: sedialect bench speed")
    where = escape(" ".join(machines))
    return f'<section class="sd-step"><p>{escape(SPEED_SAYS)}</p>{"".join(found)}<p>{where}</p></section>'


def picture_of(data: bytes, alt: str) -> str:
    """A PNG in the page; below its readable width it scrolls."""
    source = base64.b64encode(data).decode()
    return f'<div class="sd-scroll"><img class="sd-picture" alt="{escape(alt)}" src="data:image/png;base64,{source}"></div>'
