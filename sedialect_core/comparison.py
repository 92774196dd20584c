"""The main job: one prompt, one noise, two videos; 16 bit and quantized, with the numbers between them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import SeDialectConfig
from .environment import environment
from .inspection.denoisers import denoisers
from .integrations.pipelines import PipelineReport, disable_sedialect, enable_sedialect, sedialect_report
from .plan.report import megabytes
from .progress import Watch, following
from .storage.atomic import staging
from .video.metrics import Fidelity, fidelity
from .video.mp4 import side_by_side, write_mp4, write_still
from .video.sampling import Request, Sample, computed_in, sample

if TYPE_CHECKING:
    from .calibration.cache import CalibrationCache


@dataclass(frozen=True)
class Comparison:
    """Both videos and everything measured between them."""

    request: Request
    config: SeDialectConfig
    original: Sample
    quantized: Sample
    report: PipelineReport
    fidelity: Fidelity
    computed: dict[str, str]
    """The dtypes, and why: `sampling.computed_in`."""

    @property
    def weight_bits(self) -> float:
        """Effective bits a weight in the quantized layers, over all transformers."""
        models = self.report.models
        return sum(model.weight_bits for model in models) / len(models)

    @property
    def activation_bits(self) -> float:
        """Effective bits of the quantized layers' inputs, over all transformers."""
        models = self.report.models
        return sum(model.activation_bits for model in models) / len(models)

    def table(self) -> str:
        """What is printed below the progress bars."""
        before, after = (sum(getattr(m, name) for m in self.report.models) for name in ("bytes_before", "bytes_after"))
        rows = [
            ("", "16 bit", self.config.label),
            ("weights, effective bits", "16", f"{self.weight_bits:.2f}"),
            ("activations, effective bits", "16", f"{self.activation_bits:.2f}"),
            ("transformer memory, MB", megabytes(before), megabytes(after)),
            ("seconds a step", f"{self.original.seconds_per_step:.2f}", f"{self.quantized.seconds_per_step:.2f}"),
            ("computed in", self.computed["dtype"], self.computed["dtype"]),
            ("PSNR to 16 bit, dB", "", f"{self.fidelity.psnr:.1f}"),
            ("SSIM to 16 bit", "", f"{self.fidelity.ssim:.3f}"),
        ]
        return "\n".join(f"{label:<29}{left:>9}{right:>9}" for label, left, right in rows)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the frames, with machine, versions and date."""
        return {
            "request": asdict(self.request),
            "config": self.config.to_dict(),
            "weight_bits": self.weight_bits,
            "activation_bits": self.activation_bits,
            "transformer_bytes": {m.component: [m.bytes_before, m.bytes_after] for m in self.report.models},
            "seconds_per_step": [self.original.seconds_per_step, self.quantized.seconds_per_step],
            "psnr_db": self.fidelity.psnr,
            "ssim": self.fidelity.ssim,
            **self.computed,
            "runs_on": [model.implementation for model in self.report.models],
            **environment(),
        }


QUANTIZING, MEASURING = "quantizing", "measuring"  # stages of a comparison beside the two videos


def compare(
    pipe: Any,
    request: Request,
    config: SeDialectConfig,
    *,
    watch: Watch | None = None,
    restore: bool = False,
    calibration: "CalibrationCache | None" = None,
) -> Comparison:
    """Generate with the pipeline as it is, quantize it in place, and generate again with the same noise.

    Args:
        watch: follows the run, in place of progress bars; its stages are `16 bit`, QUANTIZING, the precision, MEASURING.
        restore: leave the pipeline as it was, also after an error; its 16-bit layers wait in CPU memory meanwhile.
        calibration: of this pipeline, by which weights are encoded.
    """
    models, computed = denoisers(pipe), computed_in(pipe)
    with following(watch) as follow:
        original = sample(pipe, models, request, "16 bit", follow)
        follow.on_stage(QUANTIZING)
        with quantized_pipeline(pipe, config, restore, progress=follow, calibration=calibration) as report:
            quantized = sample(pipe, models, request, config.precision, follow)
        follow.on_stage(MEASURING)
        follow.on_phase(MEASURING)
        found = fidelity(quantized.frames, original.frames)
    return Comparison(request, config, original, quantized, report, found, computed)


@contextmanager
def quantized_pipeline(
    pipe: Any,
    config: SeDialectConfig,
    restore: bool,
    progress: bool | Watch = True,
    calibration: "CalibrationCache | None" = None,
) -> Iterator[PipelineReport]:
    """The pipeline quantized in place, and its report; `restore` puts the 16-bit layers back when the block ends."""
    enable_sedialect(pipe, config, calibration=calibration, keep_original=restore, progress=progress)
    try:
        yield sedialect_report(pipe)
    finally:
        if restore:
            disable_sedialect(pipe)


def write_comparison(comparison: Comparison, folder: Path, fps: int) -> list[Path]:
    """Write both videos, the side-by-side one, a still of it, and the numbers; all of them or none. Returns the paths.

    Raises:
        InputError: the folder cannot be written.
    """
    original, quantized = comparison.original.frames, comparison.quantized.frames
    bits = f"{comparison.weight_bits:.2f} bit weights, {comparison.activation_bits:.2f} bit activations"
    label = f"{comparison.config.label}: {bits}, {comparison.fidelity.psnr:.1f} dB"
    with staging(folder) as staged:
        write_mp4(staged / "16-bit.mp4", original, fps)
        write_mp4(staged / "quantized.mp4", quantized, fps)
        both = side_by_side([original, quantized], ["16 bit", label])
        write_mp4(staged / "side-by-side.mp4", both, fps)
        write_still(staged / "side-by-side.png", both[len(both) // 2])
        (staged / "comparison.json").write_text(json.dumps(comparison.to_dict(), indent=2) + "\n", encoding="utf-8")
        names = sorted(path.name for path in staged.iterdir())
    return [folder / name for name in names]
