"""The small measurements of the documents."""

import torch

from sedialect.bench.costs.profiling import STEPS, measure_profiling, render
from sedialect.bench.studies.fused_loras import measure_fusing
from sedialect.sedialect_core.semantics.hook import StepHook


def test_weak_loras_lose_more_when_fused():
    lines = measure_fusing().splitlines()
    errors, effects = ([int(c.strip().rstrip("%")) for c in line.split("|")[2:-1]] for line in lines[2:])
    assert errors == sorted(errors, reverse=True) and effects[0] < 20 < 95 < effects[-1]


def test_steps_that_look_at_attention_are_timed_apart():
    costs = measure_profiling(torch.device("cpu"), quick=True)
    assert [cost.name.rpartition("; ")[2] for cost in costs] == ["w4a4 alone", *STEPS]
    assert all(cost.ms > 0 and cost.bytes is None for cost in costs)
    text = render(costs, {"versions": {"torch": "0"}, "device": "none", "date": "today"})
    assert f"| w4a4 with both; neither | {costs[-1].ms:.2f} | 1.00 | - |" in text and "none; torch 0; today." in text


def test_each_step_of_a_round_does_what_its_name_says(monkeypatch):
    seen = []
    tell = StepHook._tell

    def note(hook):
        tell(hook)
        seen.append((bool(hook.flags.profile), bool(hook.flags.assign)))

    monkeypatch.setattr(StepHook, "_tell", note)
    measure_profiling(torch.device("cpu"), quick=True)
    rounds = [seen[start : start + 3] for start in range(0, len(seen), 3)]
    assert len(rounds) > 2 and rounds == [[(True, False), (False, True), (False, False)]] * len(rounds)
