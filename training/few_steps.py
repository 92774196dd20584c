"""Distil the demonstration model to four steps without guidance: `python -m
sedialect.training.few_steps --output DIR`.

Writes DIR/few_steps.safetensors, a LoRA as diffusers loads it, and DIR/few_steps.json with what it was made of. Needs
one GPU and less than `--minutes`; `--smoke` needs seconds on a CPU.
"""

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import WanPipeline
from safetensors.torch import load_file, save_file

from ..sedialect_core.environment import device_name, package_versions, today
from .distilling import ADAPTER, Deadline, Denoiser, Distillation, Runs, Student, schedule_of, smoke_distillation, teach

MODEL = Path(__file__).parents[1] / "sedialect_core" / "demo" / "model"
NAME = "few_steps.safetensors"
TEACHING, SEGMENTS = 0.4, 0.8  # parts of the time after which the teacher, and the training on segments, must be over


def _log(message: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {message}", flush=True)


def distil(settings: Distillation, minutes: float, device: torch.device, output: Path, compiled: bool) -> dict[str, Any]:
    """Teach, train and write; returns the record that lies beside the weights."""
    torch.manual_seed(settings.seed)
    started, deadline = time.monotonic(), Deadline(60 * minutes)
    pipe = WanPipeline.from_pretrained(MODEL, dtype=torch.float32)
    denoiser = Denoiser(pipe, settings, device)
    if compiled:
        denoiser.model.compile_repeated_blocks(fullgraph=True)
    runs = teach(pipe, denoiser, settings, _log, deadline, TEACHING)
    if compiled:  # the LoRA changes the blocks
        torch._dynamo.reset()
    seen, fresh = runs.split(settings.held_out)
    student = Student(denoiser, schedule_of(pipe, settings.steps), settings)
    record: dict[str, Any] = {"settings": asdict(settings), "runs": len(seen), "date": today()}
    record |= {"device": device_name(device), **package_versions(("torch", "diffusers"))}
    record["distance"] = _train(student, seen, fresh, settings, minutes, started, deadline)
    record["seconds"] = round(time.monotonic() - started, 1)
    record["bytes"] = write(pipe, output)
    (output / "few_steps.json").write_text(json.dumps(record, indent=1) + "\n")
    _log(f"{output / NAME}: {record['bytes']} bytes after {record['seconds']} s")
    return record


def _train(
    student: Student, seen: Runs, fresh: Runs, settings: Distillation, minutes: float, started: float, deadline: Deadline
) -> dict[str, float]:
    """Both trainings; the distances to the teacher before, between and after them."""
    found = {"untrained": _distance(student, fresh, "untrained")}
    segments = Deadline(60 * minutes * SEGMENTS - (time.monotonic() - started))
    student.train(lambda: student.segment_loss(seen), "segments", settings.segment_updates, settings.rate, _log, segments)
    found["segments"] = _distance(student, fresh, "after segments")
    rest = Deadline(60 * minutes - (time.monotonic() - started))
    student.train(lambda: student.run_loss(seen), "runs", settings.run_updates, settings.run_rate, _log, rest)
    found["runs"] = _distance(student, fresh, "after runs")
    return found


def _distance(student: Student, fresh: Runs, when: str) -> float:
    found = student.distance(fresh)
    _log(f"{when}: relative distance to the teacher's last latents {found:.4f}, {len(fresh)} held-out runs")
    return found


def write(pipe: WanPipeline, output: Path) -> int:
    """The LoRA in diffusers' layout, bfloat16; returns its size in bytes."""
    from peft import get_peft_model_state_dict

    output.mkdir(parents=True, exist_ok=True)
    layers = get_peft_model_state_dict(pipe.transformer, adapter_name=ADAPTER)
    WanPipeline.save_lora_weights(output, transformer_lora_layers=layers, weight_name=NAME)
    path = output / NAME
    save_file({name: value.bfloat16().contiguous() for name, value in load_file(path).items()}, path, {"format": "pt"})
    return path.stat().st_size


def main(arguments: list[str] | None = None) -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="directory for the LoRA and its record")
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="when to be over; fewer runs and updates where it is short"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny settings: everything on a CPU in seconds")
    parser.add_argument("--compile", action="store_true", help="compile the blocks")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=NUMBER", help="change single settings")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    settings = smoke_distillation() if options.smoke else Distillation()
    changes = dict(pair.split("=") for pair in options.set)
    settings = replace(settings, **{k: type(getattr(settings, k))(v) for k, v in changes.items()})
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    distil(settings, options.minutes, torch.device(options.device), options.output, options.compile)


if __name__ == "__main__":
    main()
