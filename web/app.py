"""The Gradio app: `sedialect app`, or this file run as a script from a clone, as a Hugging Face Space does."""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .server.service import Service

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("gradio", "starlette", "torch", "diffusers", "transformers", "av", "PIL")
SESSIONS = 64  # visitors whose last results are remembered
THREADS = 40  # for everything that is quick
MAX_UPLOAD = 1  # bytes: the page takes no files, and Gradio's upload route is open all the same
SHARED = (
    "sedialect: --share leads everybody who has the address to this machine's page: they may make videos with it, one after "
    "another, and see their own results. No password is asked; docs/security.md says what is open"
)
FOLDER = "GRADIO_TEMP_DIR"  # where Gradio looks for the folder that it shows files of


@dataclass(frozen=True)
class Settings:
    """What the operator decides. No visitor can change any of it."""

    model: str | None = None
    """A pipeline's folder, or its name on the Hub; None is the bundled model."""
    host: str = "127.0.0.1"
    port: int = 7860
    share: bool = False
    device: str = "auto"
    dtype: str | None = None
    """None leaves it to a measurement of the device: `compute_dtype`."""
    calibration: str | None = None
    """The folder of one of this model, as `sedialect quantize --calibrate` leaves it."""
    names: tuple[str, ...] = ()
    """Hosts that the page may be asked for by, besides those of the machine that it is bound to."""
    offer: tuple[tuple[str, Any], ...] = ()
    """Changes to the model's `Offer`, by name: bounds, defaults, frames a second."""


@dataclass(frozen=True)
class Served:
    """A page that is served in threads of this process."""

    page: Any
    address: str
    service: "Service"
    folder_before: str | None
    """What Gradio's variable for its folder held before; other servers of this process may need it."""

    def close(self) -> None:
        """End it, and remove all results."""
        self.page.close(verbose=False)
        self.service.results.remove_all()
        _show_files_of(self.folder_before)


def serve(settings: Settings) -> Served:
    """Serve the page, and load the model meanwhile.

    Raises:
        InputError: Gradio or the video encoder is missing, the device is not there, the port is taken, or the folder
            holds no calibration.
    """
    from ..sedialect_core.errors import InputError
    from ..sedialect_core.video.mp4 import check_codec, check_rate

    try:
        from starlette.middleware import Middleware

        from .page import build
        from .parts.theme import STYLE, theme
        from .player import routes
        from .server.guard import Guard, allowed_names
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in NEEDED:
            raise
        raise InputError(f"the app needs {error.name}; install it: pip install 'sedialect[app]'") from None
    check_codec()
    service = make_service(settings)
    check_rate(service.offer.fps)
    names = allowed_names(settings.host, settings.share, settings.names)
    before = os.environ.get(FOLDER)
    _show_files_of(str(service.results.root))
    page = build(service).queue(max_size=2 * service.offer.waiting, default_concurrency_limit=2)
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
            state_session_capacity=SESSIONS,
            max_threads=THREADS + service.offer.waiting,  # each in line keeps one
            enable_monitoring=False,
            run_history=False,
            ssr_mode=False,
            pwa=False,
            app_kwargs={"routes": routes(), "middleware": [Middleware(Guard, names=names)]},
        )
    except OSError as error:
        service.results.remove_all()
        _show_files_of(before)
        raise InputError(f"cannot serve on {settings.host}:{settings.port} ({error}); choose another --port") from error
    service.studio.start_loading()
    return Served(page, address, service, before)


def _show_files_of(folder: str | None) -> None:
    """Tell Gradio the one folder that servers of this process show files of; None: its own."""
    os.environ.pop(FOLDER, None)
    if folder is not None:
        os.environ[FOLDER] = folder


def launch(settings: Settings) -> None:
    """Serve the page until the process is interrupted or asked to end (SIGTERM); visitors' results are removed then.

    Raises:
        InputError: as `serve`.
    """
    signal.signal(signal.SIGTERM, _end)
    served = serve(settings)
    if settings.share:
        print(SHARED, file=sys.stderr)
    print(f"sedialect: {served.address}", file=sys.stderr, flush=True)
    try:
        served.page.block_thread()
    finally:
        served.close()


def _end(*_: object) -> None:
    """Leave as Ctrl-C does, through every `finally`."""
    raise SystemExit(0)


def make_service(settings: Settings) -> "Service":
    """The pipeline to be loaded, and what is offered of it."""
    from ..sedialect_core.calibration.cache import CalibrationCache
    from ..sedialect_core.demo import MODEL
    from ..sedialect_core.video.sampling import pick_device
    from .server.limits import Offer, bundled_offer
    from .server.results import Results
    from .server.service import Service
    from .server.studio import Studio

    bundled = settings.model is None
    offer = replace(bundled_offer() if bundled else Offer(), **dict(settings.offer))
    device = pick_device(settings.device)
    load = _loader(str(MODEL) if settings.model is None else settings.model, settings.dtype, device)
    name = "The bundled tiny Wan model" if bundled else Path(str(settings.model)).name
    calibration = None if settings.calibration is None else CalibrationCache.load(settings.calibration)
    return Service(Studio(load, offer.waiting), offer, Results(), bundled, name, calibration)


def _loader(model: str, dtype: str | None, device: str) -> Callable[[], Any]:
    def load() -> Any:
        from ..sedialect_core.video.compute_dtype import choose_dtype
        from ..sedialect_core.video.sampling import load_pipeline

        return load_pipeline(model, choose_dtype(device, dtype), device)

    return load


def _run_from_a_clone() -> None:
    """Make the clone that this file lies in the package `sedialect`, whatever its folder is called, and run the command."""
    import importlib.util

    place = importlib.util.spec_from_file_location("sedialect", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert place is not None and place.loader is not None
    package = importlib.util.module_from_spec(place)
    sys.modules["sedialect"] = package
    place.loader.exec_module(package)
    cli = importlib.import_module("sedialect.cli.main")
    model = os.environ.get("SEDIALECT_MODEL")
    options = ["--host", "0.0.0.0", "--port", os.environ.get("PORT", "7860"), *(["--model", model] if model else [])]
    sys.exit(cli.main(["app", *options]))


if __name__ == "__main__":
    _run_from_a_clone()
