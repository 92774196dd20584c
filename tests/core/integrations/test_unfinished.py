"""Enabling that fails or is broken off: nothing has changed, or nobody takes half a model for a whole one."""

import threading

import pytest
import torch
from quantized_pipelines import layers
from tiny_pipelines import build, generate

from sedialect import quantize_model
from sedialect.sedialect_core.errors import ModelError
from sedialect.sedialect_core.linear import SeDialectLinear
from sedialect.sedialect_core.quantize import apply, unfinished

pytestmark = pytest.mark.usefixtures("one_thread")
MODELS = ("transformer", "transformer_2", "text_encoder")


class Interrupted(BaseException):
    """As Ctrl-C, which no `except Exception` catches."""


def interrupt_at(monkeypatch, count: int) -> None:
    """Break off when the layer number `count` is to be made."""
    made, from_linear = [], SeDialectLinear.from_linear

    def counted(*args, **kwargs):
        made.append(1)
        if len(made) == count:
            raise Interrupted
        return from_linear(*args, **kwargs)

    monkeypatch.setattr(SeDialectLinear, "from_linear", counted)


@pytest.mark.parametrize("keep_original", [False, True])
@pytest.mark.parametrize("broken", MODELS)
def test_what_is_wrong_with_one_model_is_found_before_another_is_changed(broken, keep_original):
    pipe, _ = build("wan-2.2")
    quantized = "block.0.layer.0.SelfAttention.o.weight" if broken == "text_encoder" else "blocks.1.ffn.net.2.weight"
    (weight,) = (weight for name, weight in getattr(pipe, broken).named_parameters() if name.endswith(quantized))
    weight.data[0, 0] = float("inf")
    before = {name: getattr(pipe, name).state_dict() for name in MODELS}
    with pytest.raises(ModelError, match="holds NaN or Inf"):
        pipe.enable_sedialect(text_encoder=True, keep_original=keep_original, progress=False)
    for name in MODELS:
        found = getattr(pipe, name).state_dict()
        assert found.keys() == before[name].keys() and all(found[key].equal(before[name][key]) for key in found), name


def test_half_a_model_is_not_run_saved_quantized_or_taken_for_whole(monkeypatch, tmp_path):
    pipe, arguments = build("wan")
    interrupt_at(monkeypatch, 4)
    with pytest.raises(Interrupted):
        pipe.enable_sedialect(progress=False)
    assert len(layers(pipe.transformer)) == 3
    attempts = {
        "run": lambda: generate(pipe, arguments),
        "save": lambda: pipe.transformer.save_pretrained(tmp_path / "model"),
        "save the pipeline": lambda: pipe.save_pretrained(tmp_path / "pipeline"),
        "enable": lambda: pipe.enable_sedialect(progress=False),
        "change the attention": lambda: pipe.enable_sedialect(precision="16bit", attention="8bit", progress=False),
        "disable": pipe.disable_sedialect,
        "report": pipe.sedialect_report,
        "quantize_model": lambda: quantize_model(pipe.transformer),
    }
    for name, attempt in attempts.items():
        with pytest.raises(ModelError, match="is half quantized.*load it again"):
            attempt()
            pytest.fail(f"{name} took half a model for a whole one")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(("count", "keep_original"), [(1, False), (1, True), (4, True)])
def test_an_interruption_leaves_the_model_as_it_was_where_it_can(count, keep_original, monkeypatch, tmp_path):
    pipe, arguments = build("wan")
    plain = generate(pipe, arguments)
    with monkeypatch.context() as patched:
        interrupt_at(patched, count)
        with pytest.raises(Interrupted):
            pipe.enable_sedialect(keep_original=keep_original, progress=False)
    assert torch.equal(generate(pipe, arguments), plain) and not layers(pipe.transformer)
    pipe.transformer.save_pretrained(tmp_path)
    pipe.enable_sedialect(progress=False)
    assert generate(pipe, arguments).isfinite().all()


def test_a_whole_model_bears_no_mark_of_the_work():
    pipe, _ = build("wan")
    pipe.enable_sedialect(progress=False)
    model = pipe.transformer
    assert unfinished.MARK not in model.__dict__ and "save_pretrained" not in model.__dict__
    assert unfinished._refuse_to_run not in model._forward_pre_hooks.values()


def test_of_threads_that_enable_one_model_one_does_and_the_others_are_told():
    pipe, arguments = build("wan")
    alone, _ = build("wan")
    alone.enable_sedialect(progress=False)
    told, ready = [], threading.Barrier(4)

    def enable():
        ready.wait()
        try:
            pipe.enable_sedialect(progress=False)
        except ModelError as error:
            told.append(str(error))

    threads = [threading.Thread(target=enable) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 3 and all("half quantized" in text or "already" in text for text in told), told
    assert torch.equal(generate(pipe, arguments), generate(alone, arguments))


@pytest.mark.parametrize("step", ["make_plan", "_check_weights", "following"])
def test_a_thread_that_comes_in_between_is_told_of(monkeypatch, step):
    """Another thread does all of it before this one has listed layers, looked at their weights, or marked the model."""
    pipe, arguments = build("wan")
    own = getattr(apply, step)

    def other_thread(*given, **said):
        monkeypatch.setattr(apply, step, own)
        pipe.enable_sedialect(progress=False)
        return own(*given, **said)

    monkeypatch.setattr(apply, step, other_thread)
    with pytest.raises(ModelError, match="already"):
        pipe.enable_sedialect(progress=False)
    assert unfinished.unfinished(pipe.transformer) is None and generate(pipe, arguments).isfinite().all()
