"""The demonstration model's training: its world, its exactness against diffusers, and a run of every stage."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from sedialect.training import __main__ as command  # noqa: E402
from sedialect.training import assemble, autoencoder, bank, captions, clips, denoiser, text  # noqa: E402
from sedialect.training.captions import ClipSpec, ObjectSpec  # noqa: E402
from sedialect.training.settings import Settings, smoke_settings  # noqa: E402

DEMO = Path(assemble.__file__).parents[1] / "sedialect_core" / "demo"


def _specs(count: int, seed: int = 1) -> list[ClipSpec]:
    rng = random.Random(seed)
    return [captions.sample_spec(rng) for _ in range(count)]


def _lone(motion: str, change: str = "none") -> ClipSpec:
    return ClipSpec(ObjectSpec("ball", "white", "plain", "medium", motion, change), None, "front", "smooth", "gray", "still")


def _random_autoencoder() -> autoencoder.AutoencoderKLWan:
    torch.manual_seed(0)
    vae = autoencoder.build_autoencoder(smoke_settings())
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim > 1 else 0.5)
    return vae.eval()


def test_captions_are_deterministic_and_many() -> None:
    def draw() -> list[str]:
        rng = random.Random(5)
        return [captions.write_caption(captions.sample_spec(rng), rng) for _ in range(2000)]

    assert draw() == draw()
    assert len(set(draw())) > 1500


def test_every_caption_word_is_in_the_vocabulary() -> None:
    tokenizer, rng = text.build_tokenizer(Settings()), random.Random(6)
    lines = [captions.write_caption(spec, rng, full=i % 2 == 0) for i, spec in enumerate(_specs(1500))]
    ids = text.tokenize(tokenizer, lines, Settings().text_length)
    assert not (ids == text.UNK).any()
    assert (ids[:, -1] == text.PAD).all(), "a caption fills all rows that training keeps for it"


def test_training_never_draws_a_held_out_combination() -> None:
    objects = [item for spec in _specs(4000) for item in (spec.main, spec.other) if item is not None]
    assert not any(captions.is_held_out(item) for item in objects)
    held_out = captions.held_out_objects()
    assert 200 <= len(held_out) <= 400
    seen = {(o.shape, o.colour, o.texture, o.motion) for o in objects}
    assert not seen & {(o.shape, o.colour, o.texture, o.motion) for o in held_out}


def test_evaluation_prompts_cover_the_grammar_and_stay_out_of_training() -> None:
    items = captions.evaluation_items()
    prompts = [item["prompt"] for item in items]
    assert len(set(prompts)) == len(items) == 64
    for words in (captions.COLOURS, captions.SHAPES):
        common = [word for word in words if sum(word in prompt for prompt in prompts) == 0]
        assert not common, f"never asked for: {common}"
    rng = random.Random(8)
    drawn = {captions.write_caption(captions.sample_spec(rng), rng, full=True) for _ in range(20_000)}
    assert not drawn & set(prompts)


def test_shipped_prompts_are_the_evaluation_items() -> None:
    assert json.loads((DEMO / "prompts.json").read_text()) == captions.evaluation_items()


def test_clips_are_in_range_and_repeatable() -> None:
    specs = _specs(6)
    video = clips.render(specs, random.Random(2), frames=5, size=32)
    assert video.shape == (6, 3, 5, 32, 32)
    assert video.min() >= -1 and video.max() <= 1 and torch.isfinite(video).all()
    assert torch.equal(video, clips.render(specs, random.Random(2), frames=5, size=32))


def _white_centroid(video: torch.Tensor) -> torch.Tensor:
    """Path (frame, xy) of the bright object."""
    weight = (video[0].amin(dim=0) > 0.3).float()
    steps = torch.arange(weight.shape[-1], dtype=torch.float32)
    total = weight.sum(dim=(1, 2)).clamp_min(1)
    return (
        torch.stack([(weight.sum(dim=1) * steps).sum(dim=1), (weight.sum(dim=2) * steps).sum(dim=1)], dim=1) / total[:, None]
    )


@pytest.mark.parametrize(
    ("motion", "direction"),
    [("left", (-1, 0)), ("right", (1, 0)), ("up", (0, -1)), ("down", (0, 1)), ("down right", (1, 1)), ("still", (0, 0))],
)
def test_objects_move_the_way_the_caption_says(motion: str, direction: tuple[int, int]) -> None:
    path = _white_centroid(clips.render([_lone(motion)], random.Random(3), frames=9, size=64))
    moved = (path[-1] - path[0]).tolist()
    for distance, sign in zip(moved, direction, strict=True):
        assert distance * sign > 12 if sign else abs(distance) < 6


def test_growing_objects_grow() -> None:
    video = clips.render([_lone("still", "growing")], random.Random(3), frames=5, size=64)
    area = (video[0].amin(dim=0) > 0.3).sum(dim=(1, 2))
    assert area[-1] > 2 * area[0]


def test_whole_sequence_equals_chunks() -> None:
    vae = _random_autoencoder()
    video = clips.render(_specs(2), random.Random(1), frames=9, size=32)
    with torch.no_grad():
        moments = autoencoder.encode_whole(vae, video)
        expected = vae.encode(video).latent_dist.parameters
        torch.testing.assert_close(moments, expected, rtol=1e-4, atol=1e-4)
        latents = expected[:, :16]
        whole = autoencoder.decode_whole(vae, latents).clamp(-1, 1)
        torch.testing.assert_close(whole, vae.decode(latents).sample, rtol=1e-4, atol=1e-4)


def test_folding_keeps_pictures_and_sets_the_standard_statistics() -> None:
    vae, settings = _random_autoencoder().double(), smoke_settings()
    video = clips.render(_specs(2), random.Random(1), frames=5, size=32).double()
    with torch.no_grad():
        before = autoencoder.decode_whole(vae, autoencoder.encode_whole(vae, video)[:, :16])
        scale, offset = torch.rand(16).double() + 0.5, torch.randn(16).double()
        autoencoder.apply_affine(vae, scale, offset)
        after = autoencoder.decode_whole(vae, autoencoder.encode_whole(vae, video)[:, :16])
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    vae = vae.float()
    autoencoder.fold_statistics(vae, settings, torch.device("cpu"), clips=8)
    rng = random.Random(settings.seed + 1)
    latents = torch.cat(
        [autoencoder.encode_means(vae, autoencoder._batch(settings, rng, torch.device("cpu"), 2)) for _ in range(4)]
    )
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3, 4)), torch.tensor(vae.config.latents_mean), rtol=0, atol=0.05)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3, 4)), torch.tensor(vae.config.latents_std), rtol=0.02, atol=0)


def test_short_text_equals_the_pipelines_padding() -> None:
    settings = smoke_settings()
    tokenizer = text.build_tokenizer(settings)
    encoder, model = text.build_text_encoder(settings, len(tokenizer)), denoiser.build_denoiser(settings)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    prompts = ["a red ball moves left over a blue grid", ""]
    short = text.tokenize(tokenizer, prompts, settings.text_length).long()
    long = text.tokenize(tokenizer, prompts, settings.padded_length).long()
    latents, times = torch.randn(2, 16, 2, 4, 4), torch.tensor([300.0, 800.0])
    with torch.no_grad():
        expected = model(latents, times, text.encode_text(encoder, long), return_dict=False)[0]
        processor = denoiser.use_training_attention(model)
        processor.bias = text.padding_bias(short, settings.padded_length)
        output = model(latents, times, text.encode_text(encoder, short), return_dict=False)[0]
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


def test_dropped_captions_are_the_empty_prompt() -> None:
    settings = smoke_settings()
    tokenizer = text.build_tokenizer(settings)
    ids = text.tokenize(tokenizer, ["a red ball", "a blue star"], settings.text_length)[:, None]
    empty = text.tokenize(tokenizer, [""], settings.text_length)[0].long()
    _, drawn = bank.Bank(torch.zeros(2, 16, 1, 2, 2), ids).draw(8, caption_dropout=1.0)
    assert torch.equal(drawn, empty.expand(8, -1))


def test_smoke_training_makes_a_loadable_pipeline(tmp_path: Path) -> None:
    from diffusers import WanPipeline

    command.main(["--smoke", "--device", "cpu", "--output", str(tmp_path)])
    pipeline = WanPipeline.from_pretrained(tmp_path / "model", torch_dtype=torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    frames = pipeline("a red ball", height=32, width=32, num_frames=5, num_inference_steps=1, output_type="pt").frames
    assert frames.shape == (1, 5, 3, 32, 32)
    for path in (tmp_path / "model").rglob("*.json"):
        assert str(tmp_path) not in path.read_text(), f"{path.name} names a folder of this machine"
    assert "PSNR" in (tmp_path / "model" / "README.md").read_text()
