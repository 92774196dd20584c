"""Tiny jobs of `sedialect bench quality`, some of their arms, and results as they would be."""

from sedialect.bench import quality
from sedialect.bench.peers.formats import FP8_ROWS, NVFP4
from sedialect.bench.quality.arms import Arm, EffectiveBits
from sedialect.bench.quality.job import Job
from sedialect.sedialect_core.config import SeDialectConfig
from sedialect.sedialect_core.video.sampling import Request

W4A4 = Arm(quality.BASE, "ours", SeDialectConfig.preset("plain"))
FP8 = Arm("FP8", "peers", peer=FP8_ROWS)
REPEAT = Arm("repeat", "16 bit", parts=2)


def tiny_job(metrics: str = "velocity", steps: int = 3, **changes: object) -> Job:
    template = Request(prompt="-", steps=steps, height=32, width=48, num_frames=5, guidance_scale=4.0)
    requests = quality.requests_of(3, [("a ball", 1), ("a star", 2)], template)
    settings = {"metrics": metrics, "forced_steps": None, "batch": 2, "device": "cpu", "fps": 16, **changes}
    return quality.job_of("tiny", requests, **settings)


def results() -> list[quality.Result]:
    def result(arm: Arm, shift: float) -> quality.Result:
        pairs = tuple({"velocity": v + shift, "velocity_by_step": [v, v + shift], "psnr": 30 - v} for v in (0.1, 0.2, 0.3))
        return quality.Result(arm, EffectiveBits(4.5, 4.6), pairs, 1.0)

    return [result(W4A4, 0.0), result(Arm("other", "peers", peer=NVFP4, sampled=False), 0.05)]
