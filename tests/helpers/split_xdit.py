"""xDiT's Wan and HunyuanVideo over processes on a CPU, from folders that sedialect saved. `python split_xdit.py FOLDER`
writes what each process got to FOLDER.

xDiT (xfuser 0.7) means to run on accelerators alone: here it takes the CPU for one that speaks gloo, finds the long-context
attention that it would look for in other packages, and gets a state in place of the one that its runners make.
"""

import faulthandler
import multiprocessing
import os
import sys
import traceback
import types
from importlib import import_module
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import torch
import torch.distributed as dist

import sedialect
from sedialect.sedialect_core.errors import ModelError

TOO_LONG = 400  # seconds until a process says where it hangs, and ends
SPLITS = ((2, 1), (2, 2))  # by Ulysses, by guidance
PRESETS = ("plain", "default", "quality")
MODELS = "xfuser.model_executor.models.transformers"
WAN = {"num_attention_heads": 4, "attention_head_dim": 16, "text_dim": 32, "freq_dim": 64, "ffn_dim": 96, "num_layers": 2}
HUNYUAN = {
    "in_channels": 16,
    "out_channels": 16,
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "patch_size": 2,
    "text_embed_dim": 32,
    "pooled_projection_dim": 32,
    "rope_axes_dim": (4, 6, 6),
}
FAMILIES = {"Wan": ("transformer_wan", WAN), "HunyuanVideo": ("transformer_hunyuan_video", HUNYUAN)}
Outputs = tuple[torch.Tensor, torch.Tensor]


class NoState(types.SimpleNamespace):
    """Says no to whatever xDiT asks of its state."""

    def __getattr__(self, name: str) -> bool:
        return False


def prepare(rank: int, ulysses: int, guidance: int, folder: Path) -> None:
    """Start xDiT's groups, and make its modules run here."""
    ranks = ulysses * guidance
    with mock.patch.object(torch.backends.mps, "is_available", lambda: True):
        import xfuser.core.distributed as distributed
        import xfuser.model_executor.layers.usp as usp
        from xfuser.core.distributed import parallel_state
        from xfuser.core.distributed.attention_backend import AttentionBackendType
        from yunchang import globals as groups

        models = [import_module(f"{MODELS}.{name}") for name, _ in FAMILIES.values()]
        for name, module in list(sys.modules.items()):
            if name.startswith("xfuser") and hasattr(module, "HAS_LONG_CTX_ATTN"):
                module.HAS_LONG_CTX_ATTN = True
            if name.startswith("xfuser") and isinstance(getattr(module, "env_info", None), dict):
                module.env_info["has_long_ctx_attn"] = True
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting-{guidance}", rank=rank, world_size=ranks)
        parallel_state.init_distributed_environment(rank=rank, world_size=ranks, backend="gloo")
        distributed.initialize_model_parallel(
            sequence_parallel_degree=ulysses,
            ulysses_degree=ulysses,
            classifier_free_guidance_degree=guidance,
            backend="gloo",
        )
    sdpa = AttentionBackendType.SDPA
    state = NoState(fp8_comms=None, attention_backend=sdpa, runtime_config=NoState())
    state.increment_step_counter, state.get_cross_attention_backend = (lambda: None), (lambda: sdpa)
    usp.PROCESS_GROUP = groups.PROCESS_GROUP
    for module in (*models, usp):
        module.get_runtime_state = lambda: state


def inputs(family: str, prompt: int, text: str) -> dict[str, Any]:
    """Of one call, with the text of one of the guidance's two prompts: "even", "odd", or "masked" in part."""
    tokens = 7 if text == "odd" else 8
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 16, 4, 8, 8, generator=generator)
    generator.manual_seed(2 + prompt)
    words = torch.randn(1, tokens, 32, generator=generator)
    given = {"hidden_states": latents, "timestep": torch.tensor([500]), "encoder_hidden_states": words, "return_dict": False}
    if family == "HunyuanVideo":
        given["encoder_attention_mask"] = (torch.arange(tokens) < (6 if text == "masked" else 8))[None].long()
        given["pooled_projections"] = torch.randn(1, 32, generator=generator)
        given["guidance"] = torch.tensor([6000.0])
    return given


def saved(family: str, preset: str, folder: Path) -> tuple[Any, Any]:
    """diffusers' model at random weights, quantized unless `preset` is empty; and xDiT's, loaded from what it saves."""
    torch.manual_seed(7)
    model = getattr(diffusers, f"{family}Transformer3DModel")(**FAMILIES[family][1]).eval()
    if preset:
        sedialect.quantize_model(model, sedialect.SeDialectConfig.preset(preset))
    place = folder / f"{family}-{preset}-{dist.get_world_size()}-{dist.get_rank()}"
    model.save_pretrained(place)
    wrapper = getattr(import_module(f"{MODELS}.{FAMILIES[family][0]}"), f"xFuser{family}Transformer3DWrapper")
    return model, wrapper.from_pretrained(place, torch_dtype=torch.float32)


def outputs(family: str, preset: str, text: str, folder: Path) -> Outputs:
    """What diffusers' class gives alone for each prompt; and xDiT's in all processes, each prompt by those that guidance has
    put together, as xDiT's pipeline of Wan calls it."""
    from xfuser.core.distributed import get_cfg_group

    model, split = saved(family, preset, folder)
    group = get_cfg_group()
    alone = [model(**inputs(family, prompt, text))[0] for prompt in range(group.world_size)]
    mine = split(**inputs(family, group.rank_in_group, text))[0]
    return torch.cat(alone), group.all_gather(mine, dim=0)


def refusals(folder: Path) -> dict[str, tuple[str, bool]]:
    """What xDiT's own quantization says to a quantized model, and whether its first layer is as it was."""
    from xfuser.core.utils import runner_utils

    found = {}
    for kind in ("fp8", "int8", "fp8_blockscale", "fp6", "fp4"):
        model = saved("Wan", "plain", folder)[1]
        layer = model.blocks[0].attn1.to_q
        layer.bias = None
        before = layer.weight
        # torchao asks for a GPU with FP8 units before it looks at a weight; xDiT's FP6 and FP4 for AMD's.
        with mock.patch("torchao.quantization.quant_api._check_hardware_support"):
            try:
                getattr(runner_utils, f"quantize_linear_layers_to_{kind}")(model.blocks)
                said = ""
            except Exception as error:  # noqa: BLE001  # of any of three libraries
                said = f"{type(error).__name__}: {error}"
        found[kind] = (said, layer is model.blocks[0].attn1.to_q and layer.weight is before)
    return found


def streamed(folder: Path) -> Outputs:
    """What a quantized model gives, and the same loaded as xDiT does where torchao is to quantize while loading."""
    from diffusers import TorchAoConfig
    from torchao.quantization import Int8WeightOnlyConfig

    model, split = saved("Wan", "plain", folder)
    loaded = type(split).from_pretrained(
        folder / f"Wan-plain-{dist.get_world_size()}-{dist.get_rank()}",
        torch_dtype=torch.float32,
        quantization_config=TorchAoConfig(Int8WeightOnlyConfig()),
    )
    return tuple(each(**inputs("Wan", 0, "even"))[0] for each in (model, loaded))


def looked_at() -> str:
    """What is said where second terms are to follow from attention."""
    wrapper = import_module(f"{MODELS}.transformer_wan").xFuserWanTransformer3DWrapper(**WAN).eval()
    sedialect.quantize_model(wrapper, sedialect.SeDialectConfig(salient_ratio=0.25, salient_by="attention"))
    try:
        wrapper(**inputs("Wan", 0, "even"))
    except ModelError as error:
        return str(error)
    return ""


def rank_of_several(rank: int, ulysses: int, guidance: int, folder: Path) -> None:
    """What one process does."""
    prepare(rank, ulysses, guidance, folder)
    cases = [("Wan", "even")]
    if guidance == 1:
        cases += [("HunyuanVideo", text) for text in ("even", "odd", "masked")]
    with torch.no_grad():
        found: dict[str, Any] = {
            f"{family}, {text}, {preset or '16 bit'}": outputs(family, preset, text, folder)
            for family, text in cases
            for preset in ("", *PRESETS)
        }
        if guidance == 1:
            found |= {"refused": refusals(folder), "streamed": streamed(folder), "looked at": looked_at()}
    torch.save(found, folder / f"{ulysses}-{guidance}-{rank}.pt")
    dist.barrier()


def process(*arguments: Any) -> None:
    """One process, which ends at once: taking down the many groups of xDiT hangs now and then."""
    faulthandler.dump_traceback_later(TOO_LONG, exit=True)
    code = 0
    try:
        rank_of_several(*arguments)
    except Exception:  # noqa: BLE001  # whatever it is, the others must not wait for it
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    torch.set_num_threads(1)
    fork = multiprocessing.get_context("fork")
    for ulysses, guidance in SPLITS:
        arguments = (ulysses, guidance, Path(sys.argv[1]))
        children = [fork.Process(target=process, args=(rank, *arguments)) for rank in range(ulysses * guidance)]
        for child in children:
            child.start()
        while not any(child.exitcode for child in children) and any(child.is_alive() for child in children):
            wait([child.sentinel for child in children if child.is_alive()])
        if any(child.exitcode for child in children):
            for child in children:
                child.kill()
            sys.exit(f"of Ulysses {ulysses} and guidance {guidance} some processes have failed")
