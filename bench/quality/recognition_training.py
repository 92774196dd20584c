"""Train the network of recognition.py: `python -m sedialect.bench.quality.recognition_training`.

Every step draws new clips, small ones for speed, so there is no training set to learn by heart. Training clips never
contain the held-out combinations that the evaluation prompts are made of. The shipped network took 1,200 steps, about
twenty minutes of one CPU thread; it mistakes shapes still, and more steps on a GPU would mend that.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from ...sedialect_core.storage.atomic import replacing
from ...training.captions import sample_spec
from ...training.clips import SIZE, render
from .recognition import FRAMES, SIDE, UNKNOWN, WEIGHTS, Recognizer, glimpse, labels_of, right

BATCH = 32
RATE = 3e-3
SEED = 20261122
FRESH_CLIPS = 512


def main(arguments: list[str] | None = None) -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="the file of weights")
    parser.add_argument("--steps", type=int, default=1200, help=f"of {BATCH} clips")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    network = train(options.steps, options.device)
    accuracy = fresh_accuracy(network, options.device)
    print(json.dumps(accuracy, indent=1))
    weights = {name: weight.half().cpu().contiguous() for name, weight in network.state_dict().items()}
    notes = {"steps": str(options.steps), "accuracy on fresh clips": json.dumps(accuracy), "date": time.strftime("%Y-%m-%d")}
    with replacing(options.output) as temporary:
        save_file(weights, temporary, metadata=notes)


def train(steps: int, device: str) -> Recognizer:
    """A network trained on `steps` batches of new clips."""
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    network = Recognizer().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in (bar := tqdm(range(steps), desc="Training", mininterval=5)):
        clips, labels = draw(rng, BATCH, device, SIDE)
        loss = loss_of(network(disturb(clips)), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.2f}", refresh=False)
    return network.eval()


def draw(rng: random.Random, count: int, device: str, size: int) -> tuple[torch.Tensor, list[dict[str, int]]]:
    """New clips, drawn at `size` and then looked at as the network does, and their labels."""
    specs = [sample_spec(rng) for _ in range(count)]
    videos = (render(specs, rng, device, frames=FRAMES, size=size) + 1) / 2
    return glimpse(videos.transpose(1, 2)), [labels_of(spec) for spec in specs]


def disturb(clips: torch.Tensor) -> torch.Tensor:
    """Blur some clips and add a little noise: a model's videos are softer than drawn ones."""
    blurred = functional.avg_pool3d(clips, (1, 3, 3), 1, (0, 1, 1), count_include_pad=False)
    softness = torch.rand(len(clips), 1, 1, 1, 1, device=clips.device)
    noise = 0.1 * torch.rand(len(clips), 1, 1, 1, 1, device=clips.device) * torch.randn_like(clips)
    return torch.lerp(clips, blurred, softness) + noise


def loss_of(logits: dict[str, torch.Tensor], labels: list[dict[str, int]]) -> torch.Tensor:
    """Cross entropies of all attributes, summed; those that are not read are left out."""
    losses = []
    for name, scores in logits.items():
        wanted = torch.tensor([label[name] for label in labels], device=scores.device)
        losses.append(functional.cross_entropy(scores, wanted, ignore_index=UNKNOWN, label_smoothing=0.05))
    return torch.stack(losses).nansum()


@torch.no_grad()
def fresh_accuracy(network: Recognizer, device: str) -> dict[str, float]:
    """How often each attribute of clips that were never drawn before is read rightly, at full size."""
    rng = random.Random(SEED + 1)
    parts = []
    for _ in range(FRESH_CLIPS // BATCH):
        videos, labels = draw(rng, BATCH, device, SIZE)
        parts.append(right(network(videos), labels))
    found = {name: torch.cat([part[name] for part in parts]).nanmean().item() for name in parts[0]}
    return {name: round(value, 4) for name, value in found.items()}


if __name__ == "__main__":
    main()
