"""Run by ComfyUI's own interpreter, in ComfyUI's folder: a tiny T5 as a CLIP, quantized, patched, saved and loaded.

Prints one JSON object of what came out. Arguments: a folder to write into.
"""

import json
import sys
from pathlib import Path

FOLDER = Path(sys.argv[1])
sys.argv = [sys.argv[0], "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management  # noqa: E402
import comfy.sd  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402
from comfy.weight_adapter.lora import LoRAAdapter  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

import sedialect  # noqa: E402
from sedialect.nodes import clip as nodes  # noqa: E402
from sedialect.nodes.comfy import clip as comfy_clip  # noqa: E402
from sedialect.nodes.comfy.checkpoints import read_checkpoint  # noqa: E402
from sedialect.nodes.comfy.linear import encoded_layers  # noqa: E402
from sedialect.nodes.comfy.model import read_tensors  # noqa: E402
from sedialect.sedialect_core.errors import SeDialectError  # noqa: E402


class Silent:
    """A node's bar, which only the server can show."""

    def __init__(self, text: str) -> None: ...

    def __enter__(self):
        return lambda done, total: None

    def __exit__(self, *error: object) -> None: ...


nodes.Progress = Silent
WIDTH, BLOCKS, HIDDEN = 64, 3, 128
GATED = {"dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True}
SMALL = {
    "t5base_model_config": {"d_model": WIDTH, "num_layers": BLOCKS, "num_heads": 4, "d_kv": 16, "d_ff": HIDDEN, **GATED}
}
PROMPT = "a red ball rolls over the grass"


def tiny_t5() -> dict[str, torch.Tensor]:
    """Random weights by T5's names; what a block adds is small beside what it reads, as in trained ones."""
    random = torch.Generator().manual_seed(3)

    def weight(rows: int, columns: int, size: float = 1.0) -> torch.Tensor:
        return torch.randn(rows, columns, generator=random).mul_(size / columns**0.5).to(torch.bfloat16)

    tensors = {"shared.weight": weight(32128, WIDTH, WIDTH**0.5), "encoder.final_layer_norm.weight": torch.ones(WIDTH)}
    for number in range(BLOCKS):
        attention, feed = (f"encoder.block.{number}.layer.{part}." for part in (0, 1))
        tensors |= {f"{attention}SelfAttention.{name}.weight": weight(WIDTH, WIDTH, 0.5) for name in "qkvo"}
        tensors |= {f"{part}layer_norm.weight": torch.ones(WIDTH) for part in (attention, feed)}
        tensors |= {f"{feed}DenseReluDense.{name}.weight": weight(HIDDEN, WIDTH) for name in ("wi_0", "wi_1")}
        tensors[f"{feed}DenseReluDense.wo.weight"] = weight(WIDTH, HIDDEN, 0.5)
    tensors["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = weight(32, 4)
    return tensors


def load_16_bit(tensors: dict[str, torch.Tensor] | None = None):
    kind = comfy.sd.CLIPType.STABLE_AUDIO
    return comfy.sd.load_text_encoder_state_dicts([tensors or tiny_t5()], clip_type=kind, model_options=dict(SMALL))


def decoded(clip) -> dict[str, torch.Tensor]:
    """The weights of the encoded layers as floats, the others as they are."""
    tensors = {key: value.float() for key, value in tiny_t5().items()}
    for name, layer in encoded_layers(clip.cond_stage_model).items():
        tensors[name.removeprefix("t5base.transformer.") + ".weight"] = layer.weight.dequantize().float()
    return tensors


def encode(clip) -> torch.Tensor:
    return clip.encode_from_tokens(clip.tokenize(PROMPT)).clone()


def lora(clip, name: str = "t5base.transformer.encoder.block.1.layer.0.SelfAttention.q.weight"):
    """The CLIP with a strong LoRA on one layer."""
    random = torch.Generator().manual_seed(8)
    up, down = torch.randn(WIDTH, 4, generator=random), torch.randn(4, WIDTH, generator=random)
    patched = clip.clone()
    adapter = LoRAAdapter(set(), (up, down, 4.0, None, None, None))
    assert patched.add_patches({name: adapter}, 1.0) == [name]
    return patched


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def refusal(call) -> str:
    try:
        call()
    except SeDialectError as error:
        return str(error)
    return ""


def main() -> dict[str, object]:
    folder_paths.set_output_directory(str(FOLDER))
    plain = load_16_bit()
    before = encode(plain)
    made, report = nodes.SeDialectQuantizeCLIP.execute(plain).result
    known = comfy_clip.quantized_clip(made)
    quantized = encode(made)
    encoded = encoded_layers(made.cond_stage_model)
    with_lora, plain_lora = encode(lora(made)), encode(lora(plain))
    without = encode(made)
    before_quantizing = encode(lora(plain))
    comfy.model_management.unload_all_models()
    after_unloading = encode(made)
    offloaded = lora(made)
    offloaded.patcher.load(made.patcher.load_device, lowvram_model_memory=1)  # as where the GPU holds one byte of it
    partly = offloaded.cond_stage_model.encode_token_weights(offloaded.tokenize(PROMPT))[0].clone()
    written = offloaded.patcher.model_state_dict_for_saving()  # as ComfyUI's own save nodes ask for it
    offloaded.patcher.detach()
    also, _ = nodes.SeDialectQuantizeCLIP.execute(lora(plain)).result
    saved = nodes.SeDialectSaveCLIP.execute(lora(made), "clip/tiny").result[0]
    checkpoint = read_checkpoint(saved, read_tensors)
    again = comfy_clip.load_clip([checkpoint], "stable_audio", (nodes.load_patcher, ([saved], "stable_audio")), None, SMALL)
    fresh = made.patcher.cached_patcher_init[0](*made.patcher.cached_patcher_init[1], disable_dynamic=True)
    stored = load_file(saved)
    return {
        "sedialect": str(Path(sedialect.__file__).resolve().parent),
        "layers": len(encoded),
        "report": str(report),
        "summary": comfy_clip.summary_clip(made),
        "bits": known.plan.weight_bits,
        "error": distance(quantized, before),
        "twin": distance(quantized, encode(load_16_bit(decoded(made)))),
        "untouched": torch.equal(encode(plain), before),
        "lora moves": distance(with_lora, quantized),
        "lora error": distance(with_lora, plain_lora),
        "lora leaves": torch.equal(without, quantized),
        "unloaded": torch.equal(after_unloading, quantized),
        "partly loaded": distance(partly, with_lora),
        "saved by ComfyUI": [
            key for key, value in made.cond_stage_model.state_dict().items() if not torch.equal(written[key], value)
        ],
        "lora before": distance(encode(also), before_quantizing),
        "same either way": distance(encode(also), with_lora),
        "loaded": distance(encode(again), quantized),
        "loaded layers": len(encoded_layers(again.cond_stage_model)),
        "loaded lora": distance(encode(lora(again)), with_lora),
        "fresh": type(fresh).__name__,
        "keys": sorted(stored)[:4],
        "bytes": sum(tensor.nbytes for tensor in stored.values()),
        "plain bytes": sum(tensor.nbytes for tensor in tiny_t5().values()),
        "cloned": comfy_clip.quantized_clip(made.clone()) is known,
        "twice": refusal(lambda: nodes.SeDialectQuantizeCLIP.execute(made)),
        "not ours": refusal(lambda: nodes.SeDialectSaveCLIP.execute(plain, "clip/x")),
        "wrong type": refusal(lambda: comfy_clip.load_clip([checkpoint], "nothing", (None, ()), None, SMALL)),
    }


print("RESULT " + json.dumps(main()))
