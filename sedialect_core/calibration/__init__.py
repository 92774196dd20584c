"""The room that runs a 16-bit pipeline to learn from it: what its linears read, and which formatbook suits that best."""

from .fit import FitReport, fit_formatbook

__all__ = ["FitReport", "fit_formatbook"]
