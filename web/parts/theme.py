"""Looks: system fonts, so that nothing is fetched from elsewhere, and quiet colours in light and dark."""

from pathlib import Path

import gradio as gr
from gradio.themes.utils.fonts import Font

STYLE = Path(__file__).parents[1] / "style.css"


def theme() -> gr.themes.Base:
    """The theme."""
    return gr.themes.Base(
        primary_hue="indigo",
        neutral_hue="slate",
        radius_size="md",
        font=[Font("system-ui"), Font("-apple-system"), Font("Segoe UI"), Font("sans-serif")],
        font_mono=[Font("ui-monospace"), Font("SFMono-Regular"), Font("Menlo"), Font("monospace")],
    ).set(
        block_shadow="none",
        block_border_width="1px",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_text_color="white",
        block_label_text_weight="500",
    )
