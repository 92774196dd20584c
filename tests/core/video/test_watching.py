"""A run that is watched: what the watcher is told, how it stops a run, and what it sees of a video that is not there yet."""

import pytest
import tiny_pipelines
import torch

from sedialect import SeDialectLinear
from sedialect.sedialect_core import demo
from sedialect.sedialect_core.comparison import MEASURING, QUANTIZING, compare
from sedialect.sedialect_core.config import SeDialectConfig
from sedialect.sedialect_core.errors import ModelError
from sedialect.sedialect_core.inspection.denoisers import denoisers
from sedialect.sedialect_core.video.preview import CleanLatents, LatentPreview
from sedialect.sedialect_core.video.sampling import Request, Watch, load_pipeline, sample

SMALL = {"height": 32, "width": 48, "num_frames": 5, "guidance_scale": 4.0}


class Notes(Watch):
    def __init__(self, stop_at=None):
        self.told, self.stop_at = [], stop_at

    def on_stage(self, label):
        self.told.append(label)

    def on_forward(self):
        self.told.append("forward")
        if self.told.count("forward") == self.stop_at:
            raise KeyboardInterrupt("enough")

    def on_step(self, step, latents):
        self.told.append((step, tuple(latents.shape)))


@pytest.fixture
def wan():
    return tiny_pipelines.build("wan")[0]


def quantized(pipe) -> bool:
    return any(isinstance(module, SeDialectLinear) for module in pipe.transformer.modules())


def test_a_watcher_is_told_every_stage_forward_and_step_in_order(wan):
    notes = Notes()
    compare(wan, Request("a ball", steps=2, **SMALL), SeDialectConfig(), watch=notes, restore=True)
    shape = (1, 16, 2, 4, 6)
    arm = ["forward", "forward", (1, shape), "forward", "forward", (2, shape)]  # two forwards a step: guidance
    assert notes.told == ["16 bit", *arm, QUANTIZING, "w4a4", *arm, MEASURING]


def test_watching_and_restoring_change_no_pixel(wan):
    request = Request("a ball", seed=3, steps=2, **SMALL)
    watched = compare(wan, request, SeDialectConfig(), watch=Notes(), restore=True)
    assert not quantized(wan)
    plain = compare(wan, request, SeDialectConfig())
    assert quantized(wan)
    assert (watched.original.frames == plain.original.frames).all()
    assert (watched.quantized.frames == plain.quantized.frames).all()


@pytest.mark.parametrize("stop_at", [1, 6])
def test_what_a_watcher_raises_stops_the_run_and_leaves_the_pipeline_restored(wan, stop_at):
    notes = Notes(stop_at)
    with pytest.raises(KeyboardInterrupt, match="enough"):
        compare(wan, Request("a ball", steps=2, **SMALL), SeDialectConfig(), watch=notes, restore=True)
    assert notes.told.count("forward") == stop_at and not quantized(wan)
    assert all(not model._forward_pre_hooks for model in (wan.transformer,)), "no hook is left behind"


def test_previews_show_the_bundled_model_s_colours_before_the_video_is_there():
    pipe = load_pipeline(demo.MODEL, torch.float32, "cpu")
    preview = LatentPreview.fit(pipe)
    shown = []

    class Look(Watch):
        clean = None

        def on_step(self, step, latents):
            self.clean = self.clean or CleanLatents(pipe.scheduler)
            estimate = self.clean.after_step(step, latents)
            shown.append(None if estimate is None else preview.frames(estimate))

    steps = 6
    request = demo.request(demo.defaults()["prompt"], demo.defaults()["seed"], steps)
    frames = sample(pipe, denoisers(pipe), request, "16 bit", Look()).frames
    assert shown[0] is None and len(shown) == steps, "one step alone tells no direction"
    small = frames[::4].reshape(9, 16, 8, 16, 8, 3).mean((2, 4))  # the frame, at the size of its latents
    for step, most in ((3, 40), (steps, 25)):
        assert shown[step - 1].shape == small.shape
        assert abs(shown[step - 1] - small).mean() < most
    noise = preview.frames(torch.randn(1, 16, 9, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert abs(noise - small).mean() > 50, "what the bounds above keep out"


def test_packed_latents_and_pipelines_without_an_autoencoder_have_no_preview(wan):
    preview = LatentPreview.fit(wan)
    assert preview.frames(torch.zeros(1, 12, 16)) is None
    channels_second = torch.randn(1, 16, 2, 4, 6)
    assert (preview.frames(channels_second) == preview.frames(channels_second.movedim(1, 2))).all()
    wan.vae = None
    with pytest.raises(ModelError, match="WanPipeline has no autoencoder that encodes"):
        LatentPreview.fit(wan)
