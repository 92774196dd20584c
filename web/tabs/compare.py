"""The first tab: one prompt, one noise, two videos under one slider, and the numbers between them."""

import logging
from collections.abc import Iterator
from html import escape
from typing import Any

import gradio as gr

from ...sedialect_core.config import PRESETS, SeDialectConfig
from ...sedialect_core.errors import SeDialectError
from ...sedialect_core.settings import MORE, LayerPrecisions, Number, Numbers, Setting, Switch
from ..parts import markup
from ..player import comparer, shown
from ..server.limits import MAX_FRAGMENTS, OFFERED, Offer, choices_of, shown_value
from ..server.service import CALIBRATED, COMPARE, GLANCED, NOT_CALIBRATED, SIXTEEN, Finished, Service
from ..server.studio import Progress, Stopped

LOG = logging.getLogger(__name__)
UNEXPECTED = "This failed inside the server, which has written down why. Try again, or with other settings."
# Of everything that needs the pipeline. The studio makes one run at a time and has the line, so that each visitor sees the
# place in it and can leave it; Gradio's own line would show neither. Nor is its `cancels` of use: what a run had told
# before may reach the page after it, and would stay there.
ON_PIPELINE: dict[str, Any] = {
    "concurrency_limit": None,
    "show_progress": "hidden",
    "trigger_mode": "once",
    "api_visibility": "private",
}
SHOW_STATUS = """() => {
  const block = innerWidth < 700 ? "start" : "nearest";  // on a phone what grows there is wanted, and the inputs are not
  document.querySelector("#sd-status").scrollIntoView({ behavior: "smooth", block });
}"""
PRESETS_SAY = (
    "default: second terms for a quarter of the tokens; plain: the block format alone; compact: blocks of 32; "
    "quality: 8-bit activations; weight-only: 16-bit activations"
)
CALIBRATIONS = {NOT_CALIBRATED: "None", GLANCED: "A glance", CALIBRATED: "Calibrated weights"}
HEAD = ("", "16 bit", "quantized", "")
DOWNLOADS = ("Download 16 bit", "Download quantized", "Download both", "Download numbers")


class CompareTab:
    """The tab's components and what happens in them.

    Attributes:
        finished: the visitor's last result, a `Finished`, for the other tabs.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.finished = gr.State(None)
        with gr.Row(equal_height=False, elem_classes="sd-columns"):
            with gr.Column(scale=4, min_width=320):
                self._inputs(service.offer)
            with gr.Column(scale=7, min_width=320):
                self._outputs()
        self._wire()

    def _inputs(self, offer: Offer) -> None:
        self.prompt = gr.Textbox(offer.prompt, label="Prompt", lines=3, max_length=offer.prompt_characters)
        with gr.Row():
            self.run = gr.Button("Generate both videos", variant="primary", scale=3, elem_id="sd-run")
            self.stop = gr.Button("Cancel", variant="stop", scale=1, min_width=90, interactive=False, elem_id="sd-stop")
        with gr.Row():
            self.seed = gr.Number(offer.seed, label="Seed", precision=0, minimum=0, min_width=120)
            self.steps = gr.Slider(1, offer.max_steps, offer.steps, step=1, label="Steps", min_width=160)
        self.preset = gr.Radio(list(PRESETS), value="default", label="Preset of the quantized video", info=PRESETS_SAY)
        choices = [(label, name) for name, label in CALIBRATIONS.items() if name in self.service.calibrations]
        self.calibration = gr.Radio(
            choices, value=NOT_CALIBRATED, label="Calibration", info=self._calibration_words(), elem_id="sd-calibration"
        )
        with gr.Accordion("Size, guidance", open=False):
            self._sizes(offer)
        with gr.Accordion("Advanced settings of the quantized video", open=False, elem_id="sd-settings"):
            self._settings()
        if offer.examples:
            gr.Examples([list(example) for example in offer.examples], [self.prompt, self.seed], label="Examples")

    def _calibration_words(self) -> str:
        words = "a glance samples one prompt in 4 steps and scales channels by what the layers read"
        if CALIBRATED not in self.service.calibrations:
            return words
        given = self.service.calibration
        source = "learnt from a few prompts when first asked for" if given is None else given.describe()
        return f"{words}; calibrated weights are rounded for the smallest error of the layers' outputs, {source}"

    def _sizes(self, offer: Offer) -> None:
        hint = None if offer.fixed_sizes else "0 leaves it to the pipeline"
        low = offer.min_side if offer.fixed_sizes else 0
        side = {"step": offer.side_step, "info": hint}
        self.width = gr.Slider(low, offer.max_side, offer.side, label="Width", **side)
        self.height = gr.Slider(low, offer.max_side, offer.side, label="Height", **side)
        least = 5 if offer.frames else 0
        self.frames = gr.Slider(
            least, offer.max_frames, offer.frames, step=offer.frame_step if offer.frames else 1, label="Frames", info=hint
        )
        self.guidance = gr.Slider(0, offer.max_guidance, offer.guidance_scale, step=0.1, label="Guidance")
        self.negative = gr.Textbox("", label="Negative prompt", max_length=offer.prompt_characters)

    def _settings(self) -> None:
        self.settings: dict[str, Any] = {}
        for heading in dict.fromkeys(entry.web for entry in sorted(OFFERED.values(), key=lambda entry: entry.web == MORE)):
            gr.HTML(f"<h3>{escape(heading)}</h3>")
            group = [entry for entry in OFFERED.values() if entry.web == heading]
            switches = [entry for entry in group if isinstance(entry.values, Switch)]
            self.settings |= {entry.name: setting_field(entry) for entry in switches}
            with gr.Row(equal_height=False):  # of fields; in it a switch would have the width of its box alone
                self.settings |= {entry.name: setting_field(entry) for entry in group if entry not in switches}
        self.keep = gr.Textbox(
            "",
            label="Layers left in 16 bit",
            info="parts of layer names, separated by commas, such as attn2 or blocks.0.",
            max_length=MAX_FRAGMENTS,
        )

    def _outputs(self) -> None:
        self.status = gr.HTML(self.greeting(), elem_id="sd-status")
        with gr.Column(visible=False) as self.result:
            self.player = comparer(elem_id="sd-compare")
            with gr.Row(elem_classes="sd-downloads"):
                self.files = [gr.DownloadButton(label, size="sm", min_width=120) for label in DOWNLOADS]
            self.numbers = gr.HTML(elem_id="sd-numbers")

    def greeting(self) -> str:
        """What a visitor finds at first: what this is, or why it cannot work."""
        if self.service.studio.failed:
            return markup.message(
                f"The model is not there: {self.service.studio.failed}. The next run tries again.", "error"
            )
        return markup.message(
            f"{self.service.name}: the same prompt and the same noise, once in 16 bit and once quantized with "
            "SemanticDialect. Both videos appear here under one slider."
        )

    def _wire(self) -> None:
        settings = list(self.settings.values())
        asked = [self.prompt, self.negative, self.seed, self.steps, self.guidance, self.width, self.height, self.frames]
        outputs = [self.status, self.result, self.player, self.numbers, *self.files, self.finished, self.run, self.stop]
        self.preset.change(self._preset_values, self.preset, settings, queue=False, api_visibility="private")
        self.run.click(None, js=SHOW_STATUS)  # events of one click wait for one another: first, or it scrolls at the end
        self.run.click(
            self.compare,
            [self.finished, *asked, self.preset, self.keep, self.calibration, *settings],
            outputs,
            api_name="page_compare",
            **ON_PIPELINE,
        )
        self.prompt.submit(None, js="() => document.querySelector('#sd-run')?.click()")
        self.stop.click(self._stop, queue=False, api_visibility="private")

    def _preset_values(self, preset: str) -> list[Any]:
        config = SeDialectConfig.preset(preset)
        entries = [OFFERED[name] for name in self.settings]
        own = [isinstance(entry.values, LayerPrecisions) for entry in entries]  # the visitor's, whatever the preset
        return [gr.skip() if kept else shown_value(config, entry) for kept, entry in zip(own, entries, strict=True)]

    def compare(self, request: gr.Request, last: Finished | None, *values: Any) -> Iterator[list[Any]]:
        """Generate, and fill the right side as it goes; what ends without a result shows the last one again."""
        names = ("prompt", "negative_prompt", "seed", "steps", "guidance_scale", "width", "height", "num_frames")
        asked, (preset, keep, calibration, *rest) = dict(zip(names, values, strict=False)), values[len(names) :]
        settings = dict(zip(self.settings, rest, strict=True))
        try:
            session = self.service.listeners.session_of(request)
            for news in self.service.compare(session, asked, preset, settings, keep, calibration):
                yield self._finished(news) if isinstance(news, Finished) else self._running(news, settings["precision"])
        except SeDialectError as error:
            yield self._ended(last, markup.message(f"This did not work: {error}", "error"))
        except Stopped:
            yield self._ended(last, markup.message("Cancelled."))
        except Exception:  # a bug: it goes to the operator's log, and the visitor can go on
            LOG.exception("comparison failed")
            yield self._ended(last, markup.message(UNEXPECTED, "error"))

    def _running(self, progress: Progress, precision: str) -> list[Any]:
        status = markup.progress(progress, (SIXTEEN, precision))
        hidden = gr.update(visible=False)
        return [status, hidden, *[gr.skip()] * 7, gr.update(interactive=False), gr.update(interactive=True)]

    def _finished(self, done: Finished) -> list[Any]:
        left, right, *_ = done.files
        series = done.measured.series
        precision = done.config.label
        if done.calibration != NOT_CALIBRATED:
            precision += f", {CALIBRATIONS[done.calibration].lower()}"
        labels = ("16 bit", f"{precision} SemanticDialect")  # narrow players cut the end
        player = shown(left, right, labels, done.fps, len(series[0]["values"]), series)
        caption = f"{done.request.prompt} (seed {done.request.seed}, {done.request.steps} steps)"
        notes = "".join(markup.message(note) for note in done.notes)
        return [
            notes or markup.message("Done. Drag the line, step through the frames, or look at the difference."),
            gr.update(visible=True),
            player,
            markup.table(HEAD, done.rows, caption),
            *map(str, done.files),
            done,
            gr.update(interactive=True),
            gr.update(interactive=False),
        ]

    def _ended(self, last: Finished | None, status: str) -> list[Any]:
        shown = gr.update(visible=last is not None)
        return [status, shown, *[gr.skip()] * 7, gr.update(interactive=True), gr.update(interactive=False)]

    def _stop(self, request: gr.Request) -> None:
        self.service.stop(self.service.listeners.session_of(request), COMPARE)


def setting_field(entry: Setting) -> Any:
    """The field of a setting, with its default in it."""
    value, values, info = shown_value(SeDialectConfig(), entry), entry.values, entry.help
    if isinstance(values, LayerPrecisions):
        info = "parts of layer names with a precision each, such as attn2 = w4a8, blocks.0. = w4a16"  # no visitor's patterns
    shared: dict[str, Any] = {"label": entry.label, "info": info, "min_width": 200}
    if choices := choices_of(entry):
        return gr.Dropdown(list(choices), value=value, **shared)
    if isinstance(values, Numbers | LayerPrecisions):
        return gr.Textbox(value, max_length=MAX_FRAGMENTS, **shared)
    if isinstance(values, Switch):
        return gr.Checkbox(value, **shared)
    if isinstance(values, Number):
        return gr.Number(value, **shared)
    raise TypeError(f"{entry.name} has values that no field holds; give its entry web=''")
