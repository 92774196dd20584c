"""A tiny Wan whose sequence is split over processes, and the same in one. `python split_wan.py RUNS FOLDER`, with RUNS by
how many processes there are, writes what each of them got to FOLDER."""

import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import diffusers.models.attention_dispatch as dispatch
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import ContextParallelConfig, WanTransformer3DModel

import sedialect
from sedialect.bench.scale.cpu_attention import native_attention
from sedialect.kernels import attention_support

STEPS = (900, 700, 500)
FORK = multiprocessing.get_context("fork")


def uneven_all_gather(found: list[torch.Tensor], mine: torch.Tensor, group: Any = None, **options: Any) -> None:
    """`dist.all_gather` of tensors of different sizes, which NCCL has and gloo has not."""
    most = max(one.numel() for one in found)
    padded = [mine.new_zeros(most) for _ in found]
    even_all_gather(padded, F.pad(mine.flatten(), (0, most - mine.numel())), group=group)
    for one, flat in zip(found, padded, strict=True):
        one.copy_(flat[: one.numel()].view(one.shape))


def outputs(settings: dict[str, Any], size: list[int], split: dict[str, Any] | None, backend: str) -> torch.Tensor:
    """What the model gives in each step, alone or split as diffusers' configuration says."""
    torch.manual_seed(7)
    model = WanTransformer3DModel(
        num_attention_heads=8, attention_head_dim=16, text_dim=32, freq_dim=64, ffn_dim=96, num_layers=2
    ).eval()
    settings = dict(settings)
    config = sedialect.SeDialectConfig.preset(settings.pop("preset", "default"), **settings)
    sedialect.quantize_model(model, config)
    if split is not None:
        model.enable_parallelism(config=ContextParallelConfig(**split))
    generator = torch.Generator().manual_seed(1)
    latents, text = torch.randn(2, 16, *size, generator=generator), torch.randn(2, 8, 32, generator=generator)
    latents[:, :, 0] *= 4  # what is chosen lies in one process's part, above all
    found = []
    for number, time in enumerate(STEPS):
        if number == 1 and backend and split is not None:  # diffusers' own hooks want to have run before
            model.compile_repeated_blocks(fullgraph=True, backend=backend)
        found.append(model(latents, torch.tensor([time]), text, return_dict=False)[0])
    return torch.stack(found)


def rank_of_several(rank: int, ranks: int, runs: list[Any], folder: Path) -> None:
    """What one process does; the first also computes what one alone does."""
    dist.init_process_group("cpu:gloo", init_method=f"file://{folder}/meeting-{ranks}", rank=rank, world_size=ranks)
    torch.accelerator.device_count = lambda: ranks  # diffusers divides by it: without an accelerator it is 0
    results = {}
    with torch.no_grad():
        for name, settings, size, split, backend in runs:
            alone = outputs(settings, size, None, backend) if rank == 0 else None
            results[name] = (alone, outputs(settings, size, split, backend))
    torch.save(results, folder / f"{ranks}-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    attention_support.LEAST_TOKENS, attention_support.HEAD_SIZES = 4, (16, 32)
    dispatch._native_attention_forward_op = native_attention
    even_all_gather, dist.all_gather = dist.all_gather, uneven_all_gather
    torch.set_num_threads(1)
    for ranks, runs in json.loads(sys.argv[1]).items():
        arguments = (int(ranks), runs, Path(sys.argv[2]))
        # Forked, for importing takes longer than computing; nothing has computed here.
        children = [FORK.Process(target=rank_of_several, args=(rank, *arguments)) for rank in range(int(ranks))]
        for child in children:
            child.start()
        for child in children:
            child.join()
        if any(child.exitcode for child in children):
            sys.exit(f"of {ranks} processes some have failed")
