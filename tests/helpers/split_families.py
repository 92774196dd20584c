"""Tiny models of several families, alone and split over two processes. `python split_families.py FOLDER` writes what each of
the two got to FOLDER."""

import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig, ParallelConfig, WanTransformer3DModel
from peft import LoraConfig
from tiny_inputs import GRID, HEAD_DIM, TEXT, build, volume
from tiny_joint_attention import COGVIDEOX, cogvideox
from tiny_models import TINY

import sedialect
from sedialect.bench.scale import cases
from sedialect.bench.scale.cases import enable
from sedialect.kernels import attention_support

RANKS = 2
EIGHT_BIT = f"plain{cases.EIGHT_BIT}"
FORK = multiprocessing.get_context("fork")
ULYSSES = ContextParallelConfig(ulysses_degree=RANKS)
FAMILIES = (
    "WanVACETransformer3DModel",
    "HunyuanVideoTransformer3DModel",
    "HunyuanVideo15Transformer3DModel",
    "MochiTransformer3DModel",
    "CogVideoXTransformer3DModel",
    "CogVideoX with rotary positions",
)
Outputs = dict[str, tuple[torch.Tensor, torch.Tensor]]


def family(name: str) -> tuple[Any, dict[str, Any]]:
    """A model, and inputs whose text has an even number of tokens, the last of which its mask leaves out."""
    if not name.startswith("CogVideoX"):
        model, inputs = TINY[name]()
    else:
        inputs = cogvideox()[1]
        config = {**COGVIDEOX, "max_text_seq_length": TEXT + 1}
        model = build("CogVideoXTransformer3DModel", **config)
        if "rotary" in name:
            tokens = volume(GRID)
            inputs["image_rotary_emb"] = torch.randn(tokens, HEAD_DIM), torch.randn(tokens, HEAD_DIM)
    for key, value in inputs.items() if "15" not in name else ():  # whose texts have 16 tokens together
        if key.startswith("encoder") and value.shape[1] % 2:
            more = torch.zeros_like(value[:, :1]) if value.ndim == 2 else 2 * value[:, :1]
            inputs[key] = torch.cat([value, more], dim=1)
    return model, inputs


def alone_and_split(model: Any, inputs: dict[str, Any], split: Callable[[], None]) -> tuple[torch.Tensor, torch.Tensor]:
    """What it gives before and after it is split."""
    alone = model(**inputs, return_dict=False)[0]
    split()
    return alone, model(**inputs, return_dict=False)[0]


def of_families() -> Outputs:
    """Every family in 16 bit, with two presets, and with its attention in 8 bit."""
    found = {}
    for name in FAMILIES:
        for preset in ("", "plain", "default", EIGHT_BIT):
            model, inputs = family(name)
            if preset:
                enable(preset, model)
            split = lambda model=model: sedialect.enable_context_parallel(model, ULYSSES)  # noqa: E731
            found[f"{name}, {preset or '16 bit'}"] = alone_and_split(model, inputs, split)
    return found


def of_saved_folders_and_loras(folder: Path, rank: int) -> Outputs:
    """A quantized folder that is loaded split, and a LoRA beside quantized layers."""
    model, inputs = TINY["WanTransformer3DModel"]()
    sedialect.quantize_model(model)
    alone = model(**inputs, return_dict=False)[0]
    model.save_pretrained(folder / f"saved-{rank}")
    loaded = WanTransformer3DModel.from_pretrained(
        folder / f"saved-{rank}", torch_dtype=torch.float32, parallel_config=ParallelConfig(ULYSSES)
    )
    found = {"saved folder": (alone, loaded(**inputs, return_dict=False)[0])}
    torch.manual_seed(3)
    model.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v", "net.0.proj"], init_lora_weights=False))
    found["LoRA"] = alone_and_split(model, inputs, lambda: sedialect.enable_context_parallel(model, ULYSSES))
    assert not torch.equal(found["LoRA"][0], alone)
    return found


def rank_of_two(rank: int, folder: Path) -> None:
    """What one process does."""
    dist.init_process_group("cpu:gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    torch.accelerator.device_count = lambda: RANKS  # diffusers divides by it: without an accelerator it is 0
    with torch.no_grad():
        torch.save(of_families() | of_saved_folders_and_loras(folder, rank), folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    attention_support.LEAST_TOKENS, attention_support.HEAD_SIZES = 4, (16, 32)
    children = [FORK.Process(target=rank_of_two, args=(rank, Path(sys.argv[1]))) for rank in range(RANKS)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    sys.exit(any(child.exitcode for child in children))
