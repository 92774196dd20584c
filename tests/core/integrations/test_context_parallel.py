"""A model whose sequence is split over processes computes what one process does: over gloo, on CPUs, by diffusers' context
parallelism."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from interruptible import PATIENCE

SCRIPT = Path(__file__).parents[2] / "helpers" / "split_wan.py"
EVEN, ODD = [4, 8, 8], [3, 6, 10]  # latent frames, rows and columns: 64 and 45 tokens
PROFILED = {"refresh_every": 2}
GROUPS = {"semantic": True, "semantic_similarity": 0.2, "semantic_quantile": 0.2, **PROFILED}
ULYSSES, RING, BOTH = {"ulysses_degree": 2}, {"ring_degree": 2}, {"ring_degree": 2, "ulysses_degree": 2}

TWO = {
    "default": ({}, EVEN, ULYSSES, ""),
    "plain": ({"preset": "plain"}, EVEN, ULYSSES, ""),
    "compact": ({"preset": "compact"}, EVEN, ULYSSES, ""),
    "quality": ({"preset": "quality"}, EVEN, ULYSSES, ""),
    "weight-only": ({"preset": "weight-only"}, EVEN, ULYSSES, ""),
    "all layers": ({"salient_layers": "all"}, EVEN, ULYSSES, ""),
    "by error": ({"salient_by": "error"}, EVEN, ULYSSES, ""),
    "by attention": ({"salient_by": "attention", **PROFILED}, EVEN, ULYSSES, ""),
    "by peaks": ({"salient_by": "peak-attention", **PROFILED}, EVEN, ULYSSES, ""),
    "by both": ({"salient_by": "attention-error", **PROFILED}, EVEN, ULYSSES, ""),
    "groups": (GROUPS, EVEN, ULYSSES, ""),
    "dialects": ({**GROUPS, "semantic_sharing": "dialect"}, EVEN, ULYSSES, ""),
    "protected": ({"protected_steps": (1, 0)}, EVEN, ULYSSES, ""),
    "8-bit attention": ({"attention": "8bit"}, EVEN, ULYSSES, ""),
    "compiled": ({}, EVEN, ULYSSES, "aot_eager"),
    "compiled groups": (GROUPS, EVEN, ULYSSES, "aot_eager"),
    "ring": ({}, EVEN, RING, ""),
    "ring, by attention": ({"salient_by": "attention", **PROFILED}, EVEN, RING, ""),
    "odd": ({}, ODD, {**ULYSSES, "ulysses_anything": True}, ""),
    "odd groups": (GROUPS, ODD, {**ULYSSES, "ulysses_anything": True}, ""),
    "odd ring": ({"salient_by": "error"}, ODD, {**RING, "ring_anything": True}, ""),
}
FOUR = {
    **{name: (settings, size, {"ulysses_degree": 4}, "") for name, (settings, size, _, _) in list(TWO.items())[:5]},
    "groups": (GROUPS, EVEN, {"ulysses_degree": 4}, ""),
    "ring and ulysses": ({}, EVEN, BOTH, ""),
}
EXACT = {"plain", "quality", "weight-only"}  # without second terms


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each of two, and of four, processes got."""
    folder = tmp_path_factory.mktemp("ranks")
    runs = {ranks: [(name, *case) for name, case in cases.items()] for ranks, cases in ((2, TWO), (4, FOUR))}
    command = [sys.executable, "-P", str(SCRIPT), json.dumps(runs), str(folder)]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return {ranks: [torch.load(folder / f"{ranks}-{rank}.pt") for rank in range(ranks)] for ranks in runs}


@pytest.mark.feature("Context parallel (Ring, both, odd lengths)", "first", "Two and four processes over gloo, Wan.")
@pytest.mark.parametrize(("ranks", "name"), [*((2, name) for name in TWO), *((4, name) for name in FOUR)])
def test_processes_together_compute_what_one_does(results, ranks, name):
    alone = results[ranks][0][name][0]
    for process in results[ranks]:
        together = process[name][1]
        if name in EXACT:
            assert torch.equal(together, alone)
        assert torch.linalg.vector_norm(together - alone) <= 1e-6 * torch.linalg.vector_norm(alone)


def test_every_setting_changes_what_is_computed(results):
    """So that none of the comparisons above is one of the same numbers."""
    names = [name for name, (_, size, _, backend) in TWO.items() if size == EVEN and not backend and name != "ring"]
    alone = {name: results[2][0][name][0] for name in names if name != "ring, by attention"}
    for one in alone:
        assert not any(torch.equal(alone[one], alone[other]) for other in alone if other != one)
