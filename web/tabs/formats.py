"""The second tab: the formatbook drawn, and one block encoded before your eyes, beside MXFP4 and NVFP4."""

import base64
import re
import tempfile
from collections.abc import Mapping
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from ...bench.peers import formats as peers
from ...sedialect_core.charts.dialects import Use, draw
from ...sedialect_core.charts.use import use_by_gaussian_blocks
from ...sedialect_core.codec import encode
from ...sedialect_core.codec.steps import BlockSteps, explain
from ...sedialect_core.config import SeDialectConfig
from ...sedialect_core.errors import InputError, SeDialectError, shown
from ...sedialect_core.formatbook import Formatbook
from ...sedialect_core.formatbook.book import builtin_names
from ...sedialect_core.settings.table import BLOCK_SIZES
from ..parts import charts, markup
from ..server.service import Service

MAX_CHARACTERS, MAX_NUMBERS = 8000, 512
EXAMPLE = "0.9 -0.4 0.05 1.3 -2.6 0.7 0.2 -0.1 0.33 -0.8 1.1 -0.02 3.7 -1.5 0.6 0.15"
DEFAULT_BOOK = SeDialectConfig().formatbook
PASTED = "numbers below"
SHOWN = 10  # candidates that are drawn, the best first
ROLES = {"activation": "max", "weight": "all"}  # and what each chooses from


class FormatsTab:
    """The tab's components and what happens in them."""

    def __init__(self, service: Service) -> None:
        self.service = service
        with gr.Row(equal_height=False, elem_classes="sd-columns"):
            with gr.Column(scale=4, min_width=320):
                self.source = gr.Dropdown(
                    [PASTED], value=PASTED, label="Take them from", info="or a piece of a layer's weight"
                )
                self.numbers = gr.Textbox(EXAMPLE, label="Numbers", lines=3, max_length=MAX_CHARACTERS)
                with gr.Row():
                    self.role = gr.Radio(list(ROLES), value="activation", label="Encoded as", min_width=200)
                    self.block_size = gr.Radio(list(BLOCK_SIZES), value=16, label="Block size", min_width=140)
                with gr.Row():
                    self.row = gr.Number(0, label="Row", precision=0, minimum=0, min_width=90)
                    self.block = gr.Number(0, label="Block", precision=0, minimum=0, min_width=90)
                self.book = gr.Dropdown(list(builtin_names()), value=DEFAULT_BOOK, label="Formatbook")
                self.encode = gr.Button("Encode", variant="primary")
            with gr.Column(scale=7, min_width=320):
                self.steps = gr.HTML(
                    self.explained(PASTED, EXAMPLE, "activation", 16, 0, 0, DEFAULT_BOOK), elem_id="sd-steps"
                )
        with gr.Accordion(
            "The formatbook: every dialect, and how often Gaussian blocks choose it", open=False
        ) as self.shelf:
            self.chart = gr.HTML(elem_id="sd-book")
        self._wire()

    def _wire(self) -> None:
        inputs = [self.source, self.numbers, self.role, self.block_size, self.row, self.block, self.book]
        quick = {"outputs": self.steps, "show_progress": "hidden", "concurrency_limit": 2}
        self.encode.click(self.explained, inputs, api_name="encode_block", **quick)
        for part in (self.source, self.role, self.block_size, self.book, self.row, self.block):
            part.input(self.explained, inputs, api_visibility="private", trigger_mode="always_last", **quick)
        gr.on([self.shelf.expand, self.book.change], book_picture, self.book, self.chart, api_visibility="private")

    def layers(self) -> Any:
        """The choice of layers, once the model is there."""
        return gr.update(choices=[PASTED, *self.service.studio.weights])

    def explained(self, source: str, numbers: str, role: str, block_size: int, row: float, block: float, book: str) -> str:
        """The steps of one block as HTML, or what is wrong with the inputs."""
        try:
            if str(role) not in ROLES or str(book) not in builtin_names():
                raise InputError(f"no role {shown(role)} or formatbook {shown(book)} is offered here")
            x = parse(numbers) if source == PASTED else self._weight(str(source))
            size, places = _whole("block_size", block_size), (_whole("row", row), _whole("block", block))
            return steps_of(x, role, size, *places, Formatbook.builtin(book))
        except SeDialectError as error:
            return markup.message(str(error), "error")

    def _weight(self, layer: str) -> torch.Tensor:
        weights: Mapping[str, torch.Tensor] = self.service.studio.weights
        if layer not in weights:
            raise InputError(f"no layer {shown(layer)}; the model may still be loading: choose again in a moment")
        return weights[layer].float()


def _whole(name: str, value: Any) -> int:
    """A number from a field, or from a caller of the API, who may send anything."""
    try:
        return int(value or 0)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} is {shown(value)}; give a whole number") from None


def parse(numbers: str) -> torch.Tensor:
    """Numbers separated by anything that is no number, as one row [1, K].

    Raises:
        InputError: there are none, too many, or one is not finite.
    """
    words = re.split(r"[\s,;\[\]()]+", str(numbers or "")[:MAX_CHARACTERS].strip())
    words = [word for word in words if word]
    try:
        values = torch.tensor([[float(word) for word in words]], dtype=torch.float32)
    except ValueError as error:
        raise InputError(f"{str(error)[:120]}; give numbers, separated by blanks or commas") from None
    if not words or len(words) > MAX_NUMBERS:
        raise InputError(f"{len(words)} numbers; give 16 to {MAX_NUMBERS}")
    if not bool(values.isfinite().all()):
        raise InputError("a number is infinite, too large for float32, or none; leave it out")
    return values


def steps_of(x: torch.Tensor, role: str, block_size: int, row: int, block: int, book: Formatbook) -> str:
    """One block of rows x [M, K], encoded and explained."""
    candidates = ROLES[role]
    settings: dict[str, Any] = {"role": role, "candidates": candidates, "name": "the row"}
    encoded = encode(x, formatbook=book, block_size=block_size, **settings)
    steps = explain(x, encoded, row, block, candidates)
    return "".join(
        (_scaled(steps), _choice(steps, book, role), _written(steps), _beside(x, encoded.dequantize(), row, steps, block))
    )


def _section(number: int, title: str, says: str, body: str) -> str:
    return f'<section class="sd-step"><h3>{number}. {escape(title)}</h3><p>{escape(says)}</p>{body}</section>'


def _scaled(steps: BlockSteps) -> str:
    says = (
        f"The row's scale is {steps.scale:.6g}; the block's own offset, {steps.delta} doublings, lifts its largest "
        "magnitude into 8 to 16. Every magnitude then becomes q, a whole number from 0 to 31."
    )
    rows = [
        ("number", *(f"{value:.4g}" for value in steps.values)),
        ("lifted", *(f"{value:.2f}" for value in steps.lifted)),
        ("q", *map(str, steps.q)),
    ]
    return _section(1, "Scale, and a 5-bit view", says, markup.table([""] * len(rows[0]), rows, ""))


def _choice(steps: BlockSteps, book: Formatbook, role: str) -> str:
    unit = "tabled error" if role == "activation" else "squared error"
    best = sorted(steps.candidates, key=lambda candidate: (candidate.error, candidate.dialect))
    says = f"{len(best)} dialects are compared by their {unit}, summed over the block. Dialect {steps.dialect} is chosen" + (
        f"; the best {SHOWN} are drawn." if len(best) > SHOWN else "."
    )
    best = best[:SHOWN]
    top = max(candidate.error for candidate in best) or 1.0
    left, bar = 60, 400
    parts = [charts.text(left + charts.STRIP * unit_, 12, str(unit_), "middle", "sd-small") for unit_ in range(charts.UNITS)]
    for place, candidate in enumerate(best):
        y, chosen = 30 + 24 * place, candidate.dialect == steps.dialect
        shape = candidate.dialect % book.shapes
        parts.append(charts.text(40, y + 4, str(candidate.dialect), "end", "sd-chosen" if chosen else ""))
        parts.append(charts.dialect_strip(book.dialects[candidate.dialect], y, left, shape, chosen))
        parts.append(
            charts.rect(bar, y - 7, 170 * candidate.error / top, 14, f"sd-shape-{shape}" + ("" if chosen else " sd-faint"))
        )
        parts.append(charts.text(bar + 176 * candidate.error / top + 6, y + 4, f"{candidate.error:.4g}"))
    return _section(2, "Choose a dialect", says, charts.svg(640, 30 + 24 * len(best), "".join(parts), says, least=560))


def _written(steps: BlockSteps) -> str:
    says = (
        "A sign and one of the dialect's eight magnitudes for each number: 4 bits. Outlined: given. Line: what is decoded."
    )
    rows = [
        ("magnitude", *map(str, steps.magnitudes)),
        ("decoded", *(f"{value:.4g}" for value in steps.decoded)),
    ]
    picture = charts.signed_bars(steps.values, steps.decoded, "given and decoded numbers")
    return _section(3, "Write 4-bit codes", says, picture + markup.table([""] * len(rows[0]), rows, ""))


def _beside(x: torch.Tensor, ours: torch.Tensor, row: int, steps: BlockSteps, block: int) -> str:
    size = len(steps.values)
    part = slice(block * size, (block + 1) * size)
    given = x[row, part].double()
    arms = {"SemanticDialect": ours, "MXFP4 (blocks of 32)": peers.mxfp4(x), "NVFP4 (blocks of 16)": peers.nvfp4(x)}
    parts = []
    for name, values in arms.items():
        decoded = values[row, part].double()
        error = float((decoded - given).norm() / given.norm().clamp_min(1e-30))
        parts.append(f"<h4>{escape(name)}: relative error {error:.2%}</h4>")
        parts.append(charts.signed_bars(given.tolist(), decoded.tolist(), f"given numbers and {name}"))
    says = "The same numbers in the two 4-bit formats that hardware knows; their blocks see the same row."
    return _section(4, "Beside MXFP4 and NVFP4", says, "".join(parts))


@cache
def book_picture(name: str) -> str:
    """A built-in book's chart; drawn once."""
    if name not in builtin_names():
        return markup.message(f"no formatbook {str(name)[:40]!r}", "error")
    book = Formatbook.builtin(name)
    with tempfile.TemporaryDirectory() as folder:
        path = draw(book, Use(use_by_gaussian_blocks(book), "Gaussian blocks of 16"), Path(folder) / "book.png")
        data = base64.b64encode(path.read_bytes()).decode()
    alt = f"the {len(book.dialects)} dialects of {name} and how often each is chosen"
    return f'<div class="sd-scroll"><img class="sd-picture" alt="{escape(alt)}" src="data:image/png;base64,{data}"></div>'
