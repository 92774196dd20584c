"""Nodes for the tests alone, in place of text encoder, VAE and eyes: they make inputs, and look into what comes out."""

import os

from comfy_api.latest import ComfyExtension

from . import families, looking, making, recording, timing, writing

ROOMS = (families, looking, making, recording, timing, writing)


class TestExtension(ComfyExtension):
    async def get_node_list(self):
        looking.count_sage()
        return [node for room in ROOMS for node in room.NODES]


async def comfy_entrypoint():
    assert os.environ.get("SEDIALECT_TESTS"), "nodes for tests only"
    return TestExtension()
