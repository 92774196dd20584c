"""The Gradio app: `sedialect app`, or this file run as a script from a clone, as a Hugging Face Space does."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .service import Service

ROOT = Path(__file__).resolve().parents[1]
MAX_UPLOAD = 1  # bytes: the page takes no files, and Gradio's upload route is open all the same


@dataclass(frozen=True)
class Settings:
    """What the operator decides. No visitor can change any of it."""

    model: str | None = None
    """A pipeline's folder, or its name on the Hub; None is the bundled model."""
    host: str = "127.0.0.1"
    port: int = 7860
    share: bool = False
    device: str = "auto"
    dtype: str = "bfloat16"
    offer: tuple[tuple[str, Any], ...] = ()
    """Changes to the model's `Offer`, by name: bounds, defaults, frames a second."""


def launch(settings: Settings, *, block: bool = True) -> tuple[Any, str]:
    """Serve the page. Returns it and its address; with `block`, only when the server is stopped.

    Raises:
        InputError: Gradio is missing, the device is not there, or the port is taken.
    """
    from ..sedialect_core.errors import InputError
    from ..sedialect_core.video import check_codec

    try:
        import gradio  # noqa: F401
    except ImportError:
        raise InputError("the app needs Gradio; install it: pip install 'sedialect[app]'") from None
    check_codec()
    service = make_service(settings)
    os.environ["GRADIO_TEMP_DIR"] = str(service.results.root)  # the one folder that the server shows files of
    from starlette.middleware import Middleware

    from .guard import Guard
    from .page import build
    from .player import routes
    from .theme import STYLE, theme

    page = build(service).queue(max_size=service.offer.waiting, default_concurrency_limit=2)
    service.studio.start_loading()
    try:
        _, address, _ = page.launch(
            server_name=settings.host,
            server_port=settings.port,
            share=settings.share,
            prevent_thread_lock=True,
            quiet=True,
            theme=theme(),
            css_paths=[STYLE],
            footer_links=[],
            max_file_size=MAX_UPLOAD,
            enable_monitoring=False,
            run_history=False,
            ssr_mode=False,
            pwa=False,
            app_kwargs={"routes": routes(), "middleware": [Middleware(Guard)]},
        )
    except OSError as error:
        service.results.remove_all()
        raise InputError(f"cannot serve on {settings.host}:{settings.port} ({error}); choose another --port") from error
    if block:
        print(f"sedialect: {address}", file=sys.stderr, flush=True)
        try:
            page.block_thread()
        finally:
            page.close(verbose=False)
            service.results.remove_all()
    return page, address


def make_service(settings: Settings) -> "Service":
    """The pipeline to be loaded, and what is offered of it."""
    from ..sedialect_core.demo import MODEL
    from ..sedialect_core.sampling import pick_device
    from .limits import Offer, bundled_offer
    from .results import Results
    from .service import Service
    from .studio import Studio

    bundled = settings.model is None
    offer = bundled_offer() if bundled else Offer()
    device = pick_device(settings.device)
    load = _loader(str(MODEL) if settings.model is None else settings.model, settings.dtype, device)
    name = "The bundled tiny Wan model" if bundled else Path(str(settings.model)).name
    return Service(Studio(load), replace(offer, **dict(settings.offer)), Results(), bundled, name)


def _loader(model: str, dtype: str, device: str) -> Callable[[], Any]:
    def load() -> Any:
        import torch

        from ..sedialect_core.sampling import load_pipeline

        return load_pipeline(model, getattr(torch, dtype), device)

    return load


def _run_from_a_clone() -> None:
    """Make the clone that this file lies in the package `sedialect`, whatever its folder is called, and serve."""
    import importlib.util

    place = importlib.util.spec_from_file_location("sedialect", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert place is not None and place.loader is not None
    package = importlib.util.module_from_spec(place)
    sys.modules["sedialect"] = package
    place.loader.exec_module(package)
    app = importlib.import_module("sedialect.web.app")
    model = os.environ.get("SEDIALECT_MODEL")
    app.launch(app.Settings(model=model, host="0.0.0.0", port=int(os.environ.get("PORT", "7860"))))


if __name__ == "__main__":
    _run_from_a_clone()
