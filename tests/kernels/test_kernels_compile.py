"""Every kernel becomes machine code for every supported generation of GPUs, on machines that have none, and fits them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "helpers" / "compiled_kernels.py"
SHARED = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KB of a program at most
SPILLED = {(100, "weight_kernel"): 16}  # bytes a thread
ELSEWHERE = {"encode", "e4m3", "decode", "weight", "add", "statistics", "query", "key_value"}
MULTIPLYING = {"attention", "int8"}  # by Triton's own products, which it compiles for 8.0 and newer


@pytest.mark.parametrize("capability", SHARED)
def test_every_kernel_compiles_fits_and_multiplies_integers(capability, tmp_path):
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-P", SCRIPT, str(capability)], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-2000:]
    made = [line.split() for line in run.stdout.splitlines()]
    multiplying = MULTIPLYING if capability >= 80 else set()
    assert {name.removesuffix("_kernel") for name, *_ in made} == ELSEWHERE | multiplying
    assert len(made) == 23 + (3 if multiplying else 0)
    for name, size, registers, spilled, shared, instructions in made:
        assert int(size) > 1000 and 8 < int(registers) <= 255, name
        assert int(spilled) <= SPILLED.get((capability, name), 0), f"{name} spills {spilled} bytes a thread"
        assert int(shared) <= SHARED[capability] * 1024, name
        if name.removesuffix("_kernel") in MULTIPLYING:
            assert {"IMMA", "IGMMA", "UTCIMMA"} & set(instructions.split("+")), f"{name}: {instructions}"
