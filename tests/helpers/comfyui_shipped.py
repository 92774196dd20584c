"""ComfyUI's own template workflows with SeDialect Quantize behind each loader, and what it takes to run them in small.

The frontend opens them, takes the node in, and gives the form that the server takes: subgraphs, switched-off groups and
reroutes are its business. Only files are replaced then, by what tests/comfyui_pack/shipped.py makes.
"""

from typing import Any

# Puts the node behind every loader of a MODEL, inside subgraphs too, as one drags it there and reconnects the links.
INSERT = """async (graph) => {
  const app = window.app;
  await app.loadGraphData(graph, true, true, 'test');
  const put = [];
  for (const inside of [app.graph, ...(app.graph.subgraphs?.values() ?? [])])
    for (const node of [...inside.nodes]) {
      if (!/[Ll]oader/.test(node.type) || node.inputs?.some((input) => input.type === 'MODEL')) continue;
      for (const [slot, output] of (node.outputs ?? []).entries()) {
        if (output.type !== 'MODEL') continue;
        const made = window.LiteGraph.createNode('SeDialectQuantize');
        inside.add(made);
        made.mode = node.mode;
        const links = [...(output.links ?? [])].map((id) => inside.getLink(id));
        const ends = links.map((link) => [link.target_id, link.target_slot]);
        node.connect(slot, made, made.inputs.findIndex((input) => input.name === 'model'));
        for (const [id, at] of ends) {
          if (id === inside.outputNode?.id) inside.outputNode.slots[at].connect(made.outputs[0], made);
          else made.connect(0, inside.getNodeById(id), at);
        }
        put.push(node.type);
      }
    }
  return { put, nodes: (await app.graphToPrompt()).output };
}"""

# Of comfyui-workflow-templates-json 0.1.49, which ComfyUI 0.33.0 names: which kind of model a template's files hold.
KINDS = {
    "text_to_video_wan": "Wan t2v",
    "image_to_video_wan": "Wan 2.1 i2v",
    "wan2.1_flf2v_720_f16": "Wan 2.1 flf2v",
    "wan2.1_fun_control": "Wan 2.1 control",
    "wan2.1_fun_inp": "Wan 2.1 i2v",
    "video_wan2.1_alpha_t2v_14B": "Wan t2v",
    "video_wan2.1_fun_camera_v1.1_1.3B": "Wan 2.1 camera",
    "video_wan_ati": "Wan 2.1 i2v",
    "video_wanmove_480p": "Wan 2.1 i2v",
    "video_wan_vace_14B_t2v": "Wan 2.1 VACE",
    "video_wan_vace_14B_ref2v": "Wan 2.1 VACE",
    "video_wan_vace_flf2v": "Wan 2.1 VACE",
    "video_wan_vace_outpainting": "Wan 2.1 VACE",
    "video_humo": "Wan HuMo",
    "video_wan2_2_14B_t2v": "Wan t2v",
    "video_wan2_2_14B_i2v": "Wan 2.2 i2v",
    "video_wan2_2_14B_flf2v": "Wan 2.2 i2v",
    "video_wan2_2_14B_fun_inpaint": "Wan 2.2 i2v",
    "video_wan2_2_14B_fun_control": "Wan 2.2 control",
    "video_wan2_2_14B_fun_camera": "Wan 2.2 camera",
    "video_wan2_2_14B_s2v": "Wan 2.2 S2V",
    "video_wan2_2_5B_ti2v": "Wan 2.2 5B",
    "video_wan2_2_5B_fun_inpaint": "Wan 2.2 5B inpaint",
    "video_wan2_2_5B_fun_control": "Wan 2.2 5B control",
    "video_wan_animate2": "Wan Animate 2",
    "video_bernini_r_video_editing": "Wan t2v",
    "hunyuan_video_text_to_video": "HunyuanVideo",
    "video_hunyuan_video_1.5_720p_t2v": "HunyuanVideo 1.5",
    "video_hunyuan_video_1.5_720p_i2v": "HunyuanVideo 1.5",
    "video_capybara_v0_1_image_to_video": "HunyuanVideo 1.5",
    "ltxv_text_to_video": "LTX-Video",
    "ltxv_image_to_video": "LTX-Video",
    "video_ltx2_t2v": "LTX-2",
    "video_ltx2_i2v": "LTX-2",
    "video_ltx2_i2v_lora": "LTX-2",
    "video_ltx2_canny_to_video": "LTX-2",
    "video_ltx2_3_t2v": "LTX-2",
    "video_ltx2_3_ia2v": "LTX-2",
    "video_ltx2_3_flf2v": "LTX-2",
    "video_ltx2_3_id_lora": "LTX-2",
    "video_ltx2_5_t2v": "LTX-2",
    "video_ltx2_5_flf2v": "LTX-2",
    "video_kandinsky5_t2v": "Kandinsky 5",
    "video_kandinsky5_i2v": "Kandinsky 5",
}
# Not run in small: they are as others are, need other networks in between, or a MODEL that has no stand-in.
ONLY_OPENED = (
    "video_wan_vace_14B_v2v",
    "video_ltx2_3_i2v",
    "video_ltx2_5_i2v",
    "video_capybara_v0_1_video_edit",
    "video_ltx2_i2v_distilled",
    "video_ltx2_t2v_distilled",
    "video_wan_animate2_distilled",
    "video_wan2.1_fun_camera_v1.1_14B",
    "templates-6-key-frames",
    "template_ltx2_3_ic_lora_ingredients",
    "template_ltx2_3_style_transition",
    "utility_void_video_inpainting",
    "video_bernini_r_image_editing",
    "video_causal_forcing_i2v",
    "video_ltx2_3_ic_lora",
    "video_ltx2_depth_to_video",
    "video_minimax_h3_i2v",
    "video_minimax_h3_r2v",
    "video_minimax_h3_t2v",
    "video_wan21_scail2_character_replacement",
    "video_wan2_1_infinitetalk",
    "video_wan_dancer",
    "video_wan_vace_inpainting",
)
SIZE, FRAMES, STEPS = 128, 9, 2
PICTURE, VIDEO, SOUND = "shipped.png", "shipped.mp4", "shipped.wav"
# Which outputs of SeDialectTestShipped are those of a loader.
MODEL, CLIP, VAE, SEEN, HEARD, SOUND_VAE = range(6)
LOADERS = {
    "UNETLoader": (MODEL,),
    "CheckpointLoaderSimple": (MODEL, CLIP, VAE),
    "CLIPLoader": (CLIP,),
    "DualCLIPLoader": (CLIP,),
    "LTXAVTextEncoderLoader": (CLIP,),
    "VAELoader": (VAE,),
    "CLIPVisionLoader": (SEEN,),
    "AudioEncoderLoader": (HEARD,),
    "LTXVAudioVAELoader": (SOUND_VAE,),
}
INPUTS = {"LoadImage": ("image", PICTURE), "LoadVideo": ("file", VIDEO), "LoadAudio": ("audio", SOUND)}
TEXTS = ("TextGenerateLTX2Prompt",)  # a language model's answer
SMALL = {
    "width": SIZE,
    "height": SIZE,
    "target_width": SIZE,
    "target_height": SIZE,
    "resize_type.width": SIZE,
    "resize_type.height": SIZE,
    "resize_type.longer_size": SIZE,
    "longer_edge": SIZE,
    "ref_max_size": SIZE,
    "length": FRAMES,
    "num_frames": FRAMES,
    "frames_number": FRAMES,
    "steps": STEPS,
    "step": 1,
}


def small(nodes: dict[str, dict], name: str) -> dict[str, dict]:
    """The workflow with models of the kind `name`, tiny videos and two steps."""
    made: dict[str, dict] = {"stands in": {"class_type": "SeDialectTestShipped", "inputs": {"name": name}}}
    for number, node in nodes.items():
        kind, inputs = node["class_type"], dict(node["inputs"])
        if kind in LOADERS or kind in TEXTS or kind == "LatentUpscaleModelLoader":
            continue
        if kind in ("LoraLoaderModelOnly", "LoraLoader"):
            kind = "SeDialectTestLora"
            inputs = {key: inputs[key] for key in ("model", "clip", "strength_model") if key in inputs}
        elif kind == "LTXVLatentUpsampler":
            kind, inputs = "SeDialectTestUpsample", {"samples": inputs["samples"]}
        elif kind in INPUTS:
            key, file = INPUTS[kind]
            inputs[key] = file
        elif kind == "SeDialectQuantize":
            inputs["preset"] = "default"
        elif kind == "KSamplerAdvanced":  # of two in a row each takes one step
            first = inputs["start_at_step"] == 0
            inputs |= {"start_at_step": 0, "end_at_step": 1} if first else {"start_at_step": 1, "end_at_step": 10000}
        inputs = {key: _linked(value, nodes) for key, value in inputs.items()}
        made[number] = {"class_type": kind, "inputs": {key: _small(key, value) for key, value in inputs.items()}}
    return made


def _linked(value: Any, nodes: dict[str, dict]) -> Any:
    """A link to a loader becomes one to what stands in for it."""
    if not (isinstance(value, list) and len(value) == 2 and value[0] in nodes):
        return value
    kind = nodes[value[0]]["class_type"]
    if kind in TEXTS:
        return "a striped star moves right"
    if "audio" in str(nodes[value[0]]["inputs"].get("vae_name")):
        return ["stands in", SOUND_VAE]
    return ["stands in", LOADERS[kind][value[1]]] if kind in LOADERS else value


def _small(key: str, value: Any) -> Any:
    if key == "sigmas" and isinstance(value, str):
        first, second, *_, last = value.split(",")
        return ",".join((first, second, last))
    return SMALL.get(key, value)


def outstanding(answer: dict) -> list[str]:
    """What the server has against a workflow, beyond files of models and inputs that are not there."""
    found = [answer["error"]["message"]] if answer.get("error", {}).get("type") == "missing_node_type" else []
    for node in answer.get("node_errors", {}).values():
        for error in node["errors"]:
            missing = error["type"] == "value_not_in_list" or "Invalid" in error["details"]
            if not missing or node["class_type"].startswith("SeDialect"):
                found.append(f"{node['class_type']}: {error['details']}")
    return found
