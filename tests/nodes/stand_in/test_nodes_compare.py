"""The node that compares two videos, on a stand-in for ComfyUI: what it writes, measures and sends to the player."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from node_classes import node

from sedialect.sedialect_core.errors import InputError

ROOT = Path(__file__).parents[3]


class TestCompare:
    def run(self, left, right, **more):
        return node("SeDialectCompare").execute(left, right, **more).ui["sedialect_compare"]

    def test_both_videos_are_written_and_measured(self, base):
        left = torch.rand(5, 32, 48, 3, generator=torch.Generator().manual_seed(0))
        right = left.clone()
        right[2] = (right[2] + 0.25).clamp(0, 1)
        (payload,) = self.run(left, SimpleNamespace(get_components=lambda: SimpleNamespace(images=right)), fps=24.0)
        assert payload["fps"] == 24.0 and payload["frames"] == 5 and payload["labels"] == ["16 bit", "SemanticDialect"]
        psnr, ssim, flicker = (row["values"] for row in payload["series"])
        assert [value is None for value in psnr] == [True, True, False, True, True]  # equal frames have no finite PSNR
        assert ssim[0] == 1 and ssim[2] < 0.99
        assert flicker[0] is None and flicker[1] == 0 and flicker[2] > 0 and flicker[3] > 0 and flicker[4] == 0
        json.dumps(payload, allow_nan=False)
        import av

        for side, count in (("left", 5), ("right", 5)):
            file = base / "output" / payload[side]["subfolder"] / payload[side]["filename"]
            with av.open(str(file)) as container:
                stream = container.streams.video[0]
                assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 48, 32)
                assert float(stream.average_rate) == 24 and sum(1 for _ in container.decode(video=0)) == count

    def test_videos_of_different_size_or_length_are_refused(self, base):
        with pytest.raises(InputError, match=r"left has 3 frames of 32x32 and right 4 of 32x32"):
            self.run(torch.rand(3, 32, 32, 3), torch.rand(4, 32, 32, 3))
        with pytest.raises(InputError, match="too small"):
            self.run(torch.rand(3, 8, 8, 3), torch.rand(3, 8, 8, 3))

    def test_the_player_listens_for_what_the_node_sends(self, base):
        script = (ROOT / "web" / "js" / "compare_node.js").read_text(encoding="utf-8")
        compare = importlib.import_module("sedialect.nodes.compare")
        assert f'"{compare.UI_KEY}"' in script and '"SeDialectCompare"' in script
