"""The list of nodes. They know neither bits, which are layout.py's, nor ComfyUI's internals, which
the comfy_*.py files alone touch."""

from comfy_api.latest import ComfyExtension, io

from .calibrate import SeDialectCalibrate
from .clip import SeDialectLoadCLIP, SeDialectQuantizeCLIP, SeDialectSaveCLIP
from .compare import SeDialectCompare
from .formatbook import SeDialectFormatbook
from .load_save import SeDialectLoad, SeDialectSave
from .quantize import SeDialectQuantize
from .report import SeDialectReport

NODES = (
    SeDialectQuantize,
    SeDialectLoad,
    SeDialectSave,
    SeDialectFormatbook,
    SeDialectCalibrate,
    SeDialectReport,
    SeDialectCompare,
    SeDialectQuantizeCLIP,
    SeDialectLoadCLIP,
    SeDialectSaveCLIP,
)


class SeDialectExtension(ComfyExtension):
    """What ComfyUI asks for the list of nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All nodes, in the order of a workflow."""
        return list(NODES)
