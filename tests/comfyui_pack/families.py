"""Nodes that plan and run a small network of every family of video models that ComfyUI has."""

import functools
import json
from types import SimpleNamespace

import comfy.ops
import torch
from comfy_api.latest import io

from .networks import with_weights
from .schemas import schema, sedialect


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


NODES = (TestFamilies, TestTokenFamilies)
