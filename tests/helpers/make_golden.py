"""Writes tests/golden/v1, once: `python tests/helpers/make_golden.py` refuses to replace what is there.

A tiny model with every precision, equalized layers and a formatbook of its own. Its digest covers decoded weights, which are
exact on every machine; its example output is compared within a tolerance, since libraries round their sums differently.
"""

import hashlib
import json
import sys
from pathlib import Path

import diffusers
import torch
from safetensors.torch import save_file
from torch import nn

from sedialect import Formatbook, SeDialectConfig, SeDialectLinear

GOLDEN = Path(__file__).parents[1] / "golden" / "v1"


def digest_of(model: nn.Module) -> str:
    """SHA-256 over all values, decoded, in float32."""
    digest = hashlib.sha256()
    for name, module in sorted(model.named_modules()):
        if isinstance(module, SeDialectLinear):
            digest.update(name.encode() + module.dequantize(torch.float32).numpy().tobytes())
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_floating_point():
            digest.update(name.encode() + tensor.float().numpy().tobytes())
    return digest.hexdigest()


def main() -> None:
    """Write the model, an example, and what is expected of it."""
    if GOLDEN.exists():
        sys.exit(f"{GOLDEN} is there, and stays as it is for ever")
    torch.manual_seed(0)
    model = diffusers.WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=32, in_channels=4, out_channels=4, text_dim=16, freq_dim=16, ffn_dim=64,
        num_layers=1, rope_max_seq_len=16,
    )  # fmt: skip
    for layer in (model.blocks[0].attn1.to_q, model.blocks[0].attn1.to_k, model.blocks[0].attn1.to_v):
        layer.weight.data[:, [3, 17]] /= torch.tensor([16.0, 40.0])  # as where the input has outlier channels
    model.save_pretrained(GOLDEN)
    data = Formatbook.builtin().to_dict() | {"name": "golden", "sub_formatbooks": [[0, 3], [1, 2]]}
    data["dialects"][0] = {"half_units": [0, 1, 2, 4, 6, 9, 12, 15], "published": False}
    book = Formatbook.from_dict(data).save(GOLDEN / "book.json")
    config = SeDialectConfig(
        formatbook=str(book), candidates="all", skip=("attn2.to_k",), layer_precisions=(("ffn", "w4a8"), ("to_out", "w4a16"))
    )
    quantized = diffusers.WanTransformer3DModel.from_pretrained(GOLDEN, quantization_config=config)
    book.unlink()
    quantized.register_to_config(_name_or_path="golden")
    quantized.save_pretrained(GOLDEN)
    quantized = diffusers.WanTransformer3DModel.from_pretrained(GOLDEN, dtype=torch.float32)
    example = {
        "hidden_states": torch.randn(1, 4, 2, 4, 4),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 3, 16),
    }
    with torch.no_grad():
        output = quantized(**example, return_dict=False)[0]
    save_file({**example, "output": output}, GOLDEN / "example.safetensors")
    layers = {name: module.precision for name, module in quantized.named_modules() if isinstance(module, SeDialectLinear)}
    equalized = [name for name, module in quantized.named_modules() if getattr(module, "weight_equalizer", None) is not None]
    expected = {"digest": digest_of(quantized), "precisions": layers, "equalized": equalized}
    (GOLDEN / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
