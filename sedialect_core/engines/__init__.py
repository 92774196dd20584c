"""Servers with model classes of their own, which a saved quantized folder is loaded into: vLLM-Omni."""
