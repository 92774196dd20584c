"""`torch.export` of quantized models: dynamic sizes are kept, and what has a memory is refused."""

import diffusers
import pytest
import torch
from torch.export import Dim, export

from sedialect import SeDialectConfig, quantize_model
from sedialect.sedialect_core.errors import ModelError

pytestmark = pytest.mark.usefixtures("one_thread")
feature = pytest.mark.feature


def model(**settings):
    torch.manual_seed(7)
    size = {"num_attention_heads": 2, "attention_head_dim": 32, "num_layers": 2}
    made = diffusers.WanTransformer3DModel(**size, text_dim=32, freq_dim=32, ffn_dim=96).eval()
    quantize_model(made, SeDialectConfig(**settings))
    return made


def inputs(frames: int, height: int = 4) -> dict:
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(1, 16, frames, height, 6, generator=generator),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 8, 32, generator=generator),
        "return_dict": False,
    }


def exported(tested):
    sizes = dict.fromkeys(("timestep", "encoder_hidden_states", "return_dict"))
    return export(tested, (), kwargs=inputs(3), dynamic_shapes={"hidden_states": {2: Dim.DYNAMIC}, **sizes}, strict=False)


@feature(
    "`torch.export`",
    "first",
    "`strict=False`; dynamic sizes included. Attention, groups and protected steps: refused, as a graph has no memory.",
)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"salient_ratio": 0.0},
        {"salient_layers": "all", "salient_ratio": 0.3},
        {"salient_by": "error", "salient_ratio": 0.3},
    ],
    ids=str,
)
@torch.no_grad()
def test_dynamic_frames_stay_dynamic(settings):
    tested = model(**settings)
    program = exported(tested).module()
    for frames in (3, 5, 2):
        assert torch.equal(program(**inputs(frames))[0], tested(**inputs(frames))[0])


@pytest.mark.parametrize(
    "settings",
    [
        {"protected_steps": (1, 0)},
        {"salient_by": "attention", "salient_ratio": 0.25},
        {"semantic": True, "semantic_window": (1, 2, 2)},
    ],
    ids=lambda settings: next(iter(settings)),
)
@torch.no_grad()
def test_what_is_remembered_between_steps_is_refused(settings):
    tested = model(**settings)
    with pytest.raises(
        ModelError, match=r"exported ahead of time has no memory.*protected_steps=\(0, 0\) for torch\.export"
    ):
        exported(tested)
    assert tested(**inputs(3))[0].isfinite().all()
