"""The network that reads prompts back from videos: its labels, its training, and what the shipped one can tell."""

import random

import pytest
import torch

from sedialect.bench.quality import recognition, recognition_training
from sedialect.sedialect_core import demo
from sedialect.training.captions import evaluation_specs
from sedialect.training.clips import render


def test_evaluation_prompts_have_their_clips():
    captions = [caption for caption, _ in evaluation_specs()]
    assert captions == [prompt for prompt, _ in demo.evaluation_prompts()]
    assert recognition.knows(captions) and not recognition.knows([*captions, "a cat"])


def test_labels_are_the_captions_words():
    caption, spec = evaluation_specs()[9]
    labels = recognition.labels_of(spec)
    words = {name: recognition.ATTRIBUTES[name][number] for name, number in labels.items()}
    assert caption.startswith("a small blue star with stripes sinks while rotating over a cloudy pink")
    assert words == {
        "shape": "star",
        "colour": "blue",
        "texture": "striped",
        "size": "small",
        "motion": "down",
        "change": "turning",
        "pattern": "cloudy",
        "backdrop": "pink",
        "camera": "right",
    }


def test_of_two_objects_only_the_scene_is_read():
    spec = next(spec for _, spec in evaluation_specs() if spec.other is not None)
    labels = recognition.labels_of(spec)
    assert {name for name, number in labels.items() if number == recognition.UNKNOWN} == set(recognition.OBJECT)
    logits = recognition.Recognizer()(torch.zeros(2, 3, recognition.FRAMES, recognition.SIDE, recognition.SIDE))
    found = recognition.right(logits, [labels, labels])
    assert all(bool(values.isnan().all()) == (name in recognition.OBJECT) for name, values in found.items())


def test_a_glimpse_keeps_the_ends_of_a_video():
    videos = torch.linspace(0, 1, 33).view(1, 33, 1, 1, 1).expand(1, 33, 3, 128, 96)
    clips = recognition.glimpse(videos)
    assert clips.shape == (1, 3, recognition.FRAMES, recognition.SIDE, recognition.SIDE)
    assert torch.allclose(clips[0, 0, :, 5, 5], torch.linspace(-1, 1, recognition.FRAMES), atol=1e-6)


def test_training_writes_what_can_be_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recognition_training, "BATCH", 2)
    monkeypatch.setattr(recognition_training, "FRESH_CLIPS", 2)
    monkeypatch.setattr(recognition_training, "SIZE", 32)
    path = tmp_path / "recognizer.safetensors"
    recognition_training.main(["--steps", "2", "--device", "cpu", "--output", str(path)])
    assert '"shape":' in capsys.readouterr().out
    monkeypatch.setattr(recognition, "WEIGHTS", path)
    network = recognition.load_recognizer.__wrapped__("cpu")
    assert not network.training and path.stat().st_size < 1_000_000


def test_the_shipped_network_is_small_and_reads_clips_of_the_evaluation_prompts():
    """Drawn clips of eight prompts; their labels are far above what the labels of other prompts get."""
    assert recognition.WEIGHTS.stat().st_size < 1_000_000
    chosen = [pair for pair in evaluation_specs() if pair[1].other is None][:8]
    captions, specs = [caption for caption, _ in chosen], [spec for _, spec in chosen]
    videos = (render(specs, random.Random(0), frames=recognition.FRAMES).transpose(1, 2) + 1) / 2
    network = recognition.load_recognizer("cpu")
    own = recognition.prompt_accuracy(network, videos, captions)
    others = recognition.prompt_accuracy(network, videos, captions[1:] + captions[:1])
    assert float(own.mean()) > 0.7 and float(own.mean()) > float(others.mean()) + 0.4


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_disturbed_clips_keep_their_shape(strength, monkeypatch):
    clips = torch.rand(3, 3, recognition.FRAMES, recognition.SIDE, recognition.SIDE)
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.full(size, strength))
    disturbed = recognition_training.disturb(clips)
    assert disturbed.shape == clips.shape and torch.equal(disturbed, clips) == (strength == 0)
