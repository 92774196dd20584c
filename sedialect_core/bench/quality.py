"""How near to 16 bit each precision stays: the same noise, several prompts, PSNR and SSIM of the videos.

The arms share the pipeline: each is put in, sampled, and taken out again, so that no two models are in memory at once.
"""

import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import demo
from ..atomic import write_text
from ..comparison import environment
from ..config import SeDialectConfig
from ..errors import InputError
from ..integrations.pipelines import SeDialectMixin, denoisers
from ..plan import make_plan
from ..quantize import set_submodule
from ..sampling import Request, load_pipeline, sample
from .metrics import Fidelity, fidelity
from .peers import Fp8Linear

BEGIN, END = "<!-- bench quality -->", "<!-- end -->"


@dataclass(frozen=True)
class Row:
    """One arm: its effective bits, and how near each prompt's video came."""

    name: str
    weight_bits: float
    activation_bits: float
    prompts: tuple[Fidelity, ...]

    def markdown(self) -> str:
        """A line of the table."""
        psnr = [f.psnr for f in self.prompts]
        cells = [
            self.name,
            f"{self.weight_bits:.2f}",
            f"{self.activation_bits:.2f}",
            f"{statistics.fmean(psnr):.1f} ± {half_width(psnr):.1f}",
            f"{min(psnr):.1f}",
            f"{statistics.fmean(f.ssim for f in self.prompts):.3f}",
        ]
        return f"| {' | '.join(cells)} |"


def measure_quality(prompts: int, device: str) -> str:
    """The table as markdown, with machine, versions and date, for the first `prompts` evaluation prompts.

    Raises:
        InputError: fewer than 2 prompts, or more than there are.
    """
    chosen = demo.evaluation_prompts()[:prompts]
    if not 2 <= prompts <= len(demo.evaluation_prompts()):
        raise InputError(f"--prompts is {prompts}; choose 2 to {len(demo.evaluation_prompts())}")
    pipe = load_pipeline(demo.MODEL, torch.bfloat16, device)
    models = denoisers(pipe)
    requests = [demo.request(prompt, seed) for prompt, seed in chosen]
    originals = [sample(pipe, models, request, "16 bit").frames for request in requests]
    rows = []
    for name, arm in arms():
        with arm(pipe) as bits:
            videos = [sample(pipe, models, request, name).frames for request in requests]
        rows.append(Row(name, *bits, tuple(map(fidelity, videos, originals))))
    return render(rows, requests)


Arm = Callable[[Any], AbstractContextManager[tuple[float, float]]]


def arms() -> Iterator[tuple[str, Arm]]:
    """Names of the arms, and a context that puts each into a pipeline and gives its effective bits."""
    yield "FP8 (W8A8, E4M3)", fp8
    for precision in ("w4a16", "w4a8", "w4a4"):
        for block_size in (16, 32):
            config = SeDialectConfig(precision=precision, block_size=block_size)
            yield f"{precision}, B={block_size}", sedialect(config)


def sedialect(config: SeDialectConfig) -> Arm:
    """The arm of a configuration of ours."""

    @contextmanager
    def arm(pipe: Any) -> Iterator[tuple[float, float]]:
        SeDialectMixin.enable_sedialect(pipe, config, keep_original=True, progress=False)
        (report,) = SeDialectMixin.sedialect_report(pipe).models
        try:
            yield report.weight_bits, report.activation_bits
        finally:
            SeDialectMixin.disable_sedialect(pipe)

    return arm


@contextmanager
def fp8(pipe: Any) -> Iterator[tuple[float, float]]:
    """The arm of FP8 on the very layers that ours quantizes."""
    ((_, model),) = denoisers(pipe).items()
    originals: dict[str, nn.Module] = {}
    for layer in make_plan(model, SeDialectConfig()).quantized:
        linear = originals[layer.name] = model.get_submodule(layer.name)
        assert isinstance(linear, nn.Linear)
        set_submodule(model, layer.name, Fp8Linear(linear))
    try:
        yield 8.0, 8.0
    finally:
        for name, linear in originals.items():
            set_submodule(model, name, linear)


def render(rows: list[Row], requests: list[Request]) -> str:
    """Rows as a markdown table, with what they were measured on."""
    first, where = replace(requests[0], prompt="-"), environment()
    versions = ", ".join(f"{name} {number}" for name, number in where["versions"].items())
    head = [
        "| arm | weight bits | activation bits | PSNR to 16 bit, dB (± 95 %) | worst, dB | SSIM |",
        "|---|---|---|---|---|---|",
        "| 16 bit (bfloat16) | 16 | 16 | the reference | | 1.000 |",
    ]
    size = f"{first.num_frames} frames of {first.width}x{first.height}, {first.steps} steps, guidance {first.guidance_scale}"
    tail = f"\n{len(requests)} evaluation prompts, {size}. {where['device']}; {versions}; {where['date']}."
    return "\n".join([*head, *(row.markdown() for row in rows), tail])


def half_width(values: list[float]) -> float:
    """Half the 95 % confidence interval of the mean, by Student's t."""
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def write_between_marks(path: Path, table: str) -> None:
    """Replace what stands between the marks of a document by the table.

    Raises:
        InputError: the document is not there, or has no marks.
    """
    try:
        before, rest = path.read_text(encoding="utf-8").split(BEGIN)
        _, after = rest.split(END)
    except (OSError, ValueError):
        raise InputError(f"{path} must hold {BEGIN} and {END}; the table goes between them") from None
    write_text(path, f"{before}{BEGIN}\n{table}\n{END}{after}")
