"""What travels between these nodes, and the words that they share."""

from comfy_api.latest import io

CATEGORY = "SeDialect"
FormatbookSocket = io.Custom("SEDIALECT_FORMATBOOK")
CalibrationSocket = io.Custom("SEDIALECT_CALIBRATION")
