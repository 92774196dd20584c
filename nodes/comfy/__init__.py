"""The nodes' half that touches ComfyUI's internals; no other folder does."""
