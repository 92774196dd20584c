"""Formatbooks as nodes: built in, from a file, from the Hub, or fitted to a MODEL."""

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io, ui

from ..sedialect_core.charts.dialects import Use, table
from ..sedialect_core.charts.use import use_by_gaussian_blocks
from ..sedialect_core.errors import FormatbookError
from ..sedialect_core.formatbook import Formatbook
from ..sedialect_core.formatbook.book import builtin_names
from ..sedialect_core.settings.table import BLOCK_SIZES
from ..sedialect_core.storage.hub import is_repo_id
from .comfy import model as comfy_model
from .pictures import chart
from .progress import Progress
from .sockets import CATEGORY, SHOWS_TEXT, FormatbookSocket

FOLDER = "sedialect_formatbooks"
FROM_HUB = "(from the Hub repository below)"
FIT = "(fitted to the MODEL below)"


def register_folder() -> None:
    """Make models/sedialect_formatbooks a model folder of ComfyUI, which users may place elsewhere as any other."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))


class SeDialectFormatbook(io.ComfyNode):
    """Gives a formatbook, and shows it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        register_folder()
        files = [name for name in folder_paths.get_filename_list(FOLDER) if name.endswith(".json")]
        return io.Schema(
            node_id="SeDialectFormatbook",
            display_name="SeDialect Formatbook",
            category=CATEGORY,
            description="The set of 4-bit number formats that blocks choose from. Fitting looks at the weights of a MODEL "
            "and takes some minutes; `sedialect formatbook fit` on the command line looks at activations too.",
            search_aliases=["formatbook", "dialects", "number format"],
            **SHOWS_TEXT,
            inputs=[
                io.Combo.Input(
                    "book",
                    options=[*builtin_names(), *files, FROM_HUB, FIT],
                    tooltip="A built-in formatbook, a file in models/sedialect_formatbooks, one from the Hub, or a new one.",
                ),
                io.String.Input(
                    "repository", default="", optional=True, tooltip="A formatbook repository on the Hub, owner/name."
                ),
                io.Model.Input("model", optional=True, tooltip="The 16-bit model that the formatbook is fitted to."),
                io.Combo.Input(
                    "block_size",
                    options=[str(size) for size in BLOCK_SIZES],
                    default=str(BLOCK_SIZES[0]),
                    optional=True,
                    advanced=True,
                    tooltip="Block size for fitting and for the chart: the same as in SeDialect Quantize.",
                ),
            ],
            outputs=[
                FormatbookSocket.Output(display_name="formatbook"),
                io.Image.Output(display_name="chart", tooltip="The dialects and how often Gaussian blocks choose each."),
            ],
        )

    @classmethod
    def validate_inputs(cls, book: str | None = None) -> bool | str:
        """Look for the book before anything runs. Of one input alone, for ComfyUI tells an error once for each."""
        if book is None:  # another node gives it
            return True
        known = book in (FROM_HUB, FIT, *builtin_names()) or folder_paths.get_full_path(FOLDER, book) is not None
        return True if known else f"there is no formatbook {book!r} in models/{FOLDER}; choose another one"

    @classmethod
    def execute(cls, book: str, repository: str = "", model: Any = None, block_size: str = "16") -> io.NodeOutput:
        """Find or fit it."""
        size = int(block_size)
        if book == FIT:
            found = _fitted(model, size)
        else:
            with Progress("loading the formatbook"):
                found = _chosen(book, repository.strip())
        use = Use(use_by_gaussian_blocks(found, size), f"Gaussian blocks of {size}")
        return io.NodeOutput(found, chart(found, use), ui=ui.PreviewText(table(found, use)))


def _chosen(book: str, repository: str) -> Formatbook:
    if book == FROM_HUB and not is_repo_id(repository):
        raise FormatbookError(f"{repository!r} is no repository on the Hub: write owner/name, as in me/my-book")
    if book == FROM_HUB:
        return Formatbook.from_pretrained(repository)
    if book in builtin_names():
        return Formatbook.builtin(book)
    return Formatbook.from_file(folder_paths.get_full_path_or_raise(FOLDER, book))


def _fitted(model: Any, block_size: int) -> Formatbook:
    if model is None:
        raise FormatbookError("fitting needs weights to fit to; connect a 16-bit MODEL to this node")
    with Progress("fitting") as progress:
        return comfy_model.fit(model, block_size, progress)
