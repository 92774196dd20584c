"""Workflows as the frontend saves them, turned into the form that the server takes."""

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3")
NOTES = ("MarkdownNote", "Note")


def to_api(graph: dict, info: dict) -> dict[str, dict]:
    """The nodes of a saved workflow by id. `info` is what the server says of its nodes (`/object_info`)."""
    sources = {number: [str(node), slot] for number, node, slot, *_ in graph["links"]}
    nodes = {}
    for node in graph["nodes"]:
        if node["type"] in NOTES:
            continue
        linked = {socket["name"]: sources[socket["link"]] for socket in node["inputs"] if socket["link"] is not None}
        values = _widgets(node, info[node["type"]], {socket["name"] for socket in node["inputs"]})
        nodes[str(node["id"])] = {"class_type": node["type"], "inputs": {**values, **linked}}
    return nodes


def _widgets(node: dict, info: dict, sockets: set[str]) -> dict[str, object]:
    values, found = iter(node["widgets_values"]), {}
    for section in ("required", "optional"):
        for name in info["input_order"].get(section, []):
            kind, *said = info["input"][section][name]
            if name in sockets or not (isinstance(kind, list) or kind in WIDGETS):
                continue
            found[name] = next(values)
            if said and (said[0].get("control_after_generate") or said[0].get("image_upload")):
                next(values)  # of a widget that the frontend puts beside it
    assert next(values, None) is None, f"{node['type']} has more values than inputs"
    return found


def without(nodes: dict[str, dict], *kinds: str) -> dict[str, dict]:
    """The nodes less those of some kinds, and less the links to them."""
    gone = {name for name, node in nodes.items() if node["class_type"] in kinds}
    kept = {name: node for name, node in nodes.items() if name not in gone}
    for node in kept.values():
        node["inputs"] = {
            name: value for name, value in node["inputs"].items() if not (isinstance(value, list) and value[0] in gone)
        }
    return kept
