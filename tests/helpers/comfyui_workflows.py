"""Workflows of the nodes that tests run in a real ComfyUI, and the folder with models that it runs in."""

from pathlib import Path

import comfyui_models
import torch
from comfyui_server import ON_CPU, Graph
from safetensors.torch import load_file

PROMPT = "a striped purple star moves right, over an orange background with clouds, the camera pans down"
DEMO = "bundled_wan.safetensors"
OUTLIERS = "bundled_wan_outliers.safetensors"


def base_folder(base: Path) -> Path:
    """ComfyUI's base folder, with models."""
    models = base / "models"
    for folder in ("diffusion_models", "loras"):
        (models / folder).mkdir(parents=True)
    bundled = comfyui_models.bundled(models / "diffusion_models")
    comfyui_models.bundled(models / "diffusion_models", outliers=32)
    comfyui_models.embeddings(base / "prompts.safetensors", [PROMPT, ""])
    comfyui_models.lora(models / "loras" / "lora.safetensors", bundled)
    comfyui_models.lora(models / "loras" / "second.safetensors", bundled, seed=1)
    comfyui_models.lora(models / "loras" / "weak.safetensors", bundled, scale=0.01)
    comfyui_models.lora(models / "loras" / "dora.safetensors", bundled, dora=True)
    comfyui_models.tiny_wan(models / "diffusion_models" / "tiny_high.safetensors", blocks=2)
    comfyui_models.tiny_wan(models / "diffusion_models" / "tiny_low.safetensors", blocks=3)
    comfyui_models.tiny_wan(models / "diffusion_models" / "wide.safetensors", blocks=1, dim=1024, hidden=4096)
    return base


class Workflow(Graph):
    """A graph with the steps that most tests need."""

    def __init__(self, base: Path) -> None:
        super().__init__()
        self.base = base

    def model(self, file: str = DEMO) -> list:
        return self.add("UNETLoader", unet_name=file, weight_dtype="default")

    def quantize(self, model: list, **settings: object) -> list:
        return self.add("SeDialectQuantize", model=model, **{"preset": "default", **settings})

    def lora(self, model: list, file: str = "lora.safetensors", strength: float = 1.0, bypass: bool = False) -> list:
        kind = "LoraLoaderBypassModelOnly" if bypass else "LoraLoaderModelOnly"
        return self.add(kind, model=model, lora_name=file, strength_model=strength)

    def prompt(self, text: str) -> list:
        return self.add(
            "SeDialectTestConditioning", text=text, file="prompts.safetensors", tokens=1, dim=1, pooled=0, mask=False
        )

    def latent(self, frames: int = 5, size: int = 64) -> list:
        return self.add("EmptyHunyuanLatentVideo", width=size, height=size, length=frames, batch_size=1)

    def sample(self, model: list, steps: int = 2, latent: list | None = None, **other: object) -> list:
        said = {"positive": self.prompt(PROMPT), "negative": self.prompt(""), "latent_image": latent or self.latent()}
        sampler = {"seed": 7, "steps": steps, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
        return self.add("KSampler", model=model, **{**said, **sampler, **other})

    def keep(self, samples: list, name: str) -> Path:
        path = self.base / "temp" / f"{name}.safetensors"
        self.add("SeDialectTestLatents", samples=samples, file=str(path))
        return path

    def layers(self, model: list, name: str, budget: int = 0) -> Path:
        path = self.base / "temp" / f"{name}.safetensors"
        self.add("SeDialectTestLayers", model=model, file=str(path), budget=budget)
        return path


def samples(path: Path) -> torch.Tensor:
    return load_file(path)["samples"]


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def assert_near(found: torch.Tensor, expected: torch.Tensor, exactly: float, roughly: float) -> None:
    """Hold two results of layers against each other: on the CPU, which computes in float32, each number to `exactly`; on a
    GPU, whose products are rounded to bfloat16, their distance to `roughly`."""
    if ON_CPU:
        torch.testing.assert_close(found, expected, rtol=exactly, atol=exactly)
    else:
        assert distance(found, expected) < roughly


def answers(path: Path) -> dict[str, torch.Tensor]:
    """What each layer answered, by name."""
    return {key.removesuffix("|y"): value for key, value in load_file(path).items() if key.endswith("|y")}
