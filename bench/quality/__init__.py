"""How near to 16 bit each arm stays: the same noise, many prompts, along the 16-bit trajectory and in whole videos."""

from ...sedialect_core.video.work_list import read_prompts
from .arms import Arm
from .catalogue import BASE, arms, choose
from .job import Job, bundled_job, job_of, requests_of
from .pairs import held_against
from .planted import variants_markdown, write_variants
from .rendering import PART, markdown, write_results
from .runner import Result, run

__all__ = [
    "BASE",
    "PART",
    "Arm",
    "Job",
    "Result",
    "arms",
    "bundled_job",
    "choose",
    "held_against",
    "job_of",
    "markdown",
    "read_prompts",
    "requests_of",
    "run",
    "variants_markdown",
    "write_results",
    "write_variants",
]
