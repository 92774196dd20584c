"""vLLM-Omni on a CPU, for tests: its own loader, linear layers and Wan class, in one process or in several over gloo.

vLLM-Omni (0.30) runs on accelerators alone: here it gets a platform that says it is a CPU, with attention by torch. A build
of torchvision for another torch than the one here is told which operators it would have.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import torch
from torch import nn

import sedialect

# Heads of 24 channels: of 16, vLLM-Omni's Wan cuts its rotary embedding in other places than diffusers'.
SIZES = {"num_attention_heads": 4, "attention_head_dim": 24, "text_dim": 32, "freq_dim": 64, "ffn_dim": 192, "num_layers": 2}
OUTLIER = 24.0
Settings = sedialect.SeDialectConfig


def declare_vision_operators() -> torch.library.Library | None:
    """Where torchvision's library does not load, its Python half still names these."""
    try:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except RuntimeError:  # they are there
        return None
    return library


kept = declare_vision_operators()  # before anything of transformers is looked at; operators end with their library


def on_cpu() -> None:
    """Make the CPU a platform of vLLM-Omni's."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm.platforms.interface import PlatformEnum
    from vllm_omni import platforms
    from vllm_omni.diffusion.attention.backends.sdpa import SDPAImpl
    from vllm_omni.platforms.interface import OmniPlatform, OmniPlatformEnum

    class OnCpu(OmniPlatform):
        _enum, _omni_enum = PlatformEnum.CPU, OmniPlatformEnum.OOT
        device_name = device_type = "cpu"
        dispatch_key, dist_backend = "CPU", "gloo"

        @classmethod
        def get_diffusion_attn_backend_cls(cls, *args: Any, **kwargs: Any) -> str:
            return "vllm_omni.diffusion.attention.backends.sdpa.SDPABackend"

        @classmethod
        def get_torch_device(cls, local_rank: int | None = None) -> torch.device:
            return torch.device("cpu")

        @classmethod
        def get_device_count(cls) -> int:
            return 1

        @classmethod
        def set_device(cls, device: torch.device) -> None:
            pass

        @classmethod
        def empty_cache(cls) -> None:
            pass

    platforms._current_omni_platform = OnCpu()
    SDPAImpl.forward = SDPAImpl.forward_cuda  # plain torch, under the name of a platform


@contextmanager
def groups(rank: int, ranks: int, folder: Path, **sizes: int) -> Iterator[Any]:
    """Processes that know each other; `sizes` are those of vLLM-Omni's `initialize_model_parallel`. Gives vLLM's config."""
    on_cpu()
    from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config
    from vllm.plugins import load_general_plugins
    from vllm_omni.diffusion.distributed import parallel_state
    from vllm_omni.plugins import load_omni_general_plugins

    load_general_plugins()
    load_omni_general_plugins()
    config = VllmConfig(device_config=DeviceConfig("cpu"))
    meeting = {"distributed_init_method": f"file://{folder}/meeting", "backend": "gloo"}
    with set_current_vllm_config(config):
        parallel_state.init_distributed_environment(world_size=ranks, rank=rank, local_rank=0, **meeting)
        wanted = {"data_parallel_size": 1, "sequence_parallel_size": 1, "tensor_parallel_size": 1, **sizes}
        parallel_state.initialize_model_parallel(**wanted, backend="gloo")
        yield config


def saved_wan(config: "Settings | None", folder: Path) -> nn.Module:
    """A tiny Wan of diffusers', with outlier channels, quantized by `config`, and saved as `folder`/transformer."""
    torch.manual_seed(7)
    model = diffusers.WanTransformer3DModel(**SIZES).eval()
    with torch.no_grad():
        for name, layer in model.named_modules():
            if name.startswith("blocks.") and isinstance(layer, nn.Linear):
                layer.weight[:, 5] *= OUTLIER
                layer.weight[:, 5:] *= torch.linspace(1, 2, layer.in_features - 5)
    if config is not None:
        sedialect.quantize_model(model, config)
    model.save_pretrained(folder / "transformer")
    return model


def wan_pipeline(folder: Path) -> nn.Module:
    """What of vLLM-Omni's Wan pipeline holds the transformer, which is made as that makes it."""
    from vllm_omni.diffusion.model_loader.diffusers_loader import DiffusersPipelineLoader
    from vllm_omni.diffusion.models.wan2_2 import pipeline_wan2_2 as wan

    class Pipeline(nn.Module):
        def __init__(self, quantization: Any) -> None:
            super().__init__()
            source = {"model_or_path": str(folder), "subfolder": "transformer", "revision": None, "prefix": "transformer."}
            self.weights_sources = [DiffusersPipelineLoader.ComponentSource(**source)]
            config = wan.load_transformer_config(str(folder), "transformer")
            self.transformer = wan.create_transformer_from_config(config, quantization)

        def load_weights(self, weights: Any) -> set[str]:
            return wan.load_wan_weights_with_optional_gate(self, weights)

    return Pipeline


@contextmanager
def loaded(folder: Path, config: Any, quantization: Any = None, **parallel: Any) -> Iterator[nn.Module]:
    """vLLM-Omni's Wan with the weights of a saved folder, by its own loader; inside, it can be run.

    Args:
        config: vLLM's.
        quantization: what stands after --diffusion-quantization-config.
        parallel: of `DiffusionParallelConfig`.
    """
    from vllm.config.load import LoadConfig
    from vllm_omni.diffusion import registry
    from vllm_omni.diffusion.config import set_current_diffusion_config
    from vllm_omni.diffusion.data import DiffusionParallelConfig, OmniDiffusionConfig
    from vllm_omni.diffusion.forward_context import set_forward_context
    from vllm_omni.diffusion.model_loader import diffusers_loader

    wanted = {"parallel_config": DiffusionParallelConfig(**parallel), "quantization_config": quantization}
    omni = OmniDiffusionConfig(model=str(folder), dtype=torch.float32, **wanted)
    make = wan_pipeline(folder)
    with ExitStack() as stack:
        stack.enter_context(set_forward_context(vllm_config=config, omni_diffusion_config=omni))
        stack.enter_context(set_current_diffusion_config(omni))
        stack.enter_context(
            mock.patch.object(diffusers_loader, "initialize_model", lambda omni: make(omni.quantization_config))
        )
        loader = diffusers_loader.DiffusersPipelineLoader(LoadConfig(), omni)
        pipeline = loader.load_model(load_device="cpu", device=torch.device("cpu"))
        registry._apply_sequence_parallel_if_enabled(pipeline, omni)
        stack.enter_context(torch.no_grad())
        yield pipeline.transformer


def saved_pipeline(folder: Path) -> Any:
    """A tiny Wan 2.2 of diffusers', its two transformers and its text encoder quantized, and saved."""
    import tiny_pipelines
    import transformers

    pipe, _ = tiny_pipelines.wan(experts=2)
    torch.manual_seed(4)
    sizes = pipe.text_encoder.config.to_dict()
    names = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
    pipe.text_encoder = transformers.UMT5EncoderModel(
        transformers.UMT5Config(**{name: sizes[name] for name in names})
    ).eval()
    pipe.transformer, pipe.transformer_2 = (diffusers.WanTransformer3DModel(**SIZES).eval() for _ in range(2))
    pipe.enable_sedialect(text_encoder=True)
    pipe.save_pretrained(folder)
    return pipe


def generated(rank: int, ranks: int, argument: str, folder: Path) -> dict[str, Any]:
    """A whole pipeline of vLLM-Omni's: what its parts give and diffusers' do, and a video of two steps."""
    with groups(rank, ranks, folder) as config, torch.no_grad():
        from vllm.config.load import LoadConfig
        from vllm_omni.diffusion.data import OmniDiffusionConfig
        from vllm_omni.diffusion.forward_context import set_forward_context
        from vllm_omni.diffusion.model_loader.diffusers_loader import DiffusersPipelineLoader
        from vllm_omni.diffusion.request import OmniDiffusionRequest
        from vllm_omni.diffusion.worker.request_batch import DiffusionRequestBatch
        from vllm_omni.inputs.data import OmniDiffusionSamplingParams

        pipe = saved_pipeline(folder / "model")
        omni = OmniDiffusionConfig(model=str(folder / "model"), model_class_name="WanPipeline", dtype=torch.float32)
        omni.enrich_config()
        with set_forward_context(vllm_config=config, omni_diffusion_config=omni):
            loader = DiffusersPipelineLoader(LoadConfig(), omni)
            served = loader.load_model(load_device="cpu", device=torch.device("cpu"))
            found: dict[str, Any] = {
                name: tuple(getattr(each, name)(**inputs(), return_dict=False)[0] for each in (pipe, served))
                for name in ("transformer", "transformer_2")
            }
            ids = torch.arange(5)[None]
            found["text_encoder"] = tuple(each.text_encoder(ids)[0] for each in (pipe, served))
            sizes = {"height": 32, "width": 48, "num_frames": 5, "num_inference_steps": 2, "guidance_scale": 4.0, "seed": 0}
            request = OmniDiffusionRequest("a cat", OmniDiffusionSamplingParams(**sizes), "first")
            (output,) = served.forward(DiffusionRequestBatch([request]))
            return found | {"method": omni.quantization_config.get_name(), "video": output.media.video.tensor}


def inputs() -> dict[str, torch.Tensor]:
    """Of a forward: 64 video tokens, 8 text tokens."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 16, 4, 8, 8, generator=generator)
    text = torch.randn(1, 8, SIZES["text_dim"], generator=generator)
    return {"hidden_states": latents, "timestep": torch.tensor([500]), "encoder_hidden_states": text}


def both(config: "Settings | None", folder: Path, vllm_config: Any, **parallel: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What diffusers' class gives alone, and what vLLM-Omni's gives of the same folder."""
    alone = saved_wan(config, folder)
    with loaded(folder, vllm_config, **parallel) as served:
        return alone(**inputs(), return_dict=False)[0], served(**inputs(), return_dict=False)[0]


def cases() -> dict[str, "Settings | None"]:
    """What is compared: presets, and settings that vLLM-Omni's layers could get wrong."""
    return {
        "16 bit": None,
        "plain": Settings.preset("plain"),
        "default": Settings(),
        "quality": Settings.preset("quality"),
        "weight-only": Settings.preset("weight-only"),
        "second terms everywhere": Settings(salient_layers="all"),
        "second terms by error": Settings(salient_by="error"),
        "rotated": Settings(rotation=16),
        "layers left in 16 bit": Settings(
            skip=(r"attn1\.to_[qkv]", r"blocks\.0\.ffn"), layer_precisions=(("attn2", "w4a16"),)
        ),
    }


def together(task: Callable[..., Any], argv: list[str]) -> None:
    """One of the processes that `run_together` starts: its result becomes FOLDER/RANK.pt."""
    rank, argument, folder, ranks = int(argv[1]), argv[2], Path(argv[3]), int(argv[4])
    torch.set_num_threads(1)
    torch.save(task(rank, ranks, argument, folder), folder / f"{rank}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def compared(rank: int, ranks: int, how: str, folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """`both` of every case, by name. `how`: "tensor" or "sequence", which is what the processes share, or "alone"."""
    sizes = {
        "tensor": {"tensor_parallel_size": ranks},
        "sequence": {"sequence_parallel_size": ranks, "ulysses_degree": ranks},
    }
    parallel = {"tensor": {"tensor_parallel_size": ranks}, "sequence": {"ulysses_degree": ranks}}
    found = {}
    with groups(rank, ranks, folder, **sizes.get(how, {})) as config:
        for number, (name, settings) in enumerate(cases().items()):
            found[name] = both(settings, folder / f"{number}-{rank}", config, **parallel.get(how, {}))
    return found
