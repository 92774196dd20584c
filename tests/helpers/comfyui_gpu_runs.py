"""Runs of big models in a ComfyUI, timed and compared: what the sections of run_comfyui_gpu.py are made of."""

import contextlib
import json
import re
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from comfyui_big_models import Size, write_lora, write_wan
from comfyui_measuring import GIB, Gpu, Peak, Row, settle
from comfyui_server import Graph, Outcome, Server
from safetensors.torch import load_file

FILES = {"16 bit": "bf16.safetensors", "FP8 of ComfyUI": "fp8.safetensors"}
LORA = "lora.safetensors"
WRITTEN = "written.json"
OURS = "SeDialect"
OURS_LORA = "SeDialect + LoRA"
MODELS = (*FILES, OURS, OURS_LORA)
START = 180.0  # seconds that a server may take
RANK = 16


@dataclass
class Setup:
    """What every section is given."""

    comfyui: Path
    python: str
    base: Path
    gpu: Gpu
    size: Size
    video: tuple[int, int, int]  # width, height, frames
    steps: int
    flags: tuple[str, ...] = ()
    quantized: str = ""  # the file that SeDialect Save wrote

    def write_models(self) -> None:
        """Put the model's files where ComfyUI looks for them."""
        device = "cpu" if self.gpu.cpu else "cuda"
        models = self.base / "models"
        for folder in ("diffusion_models", "loras"):
            (models / folder).mkdir(parents=True, exist_ok=True)
        for name, file in FILES.items():
            if not (path := models / "diffusion_models" / file).exists():
                write_wan(path, self.size, device, fp8="FP8" in name)
        if not (path := models / "loras" / LORA).exists():
            write_lora(path, self.size, RANK, device)

    def written_before(self) -> bool:
        """Whether another call has left its models in the base folder; they are taken as they are."""
        if not (note := self.base / WRITTEN).exists():
            return False
        known = json.loads(note.read_text())
        self.size, self.quantized = Size(*known["size"]), known["quantized"]
        return True

    def note_written(self) -> None:
        """Leave word for another call."""
        if self.quantized:
            (self.base / WRITTEN).write_text(json.dumps({"size": self.size, "quantized": self.quantized}))

    @contextlib.contextmanager
    def server(self, *flags: str, patience: float = START) -> Iterator[Server]:
        """A ComfyUI that has just started."""
        self.gpu.leave(None)
        with Server(self.comfyui, self.python, self.base, *flags, patience=patience) as running:
            self.gpu.process = running.process.pid
            yield running
        if not self.gpu.cpu:
            settle(self.gpu.taken)

    def free(self, server: Server) -> None:
        """Have a server let go of everything."""
        server.post("/free", {"unload_models": True, "free_memory": True})
        time.sleep(0.5)  # the server's loop looks at it
        nothing = Graph()
        nothing.add("SeDialectTestExercise", work="none", dim=1, hidden=1, frames=1, height=1, width=1)
        server.run(nothing.nodes)  # its turn comes when all is let go of: moving a large model to the CPU takes a while
        settle(self.gpu.taken)


class Run(Graph):
    """A graph that samples one of the models."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.setup = setup
        self.sampled: list = []

    def model(self, name: str) -> list:
        """One of MODELS."""
        if name in FILES:
            return self.add("UNETLoader", unet_name=FILES[name], weight_dtype="default")
        settings = {"attention": "8bit"} if "8bit" in name else {}
        loaded = self.add("SeDialectLoad", file=self.setup.quantized, **settings)
        if name != OURS_LORA:
            return loaded
        return self.add("LoraLoaderModelOnly", model=loaded, lora_name=LORA, strength_model=1.0)

    def prompt(self, text: str, tokens: int = 512) -> list:
        """Random embeddings."""
        made = {"text": text, "file": "", "tokens": tokens, "dim": self.setup.size.text, "pooled": 0, "mask": False}
        return self.add("SeDialectTestConditioning", **made)

    def plain(self, model: list, **other: object) -> list:
        """Sampling: the latents."""
        width, height, frames = other.pop("video", self.setup.video)
        latent = self.add("EmptyHunyuanLatentVideo", width=width, height=height, length=frames, batch_size=1)
        texts = {"positive": self.prompt("a"), "negative": self.prompt("b")}
        said = {
            "seed": 7,
            "steps": self.setup.steps,
            "cfg": 1.0,
            "sampler_name": "euler",
            "scheduler": "simple",
            "denoise": 1.0,
        }
        return self.add("KSampler", model=model, latent_image=latent, **{**texts, **said, **other})

    def sample(self, model: list, run: str, **other: object) -> tuple[str, Path]:
        """Timed sampling: the node that tells seconds, and the file of latents."""
        sampled = self.plain(self.add("SeDialectTestTimed", model=model, run=run), **other)
        file = self.setup.base / "kept" / f"{re.sub('[^a-zA-Z0-9.]+', '_', run)}.safetensors"
        file.parent.mkdir(exist_ok=True)
        self.sampled = sampled
        return self.add("SeDialectTestTimes", samples=sampled, run=run, file=str(file))[0], file


def measured(setup: Setup, server: Server, row: Row, run: str, counting: bool = False, **other: object) -> tuple[Row, Path]:
    """A row filled by one run of its model; `counting` the calls of SageAttention, too."""
    graph = Run(setup)
    node, file = graph.sample(graph.model(row.model), run, **other)
    counted = graph.add("SeDialectTestSage", samples=graph.sampled)[0] if counting else ""
    start = time.monotonic()
    with Peak(setup.gpu) as peak:
        outcome = server.run(graph.nodes)
    fill(row, outcome, node)
    if counting:
        row.more["sage"] = json.loads(outcome.text(counted))
    row.run, row.peak = time.monotonic() - start, peak.most / GIB
    return row, file


def fill(row: Row, outcome: Outcome, node: str) -> None:
    """Put the seconds of a run's steps into a row."""
    seconds = json.loads(outcome.text(node))
    if seconds:
        row.first = seconds[0]
        row.step = statistics.median(seconds[1:]) if len(seconds) > 1 else None


def compared(file: Path, reference: Path | None) -> str:
    """How latents differ from others."""
    if reference is None or not reference.exists():
        return ""
    found, expected = (load_file(path)["samples"].float() for path in (file, reference))
    if not bool(found.isfinite().all()):
        return "not finite"
    if torch.equal(found, expected):
        return "same"
    return f"{float((found - expected).norm() / expected.norm()):.1e} off"
