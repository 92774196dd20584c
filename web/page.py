"""The page: its tabs, and the endpoints that programs call."""

import gradio as gr

from .server.endpoints import Endpoints
from .server.service import Service
from .tabs.benchmark import BenchmarkTab
from .tabs.compare import CompareTab
from .tabs.formats import FormatsTab
from .tabs.inside import InsideTab

TITLE = "sedialect"


def build(service: Service) -> gr.Blocks:
    """All tabs, wired to a service."""
    # delete_cache cannot stand in for `Results`: it goes by age alone, and keeps what Gradio itself made.
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as page:
        gr.HTML(
            '<header class="sd-title"><h1>sedialect</h1>'
            "<p>Video diffusion in 4-bit weights and 4-bit activations, beside 16 bit</p></header>"
        )
        with gr.Tabs():
            compare = gr.Tab("Compare")
            with compare:
                first = CompareTab(service)
            inside = gr.Tab("Inside")
            with inside:
                InsideTab(service, first.finished)
            formats = gr.Tab("Formats")
            with formats:
                shelf = FormatsTab(service)
            with gr.Tab("Benchmark"):
                BenchmarkTab(service)
            formats.select(shelf.layers, None, shelf.source, api_visibility="private")
        Endpoints(service)
        page.load(first.greeting, None, first.status, queue=False, show_progress="hidden", api_visibility="private")

        def leave(request: gr.Request) -> None:
            service.left(request.session_hash or "")

        page.unload(leave)
    service.listeners.attach(page)
    return page
