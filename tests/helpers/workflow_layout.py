"""Example workflows as the frontend saves them, from nodes in columns."""

import uuid
from dataclasses import dataclass, field
from typing import Any

from workflow_notes import FILES, url

TITLE = 30  # px, above a node
BESIDE, BELOW = 40, 34  # px between nodes; Nodes 2.0 hangs a tab below those with an error
WORKFLOWS = uuid.UUID("2e8fe085-c5a7-5fb4-a09e-fe623a018090")

# Sockets, outputs and height (the larger of both node systems) of ComfyUI's own nodes.
CORE: dict[str, tuple[list[tuple[str, str]], list[str], int]] = {
    "UNETLoader": ([], ["MODEL"], 86),
    "CLIPLoader": ([], ["CLIP"], 114),
    "VAELoader": ([], ["VAE"], 86),
    "LoadImage": ([], ["IMAGE", "MASK"], 322),
    "CLIPTextEncode": ([("clip", "CLIP")], ["CONDITIONING"], 120),
    "ConditioningCombine": ([("conditioning_1", "CONDITIONING"), ("conditioning_2", "CONDITIONING")], ["CONDITIONING"], 54),
    "ModelSamplingSD3": ([("model", "MODEL")], ["MODEL"], 62),
    "EmptyHunyuanLatentVideo": ([], ["LATENT"], 146),
    "WanImageToVideo": (
        [
            ("positive", "CONDITIONING"),
            ("negative", "CONDITIONING"),
            ("vae", "VAE"),
            ("clip_vision_output", "CLIP_VISION_OUTPUT"),
            ("start_image", "IMAGE"),
        ],
        ["CONDITIONING", "CONDITIONING", "LATENT"],
        226,
    ),
    "Wan22ImageToVideoLatent": ([("vae", "VAE"), ("start_image", "IMAGE")], ["LATENT"], 166),
    "KSampler": (
        [("model", "MODEL"), ("positive", "CONDITIONING"), ("negative", "CONDITIONING"), ("latent_image", "LATENT")],
        ["LATENT"],
        262,
    ),
    "KSamplerAdvanced": (
        [("model", "MODEL"), ("positive", "CONDITIONING"), ("negative", "CONDITIONING"), ("latent_image", "LATENT")],
        ["LATENT"],
        334,
    ),
    "RandomNoise": ([], ["NOISE"], 82),
    "KSamplerSelect": ([], ["SAMPLER"], 62),
    "BasicScheduler": ([("model", "MODEL")], ["SIGMAS"], 118),
    "CFGGuider": ([("model", "MODEL"), ("positive", "CONDITIONING"), ("negative", "CONDITIONING")], ["GUIDER"], 102),
    "SamplerCustomAdvanced": (
        [("noise", "NOISE"), ("guider", "GUIDER"), ("sampler", "SAMPLER"), ("sigmas", "SIGMAS"), ("latent_image", "LATENT")],
        ["LATENT", "LATENT"],
        114,
    ),
    "VAEDecode": ([("samples", "LATENT"), ("vae", "VAE")], ["IMAGE"], 54),
    "CreateVideo": ([("images", "IMAGE"), ("audio", "AUDIO")], ["VIDEO"], 110),
    "SaveVideo": ([("video", "VIDEO")], ["VIDEO"], 360),
    "MarkdownNote": ([], [], 360),
}
# Of ours, with the text that a run brings.
ROOM = {"SeDialectQuantize": 340, "SeDialectLoad": 310, "SeDialectSave": 290, "SeDialectCalibrate": 254}
ROOM |= {"SeDialectReport": 290, "SeDialectCompare": 560}


@dataclass
class Node:
    """A node of a workflow. `inputs`: what its sockets read, a node, or a node and the number of its output."""

    type: str
    values: list[Any] = field(default_factory=list)
    inputs: dict[str, Any] = field(default_factory=dict)
    title: str = ""
    height: int = 0
    number: int = 0

    @property
    def files(self) -> list[dict[str, str]]:
        """What the frontend offers to download where it is missing."""
        named = [value for value in self.values if value in FILES]
        return [{"name": name, "url": url(name), "directory": FILES[name][0]} for name in named]


def workflow(name: str, columns: list[tuple[int, list[Node]]], schemas: dict[str, Any]) -> dict[str, Any]:
    """A workflow whose nodes stand in columns of given widths, from left to right."""
    nodes = [node for _, column in columns for node in column]
    for number, node in enumerate(nodes, 1):
        node.number = number
    links: list[list[Any]] = []
    places, x = {}, 0
    for width, column in columns:
        y = 0
        for node in column:
            height = node.height or CORE.get(node.type, ([], [], 0))[2] or ROOM[node.type]
            places[node.number] = ([x, y], [width, height])
            y += height + TITLE + BELOW
        x += width + BESIDE
    made = [_made(node, places[node.number], links, schemas) for node in nodes]
    for number, source, output, *_ in links:
        made[source - 1]["outputs"][output]["links"].append(number)
    return {
        "id": str(uuid.uuid5(WORKFLOWS, name)),
        "revision": 0,
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": made,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _made(node: Node, place: tuple[list[int], list[int]], links: list[list[Any]], schemas: dict[str, Any]) -> dict[str, Any]:
    sockets, outputs = _faces(node.type, schemas)
    inputs: list[dict[str, Any]] = []
    for slot, (name, kind) in enumerate(sockets):
        source = node.inputs.get(name)
        number = None
        if source is not None:
            source, output = source if isinstance(source, tuple) else (source, 0)
            number = len(links) + 1
            links.append([number, source.number, output, node.number, slot, _faces(source.type, schemas)[1][output]])
        inputs.append({"name": name, "type": kind, "link": number})
    assert set(node.inputs) <= {name for name, _ in sockets}, node
    said: dict[str, Any] = {"id": node.number, "type": node.type, "pos": place[0], "size": place[1], "flags": {}}
    said |= {"order": node.number - 1, "mode": 0, "inputs": inputs}
    said["outputs"] = [{"name": kind, "type": kind, "links": []} for kind in outputs]
    said["properties"] = {} if node.type == "MarkdownNote" else {"Node name for S&R": node.type}
    if node.files:
        said["properties"]["models"] = node.files
    said["widgets_values"] = _values(node, schemas)
    return {**said, **({"title": node.title} if node.title else {})}


def _values(node: Node, schemas: dict[str, Any]) -> list[Any]:
    """Of our own nodes, what is not given has its default."""
    if node.type not in schemas:
        return list(node.values)
    given = dict(node.values)
    widgets = [socket for socket in schemas[node.type].inputs if is_widget(socket)]
    assert set(given) <= {socket.id for socket in widgets}, given
    found: list[Any] = []
    for socket in widgets:
        found.append(given.get(socket.id, socket.said.get("default")))
        if socket.id == "seed":
            found.append("fixed")
    return found


def is_widget(socket: Any) -> bool:
    """Whether an input of ours stands on the node, not beside it."""
    return socket.kind in ("COMBO", "STRING", "INT", "FLOAT", "BOOLEAN") and not socket.said.get("force_input")


def _faces(kind: str, schemas: dict[str, Any]) -> tuple[list[tuple[str, str]], list[str]]:
    if kind in CORE:
        return CORE[kind][0], CORE[kind][1]
    schema = schemas[kind]
    sockets = [(socket.id, "IMAGE,VIDEO" if socket.kind == "MULTITYPE" else socket.kind) for socket in schema.inputs]
    beside = [pair for pair, socket in zip(sockets, schema.inputs, strict=True) if not is_widget(socket)]
    return beside, [socket.kind for socket in schema.outputs]
