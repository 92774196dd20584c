"""What fits a card: a public model and the memory of a card in, what to quantize and where models lie out."""

from functools import lru_cache
from html import escape

import gradio as gr

from ...sedialect_core.config import SeDialectConfig
from ...sedialect_core.errors import SeDialectError
from ...sedialect_core.footprint.fitted import fitted
from ...sedialect_core.footprint.memory import CARDS, Estimator
from ...sedialect_core.footprint.outline import known_models, outline_of
from ..parts import markup

PRESET = "quality"
SAYS = (
    "The whole pipeline counted, text encoder and autoencoder included: what is quantized, and what lies on the GPU when. "
    "Worked out from the model's configuration; in Python it is pipe.enable_sedialect(fit=…)."
)


class Fits:
    """A model, a card, and the answer."""

    def __init__(self) -> None:
        names = [(entry["name"], name) for name, entry in known_models().items()]
        gr.HTML(f"<h2>What fits a card</h2><p>{escape(SAYS)}</p>")
        with gr.Row():
            model = gr.Dropdown(names, value=names[1][1], label="Model")
            card = gr.Radio([(f"{size} GB", size) for size in CARDS], value=12, label="Memory of the card")
        answer = gr.HTML(elem_id="sd-fits")
        for part in (model, card):
            part.change(what_fits, [model, card], answer, show_progress="minimal", api_visibility="private")


def what_fits(model: str, card: int) -> str:
    """The answer as HTML; names and sizes that are not offered are refused."""
    if model not in known_models() or card not in CARDS:
        return markup.message("Choose one of the models and cards.", "error")
    return _answer(model, int(card))


@lru_cache(maxsize=128)
def _answer(model: str, card: int) -> str:
    try:
        choice = fitted(_estimator(model), card, SeDialectConfig.preset(PRESET))
    except SeDialectError as error:
        return markup.message(str(error))
    return f"<pre class='sd-scroll'>{escape(str(choice))}</pre>"


@lru_cache(maxsize=4)
def _estimator(model: str) -> Estimator:
    return Estimator(outline_of(model))
