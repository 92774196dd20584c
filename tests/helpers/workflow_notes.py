"""The words of the example workflows' notes. Sizes are those of the files on the Hub, in 10^9 bytes."""

FILES = {
    "wan2.1_t2v_1.3B_fp16.safetensors": ("diffusion_models", 2.84),
    "wan2.2_t2v_high_noise_14B_fp16.safetensors": ("diffusion_models", 28.6),
    "wan2.2_t2v_low_noise_14B_fp16.safetensors": ("diffusion_models", 28.6),
    "wan2.2_i2v_high_noise_14B_fp16.safetensors": ("diffusion_models", 28.6),
    "wan2.2_i2v_low_noise_14B_fp16.safetensors": ("diffusion_models", 28.6),
    "wan2.2_ti2v_5B_fp16.safetensors": ("diffusion_models", 10.0),
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors": ("text_encoders", 6.7),
    "wan_2.1_vae.safetensors": ("vae", 0.25),
    "wan2.2_vae.safetensors": ("vae", 1.4),
}
HUB = "https://huggingface.co/Comfy-Org/{}/resolve/main/split_files/{}/{}"
TIME = (
    "**First run:** reads the 16-bit file and encodes it layer by layer, with a bar on the node. Encoding 14 "
    "billion weights took 1.2 s on an H100 (outside ComfyUI); on a CPU it takes minutes. Later runs use the "
    "encoded weights again, with other LoRAs too."
)
AUTO = (
    "With preset *auto* the node takes the best for your GPU, and says which. LoRA loaders may stand before or "
    "behind SeDialect Quantize; TorchCompileModel and bypass LoRAs behind it."
)
EXPERTS = (
    "**GPU memory:** 8.4 GB for one expert in place of 28.6; the other waits in main memory. **Main memory:** "
    "quantizing reads both 16-bit files, 57 GB. Quantize once, save with *SeDialect Save*, and load from then on,"
    " as in the template *{}*."
)
CALIBRATING = (
    "*Calibrate* samples a video for each prompt in 16 bit, and *Quantize* rounds weights for the smallest error "
    "on what was read there. **First run:** as long as those videos take; with *glance* on, one video of 4 steps."
    " The statistics are kept, and later runs begin at Quantize. **GPU memory:** the 16-bit model, 2.8 GB, while "
    "calibrating; about 1 GB from then on.",
    "*Save* writes `output/diffusion_models/{file}` (0.8 GB), and *Load* reads what was written. From then on use"
    " the template *{template}*: no 16-bit file is needed.",
)
LOADING = (
    "**First run the template *{template}*** once, which writes the file that is chosen here. Or choose in *file*"
    " another one that SeDialect Save wrote, or *(from the Hub repository below)* and write its repository, "
    "owner/name: it is downloaded once.",
    "No 16-bit weights are needed, on disk or in memory. **GPU memory:** about 1 GB for the model; a 14B model is"
    " a file of 8.4 GB. **First run:** as long as reading the file.",
)


def url(file: str) -> str:
    """Where ComfyUI's own templates fetch a file from."""
    ours = "Wan_2.2_ComfyUI_Repackaged" if "2.2" in file else "Wan_2.1_ComfyUI_repackaged"
    return HUB.format(ours, FILES[file][0], file)


def listed(*files: str) -> str:
    """A table of files with folders and sizes."""
    rows = [f"| [{file}]({url(file)}) | {FILES[file][0]} | {FILES[file][1]:g} GB |" for file in files]
    return "\n".join(["| file | folder in models | size |", "|---|---|---|", *rows])


def note(title: str, *parts: str) -> str:
    """A note: a heading and paragraphs."""
    return "\n\n".join([f"## {title}", *parts])
