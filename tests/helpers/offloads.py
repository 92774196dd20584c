"""Ways of diffusers and accelerate to keep weights elsewhere until they are used, and to compile."""

from pathlib import Path
from typing import Any

import accelerate
import torch
from quantized_pipelines import close, layers

CPU = torch.device("cpu")


def compile_whole(pipe: Any) -> None:
    pipe.transformer.compile(fullgraph=True, backend="aot_eager")  # inductor takes minutes on a CPU; the blocks have it


def compile_blocks(pipe: Any) -> None:
    pipe.transformer.compile_repeated_blocks(fullgraph=True)


def model_offload(pipe: Any, path: Path) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def sequential_offload(pipe: Any, path: Path) -> None:
    """What the method of this name does to each model; on the tied weights of text encoders accelerate fails on a CPU."""
    accelerate.cpu_offload(pipe.transformer, CPU, offload_buffers=len(pipe.transformer._parameters) > 0)


def group_offload(pipe: Any, path: Path) -> None:
    pipe.transformer.enable_group_offload(onload_device=CPU, offload_type="leaf_level")


def group_offload_blocks(pipe: Any, path: Path) -> None:
    pipe.transformer.enable_group_offload(onload_device=CPU, offload_type="block_level", num_blocks_per_group=1)


def group_offload_to_disk(pipe: Any, path: Path) -> None:
    pipe.transformer.enable_group_offload(onload_device=CPU, offload_type="leaf_level", offload_to_disk_path=str(path))


def group_offload_by_pipeline(pipe: Any, path: Path) -> None:
    pipe.enable_group_offload(onload_device=CPU, offload_type="leaf_level", exclude_modules=["vae", "text_encoder"])


OFFLOADS = {
    "Model CPU offload": [model_offload],
    "Sequential CPU offload": [sequential_offload],
    "Group offload, leaf level": [group_offload, group_offload_by_pipeline],
    "Group offload, block level": [group_offload_blocks],
    "Group offload to disk": [group_offload_to_disk],
}


def unchanged(apply: Any, found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """The same bits. From disk, up to the order of sums: CPU libraries choose code by the address where weights begin, and
    a mapped file begins them anywhere."""
    return close(found, wanted) if apply is group_offload_to_disk else torch.equal(found, wanted)


def is_written(model: torch.nn.Module, folder: Path) -> bool:
    """Whether the files in a folder have room for all that the quantized layers of a model hold."""
    stored = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    return stored > sum(p.nbytes for layer in layers(model) for p in layer.parameters())
