"""Steps that are protected, and steps at which attention is profiled: in pipelines, and where their number is not known."""

import pytest
import tiny_models
import torch
from semantic_settings import GROUPS
from tiny_pipelines import build, generate

from sedialect import SeDialectConfig, quantize_model
from sedialect.sedialect_core.errors import ModelError
from sedialect.sedialect_core.integrations.semantics import reguide
from sedialect.sedialect_core.semantics.hook import StepHook

pytestmark = pytest.mark.usefixtures("strict")


@pytest.mark.parametrize("rotation", [0, 32])
def test_protected_steps_run_with_8_bit_activations(rotation):
    pipe, arguments = build("wan")
    pipe.enable_sedialect(progress=False, protected_steps=(2, 3), salient_ratio=0.0, rotation=rotation)
    plain, _ = build("wan")
    plain.enable_sedialect(progress=False, precision="w4a8", rotation=rotation)
    assert torch.equal(generate(plain, arguments, steps=5), generate(pipe, arguments, steps=5))
    reguide(pipe.transformer, protected_steps=(0, 0))
    assert not torch.equal(generate(plain, arguments, steps=5), generate(pipe, arguments, steps=5))


def test_protected_steps_are_the_first_and_the_last():
    pipe, arguments = build("wan")
    pipe.enable_sedialect(progress=False, protected_steps=(2, 3))
    seen = []

    def note(pipe, step, time, tensors):
        seen.append(bool(pipe.transformer._sedialect_steps.flags.protected))
        return {}

    generate(pipe, {**arguments, "callback_on_step_end": note}, steps=7)
    assert seen == [True, True, False, False, True, True, True]


@pytest.mark.parametrize(
    ("family", "settings", "profiled", "grouped"),
    [
        ("wan", {"refresh_every": 0}, [0], [1]),
        ("wan", {"refresh_every": 3}, [0, 3, 6], [1, 4, 7]),
        ("wan", {"refresh_at": (0.0, 0.5, 0.99)}, [0, 4, 7], [1, 5]),
        ("wan", {"refresh_at": (0.3, 1.0)}, [2, 7], [3]),
        # The second expert takes over at step 6. It looks as it begins, if it is not to wait for a later part.
        ("wan-2.2", {"refresh_every": 0}, [0, 6], [1, 7]),
        ("wan-2.2", {"refresh_every": 4}, [0, 4, 6], [1, 5, 7]),
        ("wan-2.2", {"refresh_at": (0.0, 0.5, 0.99)}, [0, 4, 6, 7], [1, 5, 7]),
        ("wan-2.2", {"refresh_at": (0.99,)}, [7], []),
    ],
    ids=str,
)
def test_attention_is_profiled_when_the_schedule_says(family, settings, profiled, grouped, monkeypatch):
    pipe, arguments = build(family)
    pipe.enable_sedialect(progress=False, **{**GROUPS, **settings})
    seen, tell = [], StepHook._tell

    def note(hook):
        tell(hook)
        seen.append((hook.counter.position, hook.counter.call, bool(hook.flags.profile), bool(hook.flags.assign)))

    monkeypatch.setattr(StepHook, "_tell", note)
    for _ in range(2):
        seen.clear()
        generate(pipe, arguments, steps=8)
        assert [place for place, call, *_ in seen if call == 0] == list(range(8))
        for call in (0, 1):
            assert [step for step, number, profile, _ in seen if profile and number == call] == profiled
            assert [step for step, number, _, assign in seen if assign and number == call] == grouped
    if family == "wan-2.2":
        assert pipe.transformer._sedialect_steps.counter.step == 5 and pipe.transformer_2._sedialect_steps.counter.step == 1


@torch.no_grad()
def test_parts_of_the_schedule_are_unknown_without_a_pipeline():
    model, inputs = tiny_models.TINY["WanTransformer3DModel"]()
    quantize_model(model, SeDialectConfig(**GROUPS, refresh_at=(0.5,)))
    with pytest.raises(
        ModelError, match=r"refresh_at is \(0.5,\), but how many steps there are is known only in a diffusers"
    ):
        model(**inputs)


@torch.no_grad()
def test_the_last_steps_are_unknown_without_a_pipeline():
    model, inputs = tiny_models.TINY["WanTransformer3DModel"]()
    quantize_model(model, SeDialectConfig(protected_steps=(0, 1)))
    with pytest.raises(ModelError, match="known only in a diffusers pipeline"):
        model(**inputs)
    reguide(model, protected_steps=(1, 0))
    model(**inputs)
