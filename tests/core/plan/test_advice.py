"""What is taken where nobody has chosen, what makes layers slow, and settings that change nothing."""

import pytest
import torch

from sedialect import SeDialectConfig, quantize_model
from sedialect.kernels import capabilities, dispatch
from sedialect.kernels.capabilities import Refusals
from sedialect.sedialect_core.config import PRESETS
from sedialect.sedialect_core.plan import advice, report
from sedialect.sedialect_core.plan.ignored import idle_patterns, ignored_settings
from sedialect.sedialect_core.plan.rules import make_plan

GPU = "cuda:0"
GPUS = {
    "Hopper": ((9, 0), Refusals(None, None, None)),
    "Ampere": ((8, 6), Refusals(None, None, "has compute capability 8.6, they need 8.9 (Ada) or newer")),
    "Turing": ((7, 5), Refusals(None, None, "they need 8.9", bfloat16="no bfloat16", dot="8.0 and newer")),
    "Ada, old torch": ((8, 9), Refusals(None, None, "torch 2.6.0, they need 2.8 or newer here", "measured only")),
    "Hopper without Triton": ((9, 0), Refusals(None, "the package triton is not installed", None)),
    "too old": ((6, 1), Refusals(*["it needs 7.5 (Turing) or newer"] * 4)),
}


@pytest.fixture
def gpu(monkeypatch):
    """Makes a GPU of the table above the one that is asked."""

    def become(name: str) -> None:
        capability, refused = GPUS[name]
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        for module in (capabilities, dispatch, advice, report):
            monkeypatch.setattr(module, "refusals", lambda *_: refused)
        monkeypatch.setattr(capabilities, "FASTER", {})

    return become


@pytest.mark.parametrize(
    ("name", "preset", "reason"),
    [
        ("Hopper", "quality", "FP8 units"),
        ("Ampere", "quality", "INT8 units"),
        ("Turing", "quality", "INT8 units"),
        ("Ada, old torch", "weight-only", "they need 2.8"),
        ("too old", "weight-only", "needs 7.5"),
    ],
)
def test_the_preset_for_a_gpu(gpu, name, preset, reason):
    gpu(name)
    found = advice.best_preset(GPU)
    assert found.preset == preset and found.preset in PRESETS and reason in found.reason


def test_the_preset_without_a_gpu():
    found = advice.best_preset("cpu")
    assert found.preset == "weight-only" and "cpu" in found.reason


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("Hopper", {"precision": "w4a8"}, []),
        ("Hopper", {}, ["preset quality"]),
        ("Hopper", {"precision": "w4a16"}, ["w4a8 (preset quality) runs on this GPU's FP8 units"]),
        ("Hopper", {"precision": "w4a8", "products": "16bit"}, ["auto runs on this GPU's FP8 units"]),
        ("Hopper without Triton", {"precision": "w4a8"}, ["several times slower than Triton kernels: the package triton"]),
        ("Ampere", {}, []),
        ("Ampere", {"precision": "w4a16"}, ["this GPU's INT8 units"]),
        ("Turing", {}, ["torch's INT8 products"]),
        ("Ada, old torch", {"precision": "w4a8"}, ["FP8 units are not used: torch 2.6.0"]),
        ("too old", {}, ["needs 7.5"]),
    ],
)
def test_what_makes_layers_slow_is_said_with_the_remedy(gpu, name, settings, says):
    gpu(name)
    found = advice.slower_than_possible(GPU, SeDialectConfig(**settings))
    assert len(found) == len(says)
    for sentence, part in zip(found, says, strict=True):
        assert part in sentence


def test_without_a_gpu_layers_save_memory_alone():
    (said,) = advice.slower_than_possible("cpu", SeDialectConfig())
    assert "save memory, not time" in said


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"salient_ratio": 0.5, "semantic": True}, []),
        ({"precision": "w4a8", "salient_ratio": 0.5}, ["salient_ratio changes nothing: it is about 4-bit activations"]),
        (
            {"precision": "w4a16", "salient_by": "error", "products": "int8", "protected_steps": (2, 0)},
            ["salient_by changes nothing", "protected_steps changes nothing", "products changes nothing"],
        ),
        ({"precision": "w4a8", "attention": "8bit", "protected_steps": (2, 0)}, []),
        ({"precision": "w4a8", "salient_ratio": 0.0, "semantic": False}, []),
        ({"salient_ratio": 0.0, "salient_by": "error"}, ["salient_by changes nothing: salient_ratio is 0"]),
        ({"refresh_every": 3}, ["refresh_every changes nothing: nothing looks at attention"]),
        ({"refresh_every": 3, "salient_by": "attention"}, []),
        ({"semantic_window": (3, 3, 3)}, ["semantic is off"]),
        (
            {"precision": "16bit", "attention": "8bit", "rotation": 64, "block_size": 32},
            ["rotation, block_size change nothing: with precision 16bit no layer is quantized"],
        ),
        ({"precision": "w4a8", "layer_precisions": (("ffn", "w4a4"),), "salient_ratio": 0.5}, []),
    ],
)
def test_settings_that_change_nothing_are_said(settings, says):
    found = ignored_settings(SeDialectConfig(**settings), list(settings))
    assert len(found) == len(says), found
    for sentence, part in zip(found, says, strict=True):
        assert part in sentence


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attn1 = torch.nn.ModuleDict({"to_q": torch.nn.Linear(32, 32), "to_k": torch.nn.Linear(32, 32)})


def network() -> torch.nn.Module:
    model = torch.nn.Module()
    model.transformer_blocks = torch.nn.ModuleList(Block() for _ in range(2))
    return model


def test_a_pattern_that_matches_nothing_is_said():
    config = SeDialectConfig(skip=("to_q$", "nowhere"), layer_precisions=(("gone", "w4a8"),))
    plan = make_plan(network(), config)
    told = [note for note in plan.notes if "pattern" in note]
    assert told == idle_patterns(config, plan.layers) and len(told) == 2
    assert told[0].startswith("skip: the pattern 'nowhere' matches none of the 4 linear layers")
    assert "transformer_blocks.0.attn1.to_q" in told[0] and told[1].startswith("layer_precisions: the pattern 'gone'")
    assert all(note in str(plan) for note in told)
    assert not [note for note in quantize_model(network(), SeDialectConfig(skip=("to_q$",))).notes if "pattern" in note]
