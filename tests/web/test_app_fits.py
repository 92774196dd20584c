"""The app's answer to what fits a card."""

import pytest

pytest.importorskip("gradio")

from sedialect.web.tabs import fits


def test_a_model_and_a_card_are_answered_with_what_to_do():
    answer = fits.what_fits("wan-2.1-14b", 12)
    assert "fit 12 GB, 832x480, 81 frames: w4a8 in blocks of 32, models take turns on the GPU" in answer
    assert "too large, 12.2 GB" in answer and "<pre" in answer
    assert fits.what_fits("wan-2.1-14b", 12) is answer, "worked out once"


def test_what_does_not_fit_is_told_in_a_sentence():
    answer = fits.what_fits("hunyuan-video", 8)
    assert "nothing fits 8 GB" in answer and "16 GB would do" in answer


@pytest.mark.parametrize(("model", "card"), [("../etc", 12), ("me/model", 12), ("wan-2.1-14b", 13), ("wan-2.1-14b", None)])
def test_only_what_is_offered_is_looked_up(model, card):
    assert "Choose one of the models and cards" in fits.what_fits(model, card)
