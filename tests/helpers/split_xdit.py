"""xDiT's Wan over two processes on a CPU, from a folder that sedialect saved. `python split_xdit.py FOLDER` writes what each
process got to FOLDER.

xDiT (xfuser 0.7) means to run on accelerators alone: here it takes the CPU for one that speaks gloo, finds the long-context
attention that it would look for in other packages, and gets a state in place of the one that its runners make.
"""

import multiprocessing
import sys
import types
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from diffusers import WanTransformer3DModel

import sedialect

RANKS = 2
PRESETS = ("plain", "default", "quality")
SIZES = {"num_attention_heads": 4, "attention_head_dim": 16, "text_dim": 32, "freq_dim": 64, "ffn_dim": 96, "num_layers": 2}


class NoState(types.SimpleNamespace):
    """Says no to whatever xDiT asks of its state."""

    def __getattr__(self, name: str) -> bool:
        return False


def prepare(rank: int, folder: Path) -> Any:
    """Start xDiT's groups; gives the module of its Wan."""
    with mock.patch.object(torch.backends.mps, "is_available", lambda: True):
        import xfuser.core.distributed as distributed
        import xfuser.model_executor.layers.usp as usp
        import xfuser.model_executor.models.transformers.transformer_wan as wan
        from xfuser.core.distributed import parallel_state
        from xfuser.core.distributed.attention_backend import AttentionBackendType
        from yunchang import globals as groups

        for name, module in list(sys.modules.items()):
            if name.startswith("xfuser") and hasattr(module, "HAS_LONG_CTX_ATTN"):
                module.HAS_LONG_CTX_ATTN = True
            if name.startswith("xfuser") and isinstance(getattr(module, "env_info", None), dict):
                module.env_info["has_long_ctx_attn"] = True
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
        parallel_state.init_distributed_environment(rank=rank, world_size=RANKS, backend="gloo")
        distributed.initialize_model_parallel(sequence_parallel_degree=RANKS, ulysses_degree=RANKS, backend="gloo")
    sdpa = AttentionBackendType.SDPA
    state = NoState(fp8_comms=None, attention_backend=sdpa, runtime_config=NoState())
    state.increment_step_counter, state.get_cross_attention_backend = (lambda: None), (lambda: sdpa)
    usp.PROCESS_GROUP = groups.PROCESS_GROUP
    wan.get_runtime_state = usp.get_runtime_state = lambda: state
    return wan


def outputs(rank: int, folder: Path) -> dict[str, Any]:
    """Of each preset: what diffusers' class gives alone, and what xDiT's gives with the others."""
    wan, found = prepare(rank, folder), {}
    generator = torch.Generator().manual_seed(1)
    latents, text = torch.randn(1, 16, 4, 8, 8, generator=generator), torch.randn(1, 8, 32, generator=generator)
    for preset in PRESETS:
        torch.manual_seed(7)
        model = WanTransformer3DModel(**SIZES).eval()
        sedialect.quantize_model(model, sedialect.SeDialectConfig.preset(preset))
        model.save_pretrained(folder / f"{preset}-{rank}")
        split = wan.xFuserWanTransformer3DWrapper.from_pretrained(folder / f"{preset}-{rank}", torch_dtype=torch.float32)
        found[preset] = tuple(each(latents, torch.tensor([500]), text, return_dict=False)[0] for each in (model, split))
    return found


def rank_of_two(rank: int, folder: Path) -> None:
    """What one process does."""
    with torch.no_grad():
        torch.save(outputs(rank, folder), folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=rank_of_two, args=(rank, Path(sys.argv[1]))) for rank in range(RANKS)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    sys.exit(any(child.exitcode for child in children))
