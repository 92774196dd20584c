"""Writes the example workflows, which ComfyUI's template browser shows under their file names.

The values of our own nodes come from their schemas, so that a new setting reaches the workflows too.
`make_thumbnails.py` makes the pictures beside them.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from make_settings import schemas
from workflow_layout import Node, workflow
from workflow_notes import AUTO, CALIBRATING, EXPERTS, LOADING, TIME, listed, note

FOLDER = Path(__file__).parents[2] / "example_workflows"
FOX = "A red fox runs through fresh snow at the edge of a pine forest, soft morning light, the camera follows it"
AGAINST = "blurry, static, low quality, watermark, text"
BIKE = "A cyclist rides along a coast road at sunset, waves below, hair and jacket in the wind, a wide shot from a drone"
UMT5, VAE, VAE22 = "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "wan_2.1_vae.safetensors", "wan2.2_vae.safetensors"
SMALL = "wan2.1_t2v_1.3B_fp16.safetensors"
SAVED = "wan2.1_t2v_1.3B_sedialect"
FROM_HUB = "(from the Hub repository below)"

CALIBRATE_LOAD, LOAD = "Quantize with calibration, save and load", "Load a quantized model"
Columns = list[tuple[int, list[Node]]]


def said_of(title: str, *parts: str, height: int) -> Node:
    """A note."""
    return Node("MarkdownNote", [note(title, *parts)], title="Read me", height=height)


def loader(file: str, title: str = "") -> Node:
    """A 16-bit model."""
    return Node("UNETLoader", [file, "default"], title=title)


def prompts(clip: Node, positive: str = FOX) -> tuple[Node, Node]:
    """What is wanted, and what is not."""
    return (
        Node("CLIPTextEncode", [positive], {"clip": clip}, "Prompt"),
        Node("CLIPTextEncode", [AGAINST], {"clip": clip}, "Negative prompt"),
    )


def quantized(model: Node, title: str = "", **settings: Any) -> Node:
    """Its model, quantized."""
    return Node("SeDialectQuantize", list(settings.items()), {"model": model}, title)


def shifted(model: Node, shift: float = 8.0, title: str = "") -> Node:
    """Its model, with Wan's shift."""
    return Node("ModelSamplingSD3", [shift], {"model": model}, title)


def sampler(model: Node, positive: Any, negative: Any, latent: Any, steps: int, cfg: float, name: str) -> Node:
    """One sampler for all steps."""
    inputs = {"model": model, "positive": positive, "negative": negative, "latent_image": latent}
    return Node("KSampler", [42, "fixed", steps, cfg, name, "simple", 1.0], inputs)


def video(samples: Node, vae: Node, fps: float, prefix: str) -> list[Node]:
    """From latents to a file."""
    frames = Node("VAEDecode", [], {"samples": samples, "vae": vae})
    made = Node("CreateVideo", [fps, 8], {"images": frames})
    return [frames, made, Node("SaveVideo", [prefix, "auto", "auto"], {"video": made})]


def text_to_video() -> Columns:
    """Wan 2.1 1.3B."""
    model, clip, vae = loader(SMALL), Node("CLIPLoader", [UMT5, "wan", "default"]), Node("VAELoader", [VAE])
    said = said_of(
        "Wan 2.1 text to video, quantized on the fly",
        listed(SMALL, UMT5, VAE),
        AUTO,
        TIME,
        "**GPU memory:** about 1 GB for the model in place of 2.8; Wan 2.1 14B: 8.4 in place of 28.6.",
        "Any other 16-bit video model can be chosen in the loader.",
        height=400,
    )
    four, (wanted, unwanted) = quantized(model), prompts(clip)
    sampling, latent = shifted(four), Node("EmptyHunyuanLatentVideo", [832, 480, 33, 1])
    run = sampler(sampling, wanted, unwanted, latent, 30, 6.0, "uni_pc")
    return [
        (380, [said, model, clip, vae]),
        (340, [four, sampling, latent]),
        (340, [wanted, unwanted, run]),
        (400, video(run, vae, 16.0, "sedialect/wan2.1")),
    ]


def side_by_side() -> Columns:
    """16 and 4 bit from one noise."""
    model, clip, vae = loader(SMALL), Node("CLIPLoader", [UMT5, "wan", "default"]), Node("VAELoader", [VAE])
    said = said_of(
        "16 bit and 4 bit from the same noise",
        listed(SMALL, UMT5, VAE),
        "Both samplers take one noise: whatever differs is due to quantization. The player moves both videos in step; drag "
        "its divider.",
        "**GPU memory:** one model runs after the other; together 3.7 GB of weights.",
        TIME,
        height=400,
    )
    four, (wanted, unwanted) = quantized(model), prompts(clip)
    plain, small = shifted(model, title="16 bit"), shifted(four, title="4 bit")
    latent = Node("EmptyHunyuanLatentVideo", [832, 480, 33, 1])
    noise = Node("RandomNoise", [42, "fixed"], title="One noise for both")
    method, steps = Node("KSamplerSelect", ["uni_pc"]), Node("BasicScheduler", ["simple", 30, 1.0], {"model": plain})
    shared = {"noise": noise, "sampler": method, "sigmas": steps, "latent_image": latent}
    guided, frames = [], []
    for title, one in (("16 bit", plain), ("4 bit", small)):
        guider = Node("CFGGuider", [6.0], {"model": one, "positive": wanted, "negative": unwanted}, title)
        run = Node("SamplerCustomAdvanced", [], {"guider": guider, **shared}, title)
        guided += [guider, run]
        frames.append(Node("VAEDecode", [], {"samples": run, "vae": vae}, title))
    compare = Node("SeDialectCompare", [], dict(zip(("left", "right"), frames, strict=True)))
    report = Node("SeDialectReport", [], {"model": four, "samples": guided[3]})
    return [
        (380, [said, model, clip, vae]),
        (330, [four, wanted, unwanted, latent]),
        (260, [plain, small, noise, method, steps]),
        (260, [*guided, *frames]),
        (600, [compare, report]),
    ]


def pair(said: Node, files: tuple[str, str], conditions: tuple[Any, Any, Any], beside: list[Node], vae: Node) -> Columns:
    """Wan 2.2: an expert for the noisy steps, another for the rest.

    Args:
        conditions: positive, negative and latent.
        beside: what stands in the column before the samplers.
    """
    high, low = (loader(file, title) for file, title in zip(files, ("High noise", "Low noise"), strict=True))
    four = [quantized(one, title) for one, title in ((high, "Quantize, high noise"), (low, "Quantize, low noise"))]
    shifts = [shifted(one) for one in four]
    positive, negative, latent = conditions
    settings, runs = [42, "fixed", 20, 3.5, "euler", "simple"], []
    for title, model, steps in (("High noise", shifts[0], [0, 10]), ("Low noise", shifts[1], [10, 10000])):
        adds = ["enable", "enable"] if not runs else ["disable", "disable"]
        inputs = {"model": model, "positive": positive, "negative": negative, "latent_image": runs[0] if runs else latent}
        runs.append(Node("KSamplerAdvanced", [adds[0], *settings, *steps, adds[1]], inputs, title))
    name = "sedialect/" + files[0].partition("_high")[0]
    return [
        (400, [said, high, low]),
        (340, [four[0], shifts[0], four[1], shifts[1]]),
        (340, beside),
        (300, runs),
        (400, video(runs[1], vae, 16.0, name)),
    ]


def two_experts() -> Columns:
    """Wan 2.2 14B, text to video."""
    files = ("wan2.2_t2v_high_noise_14B_fp16.safetensors", "wan2.2_t2v_low_noise_14B_fp16.safetensors")
    title = "Wan 2.2 14B text to video, both experts quantized"
    said = said_of(title, listed(*files, UMT5, VAE), EXPERTS.format(CALIBRATE_LOAD), TIME, height=470)
    clip, vae = Node("CLIPLoader", [UMT5, "wan", "default"]), Node("VAELoader", [VAE])
    wanted, unwanted = prompts(clip)
    latent = Node("EmptyHunyuanLatentVideo", [832, 480, 81, 1])
    return pair(said, files, (wanted, unwanted, latent), [clip, wanted, unwanted, vae, latent], vae)


def from_image() -> Columns:
    """Wan 2.2 14B, image to video."""
    files = ("wan2.2_i2v_high_noise_14B_fp16.safetensors", "wan2.2_i2v_low_noise_14B_fp16.safetensors")
    title = "Wan 2.2 14B image to video, both experts quantized"
    said = said_of(title, listed(*files, UMT5, VAE), EXPERTS.format(CALIBRATE_LOAD), TIME, height=470)
    clip, vae = Node("CLIPLoader", [UMT5, "wan", "default"]), Node("VAELoader", [VAE])
    wanted, unwanted = prompts(clip, BIKE)
    image = Node("LoadImage", ["example.png", "image"], title="Start image")
    read = {"positive": wanted, "negative": unwanted, "vae": vae, "start_image": image}
    start = Node("WanImageToVideo", [832, 480, 81, 1], read)
    columns = pair(said, files, (start, (start, 1), (start, 2)), [wanted, unwanted, image, start], vae)
    columns[0][1].extend((clip, vae))
    return columns


def five_billion() -> Columns:
    """Wan 2.2 5B."""
    model = loader("wan2.2_ti2v_5B_fp16.safetensors")
    clip, vae = Node("CLIPLoader", [UMT5, "wan", "default"]), Node("VAELoader", [VAE22])
    said = said_of(
        "Wan 2.2 5B, text or image to video",
        listed("wan2.2_ti2v_5B_fp16.safetensors", UMT5, VAE22),
        "For image to video connect *Load Image* to *start_image* of Wan22ImageToVideoLatent.",
        AUTO,
        TIME,
        "**GPU memory:** about 3 GB for the model in place of 10.",
        height=420,
    )
    four, (wanted, unwanted) = quantized(model), prompts(clip)
    sampling, latent = shifted(four), Node("Wan22ImageToVideoLatent", [1280, 704, 121, 1], {"vae": vae})
    run = sampler(sampling, wanted, unwanted, latent, 20, 5.0, "uni_pc")
    return [
        (380, [said, model, clip, vae]),
        (340, [four, sampling, latent]),
        (340, [wanted, unwanted, run]),
        (400, video(run, vae, 24.0, "sedialect/wan2.2_5B")),
    ]


def calibrated() -> Columns:
    """From a 16-bit file to a quantized one, and back."""
    model, clip, vae = loader(SMALL), Node("CLIPLoader", [UMT5, "wan", "default"]), Node("VAELoader", [VAE])
    said = said_of(
        "Calibrate, quantize, save, load",
        listed(SMALL, UMT5, VAE),
        *(part.format(file=f"{SAVED}_00001_.safetensors", template=LOAD) for part in CALIBRATING),
        height=520,
    )
    (wanted, unwanted), other = prompts(clip), Node("CLIPTextEncode", [BIKE], {"clip": clip}, "Another prompt")
    both = Node("ConditioningCombine", [], {"conditioning_1": wanted, "conditioning_2": other})
    small = Node("EmptyHunyuanLatentVideo", [480, 272, 33, 1], title="Size for calibration")
    latent = Node("EmptyHunyuanLatentVideo", [832, 480, 33, 1])
    read = {"model": model, "positive": both, "negative": unwanted, "latent_image": small}
    seen = Node("SeDialectCalibrate", [("cfg", 6.0)], read)
    four = Node("SeDialectQuantize", [], {"model": model, "calibration": seen})
    saved = Node("SeDialectSave", [("filename_prefix", f"diffusion_models/{SAVED}")], {"model": four})
    loaded = Node("SeDialectLoad", [("file", FROM_HUB)], {"path": saved}, "SeDialect Load, what was saved")
    sampling = shifted(loaded)
    run = sampler(sampling, wanted, unwanted, latent, 30, 6.0, "uni_pc")
    return [
        (400, [said, model, clip, vae]),
        (330, [wanted, other, unwanted, both, small]),
        (330, [seen, four]),
        (340, [saved, loaded, sampling, latent]),
        (400, [run, *video(run, vae, 16.0, "sedialect/calibrated")]),
    ]


def load() -> Columns:
    """What was saved."""
    clip, vae = Node("CLIPLoader", [UMT5, "wan", "default"]), Node("VAELoader", [VAE])
    told = (part.format(template=CALIBRATE_LOAD) for part in LOADING)
    said = said_of("Load a quantized model", *told, listed(UMT5, VAE), height=420)
    loaded = Node("SeDialectLoad", [("file", f"{SAVED}_00001_.safetensors")])
    wanted, unwanted = prompts(clip)
    sampling, latent = shifted(loaded), Node("EmptyHunyuanLatentVideo", [832, 480, 33, 1])
    run = sampler(sampling, wanted, unwanted, latent, 30, 6.0, "uni_pc")
    return [
        (380, [said, loaded]),
        (340, [clip, vae, wanted, unwanted]),
        (340, [sampling, latent, run]),
        (400, video(run, vae, 16.0, "sedialect/loaded")),
    ]


EXAMPLES = {
    "Wan 2.1 text to video in 4 bit": text_to_video,
    "Wan 2.1 16 bit and 4 bit side by side": side_by_side,
    "Wan 2.2 14B text to video in 4 bit": two_experts,
    "Wan 2.2 14B image to video in 4 bit": from_image,
    "Wan 2.2 5B in 4 bit": five_billion,
    CALIBRATE_LOAD: calibrated,
    LOAD: load,
}


def examples() -> dict[str, str]:
    """The files by their names without the ending."""
    known = {schema.node_id: schema for schema in schemas()}
    return {
        name: json.dumps(workflow(name, make(), known), indent=1, ensure_ascii=False) + "\n"
        for name, make in EXAMPLES.items()
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into example_workflows/")
    arguments = parser.parse_args()
    for title, made in examples().items():
        print(f"{len(made):7,} characters  {title}")
        if arguments.write:
            (FOLDER / f"{title}.json").write_text(made, encoding="utf-8")
