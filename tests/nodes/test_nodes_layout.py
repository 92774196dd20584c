"""An encoded weight in comfy-kitchen's own QuantizedTensor, LoRAs beside it, and files. No ComfyUI is needed."""

import json
from types import SimpleNamespace

import comfy_kitchen.tensor as kitchen
import pytest
import torch
from comfy_kitchen.tensor import QuantizedTensor
from model_outputs import outputs
from safetensors.torch import load_file, save_file
from tensor_memory import Memory
from torch import nn

from sedialect import Formatbook, SeDialectConfig, SeDialectLinear, quantize_model
from sedialect.nodes import download
from sedialect.nodes.comfy import adapters, checkpoints, layout
from sedialect.sedialect_core import demo
from sedialect.sedialect_core.checkpoint import wan_names as wan_keys
from sedialect.sedialect_core.checkpoint.record import RECORD, Record
from sedialect.sedialect_core.errors import InputError, ModelError

layout.register()
KINDS = [("w4a4", 16, 0), ("w4a8", 32, 0), ("w4a16", 16, 0), ("w4a4", 32, 64)]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weight(
    precision: str = "w4a4", size: int = 16, rotation: int = 0, dtype: torch.dtype = torch.float32
) -> QuantizedTensor:
    book = Formatbook.builtin()
    settings = {"book": book, "block_size": size, "precision": precision, "rotation": rotation}
    return QuantizedTensor.from_float(randn(48, 128).to(dtype), layout.LAYOUT, **settings)


def linear(precision: str, size: int, rotation: int) -> SeDialectLinear:
    """The library's own layer of the same weight."""
    plain = nn.Linear(128, 48)
    plain.weight.data = randn(48, 128)
    return SeDialectLinear.from_linear(plain, precision=precision, block_size=size, rotation=rotation)


class TestLayout:
    @pytest.mark.parametrize("kind", KINDS, ids=str)
    def test_it_stores_and_computes_what_the_librarys_layer_does(self, kind):
        ours, layer, x = weight(*kind), linear(*kind), randn(3, 7, 128, seed=1)
        stored = ours.state_dict("weight")
        assert list(stored) == ["weight", "weight_meta", "weight_scale"]
        for name, tensor in stored.items():
            assert torch.equal(tensor, getattr(layer, name)) and tensor.dtype == torch.uint8
        with torch.no_grad():
            assert torch.equal(layout.multiply(x, ours, layer.bias), layer(x))
        assert torch.equal(ours.dequantize(), layer.dequantize())

    @pytest.mark.parametrize("kind", KINDS, ids=str)
    def test_functional_linear_reaches_the_kernels_too(self, kind):
        with torch.inference_mode():
            ours, x = weight(*kind), randn(5, 128, seed=1)
            assert torch.equal(nn.functional.linear(x, ours), layout.multiply(x, ours, None))

    def test_it_survives_what_comfyui_does_to_weights(self):
        ours = weight()
        parts, context = ours.__tensor_flatten__()
        rebuilt = QuantizedTensor.__tensor_unflatten__({name: getattr(ours, name) for name in parts}, context, None, None)
        copy = torch.empty_like(ours)
        copy.copy_(ours)
        for other in (rebuilt, copy, ours.clone(), ours.to("cpu"), ours.detach(), ours.to(torch.bfloat16).to(torch.float32)):
            assert layout.is_encoded(other) and torch.equal(other.dequantize(), ours.dequantize())
        assert ours.to(torch.bfloat16).dequantize().dtype == torch.bfloat16
        assert ours.shape == (48, 128) and ours.nbytes == 48 * 64
        assert set(parts) == {"_qdata", "_param_scale", "_param_meta"}, "a tensor left out would not be moved"

    def test_a_changed_weight_is_encoded_again_by_the_same_settings(self):
        ours = weight("w4a8", 32, 64)
        again = ours.requantize_from_float(randn(48, 128, seed=2), scale="recalculate", stochastic_rounding=7)
        assert again._params.block_size == 32 and again._params.rotation == 64 and again._params.precision == "w4a8"
        assert 0 < float((again.dequantize() - randn(48, 128, seed=2)).norm() / randn(48, 128, seed=2).norm()) < 0.15

    def test_a_file_gives_the_weight_back_without_a_copy(self):
        ours = weight()
        codes, meta, scale = ours.state_dict("").values()
        settings = {"book": Formatbook.builtin(), "precision": "w4a4", "candidates": "max"}
        again = layout.wrap(codes, meta, scale, torch.float32, **settings)
        assert torch.equal(again.dequantize(), ours.dequantize()) and again._qdata.data_ptr() == codes.data_ptr()
        assert again._params.scale.data_ptr() == scale.data_ptr()

    def test_it_compiles(self):
        class Layer(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(weight(), requires_grad=False)

            def forward(self, x):
                return layout.multiply(x, self.weight, None)

        layer, x = Layer(), randn(4, 128, seed=3)
        with torch.no_grad():
            assert torch.equal(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), layer(x))

    def test_names_are_not_anybody_elses(self):
        known = set(kitchen.base.LAYOUTS) - {layout.LAYOUT}
        assert layout.LAYOUT not in known and layout.FORMAT not in ("nvfp4", "mxfp8", "int8_tensorwise", "convrot_w4a4")
        assert kitchen.get_layout_class(layout.LAYOUT) is layout.SeDialectLayout


def plain_lora(rank: int = 4, rows: int = 48, alpha: float | None = 2.0, **other) -> SimpleNamespace:
    parts = [randn(rows, rank, seed=5), randn(rank, 128, seed=6), alpha, other.get("middle"), other.get("dora"), None]
    return SimpleNamespace(name="lora", weights=tuple(parts))


class TestAdapters:
    x, y = randn(2, 3, 128, seed=8), randn(2, 3, 48, seed=9)

    def add(self, *patches, dense=None):
        def never(*_):
            raise AssertionError("a plain LoRA needs no decoded weight")

        original = randn(48, 128)
        return adapters.add_patches(
            self.y.clone(), self.x, list(patches), (lambda: original) if dense else never, dense or never
        )

    def test_a_lora_is_two_thin_products(self):
        lora = plain_lora()
        up, down = lora.weights[:2]
        expected = self.y + 0.7 * (2.0 / 4) * (self.x @ down.T @ up.T)
        torch.testing.assert_close(self.add((0.7, lora, 1.0, None, None)), expected)

    def test_a_lora_makes_no_second_output(self):
        """At 75,600 tokens that of a feed-forward layer of Wan 14B takes 2 GB."""
        y, patch = self.y.clone(), (0.7, plain_lora(), 1.0, None, None)
        with Memory(y, self.x, *patch[1].weights[:2]) as memory:
            adapters.add_patches(y, self.x, [patch], lambda: None, lambda *_: None)
        assert 0 < memory.peak < y.nbytes

    def test_layers_that_cost_a_dense_product_are_counted(self):
        thin, dora = (1.0, plain_lora(), 1.0, None, None), (1.0, plain_lora(dora=randn(48, 1)), 1.0, None, None)
        patches = {"a": [thin], "b": [thin, dora], "c": [dora], "bias": [dora]}
        assert adapters.dense_layers(patches, ["a", "b", "c", "d"]) == 2

    def test_a_lora_of_another_model_is_told(self):
        for patch in ((1.0, plain_lora(rows=64), 1.0, None, None), (1.0, plain_lora(rows=48), 1.0, (0, 16, 48), None)):
            with pytest.raises(ModelError, match="of 64 x 128 numbers is connected to one of 48 x 128"):
                self.add(patch)

    def test_loras_add_up_and_without_alpha_count_whole(self):
        one, other = plain_lora(alpha=None), plain_lora(rank=2)
        both = self.add((1.0, one, 1.0, None, None), (-0.5, other, 1.0, None, None)) - self.y
        alone = [self.add((s, lora, 1.0, None, None)) - self.y for s, lora in ((1.0, one), (-0.5, other))]
        torch.testing.assert_close(both, sum(alone), rtol=1e-4, atol=1e-4)

    def test_a_lora_of_one_of_fused_projections_reaches_its_rows_alone(self):
        result = self.add((1.0, plain_lora(rows=16), 1.0, (0, 16, 16), None))
        changed = (result != self.y).any(0).any(0)
        assert changed[16:32].all() and not changed[:16].any() and not changed[32:].any()

    @pytest.mark.parametrize(
        "patch",
        [
            (1.0, plain_lora(dora=torch.ones(48, 1)), 1.0, None, None),
            (1.0, SimpleNamespace(name="lokr", weights=()), 1.0, None, None),
            (1.0, ("diff", (randn(48, 128, seed=3),)), 1.0, None, None),
            (1.0, plain_lora(), 0.5, None, None),
            (1.0, plain_lora(), 1.0, (1, 0, 64), None),
            (1.0, plain_lora(), 1.0, None, lambda weight: weight),
        ],
        ids=["dora", "lokr", "difference", "model strength", "columns", "function"],
    )
    def test_whatever_else_is_worked_out_on_the_decoded_weight(self, patch):
        delta = randn(48, 128, seed=4)
        asked = []

        def dense(patches, given):
            asked.extend(patches)
            return given.add_(delta)

        result = self.add((1.0, plain_lora(), 1.0, None, None), patch, dense=dense)
        torch.testing.assert_close(result, self.y + self.x @ delta.T, rtol=1e-4, atol=1e-4)
        assert len(asked) == 2, "in order and together"


@pytest.fixture(scope="module")
def model():
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    model = WanTransformer3DModel.from_config(tiny_config())
    model.blocks[0].ffn.net[2].weight.data[:, 5] /= 32
    quantize_model(model, SeDialectConfig.preset("plain", rotation=64))
    return model


def tiny_config(**other) -> dict:
    small = {"num_attention_heads": 2, "attention_head_dim": 64, "ffn_dim": 256, "num_layers": 2, "text_dim": 64}
    config = json.loads((demo.MODEL / "transformer" / "config.json").read_text())
    return {**config, **small, **other}


def checkpoint_of(model) -> checkpoints.Checkpoint:
    """What ComfyUI would hold of a quantized diffusers model."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, SeDialectLinear)}
    record = Record(
        "WanModel",
        16,
        Formatbook.builtin("sedialect-32"),
        {wan_keys.to_authors(name): layer.precision for name, layer in layers.items()},
        {wan_keys.to_authors(name): layer.rotation for name, layer in layers.items() if layer.rotation},
        {wan_keys.to_authors(name): "weights" for name, layer in layers.items() if layer.weight_equalizer is not None},
    )
    tensors = {wan_keys.to_authors(name): tensor for name, tensor in model.state_dict().items()}
    return checkpoints.Checkpoint(tensors, record, json.dumps({"transformer": wan_keys.settings_of(model.config)}))


def read(path: str) -> dict[str, torch.Tensor]:
    return load_file(path)


def same(a: checkpoints.Checkpoint, b: checkpoints.Checkpoint) -> bool:
    tensors = a.tensors.keys() == b.tensors.keys() and all(torch.equal(a.tensors[key], b.tensors[key]) for key in a.tensors)
    said = ("precisions", "rotations", "equalized")
    return tensors and all(getattr(a.record, name) == getattr(b.record, name) for name in said)


class TestFiles:
    def test_one_file_with_comfyuis_names(self, model, tmp_path):
        given = checkpoint_of(model)
        path = checkpoints.write_file(tmp_path / "one.safetensors", given)
        checkpoints.check_header(str(path))
        found = checkpoints.read_checkpoint(str(path), read)
        assert same(found, given) and json.loads(found.settings) == json.loads(given.settings)

    def test_a_folder_with_diffusers_names_loads_there_and_here(self, model, tmp_path):
        from diffusers import WanTransformer3DModel

        plain = SeDialectConfig.preset("plain")
        folder = checkpoints.write_folder(tmp_path / "folder", checkpoint_of(model), plain)
        loaded = WanTransformer3DModel.from_pretrained(folder, torch_dtype=torch.float32)
        state = model.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
        text, time = randn(1, 4, 64, seed=1), torch.tensor([3])
        inputs = {"hidden_states": randn(1, 16, 2, 8, 8), "timestep": time, "encoder_hidden_states": text}
        for one, two in zip(outputs(loaded, inputs), outputs(model, inputs), strict=True):
            assert torch.equal(one, two)
        found = checkpoints.read_checkpoint(str(folder / "diffusion_pytorch_model.safetensors"), read)
        assert same(found, checkpoint_of(model))
        assert json.loads(found.settings)["transformer"]["num_heads"] == 2

    def test_what_diffusers_pushes_in_shards_is_read_whole(self, model, tmp_path):
        checkpoints.write_folder(tmp_path / "folder", checkpoint_of(model), SeDialectConfig())
        from diffusers import WanTransformer3DModel

        loaded = WanTransformer3DModel.from_pretrained(tmp_path / "folder", torch_dtype=torch.float32)
        loaded.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
        parts = sorted((tmp_path / "shards").glob("*.safetensors"))
        assert len(parts) > 2
        for part in (parts[0], parts[-1]):
            assert same(checkpoints.read_checkpoint(str(part), read), checkpoint_of(model))
        parts[1].unlink()
        with pytest.raises(InputError, match="is missing beside"):
            checkpoints.check_header(str(parts[0]))

    def test_what_comfyuis_own_node_saves_is_read(self, model, tmp_path):
        """It puts a prefix before every name, notes beside every quantized weight, and keeps no metadata."""
        given = checkpoint_of(model)
        state = {**given.tensors, RECORD: given.record.to_tensor()}
        state[checkpoints.SETTINGS] = torch.tensor(list(given.settings.encode()), dtype=torch.uint8)
        state["blocks.0.self_attn.q.comfy_quant"] = torch.zeros(3, dtype=torch.uint8)
        path = tmp_path / "core.safetensors"
        save_file({f"model.diffusion_model.{name}": tensor.contiguous() for name, tensor in state.items()}, path)
        found = checkpoints.read_checkpoint(str(path), read)
        assert same(found, given) and found.settings == given.settings

    def test_other_files_are_refused_by_name(self, model, tmp_path):
        save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
        (tmp_path / "broken.safetensors").write_bytes(b"x" * 64)
        for name, says in (
            ("other", "not quantized by sedialect"),
            ("broken", "cannot be read"),
            ("gone", "cannot be read"),
        ):
            with pytest.raises(InputError, match=says):
                checkpoints.check_header(str(tmp_path / f"{name}.safetensors"))

    def test_a_model_whose_layers_another_node_replaced_is_not_written(self, model):
        given = checkpoint_of(model)
        del given.tensors["blocks.0.ffn.0.weight_scale"]
        with pytest.raises(ModelError, match="'blocks.0.ffn.0' is not as SeDialect Quantize made it"):
            checkpoints.check_complete(given)

    def test_models_without_a_translation_keep_comfyuis_names(self, model, tmp_path):
        given = checkpoint_of(model)
        renamed = given._replace(tensors={f"double_{name}": tensor for name, tensor in given.tensors.items()})
        with pytest.raises(ModelError, match="only Wan models"):
            checkpoints.write_folder(tmp_path / "folder", renamed, SeDialectConfig())
        vace = given._replace(
            settings=json.dumps({"transformer": {**json.loads(given.settings)["transformer"], "model_type": "vace"}})
        )
        with pytest.raises(ModelError, match="'vace' have no counterpart"):
            checkpoints.write_folder(tmp_path / "folder", vace, SeDialectConfig())
        assert not (tmp_path / "folder").exists()


class TestWanKeys:
    @pytest.mark.parametrize("image", [False, True], ids=["text", "image"])
    def test_names_are_those_that_diffusers_converts_from(self, image):
        """diffusers' own converter of original files is the judge."""
        from diffusers import WanTransformer3DModel
        from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

        more = {"image_dim": 48, "added_kv_proj_dim": 128} if image else {}
        state = WanTransformer3DModel.from_config(tiny_config(**more)).state_dict()
        original = {wan_keys.to_authors(name): tensor for name, tensor in state.items()}
        assert len(original) == len(state) and wan_keys.names_of_authors(original) and wan_keys.names_of_diffusers(state)
        converted = convert_wan_transformer_to_diffusers(dict(original))
        assert converted.keys() == state.keys() and all(converted[name] is state[name] for name in state)
        assert {wan_keys.to_diffusers(name): name for name in original} == {
            name: wan_keys.to_authors(name) for name in state
        }

    @pytest.mark.parametrize("image", [False, True], ids=["text", "image"])
    def test_settings_go_both_ways(self, image):
        from diffusers import WanTransformer3DModel

        more = {"image_dim": 48, "added_kv_proj_dim": 128, "pos_embed_seq_len": 6} if image else {}
        model = WanTransformer3DModel.from_config(tiny_config(**more))
        shapes = {wan_keys.to_authors(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        config = wan_keys.config_of(wan_keys.settings_of(model.config), shapes)
        built = WanTransformer3DModel.from_config(config)
        assert {k: tuple(v.shape) for k, v in built.state_dict().items()} == {
            k: tuple(v.shape) for k, v in model.state_dict().items()
        }
        assert all(
            tuple(value) == tuple(model.config[key]) if key == "patch_size" else value == model.config[key]
            for key, value in config.items()
            if key != "_class_name"
        )

    def test_names_below_a_module_follow_it_and_others_are_refused(self):
        assert wan_keys.to_authors("blocks.12.attn1.to_out.0.weight_meta") == "blocks.12.self_attn.o.weight_meta"
        assert wan_keys.to_diffusers("blocks.3.norm3.bias") == "blocks.3.norm2.bias"
        for name in ("vace_blocks.0.before_proj.weight", "blocks.0.self_attn.queries"):
            with pytest.raises(ModelError, match="has no counterpart"):
                wan_keys.to_diffusers(name)


class TestDownload:
    def fetch(self, folder, name: str = "me/model", revision: str | None = None):
        return download.download_model(name, revision, folder, lambda done, total: None, lambda: None)

    def test_a_repository_becomes_a_folder_among_the_models(self, hub, model, tmp_path):
        from huggingface_hub import HfApi

        api = HfApi(token=hub.token)
        written = checkpoints.write_folder(tmp_path / "folder", checkpoint_of(model), SeDialectConfig())
        api.create_repo("me/model")
        api.upload_folder(repo_id="me/model", folder_path=written)
        path = self.fetch(tmp_path / "models")
        assert path.is_relative_to(tmp_path / "models" / "me--model")
        assert same(checkpoints.read_checkpoint(str(path), read), checkpoint_of(model))
        status = path.stat()
        assert self.fetch(tmp_path / "models") == path and path.stat().st_mtime_ns == status.st_mtime_ns

    def test_what_is_not_there_is_said_and_leaves_nothing(self, hub, tmp_path):
        from huggingface_hub import HfApi

        HfApi(token=hub.token).create_repo("me/empty")
        with pytest.raises(InputError, match="no repository 'me/model'"):
            self.fetch(tmp_path)
        with pytest.raises(InputError, match="has weights in none"):
            self.fetch(tmp_path, "me/empty")
        with pytest.raises(InputError, match="write owner/name"):
            self.fetch(tmp_path, "../up")
        assert not list(tmp_path.iterdir())
