"""The third tab: what the last run did, layer by layer and step by step, as pictures."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr
import numpy as np

from ...sedialect_core.charts.trace import LayerStep, Trace
from ...sedialect_core.errors import SeDialectError
from ..parts import charts, heat, markup
from ..server.service import LOOK, Finished, Inside, Service
from ..server.studio import Progress, Stopped
from .compare import ON_PIPELINE, UNEXPECTED

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class MapKind:
    """How a map of a `LayerStep` is shown: as heat, or as colours of its own for numbers that only name things."""

    title: str
    says: str
    names: bool = False


MAPS = {
    "error": MapKind("Encoding error of each token", "bright: 4 bits lose more of what the layer reads there"),
    "saliency": MapKind("Saliency", "bright: receives more attention; such tokens get a second term"),
    "group": MapKind("Token groups", "one colour a group; grey tokens are on their own", names=True),
    "shapes": MapKind(
        "Sub-formatbook of each group", "one colour a set of shapes, the one most of its blocks took", names=True
    ),
}
NO_GROUPS = "every token of this layer's input is on its own at this step: none is near enough to an anchor"
START = "Generate a pair of videos in the first tab; then look inside its quantized half here."


class InsideTab:
    """The tab's components and what happens in them."""

    def __init__(self, service: Service, finished: gr.State) -> None:
        self.service, self.finished = service, finished
        self.semantics = gr.Checkbox(
            False,
            label="With saliency and groups",
            info="of a run that went without them, too: a tenth of the tokens gets a second term, by the attention they "
            "receive, and tokens whose cosine with their anchor is at least 0.9 share a sub-formatbook",
        )
        with gr.Row():
            self.run = gr.Button("Look inside the last run", variant="primary", scale=2, min_width=220, elem_id="sd-look")
            self.stop = gr.Button("Cancel", variant="stop", scale=1, min_width=90, interactive=False)
        self.status = gr.HTML(markup.message(START), elem_id="sd-inside-status")
        with gr.Column(visible=False) as self.pictures:
            with gr.Row():
                self.block = gr.Dropdown([], label="Block", min_width=160)
                self.layer = gr.Dropdown([], label="Layer", min_width=160)
                self.step = gr.Slider(1, 2, 1, step=1, label="Step", min_width=200)
            self.shown = gr.HTML(elem_id="sd-inside")
        self._wire()

    def _wire(self) -> None:
        outputs = [
            self.status,
            self.pictures,
            self.block,
            self.layer,
            self.step,
            self.shown,
            self.run,
            self.stop,
        ]
        self.run.click(self.look, [self.finished, self.semantics], outputs, **ON_PIPELINE)
        self.stop.click(self._stop, queue=False, api_visibility="private")
        self.block.input(self._layers, [self.block, self.layer], self.layer, api_visibility="private").then(
            self.picture, [self.block, self.layer, self.step], self.shown, api_visibility="private"
        )
        for part in (self.layer.input, self.step.input):
            part(
                self.picture,
                [self.block, self.layer, self.step],
                self.shown,
                trigger_mode="always_last",
                show_progress="hidden",
                api_visibility="private",
            )

    def look(self, request: gr.Request, finished: Finished | None, semantics: bool) -> Iterator[list[Any]]:
        """Make the quantized video of the last run again, and note what its layers do."""
        if finished is None:
            yield self._ended(START, "error")
            return
        try:
            for news in self.service.look_inside(self.service.listeners.session_of(request), finished, semantics):
                yield self._done(news) if isinstance(news, Inside) else self._running(news)
        except SeDialectError as error:
            yield self._ended(f"This did not work: {error}", "error")
        except Stopped:
            yield self._ended("Cancelled.")
        except Exception:  # a bug: it goes to the operator's log, and the visitor can go on
            LOG.exception("looking inside failed")
            yield self._ended(UNEXPECTED, "error")

    def _stop(self, request: gr.Request) -> None:
        self.service.stop(self.service.listeners.session_of(request), LOOK)

    def _running(self, progress: Progress) -> list[Any]:
        status = markup.progress(progress, ())
        return [status, *[gr.skip()] * 5, gr.update(interactive=False), gr.update(interactive=True)]

    def _ended(self, text: str, kind: str = "note") -> list[Any]:
        return [markup.message(text, kind), *[gr.skip()] * 5, gr.update(interactive=True), gr.update(interactive=False)]

    def _done(self, inside: Inside) -> list[Any]:
        blocks, steps = blocks_of(inside.trace), inside.steps
        block, layer, step = most_telling(inside.trace)
        status = (
            f"{inside.title}: every number that its {len(inside.trace.weights)} quantized layers read, in {steps} steps."
        )
        return [
            markup.message(status),
            gr.update(visible=True),
            gr.update(choices=list(blocks), value=block),
            gr.update(choices=blocks[block], value=layer),
            gr.update(maximum=max(2, steps), value=step),
            pictures_of(inside, block, layer, step),
            gr.update(interactive=True),
            gr.update(interactive=False),
        ]

    def _layers(self, request: gr.Request, block: str, layer: str) -> Any:
        inside = self.service.insides.get(self.service.listeners.session_of(request))
        choices = blocks_of(inside.trace).get(block, []) if inside else []
        return gr.update(choices=choices, value=layer if layer in choices else next(iter(choices), None))

    def picture(self, request: gr.Request, block: str, layer: str, step: float) -> str:
        """One layer at one step of the visitor's last look."""
        inside = self.service.insides.get(self.service.listeners.session_of(request))
        if inside is None:
            return markup.message("This has been put away; look inside again.")
        return pictures_of(inside, block, layer, step)


def pictures_of(inside: Inside, block: str, layer: str, step: float) -> str:
    """One layer at one step."""
    name = component_of(inside.trace) + ".".join(part for part in (block, layer) if part)
    if name not in inside.trace.weights:
        return markup.message("Choose a block and a layer.")
    recorded = inside.trace.steps.get(name, [])
    place = min(max(1, int(step or 1)), len(recorded)) - 1
    maps, dialects = [], []
    if recorded:
        maps = evidence_pictures(recorded[place], inside)
        title = f"Dialects that its activations chose in step {place + 1}"
        dialects = [histogram(recorded[place].counts, inside, title), over_steps(inside.trace, name, place)]
    dialects.append(histogram(inside.trace.weights[name], inside, "Dialects of its weights"))
    columns = ("".join(maps) or _not_encoded(inside), "".join(dialects))
    return '<div class="sd-inside">' + "".join(f"<div>{column}</div>" for column in columns) + "</div>"


def evidence_pictures(step: LayerStep, inside: Inside) -> list[str]:
    """Every map of a step over the frames of the video. A new kind of map needs an entry in MAPS, and nothing here."""
    found = []
    for name, values in step.maps.items():
        kind = MAPS[name]
        pictures = heat.named(values) if kind.names else heat.pictures(values)
        strip = heat.strip(inside.thumbnails, pictures, f"{kind.title}, frame") + (
            legend(values) if name == "shapes" else ""
        )
        says = kind.says if not kind.names else f"{kind.says}; {grouped(values):.0%} of the tokens are in groups"
        found.append(_part(kind.title, says if not kind.names or grouped(values) else NO_GROUPS, strip))
    return found or [
        _part("Maps", "This layer reads text, or what is no map of the video: there is nothing to see in frames.", "")
    ]


def legend(sets: heat.Numbers) -> str:
    """The colour of each set of shapes, which is a number whose bits are the shapes."""
    found = sorted({int(one) for one in sets.flat if one >= 0})
    names = [" and ".join(str(shape) for shape in range(one.bit_length()) if one >> shape & 1) for one in found]
    chips = [
        f'<span><i style="background:{heat.colour_of(one)}"></i>shapes {name}</span>'
        for one, name in zip(found, names, strict=True)
    ]
    return f'<p class="sd-legend">{"".join(chips)}</p>'


def histogram(counts: list[int], inside: Inside, title: str) -> str:
    """How often each dialect was chosen; colours are shapes."""
    total = max(1, sum(counts))
    kinds = [f"sd-shape-{number % inside.shapes}" for number in range(len(counts))]
    labels = [str(number) for number in range(len(counts))]
    says = "Per cent of blocks, by dialect id; four neighbours share a maximum, from 15 half-units down to 8."
    return _part(title, says, charts.shares([count / total for count in counts], labels, kinds, title))


def over_steps(trace: Trace, layer: str, place: int) -> str:
    """Every dialect at every step of a layer, as heat; the chosen step is marked."""
    counts = np.array([step.counts for step in trace.steps[layer]], dtype=float)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    says = "Left to right: steps, from noise to video. Top to bottom: dialects, from 0."
    picture = heat.matrix(shares.T, place, "share of each dialect at each step")
    return _part("Dialects over the steps", says, picture)


def blocks_of(trace: Trace) -> dict[str, list[str]]:
    """Layers by the block they lie in."""
    found: dict[str, list[str]] = {}
    for name in trace.weights:
        block, layer = place_of(name.removeprefix(component_of(trace)))
        found.setdefault(block, []).append(layer)
    return found


def place_of(name: str) -> tuple[str, str]:
    """A layer's block, everything up to the first number of its name, and the rest."""
    parts = name.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdigit()), 0)
    return ".".join(parts[: number + 1]), ".".join(parts[number + 1 :])


def most_telling(trace: Trace) -> tuple[str, str, int]:
    """Block, layer and step, from 1, with the most tokens in groups; half-way in the first layer where there are none."""
    steps = max(1, max(map(len, trace.steps.values()), default=1))
    share, name, step = 0.0, next(iter(trace.weights)), max(1, steps // 2)
    for layer, recorded in trace.steps.items():
        for number, one in enumerate(recorded, 1):
            found = grouped(one.maps["group"]) if "group" in one.maps else 0.0
            if found > share:
                share, name, step = found, layer, number
    return *place_of(name.removeprefix(component_of(trace))), step


def grouped(groups: heat.Numbers) -> float:
    """The part of the tokens of a map of groups, or of what groups took, that is in one."""
    return float((groups >= 0).mean())


def component_of(trace: Trace) -> str:
    """What the names of all layers begin with, where there is one transformer alone: it need not be shown."""
    components = {name.partition(".")[0] for name in trace.weights}
    return f"{components.pop()}." if len(components) == 1 else ""


def _not_encoded(inside: Inside) -> str:
    return markup.message(f"{inside.title} leaves the inputs of this layer out of the dialects; its weights are in them.")


def _part(title: str, says: str, body: str) -> str:
    return f'<section class="sd-step"><h3>{escape(title)}</h3><p>{escape(says)}</p>{body}</section>'
