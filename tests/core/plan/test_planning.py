"""`sedialect plan`: it foretells what `enable_sedialect` reports, knows public models, and refuses the rest in a line."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from tiny_pipelines import SIZE, build

import sedialect  # noqa: F401  # adds the methods to pipelines
from sedialect import SeDialectConfig
from sedialect.cli import main as cli
from sedialect.cli import self_test as doctor
from sedialect.kernels import capabilities, dispatch
from sedialect.sedialect_core.footprint.memory import Estimator, Footprint
from sedialect.sedialect_core.footprint.outline import known_models, outline_of
from sedialect.sedialect_core.plan import report, working_memory
from sedialect.sedialect_core.plan.fit import room_of
from sedialect.sedialect_core.plan.report import QUALITY_ADVICE, model_bytes, quality_advice
from sedialect.sedialect_core.plan.rules import make_plan
from sedialect.sedialect_core.quantize import units

ROOT = Path(__file__).parents[3]
FAMILIES = ("wan", "wan-2.2", "hunyuan", "ltx", "cogvideox", "mochi")
TINY_SIZE = ["--height", "64", "--width", "96", "--num-frames", "9"]


def save(family: str, folder: Path) -> Path:
    pipe, _ = build(family)
    pipe.save_pretrained(folder)
    return folder


def planned(capsys, *arguments: object) -> dict:
    assert cli.main(["plan", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("preset", ["default", "compact"])
def test_it_agrees_with_what_enabling_then_reports(family, preset, tmp_path, capsys):
    folder = save(family, tmp_path / "pipe")
    whole, found = planned(capsys, folder, "--preset", preset, *TINY_SIZE)["presets"]
    pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)
    pipe.enable_sedialect(preset=preset, progress=False)
    reported = pipe.sedialect_report().models
    assert len(reported) == len(found["transformers"]) == (2 if family == "wan-2.2" else 1)
    for model in reported:
        plan = found["transformers"][model.component]
        assert whole["bytes"][model.component] == pytest.approx(model.bytes_before, rel=0.02)
        assert found["bytes"][model.component] == pytest.approx(model.bytes_after, rel=0.02)
        assert plan["weight_bits"] == pytest.approx(model.weight_bits) and plan["family"] == model.plan.family
        assert plan["activation_bits"] == pytest.approx(model.activation_bits)
        assert plan["layers_4_bit"] == len(model.plan.quantized) and plan["layers_16_bit"] == len(model.plan.left_alone)
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module) and not name.startswith("transformer"):
            expected = model_bytes(part) * (2 if type(part).__name__ == "AutoencoderKLWan" else 1)  # it decodes in float32
            assert found["bytes"][name] == pytest.approx(expected, rel=0.02)


def test_weights_are_never_opened(tmp_path, capsys):
    folder = save("wan", tmp_path / "pipe")
    before = planned(capsys, folder, *TINY_SIZE)
    for path in folder.rglob("*.safetensors"):
        path.write_bytes(b"no weights")
    assert planned(capsys, folder, *TINY_SIZE) == before


def test_every_preset_is_planned_and_options_change_all(tmp_path, capsys):
    folder = save("cogvideox", tmp_path / "pipe")
    labels = [each["preset"] for each in planned(capsys, folder, *TINY_SIZE)["presets"]]
    assert labels == ["16 bit", "default", "plain", "compact", "quality", "weight-only"]
    changed = planned(capsys, folder, "--block-size", 32, *TINY_SIZE)["presets"]
    bits = [plan["weight_bits"] for each in changed[1:] for plan in each["transformers"].values()]
    assert len(bits) == 5 and all(4.25 < value < 5.3 for value in bits) and len(set(bits)) == 1


@pytest.mark.parametrize("name", list(known_models()))
def test_public_models_have_the_size_that_their_authors_state(name):
    outline = outline_of(name)
    for part in outline.of("transformer"):
        billions = sum(parameter.numel() for parameter in part.model.parameters()) / 1e9
        assert billions == pytest.approx(known_models()[name]["published_billions"], rel=0.12)
    assert all(tensor.is_meta for part in outline.parts for tensor in part.model.parameters())


def test_umt5_is_counted_once():
    encoder = outline_of("wan-2.1-1.3b").of("text encoder")[0]
    assert model_bytes(encoder.model) == pytest.approx(11.36e9, rel=0.001)  # models_t5_umt5-xxl-enc-bf16.pth of its authors


def test_the_readme_holds_the_table_that_the_command_prints(tmp_path, capsys):
    assert cli.main(["plan", "--table"]) == 0
    table = capsys.readouterr().out.strip()
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"<!-- memory table -->\n{table}\n<!-- /memory table -->" in text, "run: sedialect plan --table --write README.md"
    other = tmp_path / "OTHER.md"
    other.write_text("a\n<!-- memory table -->\nold\n<!-- /memory table -->\nb\n")
    assert cli.main(["plan", "--table", "--write", str(other)]) == 0
    assert other.read_text() == f"a\n<!-- memory table -->\n{table}\n<!-- /memory table -->\nb\n"
    other.write_text("no markers")
    assert cli.main(["plan", "--table", "--write", str(other)]) == 2
    assert "must hold <!-- memory table --> and, after it, <!-- /memory table -->, each once" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["wan", "hunyuan", "ltx", "cogvideox", "mochi"])
def test_forwards_of_known_classes_are_followed_and_change_nothing(family, tmp_path):
    outline = outline_of(str(save(family, tmp_path / "pipe")))
    estimator = Estimator(outline, 64, 96, 9)
    model = outline.of("transformer")[0].model
    names = [name for name, _ in model.named_modules()]
    found = estimator.footprint("16 bit", None)
    assert found.followed and found.sampling > 0 and (found.decoding or 0) > 0
    assert [name for name, _ in model.named_modules()] == names
    small, middle, large = (
        Estimator(outline, height, 96, 9).footprint("16 bit", None).sampling for height in (2048, 4096, 8192)
    )
    assert large - middle == pytest.approx(2 * (middle - small), rel=0.1)  # attention stores no scores


def test_what_is_followed_is_what_a_real_forward_holds():
    """The same sum over a real forward on the CPU, where attention stores no scores either."""
    pipe, _ = build("wan")
    model = pipe.transformer.to(torch.bfloat16)
    meta, followed = working_memory.sampling_bytes(build("wan")[0].transformer.to(torch.bfloat16), None, (3, 8, 12))
    assert followed
    with torch.no_grad(), working_memory._Lives([*model.parameters(), *model.buffers()]) as lives:
        model(
            hidden_states=torch.randn(1, 16, 3, 8, 12, dtype=torch.bfloat16),
            timestep=torch.tensor([1.0]),
            encoder_hidden_states=torch.randn(1, 512, 32, dtype=torch.bfloat16),
        )
    assert meta == pytest.approx(lives.peak, rel=0.15)


@pytest.mark.parametrize("name", ["wan-2.1-14b", "hunyuan-video", "ltx-video-13b", "cogvideox-5b", "mochi-1"])
def test_the_rule_is_a_bound_and_not_a_far_one(name):
    estimator = Estimator(outline_of(name))
    part = estimator.transformers[0]
    plan = make_plan(part.model, SeDialectConfig())
    found, followed = working_memory.sampling_bytes(part.model, plan, estimator.size.latent)
    rule = working_memory._by_rule(part.model, estimator.size.latent, working_memory.usual(part.class_name).batch)
    assert followed and found < rule < 2 * found


def test_it_stays_above_what_was_measured():
    """Docs/speed.md: 10.64 GB at the peak of a compiled step of a Wan 14B on an H100, 8.52 of them weights."""
    estimator = Estimator(outline_of("wan-2.1-14b"))
    found = estimator.footprint("plain", SeDialectConfig.preset("plain"))
    assert found.parts["transformer"] == pytest.approx(8.52e9, rel=0.02)
    assert 10.64e9 < found.parts["transformer"] + found.sampling < 1.25 * 10.64e9


def test_fits_counts_what_it_says():
    def footprint(text: int, rest: int) -> Footprint:
        roles = {"text_encoder": "text encoder", "transformer": "transformer"}
        return Footprint("", {"text_encoder": text, "transformer": rest}, roles, {}, 10, True, 20)

    room = room_of(8)
    assert footprint(room // 2, room - room // 2 - 20).fits(8) == ("yes", "yes")
    assert footprint(room // 2, room - room // 2 - 19).fits(8) == ("no", "yes")
    assert footprint(room + 1, 5).fits(8) == ("no", "prompt on CPU")
    assert footprint(5, room).fits(8) == ("no", "no")


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(capsys, *arguments: object) -> str:
    assert cli.main(["plan", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("sedialect: ")
    return error


def test_what_is_no_model_is_refused_in_a_line(tmp_path, capsys):
    assert "neither a folder nor" in refused(capsys, "no such thing") and "name either" in refused(capsys)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "has no config.json" in refused(capsys, empty)
    (empty / "config.json").write_text("{not JSON")
    assert "config.json is damaged" in refused(capsys, empty)
    (empty / "config.json").write_text(json.dumps({"_class_name": "os.system"}))
    assert "no model of diffusers" in refused(capsys, empty)
    (empty / "config.json").write_text(json.dumps({"_class_name": "DiffusionPipeline"}))
    assert "no model of diffusers" in refused(capsys, empty)
    (empty / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKLWan"}))
    assert "is no transformer" in refused(capsys, empty)
    (empty / "config.json").write_text(json.dumps({"model_type": "t5"}))
    assert "a t5 of transformers" in refused(capsys, empty)
    (empty / "config.json").write_text(json.dumps({"_class_name": "WanTransformer3DModel", "patch_size": "x"}))
    assert "makes no WanTransformer3DModel" in refused(capsys, empty)
    assert "multiple of 16" in refused(capsys, "wan-2.1-14b", "--height", 100)
    assert "no preset 'x'" in refused(capsys, "wan-2.1-14b", "--preset", "x")


def test_a_damaged_pipeline_is_refused_in_a_line(tmp_path, capsys):
    folder = save("wan", tmp_path / "pipe")
    capsys.readouterr()  # the bars of saving
    edit(folder / "text_encoder" / "config.json", d_model="x")
    assert "makes no T5EncoderModel" in refused(capsys, folder)
    (folder / "text_encoder" / "config.json").unlink()
    assert "text_encoder/config.json" in refused(capsys, folder)
    edit(folder / "model_index.json", text_encoder=[None, None])
    edit(folder / "transformer" / "config.json", _class_name="UNet2DConditionModel")
    assert "is no transformer" in refused(capsys, folder)
    edit(folder / "model_index.json", transformer=[None, None])
    assert "without a transformer" in refused(capsys, folder)


def test_offline_says_so_in_a_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    error = refused(capsys, "some/model")
    assert "offline" in error or "not in the cache" in error


def test_code_and_kernels_that_a_config_names_are_not_asked_for(tmp_path, capsys):
    folder = save("wan", tmp_path / "pipe")
    edit(
        folder / "text_encoder" / "config.json",
        auto_map={"AutoModel": "evil.Model"},
        _attn_implementation="evil/kernels",
        attn_implementation="evil/kernels",
    )
    assert planned(capsys, folder, *TINY_SIZE)["presets"]


def test_an_unknown_family_is_planned_by_rules_and_says_so(tmp_path, capsys):
    config = {"_class_name": "DiTTransformer2DModel", "num_attention_heads": 2, "attention_head_dim": 32, "num_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps({**config, "sample_size": 8}))
    found = planned(capsys, tmp_path, "--preset", "plain", "--height", 64, "--width", 64, "--num-frames", 1)
    assert any("generic rules" in note for note in found["notes"])
    assert found["presets"][1]["transformers"]["transformer"]["layers_4_bit"] > 0
    assert found["presets"][1]["estimate_bytes"]["by_rule"]


def fp8(device: object) -> capabilities.Refusals:
    return capabilities.Refusals(None, None, None)


def test_quality_is_advised_where_fp8_runs_and_activations_are_4_bit(monkeypatch):
    assert quality_advice("cpu") is None
    monkeypatch.setattr(report, "refusals", fp8)
    assert quality_advice("cuda:0") == quality_advice("cuda:0", SeDialectConfig()) == QUALITY_ADVICE
    assert quality_advice("cuda:0", SeDialectConfig.preset("quality")) is None
    monkeypatch.setattr(report, "refusals", lambda device: capabilities.Refusals(None, None, "too old"))
    assert quality_advice("cuda:0") is None


def test_the_advice_stands_in_plan_doctor_and_report(monkeypatch, capsys, tmp_path):
    pipe, _ = build("wan")
    pipe.enable_sedialect(progress=False)
    assert QUALITY_ADVICE not in str(pipe.sedialect_report())
    monkeypatch.setattr(report, "refusals", fp8)
    monkeypatch.setattr(report, "implementations", lambda device, plan: "FP8")
    model = pipe.transformer
    on_gpu = report.report_of("transformer", model, model._sedialect.plan, 1, torch.device("cuda:0"))
    assert QUALITY_ADVICE in str(on_gpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(doctor, "implementation", lambda *_: dispatch.Implementation("triton", "FP8"))
    monkeypatch.setattr(dispatch, "implementation", lambda *_, **__: dispatch.Implementation("triton", "FP8"))
    for asker in (doctor, units):
        monkeypatch.setattr(asker, "compare_units", lambda *_: None)
    monkeypatch.setattr(doctor, "self_test", lambda device: ("passed", True))
    monkeypatch.setattr(doctor, "attention_paths", lambda device: [])
    monkeypatch.setattr(doctor, "describe", lambda device: "a GPU")
    assert sum(finding == QUALITY_ADVICE for _, finding in doctor.examine()[0]) == 1
    assert cli.main(["plan", str(save("wan", tmp_path / "pipe")), *TINY_SIZE]) == 0
    assert QUALITY_ADVICE in capsys.readouterr().out


def test_the_report_is_for_people(tmp_path, capsys):
    folder = save("wan-2.2", tmp_path / "pipe")
    assert cli.main(["plan", str(folder), "--height", str(SIZE["height"]), "--width", str(SIZE["width"])]) == 0
    out = capsys.readouterr().out
    for words in ("transformer_2", "text encoder offloaded", "bits a weight", "fits a card of", "estimate", "this machine"):
        assert words in out
    assert all(preset in out for preset in ("default", "plain", "compact", "quality", "weight-only"))
