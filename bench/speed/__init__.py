"""How fast the layers are, beside 16 bit and every peer that is installed: kernels, layers, blocks and whole models."""
