"""The README.md of a quantized model: what it is, how it is loaded, what was done to which layer."""

from collections.abc import Mapping
from typing import Any

from ..plan.layers import Plan
from ..storage import hub

COPIED = ("license", "license_name", "license_link", "pipeline_tag")


def model_card(
    plans: Mapping[str, Plan],
    *,
    base_model: str | None,
    pipeline: str | None,
    base_card: str | None,
    repository: str | None,
    quality_table: str | None = None,
) -> str:
    """The card as Markdown with its YAML head.

    Args:
        plans: by component; one component lies at the top of the repository, several in folders of their names.
        base_model: the original's name on the Hub; None where it has none.
        base_card: its README.md, of which the licence is copied.
        repository: what `from_pretrained` will be given; None leaves a placeholder.
        quality_table: Markdown that goes in as it is.
    """
    known = _head_of(base_card)
    plan = next(iter(plans.values()))
    precision = plan.config.precision
    kind = "image-to-video" if "ImageToVideo" in (pipeline or "") else "text-to-video"
    head: dict[str, Any] = {
        "library_name": "diffusers",
        "base_model": base_model,
        "base_model_relation": "quantized" if base_model else None,
        "tags": ["sedialect", precision, "4-bit", "quantized", "video"],
        **{"pipeline_tag": kind, **known},
    }
    parts = [
        _introduction(plans, base_model),
        _loading(plans, pipeline, base_model, repository or "PATH_OR_REPOSITORY"),
        *(_layers(name, each) for name, each in plans.items()),
        f"## Quality\n\n{quality_table.strip()}" if quality_table else "",
        "" if known.get("license") else "The licence is the original's; its card, as far as it was at hand, names none.",
    ]
    return hub.card("\n\n".join(part for part in parts if part) + "\n", **head)


def _head_of(card: str | None) -> dict[str, Any]:
    """The entries of a card's head that hold for the quantized model too."""
    from huggingface_hub import ModelCard

    if not card:
        return {}
    data = ModelCard(card, ignore_metadata_errors=True).data.to_dict()
    return {name: data[name] for name in COPIED if data.get(name)}


def _introduction(plans: Mapping[str, Plan], base_model: str | None) -> str:
    plan = next(iter(plans.values()))
    origin = f"[{base_model}](https://huggingface.co/{base_model})" if base_model else "a 16-bit model"
    config = plan.config
    lines = [f"# {plan.model} in {config.precision}", ""]
    lines.append(
        f"Made from {origin} by sedialect: 4-bit weights in blocks of {config.block_size}, each of which picks one of the"
    )
    lines.append(f"number formats in the formatbook `{config.formatbook}`, which is in the file.")
    lines += ["", "| component | quantized linears | bits a weight in them |", "|---|---|---|"]
    for name, each in plans.items():
        lines.append(f"| {name or each.model} | {len(each.quantized)} of {len(each.layers)} | {each.weight_bits:.3f} |")
    return "\n".join(lines)


def _loading(plans: Mapping[str, Plan], pipeline: str | None, base_model: str | None, repository: str) -> str:
    classes = sorted({plan.model for plan in plans.values()})
    names = [*classes, pipeline] if pipeline else classes
    lines = [
        "import torch",
        "import sedialect  # teaches diffusers the format",
        f"from diffusers import {', '.join(names)}",
        "",
    ]
    for name, plan in plans.items():
        folder = f', subfolder="{name}"' if len(plans) > 1 else ""
        variable = name or "model"
        lines.append(f'{variable} = {plan.model}.from_pretrained("{repository}"{folder}, dtype=torch.bfloat16)')
    if pipeline:
        given = ", ".join(f"{name}={name}" for name in plans)
        original = base_model or "PATH_OF_THE_ORIGINAL"
        lines.append(f'pipe = {pipeline}.from_pretrained("{original}", {given}, dtype=torch.bfloat16)')
    code = "\n".join(lines)
    return f"## Load\n\n```\npip install 'sedialect[diffusers]'\n```\n\n```python\n{code}\n```"


def _layers(name: str, plan: Plan) -> str:
    rows = "\n".join(
        f"| {count} | `{layer}` | {shape} | {precision} | {reason} |"
        for count, layer, shape, precision, reason in plan.groups()
    )
    title = f"## Layers of {name}" if name else "## Layers"
    return f"{title}\n\n| | name | shape | precision | why |\n|---|---|---|---|---|\n{rows}"
