"""The app's answers that need no model: what fits a card, and how a block is encoded."""

from types import SimpleNamespace

import pytest

pytest.importorskip("gradio")

from sedialect.web.tabs import fits, formats


def test_a_model_and_a_card_are_answered_with_what_to_do():
    answer = fits.what_fits("wan-2.1-14b", 12)
    first = "w4a8 in blocks of 16, text encoder in 4 bit, blocks compiled, models take turns on the GPU"
    assert f"fit 12 GB, 832x480, 81 frames: {first}" in answer and "it takes Triton" in answer
    assert "too large, 12.2 GB" in answer and "<pre" in answer
    assert fits.what_fits("wan-2.1-14b", 12) is answer, "worked out once"


def test_what_does_not_fit_is_told_in_a_sentence():
    answer = fits.what_fits("hunyuan-video", 8)
    assert "nothing fits 8 GB" in answer and "17 GB would do" in answer


@pytest.mark.parametrize(("model", "card"), [("../etc", 12), ("me/model", 12), ("wan-2.1-14b", 13), ("wan-2.1-14b", None)])
def test_only_what_is_offered_is_looked_up(model, card):
    assert "Choose one of the models and cards" in fits.what_fits(model, card)


@pytest.mark.parametrize("field", ["source", "numbers", "role", "block_size", "row", "block", "book"])
def test_a_block_is_explained_or_a_sentence_given_whatever_a_caller_sends(field):
    """Gradio passes on what it is sent."""
    tab = object.__new__(formats.FormatsTab)
    tab.service = SimpleNamespace(studio=SimpleNamespace(weights={}))
    sound = {"source": formats.PASTED, "numbers": "1 2 " * 16, "role": "weight", "block_size": 16, "row": 0, "block": 0}
    sound["book"] = "universal-32"
    assert "sd-step" in tab.explained(**sound)
    for value in (
        [],
        {},
        [[]],
        "x",
        "1e999",
        "9" * 5000,
        "1 " * 100_000,
        float("nan"),
        float("inf"),
        10**30,
        1e300,
        -1,
        None,
    ):
        told = tab.explained(**{**sound, field: value})
        assert "sd-step" in told or len(told) < 500, (value, told[:600])
