"""Linears outside the blocks: what their plan calls them."""

import pytest
from open_sora_models import OPEN_SORA

from sedialect import SeDialectConfig
from sedialect.sedialect_core.inspection.generic import outside_role
from sedialect.sedialect_core.plan.rules import make_plan


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("time_in.out_layer", "embedder"),
        ("vector_in.in_layer", "embedder"),
        ("guidance_in.out_layer", "embedder"),
        ("time_embeddings.out_layer", "embedder"),
        ("pooled_text_embeddings.out_layer", "embedder"),
        ("condition_embedder.time_embedder.linear_2", "embedder"),
        ("out_layer.out_layer", "head"),
        ("final_layer.linear", "head"),
        ("proj_out", "head"),
        ("norm_out.linear", "norm"),
    ],
)
def test_an_embedder_s_second_layer_is_no_output_head(name, role):
    assert outside_role(name) == role


def test_open_sora_s_plan_calls_its_timestep_embedder_by_name():
    layers = {layer.name: layer.reason for layer in make_plan(OPEN_SORA["MMDiTModel"]()[0], SeDialectConfig()).layers}
    assert layers["time_in.out_layer"] == layers["time_in.in_layer"] and "embedder" in layers["time_in.out_layer"]
    assert "output head" in layers["final_layer.linear"]
