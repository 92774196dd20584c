"""The example workflows with the bundled model, its text encoder and its VAE in place of the large ones, and tiny videos."""

import json
from pathlib import Path

from comfyui_graphs import to_api, without
from comfyui_workflows import DEMO, PROMPT

FILES = sorted((Path(__file__).parents[2] / "example_workflows").glob("*.json"))
SMALL = {"width": 64, "height": 64, "length": 5}
CALIBRATED = {"width": 96, "height": 96, "length": 13}  # with less, there are too few tokens for moments
SAID = {"file": "prompts.safetensors", "tokens": 1, "dim": 1, "pooled": 0, "mask": False}


def tiny(path: Path, info: dict, saved: str) -> dict[str, dict]:
    """The workflow in API form.

    Args:
        info: what the server says of its nodes.
        saved: a quantized file, for the workflow that loads one.
    """
    nodes = without(to_api(json.loads(path.read_text()), info), "CLIPLoader", "VAELoader", "LoadImage")
    texts = iter((PROMPT, "", PROMPT))
    calibrates = {node["inputs"]["latent_image"][0] for node in nodes.values() if node["class_type"] == "SeDialectCalibrate"}
    for name, node in nodes.items():
        kind, inputs = node["class_type"], node["inputs"]
        if kind == "CLIPTextEncode":
            node["class_type"], node["inputs"] = "SeDialectTestConditioning", {**SAID, "text": next(texts)}
        elif kind == "VAEDecode":
            node["class_type"], node["inputs"] = "SeDialectTestDecode", {"samples": inputs["samples"]}
        elif kind == "UNETLoader":
            inputs["unet_name"] = DEMO
        elif kind in ("EmptyHunyuanLatentVideo", "Wan22ImageToVideoLatent"):
            node["class_type"] = "EmptyHunyuanLatentVideo"
            node["inputs"] = {"batch_size": 1, **(CALIBRATED if name in calibrates else SMALL)}
        elif kind == "SeDialectLoad" and "path" not in inputs:
            inputs["file"] = saved
        elif kind == "SeDialectCalibrate":
            inputs["glance"] = True
        inputs = node["inputs"]
        if "steps" in inputs:
            inputs["steps"] = 2
        for key in ("start_at_step", "end_at_step"):
            if inputs.get(key) == 10:
                inputs[key] = 1
    return _without_an_image(nodes)


def _without_an_image(nodes: dict[str, dict]) -> dict[str, dict]:
    """Of image to video, the conditioning alone: the bundled model takes no image."""
    for name, node in list(nodes.items()):
        if node["class_type"] != "WanImageToVideo":
            continue
        positive, negative = node["inputs"]["positive"], node["inputs"]["negative"]
        for other in nodes.values():
            for key, link in other["inputs"].items():
                if link in ([name, 0], [name, 1]):
                    other["inputs"][key] = (positive, negative)[link[1]]
                elif link == [name, 2]:
                    other["inputs"][key] = [name, 0]
        nodes[name] = {"class_type": "EmptyHunyuanLatentVideo", "inputs": {"batch_size": 1, **SMALL}}
    return nodes
