"""A model whose sequence is split over processes computes what one process does (issue of many GPUs): over gloo, on CPUs."""

CASES = {
    "default": {},
    "plain": {"preset": "plain"},
    "compact": {"preset": "compact"},
    "quality": {"preset": "quality"},
    "weight-only": {"preset": "weight-only"},
    "all layers": {"salient_layers": "all"},
    "by error": {"salient_by": "error"},
    "at random": {"salient_by": "random"},
    "by attention": {"salient_by": "attention", "refresh_every": 2},
    "by peaks": {"salient_by": "peak-attention", "refresh_every": 2},
    "by both": {"salient_by": "attention-error", "refresh_every": 2},
    "groups": {"semantic": True, "semantic_similarity": 0.2, "semantic_quantile": 0.2, "refresh_every": 2},
    "dialects": {"semantic": True, "semantic_sharing": "dialect", "semantic_similarity": 0.2, "refresh_every": 2},
    "protected": {"protected_steps": (1, 0)},
    "8-bit attention": {"attention": "8bit"},
}
WITHOUT_SECOND_TERMS = {"plain", "quality", "weight-only"}

SCRIPT = """
import json, sys, torch, torch.distributed as dist
import sedialect
from sedialect.kernels import attention_support
from diffusers import ContextParallelConfig, WanTransformer3DModel
attention_support.LEAST_TOKENS, attention_support.HEAD_SIZES = 4, (16, 32)
rank, folder, ranks = int(sys.argv[1]), sys.argv[3], int(sys.argv[4])
cases, options = json.loads(sys.argv[2])
torch.set_num_threads(1)
torch.accelerator.device_count = lambda: ranks  # diffusers divides by it: without an accelerator it is 0
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)

def run(settings, split):
    torch.manual_seed(7)
    model = WanTransformer3DModel(
        num_attention_heads=8, attention_head_dim=16, text_dim=32, freq_dim=64, ffn_dim=96, num_layers=2).eval()
    settings = dict(settings)
    config = sedialect.SeDialectConfig.preset(settings.pop("preset", "default"), **settings)
    sedialect.quantize_model(model, config)
    if split:
        model.enable_parallelism(config=ContextParallelConfig(**options))
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 16, 4, 8, 8, generator=generator)
    text = torch.randn(2, 8, 32, generator=generator)
    outputs = [model(latents, torch.tensor([time]), text, return_dict=False)[0] for time in (900, 700, 500, 300)]
    return torch.stack(outputs)

with torch.no_grad():
    results = {name: (run(settings, False) if rank == 0 else None, run(settings, True)) for name, settings in cases.items()}
torch.save(results, f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""
