"""Nodes for the tests alone, in place of text encoder, VAE and eyes: they make inputs, and look into what comes out."""

import functools
import importlib
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import comfy.model_management
import comfy.model_patcher
import comfy.multigpu
import comfy.ops
import comfy.sd
import comfy.supported_models
import comfy.utils
import folder_paths
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import ComfyExtension, io
from safetensors.torch import load_file, save_file

from . import looking, shipped, variants
from .networks import with_weights
from .schemas import ENDS, schema


def sedialect(name):
    """A module of the pack under test, whatever name ComfyUI gave it."""
    root = next(key for key in sys.modules if "custom_nodes" in key and key.endswith("sedialect"))
    return importlib.import_module(f"{root}.{name}")


class TestConditioning(io.ComfyNode):
    """Embeddings from a file in the base folder, or random ones that a text is the seed of."""

    @classmethod
    def define_schema(cls):
        return schema(
            "Conditioning",
            inputs=[
                io.String.Input("text", default=""),
                io.String.Input("file", default=""),
                io.Int.Input("tokens", default=16, min=1, max=4096),
                io.Int.Input("dim", default=4096, min=1, max=16384),
                io.Int.Input("pooled", default=0, min=0, max=16384),
                io.Boolean.Input("mask", default=False),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, text, file, tokens, dim, pooled, mask):
        if file:
            return io.NodeOutput([[load_file(Path(folder_paths.base_path) / file)[text], {}]])
        random = torch.Generator().manual_seed(sum(ord(sign) * (place + 1) for place, sign in enumerate(text)))
        more = {}
        if pooled:
            more["pooled_output"] = torch.randn(1, pooled, generator=random)
        if mask:
            more["attention_mask"] = torch.ones(1, tokens, dtype=torch.long)
        return io.NodeOutput([[torch.randn(1, tokens, dim, generator=random), more]])


class TestDecode(io.ComfyNode):
    """Latents to frames through the VAE of the bundled model, by diffusers."""

    @classmethod
    def define_schema(cls):
        return schema(
            "Decode",
            inputs=[io.Latent.Input("samples")],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, samples):
        from diffusers import AutoencoderKLWan

        folder = sedialect("sedialect_core.demo").MODEL / "vae"
        vae = AutoencoderKLWan.from_pretrained(folder, torch_dtype=torch.float32)
        video = vae.decode(samples["samples"].float(), return_dict=False)[0]
        return io.NodeOutput((video[0] / 2 + 0.5).clamp(0, 1).movedim(0, -1).contiguous())


class TestLatents(io.ComfyNode):
    """Writes latents to a file, so that a test can compare them exactly."""

    @classmethod
    def define_schema(cls):
        return schema("Latents", is_output_node=True, inputs=[io.Latent.Input("samples"), io.String.Input("file")])

    @classmethod
    def execute(cls, samples, file):
        found = samples["samples"]
        if found.is_nested:  # video and sound, which are compared as one
            found = torch.cat([part.flatten() for part in found.unbind()])
        save_file({"samples": found.cpu().contiguous()}, file)
        return io.NodeOutput()


class TestLayers(io.ComfyNode):
    """Writes, for every encoded layer, what it stores, and what it answers to a fixed input."""

    @classmethod
    def define_schema(cls):
        return schema(
            "Layers",
            **ENDS,
            inputs=[io.Model.Input("model"), io.String.Input("file"), io.Int.Input("budget", default=0, min=0, max=1 << 30)],
        )

    @classmethod
    def execute(cls, model, file, budget):
        """`budget` is how many bytes of the model may be loaded: fewer than it has puts layers into low-VRAM mode."""
        comfy.model_management.unload_model_and_clones(model)
        model.partially_load(model.load_device, budget or 10**12)
        kind = sedialect("nodes.comfy.linear").EncodedLinear
        found = {}
        for name, layer in model.model.diffusion_model.named_modules():
            if isinstance(layer, kind) and layer.encoded:
                x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(layer.in_features))
                guide, layer.guide = layer.guide, None  # there is no forward to tell it anything
                found[f"{name}|y"] = layer(x.to(model.load_device)).cpu().contiguous()
                layer.guide = guide
                for suffix, tensor in layer.weight.state_dict("weight").items():
                    found[f"{name}|{suffix}"] = tensor.cpu().contiguous()
        model.detach()
        save_file(found, file)
        return io.NodeOutput()


class TestSavePartlyLoaded(io.ComfyNode):
    """What ComfyUI's *Save Model* does, with no layer loaded whole: as dynamic VRAM or too little memory leave them."""

    @classmethod
    def define_schema(cls):
        return schema("SavePartlyLoaded", **ENDS, inputs=[io.Model.Input("model"), io.String.Input("file")])

    @classmethod
    def execute(cls, model, file):
        comfy.model_management.unload_model_and_clones(model)
        model.partially_load(model.load_device, 1)
        comfy.utils.save_torch_file(model.state_dict_for_saving(), file)
        model.detach()
        return io.NodeOutput()


TIMES = {}  # seconds of each step, by the name of the run


def synchronize():
    for number in range(torch.cuda.device_count()):
        torch.cuda.synchronize(number)


class TestTimed(io.ComfyNode):
    """A clone of which every step is timed, from idle devices to idle devices, until `SeDialectTestTimes` asks."""

    @classmethod
    def define_schema(cls):
        return schema(
            "Timed",
            inputs=[io.Model.Input("model"), io.String.Input("run")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, run):
        def timed(executor, *args, **kwargs):
            synchronize()
            start = time.perf_counter()
            try:
                return executor(*args, **kwargs)
            finally:
                synchronize()
                TIMES.setdefault(run, []).append(time.perf_counter() - start)

        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "sedialect_tests", timed)
        return io.NodeOutput(model)


class TestTimes(io.ComfyNode):
    """Seconds of each step of a timed run, and the latents in a file."""

    @classmethod
    def define_schema(cls):
        return schema("Times", **ENDS, inputs=[io.Latent.Input("samples"), io.String.Input("run"), io.String.Input("file")])

    @classmethod
    def execute(cls, samples, run, file):
        save_file({"samples": samples["samples"].cpu().contiguous()}, file)
        return io.NodeOutput(ui={"text": (json.dumps(TIMES.pop(run, [])),)})


RECORDED = {}  # what the layers of a watched model read, were told and answered, forward by forward


class Recorder:
    """A guide that notes what another one says."""

    def __init__(self, name, guide):
        self.name, self.guide = name, guide

    def __call__(self, x, *transform):
        guidance = self.guide(x, *transform)
        for part, tensor in guidance._asdict().items():
            if tensor is not None:
                note(f"{self.name}|{part}", tensor)
        return guidance


def note(key, tensor):
    forward = RECORDED["forwards"] - 1
    RECORDED[f"{forward}|{key}"] = tensor.detach().clone().contiguous()


class TestOverride(io.ComfyNode):
    """Another node's attention override: counts its calls, and changes nothing."""

    @classmethod
    def define_schema(cls):
        return schema(
            "Override",
            inputs=[io.Model.Input("model")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model):
        def override(function, *args, **kwargs):
            RECORDED["calls"] += 1
            return function(*args, **kwargs)

        model = model.clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = override
        return io.NodeOutput(model)


def note_answer(name, module, args, y):
    note(f"{name}|x", args[0])
    note(f"{name}|y", y)


class TestRecord(io.ComfyNode):
    """Notes what every guided layer reads, is told and answers from now on, until `SeDialectTestRecorded`."""

    @classmethod
    def define_schema(cls):
        return schema(
            "Record",
            not_idempotent=True,
            inputs=[io.Model.Input("model")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, **kwargs):
        return time.time()

    @classmethod
    def execute(cls, model):
        RECORDED.clear()
        RECORDED["forwards"], RECORDED["handles"], RECORDED["calls"] = 0, [], 0
        network = model.model.diffusion_model

        def begin(module, args, kwargs):
            RECORDED["forwards"] += 1
            for name, tensor in (("x", args[0]), ("t", args[1]), ("context", kwargs["context"])):
                note(name, tensor)
            options = kwargs["transformer_options"]
            note("sigma", options["sigmas"])
            note("cond_or_uncond", torch.tensor(options["cond_or_uncond"]))

        RECORDED["handles"].append(network.register_forward_pre_hook(begin, with_kwargs=True))
        for name, layer in network.named_modules():
            if getattr(layer, "guide", None) is None:
                continue
            RECORDED["handles"].append(layer.register_forward_hook(functools.partial(note_answer, name)))
            layer.guide = Recorder(name, layer.guide)
        return io.NodeOutput(model)


class TestRecorded(io.ComfyNode):
    """Writes what was noted, and the picture of saliency."""

    @classmethod
    def define_schema(cls):
        return schema(
            "Recorded", **ENDS, inputs=[io.Model.Input("model"), io.Latent.Input("samples"), io.String.Input("file")]
        )

    @classmethod
    def execute(cls, model, samples, file):
        for handle in RECORDED.pop("handles"):
            handle.remove()
        for layer in model.model.diffusion_model.modules():
            if isinstance(getattr(layer, "guide", None), Recorder):
                layer.guide = layer.guide.guide
        forwards, calls = RECORDED.pop("forwards"), RECORDED.pop("calls")
        tokens = sedialect("nodes.comfy.guides").tokens_of(model.model)
        if tokens.map is not None:
            RECORDED["map"] = tokens.map.values
        save_file({**RECORDED, "forwards": torch.tensor(forwards), "samples": samples["samples"].contiguous()}, file)
        said = {
            "map": tokens.map.says if tokens.map else "",
            "unseen": tokens.unseen,
            "rooms": len(tokens.rooms),
            "overridden": calls,
        }
        return io.NodeOutput(ui={"text": (json.dumps(said),)})


def families():
    """Networks of every video family at real widths and few blocks, on the meta device, and where their blocks lie."""
    import comfy.ops
    from comfy.ldm.cogvideo.model import CogVideoXTransformer3DModel
    from comfy.ldm.cosmos.model import GeneralDIT
    from comfy.ldm.cosmos.predict2 import MiniTrainDIT
    from comfy.ldm.genmo.joint_model.asymm_models_joint import AsymmDiTJoint
    from comfy.ldm.hunyuan_video.model import HunyuanVideo
    from comfy.ldm.kandinsky5.model import Kandinsky5
    from comfy.ldm.lightricks.av_model import LTXAVModel
    from comfy.ldm.lightricks.model import LTXVModel
    from comfy.ldm.minimax.model import MiniMaxH3Model
    from comfy.ldm.wan.model import VaceWanModel, WanModel, WanModel_S2V
    from comfy.model_detection import detect_unet_config

    def detected(shapes):
        return detect_unet_config({key: torch.empty(shape, device="meta") for key, shape in shapes.items()}, "")

    hunyuan = detected(
        {
            "txt_in.individual_token_refiner.blocks.0.norm1.weight": [3072],
            "txt_in.input_embedder.weight": [3072, 4096],
            "img_in.proj.weight": [3072, 16, 1, 2, 2],
            "final_layer.linear.weight": [64, 3072],
            "vector_in.in_layer.weight": [3072, 768],
            "guidance_in.in_layer.weight": [3072, 256],
            **{f"{kind}_blocks.{number}.any": [1] for kind in ("double", "single") for number in range(2)},
        }
    )
    predict2 = detected({"blocks.0.mlp.layer1.weight": [8192, 2048], "x_embedder.proj.1.weight": [2048, 68]})
    cosmos = {
        "max_img_h": 240,
        "max_img_w": 240,
        "max_frames": 128,
        "in_channels": 17,
        "out_channels": 16,
        "patch_spatial": 2,
        "patch_temporal": 1,
        "model_channels": 4096,
        "block_config": "FA-CA-MLP",
        "num_blocks": 2,
        "num_heads": 32,
        "concat_padding_mask": True,
        "block_x_format": "THWBD",
        "pos_emb_cls": "rope3d",
        "use_adaln_lora": True,
        "adaln_lora_dim": 256,
    }
    mochi = {
        "depth": 3,
        "patch_size": 2,
        "num_heads": 24,
        "hidden_size_x": 3072,
        "hidden_size_y": 1536,
        "mlp_ratio_x": 4.0,
        "mlp_ratio_y": 4.0,
        "qk_norm": True,
        "t5_feat_dim": 4096,
        "t5_token_length": 256,
        "rope_theta": 10000.0,
        "learn_sigma": False,
        "in_channels": 12,
    }
    wan = {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 2}
    common = {"dtype": torch.bfloat16, "device": "meta", "operations": comfy.ops.disable_weight_init}
    for cls, settings, *lists in (
        (WanModel, {**wan, "model_type": "i2v", "in_dim": 36}, "blocks"),
        (VaceWanModel, {**wan, "vace_layers": 2, "vace_in_dim": 96}, "blocks"),
        (WanModel_S2V, {**wan, "num_layers": 40}, "blocks"),
        (HunyuanVideo, hunyuan, "double_blocks", "single_blocks"),
        (LTXVModel, {"num_layers": 2}, "transformer_blocks"),
        (LTXAVModel, {"num_layers": 2}, "transformer_blocks"),
        (AsymmDiTJoint, mochi, "blocks"),
        (GeneralDIT, cosmos, "blocks"),
        (MiniTrainDIT, predict2, "blocks"),
        (CogVideoXTransformer3DModel, {"num_layers": 2, "num_attention_heads": 48, "attention_head_dim": 64}, "blocks"),
        (Kandinsky5, {}, "visual_transformer_blocks"),
        (MiniMaxH3Model, {}, "blocks"),
    ):
        yield cls.__name__, cls(**settings, **common), lists


class TestFamilies(io.ComfyNode):
    """For every family: the linears in its blocks that a plan leaves in 16 bit, and those outside that it does not."""

    @classmethod
    def define_schema(cls):
        return schema(
            "Families",
            is_output_node=True,
        )

    @classmethod
    def execute(cls):
        linear_types, make_plan = (
            sedialect("nodes.comfy.checks").linear_types,
            sedialect("sedialect_core.plan.rules").make_plan,
        )
        config, found = sedialect("sedialect_core.config").SeDialectConfig(), {}
        with with_weights():
            made = list(families())
        for name, network, lists in made:
            plan = make_plan(network, config, linear_types=linear_types(network))
            inside = {layer.name: layer.name.split(".")[0] in lists for layer in plan.layers}
            found[name] = {
                "blocks": sum(inside.values()),
                "left": [layer.name for layer in plan.left_alone if inside[layer.name]],
            }
        return io.NodeOutput(ui={"text": (json.dumps(found),)})


def small_networks():
    """A small network of every family whose tokens are told apart, with inputs: name, class, settings, latents, the rest."""
    from comfy.ldm.cogvideo.model import CogVideoXTransformer3DModel
    from comfy.ldm.cosmos.model import GeneralDIT
    from comfy.ldm.cosmos.predict2 import MiniTrainDIT
    from comfy.ldm.genmo.joint_model.asymm_models_joint import AsymmDiTJoint
    from comfy.ldm.hunyuan_video.model import HunyuanVideo
    from comfy.ldm.kandinsky5.model import Kandinsky5
    from comfy.ldm.lightricks.model import LTXVModel
    from comfy.ldm.wan.model import WanModel

    text, mask = torch.randn(2, 7, 64), torch.ones(2, 7, dtype=torch.long)
    wan = {"dim": 256, "ffn_dim": 512, "num_heads": 2, "num_layers": 2, "text_dim": 64, "model_type": "t2v"}
    yield WanModel, wan, (2, 16, 3, 7, 8), {}, text
    hunyuan = {
        "image_model": "hunyuan_video",
        "in_channels": 16,
        "out_channels": 16,
        "vec_in_dim": 64,
        "context_in_dim": 64,
        "hidden_size": 256,
        "mlp_ratio": 4.0,
        "num_heads": 2,
        "depth": 2,
        "depth_single_blocks": 2,
        "axes_dim": [16, 56, 56],
        "theta": 256,
        "patch_size": [1, 2, 2],
        "qkv_bias": True,
        "guidance_embed": True,
        "byt5": False,
        "meanflow": False,
        "use_cond_type_embedding": False,
        "vision_in_dim": None,
        "meanflow_sum": False,
    }
    said = {"y": torch.randn(2, 64), "guidance": torch.full((2,), 6.0)}
    yield HunyuanVideo, hunyuan, (2, 16, 3, 8, 8), said, text
    ltx = {"cross_attention_dim": 128, "num_attention_heads": 2, "caption_channels": 64, "num_layers": 2}
    yield LTXVModel, ltx, (2, 128, 3, 4, 4), {"attention_mask": mask}, text
    cog = {"num_attention_heads": 2, "num_layers": 2, "text_embed_dim": 64, "use_rotary_positional_embeddings": True}
    yield CogVideoXTransformer3DModel, cog, (2, 16, 3, 8, 8), {}, text
    mochi = {
        "depth": 3,
        "patch_size": 2,
        "num_heads": 2,
        "hidden_size_x": 256,
        "hidden_size_y": 128,
        "mlp_ratio_x": 48.0,  # the class insists on the width of its feed-forward
        "mlp_ratio_y": 48.0,
        "qk_norm": True,
        "qkv_bias": False,
        "out_bias": True,
        "use_t5": True,
        "t5_feat_dim": 64,
        "t5_token_length": 7,
        "learn_sigma": False,
        "in_channels": 12,
    }
    yield AsymmDiTJoint, mochi, (2, 12, 3, 8, 8), {"attention_mask": mask.bool(), "num_tokens": 7}, text
    cosmos = {
        "max_img_h": 32,
        "max_img_w": 32,
        "max_frames": 16,
        "in_channels": 16,
        "out_channels": 16,
        "patch_spatial": 2,
        "patch_temporal": 1,
        "model_channels": 256,
        "num_blocks": 2,
        "num_heads": 2,
        "crossattn_emb_channels": 64,
        "concat_padding_mask": True,
        "pos_emb_cls": "rope3d",
        "use_adaln_lora": True,
        "adaln_lora_dim": 64,
    }
    yield MiniTrainDIT, cosmos, (2, 16, 3, 8, 8), {}, text
    first = {**cosmos, "block_config": "FA-CA-MLP", "block_x_format": "THWBD", "extra_per_block_abs_pos_emb": True}
    first["extra_per_block_abs_pos_emb_type"] = "learnable"
    yield GeneralDIT, first, (2, 16, 3, 8, 8), {"fps": None, "padding_mask": None}, text
    kandinsky = {
        "in_text_dim": 64,
        "in_text_dim2": 64,
        "time_dim": 64,
        "model_dim": 128,
        "ff_dim": 256,
        "visual_embed_dim": 64,
        "num_text_blocks": 1,
        "num_visual_blocks": 2,
    }
    yield Kandinsky5, kandinsky, (2, 16, 3, 8, 8), {"y": torch.randn(2, 64)}, text


class TestTokenFamilies(io.ComfyNode):
    """For every family: what a quantized network of it does in two steps, of which the first looks at attention."""

    @classmethod
    def define_schema(cls):
        return schema("TokenFamilies", is_output_node=True, inputs=[io.String.Input("settings")])

    @classmethod
    def execute(cls, settings):
        config = sedialect("sedialect_core.config").SeDialectConfig(**json.loads(settings))
        return io.NodeOutput(ui={"text": (json.dumps(dict(map(functools.partial(cls.run, config), small_networks()))),)})

    @classmethod
    def run(cls, config, family):
        kind, settings, shape, said, text = family
        encoding, linear = sedialect("nodes.comfy.encoding"), sedialect("nodes.comfy.linear")
        linear.register()
        torch.manual_seed(0)
        common = {"dtype": torch.float32, "device": "cpu"}
        with with_weights():
            plain = kind(**settings, **common, operations=comfy.ops.disable_weight_init).requires_grad_(False).eval()
        for parameter in plain.parameters():
            parameter.copy_(torch.randn_like(parameter) / max(1, parameter[0].numel()) ** 0.5)
        try:
            types = sedialect("nodes.comfy.checks").linear_types(plain)
            plan = sedialect("sedialect_core.plan.rules").make_plan(plain, config, linear_types=types)
        except ValueError as error:
            return kind.__name__, {"refused": str(error)}
        weights = dict(plain.state_dict())
        book = sedialect("sedialect_core.formatbook").Formatbook.builtin()
        encoding.encode_weights(weights, plan, book, lambda *_: None, None)
        model = SimpleNamespace(model_sampling=SimpleNamespace(sigma_max=torch.tensor(1.0)))
        model.diffusion_model = kind(**settings, **common, operations=linear.operations(torch.float32)).eval()
        model.diffusion_model.load_state_dict(weights, strict=False, assign=True)
        guides = sedialect("nodes.comfy.guides")
        guides.attach(model, plan)
        told, x, schedule = {}, torch.randn(shape), torch.tensor([1.0, 0.5, 0.0])
        for name, layer in model.diffusion_model.named_modules():
            if getattr(layer, "guide", None) is not None:
                layer.guide = Counted(name, layer.guide, told)

        def executor(x, t, concat, context, control, options):
            y = model.diffusion_model(x, t, context=context, transformer_options=dict(options), **said)
            assert y.shape == x.shape and y.isfinite().all(), kind.__name__
            return y

        executor.class_obj = model
        tokens = guides.tokens_of(model)
        for sigma in schedule[:-1]:
            options = {"sample_sigmas": schedule, "sigmas": sigma[None], "uuids": [1, 2], "cond_or_uncond": [0, 1]}
            guides.run_guided(executor, x, sigma.expand(2), None, text, None, options)
        tokens.finish()
        found = tokens.map
        return kind.__name__, {
            "family": plan.family,
            "notes": plan.notes,
            "blocks": len(tokens.watched),
            "unseen": tokens.unseen,
            "map": list(found.values.shape) if found else None,
            "spread": float(found.values.std()) if found else 0.0,
            "salient": {name: count for name, (count, _) in told.items()},
            "grouped": sum(groups for _, groups in told.values()),
        }


class Counted:
    """A guide that notes how many rows it names in the last forward."""

    def __init__(self, name, guide, told):
        self.name, self.guide, self.told = name, guide, told

    def __call__(self, x, *transform):
        guidance = self.guide(x, *transform)
        salient = 0 if guidance.salient is None else guidance.salient.unique().numel()
        groups = 0 if guidance.group is None else int((guidance.group >= 0).sum())
        self.told[self.name] = (salient, groups)
        return guidance


class TestForeign(io.ComfyNode):
    """MODELs that cannot be quantized: of an image model, and one whose weights are marked as GGUF's loader marks them."""

    @classmethod
    def define_schema(cls):
        return schema(
            "Foreign",
            inputs=[io.Combo.Input("of", options=["image", "gguf"]), io.String.Input("file")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, of, file):
        if of == "gguf":
            patcher = comfy.sd.load_diffusion_model(folder_paths.get_full_path_or_raise("diffusion_models", file))
            patcher.model.diffusion_model.blocks[0].ffn[0].weight.tensor_type = 2
            return io.NodeOutput(patcher)
        flux = {"image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 64}
        flux |= {"context_in_dim": 64, "hidden_size": 64, "mlp_ratio": 4.0, "num_heads": 1, "depth": 1, "theta": 10000}
        flux |= {"depth_single_blocks": 1, "axes_dim": [16, 24, 24], "qkv_bias": True, "guidance_embed": False}
        flux["txt_ids_dims"] = []
        config = comfy.supported_models.Flux({**flux, "dtype": torch.float32})
        device = torch.device("cpu")
        return io.NodeOutput(comfy.model_patcher.ModelPatcher(config.get_model({}, "", device=device), device, device))


class TestVariant(io.ComfyNode):
    """One of the small models of `variants`, and what its own nodes would give it; `seed` is that of image and prompt."""

    @classmethod
    def define_schema(cls):
        return schema(
            "Variant",
            inputs=[io.Combo.Input("name", options=list(variants.VARIANTS)), io.Int.Input("seed", default=1)],
            outputs=[io.Model.Output(), io.Conditioning.Output(), io.Conditioning.Output(), io.Latent.Output()],
        )

    @classmethod
    def execute(cls, name, seed):
        return io.NodeOutput(variants.load(name), *variants.inputs(name, seed))


class TestShipped(io.ComfyNode):
    """What stands in for the files of a template workflow."""

    @classmethod
    def define_schema(cls):
        return schema(
            "Shipped",
            inputs=[io.Combo.Input("name", options=list(shipped.MODELS))],
            outputs=[
                io.Model.Output(),
                io.Clip.Output(),
                io.Vae.Output(),
                io.ClipVision.Output(),
                io.AudioEncoder.Output(),
                io.Vae.Output(),
            ],
        )

    @classmethod
    def execute(cls, name):
        return io.NodeOutput(*shipped.everything(name))


class TestLora(io.ComfyNode):
    """A LoRA file of a template workflow: it changes all linears of the blocks; a CLIP passes through."""

    @classmethod
    def define_schema(cls):
        return schema(
            "Lora",
            inputs=[
                io.Model.Input("model"),
                io.Clip.Input("clip", optional=True),
                io.Float.Input("strength_model", default=1.0, min=-100.0, max=100.0),
            ],
            outputs=[io.Model.Output(), io.Clip.Output()],
        )

    @classmethod
    def execute(cls, model, strength_model, clip=None):
        return io.NodeOutput(shipped.with_lora(model, strength_model), clip)


class TestUpsample(io.ComfyNode):
    """In place of LTX's network that doubles a latent video."""

    @classmethod
    def define_schema(cls):
        return schema(
            "Upsample",
            inputs=[io.Latent.Input("samples")],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, samples):
        return io.NodeOutput({"samples": torch.nn.functional.interpolate(samples["samples"], scale_factor=(1, 2, 2))})


class TestSplit(io.ComfyNode):
    """MultiGPU CFG Split on a CPU, which is given a second name: two clones run in two threads, as on two GPUs."""

    @classmethod
    def define_schema(cls):
        return schema(
            "Split",
            inputs=[io.Model.Input("model")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model):
        devices = [model.load_device, torch.device("cpu", 0)]
        assert model.load_device.type == "cpu" and devices[0] != devices[1]
        listed = comfy.model_management.get_all_torch_devices
        comfy.model_management.get_all_torch_devices = lambda exclude_current=False: devices
        try:
            made = comfy.multigpu.create_multigpu_deepclones(model, 2)
        finally:
            comfy.model_management.get_all_torch_devices = listed
        assert len(made.get_additional_models_with_key("multigpu")) == 1
        return io.NodeOutput(made)


class TestMemory(io.ComfyNode):
    """Resident memory of the server in bytes: now, and its peak since the last such node."""

    @classmethod
    def define_schema(cls):
        return schema("Memory", **ENDS, inputs=[io.Model.Input("model", optional=True)])

    @classmethod
    def fingerprint_inputs(cls, **kwargs):
        return time.time()

    @classmethod
    def execute(cls, model=None):
        status = Path("/proc/self/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines() if line.startswith(("VmHWM", "VmRSS")))
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        found = {key: int(value.split()[0]) * 1024 for key, value in fields.items()}
        kept = sedialect("nodes.comfy.encoding").kept_bytes()
        text = json.dumps({**found, "kept": kept})
        return io.NodeOutput(ui={"text": (text,)})


class TestExtension(ComfyExtension):
    async def get_node_list(self):
        looking.count_sage()
        return [
            *looking.NODES,
            TestConditioning,
            TestDecode,
            TestLatents,
            TestLayers,
            TestSavePartlyLoaded,
            TestTimed,
            TestTimes,
            TestOverride,
            TestRecord,
            TestRecorded,
            TestTokenFamilies,
            TestFamilies,
            TestForeign,
            TestVariant,
            TestShipped,
            TestLora,
            TestUpsample,
            TestSplit,
            TestMemory,
        ]


async def comfy_entrypoint():
    assert os.environ.get("SEDIALECT_TESTS"), "nodes for tests only"
    return TestExtension()
