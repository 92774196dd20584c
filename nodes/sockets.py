"""What travels between these nodes, and the words that they share."""

import inspect

from comfy_api.latest import io

CATEGORY = "SeDialect"
FormatbookSocket = io.Custom("SEDIALECT_FORMATBOOK")
CalibrationSocket = io.Custom("SEDIALECT_CALIBRATION")
AGAIN = "has_intermediate_output"  # ComfyUI tells a reloaded page what such a node said, although it does not run again
SHOWS_TEXT = {AGAIN: True} if AGAIN in inspect.signature(io.Schema).parameters else {}
"""Of the schema of nodes that say something and end no workflow; older ComfyUIs do not know it."""
