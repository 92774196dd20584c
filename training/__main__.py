"""Train the demonstration model: `python -m sedialect.training --output DIR`.

Stages: autoencoder, bank of encoded clips, denoiser with text encoder, assembly. The first is kept in DIR/stages, so
`--resume` after an interruption starts behind it. Needs one GPU and under half an hour; `--smoke` needs seconds.
"""

import argparse
import json
import random
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file, save_file

from ..sedialect_core.environment import device_name, package_versions, today
from .assemble import build_pipeline, sample, save_pipeline, write_defaults, write_prompts
from .autoencoder import build_autoencoder, fold_statistics, reconstruction_psnr, train_autoencoder
from .bank import build_bank
from .captions import sample_spec
from .card import write_card
from .clips import render
from .contact_sheet import save_contact_sheet
from .denoiser import DenoiserTrainer, build_denoiser
from .settings import Settings, smoke_settings
from .text import build_text_encoder, build_tokenizer


def _log(message: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {message}", flush=True)


class Run:
    """One training run: its settings, its device, its output directory and the record that is written at the end."""

    def __init__(
        self, settings: Settings, output: Path, device: torch.device, resume: bool, start_from: Path | None
    ) -> None:
        self.settings, self.output, self.device, self.resume = settings, output, device, resume
        self.start_from = start_from
        (output / "stages").mkdir(parents=True, exist_ok=True)
        self.record: dict[str, Any] = {"settings": asdict(settings), "date": today()}
        self.record |= {"device": device_name(device), **package_versions(("torch", "diffusers", "transformers"))}
        self.record["seconds"] = {}
        self.clock = time.time()

    def finish_stage(self, name: str) -> None:
        """Note how long a stage took and save the record so far."""
        self.record["seconds"][name] = round(time.time() - self.clock, 1)
        _log(f"{name}: {self.record['seconds'][name]} s")
        self.clock = time.time()
        (self.output / "training_log.json").write_text(json.dumps(self.record, indent=1) + "\n")

    def autoencoder(self) -> diffusers.AutoencoderKLWan:
        """Train the autoencoder, or take it from an interrupted run."""
        vae, path = build_autoencoder(self.settings), self.output / "stages" / "autoencoder.safetensors"
        kept = path.with_suffix(".json")
        if self.resume and kept.exists():
            vae.load_state_dict(load_file(path))
            self.record |= json.loads(kept.read_text())
            return vae.to(self.device).eval()
        vae, curve = train_autoencoder(vae, self.settings, self.device, _log)
        fold_statistics(vae, self.settings, self.device)
        psnr = reconstruction_psnr(vae, self.settings, self.device)
        _log(f"autoencoder PSNR on fresh clips {psnr:.2f} dB")
        self.record |= {"autoencoder_curve": curve, "autoencoder_psnr": psnr}
        self.finish_stage("autoencoder")
        save_file({name: weight.contiguous() for name, weight in vae.state_dict().items()}, path)
        names = ("autoencoder_curve", "autoencoder_psnr", "seconds")
        kept.write_text(json.dumps({name: self.record[name] for name in names}))
        self.show_reconstructions(vae)
        return vae

    @torch.no_grad()
    def show_reconstructions(self, vae: diffusers.AutoencoderKLWan) -> None:
        """Contact sheet: each clip above what the autoencoder makes of it."""
        rng = random.Random(99)
        specs = [sample_spec(rng) for _ in range(6)]
        video = render(specs, rng, self.device, self.settings.frames, self.settings.size)
        output = vae.decode(vae.encode(video).latent_dist.mode()).sample
        pairs = torch.stack([video, output], dim=1).flatten(0, 1)
        save_contact_sheet(pairs, self.output / "sheets" / "autoencoder.png", columns=7)

    def denoiser(self, vae: diffusers.AutoencoderKLWan) -> diffusers.WanPipeline:
        """Train denoiser and text encoder on a fresh bank and put the pipeline together."""
        settings, tokenizer = self.settings, build_tokenizer(self.settings)
        bank = build_bank(vae, tokenizer, settings, self.device, _log, settings.bank_clips, settings.seed + 3)
        count = 4 * settings.denoiser_batch
        fresh = build_bank(vae, tokenizer, settings, self.device, _log, count, settings.seed + 4)
        self.finish_stage("bank")
        self.record["vocabulary"] = len(tokenizer)
        encoder = build_text_encoder(settings, len(tokenizer))
        trainer = DenoiserTrainer(build_denoiser(settings), encoder, settings, self.device)
        if self.start_from is None:
            self.record["denoiser_curve"] = trainer.train(bank, _log, settings.denoiser_steps)
        else:
            self.load_first_phase(trainer.model, encoder)
        self.record["refine_curve"] = trainer.train(bank, _log, settings.refine_steps)
        self.record["denoiser_validation"] = trainer.validate(fresh)
        self.record["denoiser_on_trained_clips"] = trainer.validate(bank.head(count))
        _log(f"denoiser loss on fresh clips {self.record['denoiser_validation']:.4f}")
        self.finish_stage("denoiser")
        return build_pipeline(vae.cpu(), trainer.model.cpu(), encoder.cpu(), tokenizer, settings)

    def load_first_phase(self, model: torch.nn.Module, encoder: torch.nn.Module) -> None:
        """Take the weights of an earlier run in place of the first phase, with the record that lies beside them."""
        assert self.start_from is not None
        log = json.loads((self.start_from.parent / "training_log.json").read_text())
        self.record["denoiser_curve"] = log["denoiser_curve"]
        self.record["first_phase"] = {key: log[key] for key in ("date", "device", "torch", "seconds")}
        earlier = diffusers.WanPipeline.from_pretrained(self.start_from, dtype=torch.float32)
        model.load_state_dict(earlier.transformer.state_dict())
        encoder.load_state_dict(earlier.text_encoder.state_dict())
        _log(f"first phase taken from {self.start_from}")

    def assemble(self, pipeline: diffusers.WanPipeline) -> None:
        """Write the model directory and everything that lies next to it, and look at samples."""
        model = self.output / "model"
        self.record["bytes"] = save_pipeline(pipeline, model)
        write_defaults(self.output, self.settings)
        items = write_prompts(self.output)[: 2 if self.settings.size < 64 else 12]
        prompts, seeds = [item["prompt"] for item in items], [item["seed"] for item in items]
        videos = sample(pipeline, prompts, seeds, self.settings, self.device)
        save_contact_sheet(videos, self.output / "sheets" / "samples.png", columns=7)
        self.finish_stage("assembly")
        write_card(model / "README.md", self.record, self.settings)


def main(arguments: list[str] | None = None) -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="directory for the model and its records")
    parser.add_argument("--smoke", action="store_true", help="tiny settings: every stage on a CPU in seconds")
    parser.add_argument("--resume", action="store_true", help="keep a finished autoencoder stage found in the output")
    parser.add_argument("--start-from", type=Path, help="a trained model's folder, in place of the first denoiser phase")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=NUMBER", help="change single settings")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    settings = smoke_settings() if options.smoke else Settings()
    changes = dict(pair.split("=") for pair in options.set)
    settings = replace(settings, **{k: type(getattr(settings, k))(v) for k, v in changes.items()})
    torch.manual_seed(settings.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark, torch.backends.cudnn.benchmark_limit = True, 4
    torch._dynamo.config.recompile_limit = 64
    run = Run(settings, options.output, torch.device(options.device), options.resume, options.start_from)
    run.assemble(run.denoiser(run.autoencoder()))


if __name__ == "__main__":
    main()
