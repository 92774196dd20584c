"""What fits a card: the options in their order, what they take, and refusals that say what would be needed."""

import json

import pytest
import torch
from tiny_models import TINY as MODELS
from tiny_pipelines import build, generate

from sedialect import SeDialectConfig, SeDialectLinear
from sedialect.cli.main import main
from sedialect.sedialect_core.errors import ConfigError, ModelError
from sedialect.sedialect_core.footprint.fitted import fitter_of
from sedialect.sedialect_core.footprint.memory import Estimator
from sedialect.sedialect_core.footprint.outline import outline_of
from sedialect.sedialect_core.integrations import fitting
from sedialect.sedialect_core.plan import fit
from sedialect.sedialect_core.plan.fit import (
    ALL,
    GAPS,
    GIB,
    RESERVED,
    STREAMED,
    TURNS,
    Choice,
    Fitter,
    card_for,
    card_of,
    room_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")
QUALITY = SeDialectConfig.preset("quality")


@pytest.fixture(scope="module")
def wan_14b() -> Fitter:
    return fitter_of(Estimator(outline_of("wan-2.1-14b")))


@pytest.mark.parametrize(
    ("card", "place", "compiled"),
    [(8, STREAMED, False), (12, TURNS, True), (16, TURNS, False), (24, ALL, False), (80, ALL, False)],
)
def test_wan_14b_on_the_cards_of_users(wan_14b, card, place, compiled):
    choice = wan_14b.choose(card, QUALITY)
    assert (choice.option.place, choice.option.compiled) == (place, compiled)
    assert choice.option.config.block_size == 16 and choice.option.needs <= room_of(card)
    assert all(option.needs > room_of(card) for option in choice.passed)


def test_at_12_gb_the_transformer_stays_on_the_gpu_and_the_choice_says_why(wan_14b):
    text = str(wan_14b.choose(12, QUALITY))
    first = text.splitlines()[0]
    assert "w4a8 in blocks of 16, text encoder in 4 bit, blocks compiled, models take turns on the GPU" in first
    assert "too large, 12.2 GB: w4a8 in blocks of 16, models take turns" in text and "the card has 11.6 for it" in text
    assert "takes a minute or so more" in text and "compile=False leaves it out" in text


def test_eager_comes_before_compiled_and_both_before_smaller_blocks_and_streaming(wan_14b):
    order = [
        (option.place, option.config.block_size, option.encoder, option.compiled)
        for option in wan_14b._options(QUALITY, None, True, True)
    ]
    order = list(dict.fromkeys(order))
    places = [(ALL, 16), (TURNS, 16), (TURNS, 32)]
    wanted = [(*place, encoder, compiled) for place in places for encoder in (False, True) for compiled in (False, True)]
    assert order == [*wanted, (STREAMED, 16, False, False), (STREAMED, 16, True, False)]


@pytest.mark.parametrize("preset", ["default", "quality", "weight-only"])
def test_compiling_never_needs_more_and_what_is_chosen_never_more_than_the_card(wan_14b, preset):
    config = SeDialectConfig.preset(preset)
    for encoder in (False, True):
        eager, compiled = (wan_14b.option(config, encoder, TURNS, True, compiled=each).phases for each in (False, True))
        assert compiled["steps"] < eager["steps"] and {**compiled, "steps": 0} == {**eager, "steps": 0}
    needed = [wan_14b.choose(card, config).option.needs for card in range(6, 81)]
    assert all(need <= card * GIB - RESERVED - GAPS for need, card in zip(needed, range(6, 81), strict=True))


@pytest.mark.parametrize("needs", [1, 5 * GIB, room_of(12), room_of(12) + 1, 10**11])
def test_the_card_that_is_named_is_the_smallest(needs):
    assert room_of(card_for(needs)) >= needs > room_of(card_for(needs) - 1) or needs == 1


def test_compiling_can_be_refused(wan_14b):
    assert not any(each.compiled for each in wan_14b._options(QUALITY, None, True, compiling=False))
    option = wan_14b.choose(12, QUALITY, compiling=False).option
    assert option.place == STREAMED or option.needs <= room_of(12)
    assert not option.compiled


def test_what_is_asked_for_is_kept(wan_14b):
    assert wan_14b.choose(12, QUALITY, block_sizes=False, compiling=False).option.place == STREAMED
    with_encoder = wan_14b.choose(80, QUALITY, encoder=True).option
    without = wan_14b.choose(80, QUALITY, encoder=False).option
    assert with_encoder.encoder and without.phases["steps"] - with_encoder.phases["steps"] == pytest.approx(5.2e9, rel=0.02)


def test_what_cannot_fit_is_refused_with_what_would_be_needed(wan_14b):
    with pytest.raises(
        ModelError, match=r"nothing fits 4 GB at 832x480, 81 frames: a card leaves 3.0 GB.*a card of 6 GB would"
    ):
        wan_14b.choose(4, QUALITY)


@pytest.mark.parametrize(("said", "card"), [("12GB", 12), ("12 gb", 12), (12, 12), ("11.5 GiB", 11.5), ("24G", 24)])
def test_sizes_of_cards(said, card):
    assert card_of(said) == card


@pytest.mark.parametrize("said", ["", "12MB", "-3", True, "0.5GB", "lots"])
def test_what_says_no_size_is_refused(said):
    with pytest.raises(ConfigError, match="say the memory of a card, such as '12GB'"):
        card_of(said)


TINY = {"height": 32, "width": 48, "num_frames": 5}
TEXTS = ("text_encoder", "text_encoder_2")


def text_bytes(pipe) -> int:
    return sum(p.numel() * p.element_size() for name in TEXTS for p in getattr(pipe, name).parameters())


def test_the_bytes_of_an_option_are_those_of_the_quantized_pipeline():
    pipe, _ = build("hunyuan")
    both, alone = (fitting.choose(pipe, 12, QUALITY, video=TINY, encoder=encoder).option for encoder in (True, False))
    before = text_bytes(pipe)
    pipe.enable_sedialect(QUALITY, text_encoder=True, equalize=False, progress=False)
    assert alone.phases["steps"] - both.phases["steps"] == before - text_bytes(pipe) > 0


def test_what_is_quantized_already_takes_what_quantizing_foretold(wan_14b):
    wanted = wan_14b.option(QUALITY, False, TURNS, True, compiled=True).phases
    stored = {"transformer": wan_14b._bytes("transformer", wan_14b._plan("transformer", QUALITY))}
    again = Fitter(wan_14b.models, wan_14b.roles, wan_14b.latent, wan_14b.video, stored)
    assert again.option(QUALITY, False, TURNS, True, compiled=True).phases == wanted


@pytest.fixture
def placed(monkeypatch):
    """What would be moved, on a machine that has a GPU."""
    found: list[tuple[Choice, torch.device]] = []
    monkeypatch.setattr(fitting, "place", lambda pipe, choice, device: found.append((choice, device)))
    return found


def test_a_pipeline_fits_itself_says_so_and_runs(capfd, placed):
    pipe, arguments = build("wan")
    pipe.enable_sedialect(fit="12GB", preset="quality", text_encoder=True)
    shown = capfd.readouterr().err
    assert "fit 12 GB, 832x480, 81 frames: w4a8 in blocks of 16, text encoder in 4 bit, everything lies on the GPU" in shown
    assert "fit 12 GB" in str(pipe.sedialect_report())
    assert any(isinstance(module, SeDialectLinear) for module in pipe.text_encoder.modules())
    assert generate(pipe, arguments).isfinite().all()
    if not torch.cuda.is_available():
        assert not placed and "no CUDA GPU, so that nothing was moved" in shown


def test_a_pipeline_that_is_quantized_already_is_only_placed(placed):
    pipe, _ = build("wan")
    pipe.enable_sedialect(progress=False)
    before = [module for module in pipe.transformer.modules() if isinstance(module, SeDialectLinear)]
    pipe.enable_sedialect(fit="12GB", progress=False)
    assert [module for module in pipe.transformer.modules() if isinstance(module, SeDialectLinear)] == before
    assert "transformer is quantized already" in str(pipe.sedialect_report())


def test_models_are_placed_as_chosen(monkeypatch):
    pipe, arguments = build("wan")
    pipe.enable_sedialect(text_encoder=True, progress=False)
    wanted = generate(pipe, arguments)
    choice = fitting.choose(pipe, 12, None, video={"height": 32, "width": 48, "num_frames": 5})
    told = []
    monkeypatch.setattr(pipe, "enable_model_cpu_offload", lambda device: told.append(device), raising=False)
    for place in (ALL, TURNS, STREAMED):
        option = fit.Option(QUALITY, True, place, True, choice.option.phases)
        fitting.place(pipe, Choice(12, option, choice.video), torch.device("cpu"))
    assert told == [torch.device("cpu")] and pipe.vae.use_tiling
    assert torch.allclose(generate(pipe, arguments), wanted, atol=1e-4), (
        "blocks that are brought one by one compute the same"
    )


def test_sizes_of_videos_count():
    pipe, _ = build("wan")
    small, large = (
        fitting.choose(pipe, 80, QUALITY, video={"height": 64, "width": 96, "num_frames": frames}).option.phases["steps"]
        for frames in (5, 81)
    )
    assert large > 1.5 * small
    with pytest.raises(ModelError, match="video holds 'frames'"):
        fitting.choose(pipe, 80, QUALITY, video={"frames": 5})


def test_the_command_says_what_fits(capsys):
    assert main(["plan", "wan-2.1-14b", "--fit", "12GB"]) == 0
    shown = capsys.readouterr().out
    assert "Wan 2.1 14B: fit 12 GB" in shown and "pipe.enable_sedialect(fit='12GB')" in shown
    assert main(["plan", "wan-2.1-14b", "--fit", "16GB", "--preset", "weight-only", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["place"], data["config"]["precision"], data["text_encoder"]) == ("turns", "w4a16", False)
    assert data["compiled"] is False
    assert main(["plan", "wan-2.1-14b", "--fit", "12GB"]) == 0
    shown = capsys.readouterr().out
    assert "blocks compiled, models take turns" in shown and "it takes Triton" in shown and "triton-windows" in shown
    assert main(["plan", "wan-2.1-14b", "--fit", "12GB", "--no-compile"]) == 0
    shown = capsys.readouterr().out
    assert "blocks compiled" not in shown and "fit='12GB', compile=False)" in shown
    assert main(["plan", "wan-2.1-14b", "--fit", "12MB"]) == 2
    assert main(["plan", "wan-2.1-14b", "--fit", "3GB"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and "would do, or a smaller or shorter video" in errors[1]


@pytest.mark.parametrize("patch", [[0, 0, 0], [1, 0, 2], [1, 2, -2]])
def test_patches_of_no_pixels_are_told(patch, tmp_path, capsys):
    model = MODELS["WanTransformer3DModel"]()[0]
    model.save_config(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "patch_size": patch}))
    assert main(["plan", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("sedialect: ") and "download it again" in said
