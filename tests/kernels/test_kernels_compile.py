"""Every kernel becomes machine code for every supported generation of GPUs, on machines that have none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "helpers" / "compiled_kernels.py"


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120])
def test_every_kernel_compiles(capability, tmp_path):
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-P", SCRIPT, str(capability)], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-2000:]
    sizes = [line.split() for line in run.stdout.splitlines()]
    assert len(sizes) == 15 and {name for name, _ in sizes} == {
        "encode_kernel",
        "e4m3_kernel",
        "decode_kernel",
        "weight_kernel",
        "add_kernel",
        "statistics_kernel",
        "query_kernel",
        "key_value_kernel",
        "attention_kernel",
        "int8_kernel",
    }
    assert all(int(size) > 1000 for _, size in sizes)
