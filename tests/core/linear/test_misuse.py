"""What reads or changes codes as if they were weights, and codes of other settings: refused, never a wrong number."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from sedialect import Formatbook, SeDialectLinear
from sedialect.sedialect_core.errors import ModelError

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = (
    {},
    {"formatbook": Formatbook.builtin("dialectfp4-16")},
    {"formatbook": Formatbook.builtin("sedialect-32")},
    {"rotation": 32},
    {"block_size": 32},
    {"equalized": True},
)


def quantized(seed: int = 0, equalized: bool = False, **settings) -> nn.Sequential:
    torch.manual_seed(seed)
    layer = SeDialectLinear.from_linear(nn.Linear(64, 32), **settings)
    if equalized:
        layer.weight_equalizer = nn.Parameter(torch.ones(64, dtype=torch.int8), requires_grad=False)
    return nn.Sequential(layer)


class Half(nn.Module):
    def forward(self, weight):
        return weight // 2


CHANGES = {
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "random pruning": lambda layer: prune.random_structured(layer, "weight", 0.5, dim=0),
    "a parametrization": lambda layer: parametrize.register_parametrization(layer, "weight", Half()),
    "a cast by type()": lambda layer: layer.type(torch.float32),
    "weight norm": parametrizations.weight_norm,
}


@pytest.mark.parametrize("change", CHANGES)
def test_codes_that_something_else_has_taken_for_numbers_are_not_run(change):
    model = quantized()
    with pytest.raises((ModelError, RuntimeError, NotImplementedError)):
        CHANGES[change](model[0])
        try:
            model(torch.randn(3, 64))
        except RuntimeError as error:
            pytest.fail(f"{change}: an error of another place: {error}")


@pytest.mark.parametrize("shape", [(3, 63), (4, 32), (64, 3), (), (0, 63)])
def test_inputs_of_another_width_are_told_so(shape):
    with pytest.raises(ModelError, match=r"it reads floats of \[\.\.\., 64\]: check the inputs"):
        quantized()(torch.randn(shape))


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool, torch.complex64])
def test_inputs_that_are_no_floats_are_told_so(dtype):
    with pytest.raises(ModelError, match="it reads floats"):
        quantized()(torch.ones(3, 64, dtype=dtype))


def test_torch_jit_is_refused():
    with pytest.raises(ModelError, match=r"use torch\.export"):
        torch.jit.trace(quantized(), torch.randn(3, 64))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("here", SETTINGS)
@pytest.mark.parametrize("there", SETTINGS)
def test_state_dicts_go_between_equal_settings_alone(there, here, strict):
    source, target = quantized(1, **there), quantized(2, **here)
    before, x = copy.deepcopy(target.state_dict()), torch.randn(5, 64)
    if there == here:
        target.load_state_dict(source.state_dict(), strict=strict)
        assert torch.equal(target(x), source(x))
        return
    with pytest.raises(RuntimeError, match="the codes are of other settings"):
        target.load_state_dict(source.state_dict(), strict=strict)
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())


def test_settings_travel_with_a_saved_state_dict_and_add_no_key():
    buffer = io.BytesIO()
    source = quantized(1)
    torch.save(source.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    assert set(state) == {"0.weight", "0.weight_meta", "0.weight_scale", "0.bias"}
    quantized().load_state_dict(state)
    with pytest.raises(RuntimeError, match="rotation 0 there, 32 here"):
        quantized(rotation=32).load_state_dict(state)


def test_ids_that_a_book_does_not_have_are_refused_where_nothing_tells_the_settings():
    """On a GPU, a kernel would read past its tables."""
    bare = dict(quantized(1).state_dict())
    bare["0.weight_meta"] = torch.full_like(bare["0.weight_meta"], 16)
    with pytest.raises(RuntimeError, match="dialect 16, of 16 here"):
        quantized(formatbook=Formatbook.builtin("dialectfp4-16")).load_state_dict(bare)
    quantized().load_state_dict(bare)
