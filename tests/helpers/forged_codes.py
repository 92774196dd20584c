"""Forged codes on a device: `compute-sanitizer --tool memcheck python tests/helpers/forged_codes.py --device cuda`.

First, folders whose ids or row scales are out of range, with digests made to fit, must be refused before a kernel sees
them. Then what passes the checks of loading is computed with: random codes, all ids of the book, all offsets, extreme
scales, in each precision and with few and many rows. The sanitizer says whether a kernel reads or writes where it must not.
`--unchecked` also runs ids beyond the book's without the checks, which shows what they are for; it may well be reported.
"""

import argparse
import tempfile
from pathlib import Path

import diffusers
import torch
from damaged import change_tensors
from tiny_models import TINY

from sedialect import Formatbook, SeDialectConfig, SeDialectLinear
from sedialect.sedialect_core.errors import InputError
from sedialect.sedialect_core.settings.table import BLOCK_SIZES, PRECISIONS

ROWS = (1, 7, 300)
IN_FEATURES, OUT_FEATURES = 512, 384
LAYER = "blocks.0.attn1.to_q"
SCALES = (1.1754944e-38, 1.0, 3.0e38)


def refuses_forged_files(device: str) -> int:
    """Load each forged folder onto the device; returns how many were refused.

    Raises:
        AssertionError: one was not.
    """
    refused = 0
    with tempfile.TemporaryDirectory() as scratch:
        plain, folder = Path(scratch) / "plain", Path(scratch) / "forged"
        TINY["WanTransformer3DModel"]()[0].save_pretrained(plain)
        config = SeDialectConfig(formatbook="dialectfp4-16")
        for key, column, value in (
            ("weight_meta", 0, 16),
            ("weight_meta", -1, 31),
            ("weight_scale", 3, 255),
            ("weight_scale", 3, 127),
        ):

            def forge(state: dict[str, torch.Tensor], key: str = key, column: int = column, value: int = value) -> None:
                state[f"{LAYER}.{key}"][..., column] = value
                if key == "weight_scale":
                    state[f"{LAYER}.{key}"][..., 2] = 255

            quantized = diffusers.WanTransformer3DModel.from_pretrained(plain, quantization_config=config)
            quantized.save_pretrained(folder)
            change_tensors(folder, forge, seal=True)
            try:
                diffusers.WanTransformer3DModel.from_pretrained(folder, device_map={"": device})
            except InputError as error:
                print(f"refused: {str(error).partition(': ')[2]}")
                refused += 1
            else:
                raise AssertionError(f"a forged {key} was loaded")
    return refused


def layers_of_every_byte(device: str, ids: int | None = None) -> int:
    """Run layers of random codes in all their settings; returns how many forwards were made.

    Args:
        ids: how many dialect ids there are in the codes; as many as the book has where None.
    """
    forwards = 0
    for name in ("dialectfp4-16", "universal-32"):
        book = Formatbook.builtin(name)
        for size in BLOCK_SIZES:
            for precision in PRECISIONS:
                for scale in SCALES:
                    layer = _layer(book, size, precision, scale, device, ids)
                    for rows in ROWS:
                        layer(torch.randn(rows, IN_FEATURES, device=device, dtype=torch.bfloat16))
                        forwards += 1
                    layer.dequantize()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return forwards


def _layer(book: Formatbook, size: int, precision: str, scale: float, device: str, ids: int | None) -> SeDialectLinear:
    layer = SeDialectLinear(
        IN_FEATURES, OUT_FEATURES, False, precision=precision, block_size=size, formatbook=book, compute_dtype=torch.bfloat16
    )
    blocks = OUT_FEATURES * (IN_FEATURES // size)
    found = torch.arange(blocks) % (ids or len(book.dialects)) | (torch.arange(blocks) // 37 % 8) << 5
    layer.weight.data = torch.randint(0, 256, layer.weight.shape, dtype=torch.uint8)
    layer.weight_meta.data = found.to(torch.uint8).view(layer.weight_meta.shape)
    layer.weight_scale.data = torch.full((OUT_FEATURES, 1), scale).view(torch.uint8)
    return layer.to(device)


@torch.no_grad()
def main() -> None:
    """Run all of it, and say how much it was."""
    parser = argparse.ArgumentParser(description="forged codes on a device")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--unchecked", action="store_true", help="also run ids that loading would refuse")
    parsed = parser.parse_args()
    torch.manual_seed(0)
    print(f"{refuses_forged_files(parsed.device)} forged folders were refused")
    print(f"{layers_of_every_byte(parsed.device)} forwards of what loading accepts")
    if parsed.unchecked:
        print(f"{layers_of_every_byte(parsed.device, 32)} forwards with ids beyond the book's")


if __name__ == "__main__":
    main()
