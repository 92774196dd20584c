"""vLLM's own linear layers with our method, alone or over two processes; and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from vllm_on_cpu import Settings, groups, inputs, loaded, saved_wan

from sedialect import SeDialectError, SeDialectLinear
from sedialect.sedialect_core.engines.joined import AXES, join
from sedialect.sedialect_core.plan.layers import LayerPlan

COLUMNS, HEADS, SIZE = 128, 4, 16  # inputs; heads of an attention and their channels
ROTATION = 32
PRECISIONS = ("w4a4", "w4a8", "w4a16")


def saved_layers(precision: str, rows: tuple[int, ...]) -> list[SeDialectLinear]:
    """Layers of one input, rotated and equalized alike."""
    torch.manual_seed(11)
    exponents = torch.randint(-3, 4, (COLUMNS,), dtype=torch.int8)
    layers = []
    for count in rows:
        settings: dict[str, Any] = {"precision": precision, "rotation": ROTATION, "compute_dtype": torch.float32}
        layer = SeDialectLinear(COLUMNS, count, bias=False, equalized=True, **settings)
        assert layer.weight_equalizer is not None
        layer.weight_equalizer.copy_(exponents)
        layer.store(layer.encode_weight(torch.randn(count, COLUMNS) * torch.linspace(0.1, 2, COLUMNS)))
        layers.append(layer)
    return layers


def entries(layers: list[SeDialectLinear]) -> list[LayerPlan]:
    """What a plan says of them."""
    made = []
    for number, layer in enumerate(layers):
        sizes = (layer.in_features, layer.out_features, layer.precision, layer.block_size, "")
        made.append(LayerPlan(f"layer{number}", "attention", *sizes, rotation=layer.rotation, equalized="weights"))
    return made


def kinds(rank: int, ranks: int, config: Any) -> dict[str, tuple[nn.Module, list[Any], list[range], range]]:
    """vLLM's layers: each with the ids of its saved layers, their rows that belong here, and its columns."""
    from vllm.model_executor.layers import linear

    whole, part = range(COLUMNS), range(rank * COLUMNS // ranks, (rank + 1) * COLUMNS // ranks)

    def rows(count: int, of: int = ranks, number: int = rank) -> range:
        return range(number * count // of, (number + 1) * count // of)

    common = {"bias": False, "quant_config": config, "return_bias": False}
    width, one = HEADS * SIZE, SIZE
    attention = {"hidden_size": COLUMNS, "head_size": SIZE, "total_num_heads": HEADS}
    return {
        "replicated": (linear.ReplicatedLinear(COLUMNS, 48, **common), [None], [range(48)], whole),
        "column": (linear.ColumnParallelLinear(COLUMNS, 48, **common), [None], [rows(48)], whole),
        "row": (linear.RowParallelLinear(COLUMNS, 48, **common), [None], [range(48)], part),
        "merged": (linear.MergedColumnParallelLinear(COLUMNS, [48, 32], **common), [0, 1], [rows(48), rows(32)], whole),
        "qkv": (linear.QKVParallelLinear(**attention, **common), ["q", "k", "v"], [rows(width)] * 3, whole),
        "one key head": (
            linear.QKVParallelLinear(**attention, total_num_kv_heads=1, **common),
            ["q", "k", "v"],
            [rows(width), range(one), range(one)],
            whole,
        ),
    }


def totals(kind: str) -> tuple[int, ...]:
    """Rows of the saved layers of a kind."""
    many = {"merged": (48, 32), "qkv": (64, 64, 64), "one key head": (64, 16, 16)}
    return many.get(kind, (48,))


def linears(rank: int, ranks: int, argument: str, folder: Path) -> dict[str, tuple[torch.Tensor, ...]]:
    """By kind and precision: the weight as decoded here and as it should be, and the output and what it should be."""
    found = {}
    with groups(rank, ranks, folder, tensor_parallel_size=ranks), torch.no_grad():
        from vllm.model_executor.layers.quantization import get_quantization_config

        config = get_quantization_config("sedialect")()
        x = torch.randn(2, 9, COLUMNS, generator=torch.Generator().manual_seed(2))
        for precision in PRECISIONS:
            for kind, (layer, ids, rows, columns) in kinds(rank, ranks, config).items():
                saved = saved_layers(precision, totals(kind))
                ours = layer.quant_method.settle(layer, join(entries(saved)), saved[0].formatbook, "max")
                load(layer, saved, ids)
                layer.quant_method.process_weights_after_loading(layer)
                here = [
                    one.dequantize(torch.float32)[list(part)][:, list(columns)]
                    for one, part in zip(saved, rows, strict=True)
                ]
                outputs = [one(x)[..., list(part)] for one, part in zip(saved, rows, strict=True)]
                read = x[..., list(columns)].contiguous()
                found[f"{kind} {precision}"] = (
                    ours.dequantize(torch.float32),
                    torch.cat(here),
                    layer(read),
                    torch.cat(outputs, dim=-1),
                )
    return found


def load(layer: nn.Module, saved: list[SeDialectLinear], ids: list[Any]) -> None:
    """As models of vLLM's load: each stored tensor by its parameter's loader, with the id of its part."""
    for one, part in zip(saved, ids, strict=True):
        for name in AXES:
            parameter = getattr(layer, name)
            parameter.weight_loader(parameter, getattr(one, name).detach(), *([] if part is None else [part]))


def compiled(rank: int, ranks: int, argument: str, folder: Path) -> dict[str, torch.Tensor]:
    """A feed-forward of vLLM-Omni's Wan, with second terms: eager, and as one graph."""
    with groups(rank, ranks, folder) as config:
        saved_wan(Settings(), folder)
        with loaded(folder, config) as served:
            x = torch.randn(1, 64, served.blocks[0].ffn.net_0.proj.input_size)
            graph = torch.compile(served.blocks[0].ffn, fullgraph=True, backend="aot_eager")
            return {"eager": served.blocks[0].ffn(x), "compiled": graph(x), "again": graph(x)}


def said(task: Callable[[], Any]) -> str:
    """What a refusal says; that there was none, where there was none."""
    try:
        task()
    except SeDialectError as error:
        return str(error)
    return "nothing was refused"


def refused(rank: int, ranks: int, argument: str, folder: Path) -> dict[str, str]:
    """What is said of folders and options that cannot be served, by what they are."""
    with groups(rank, ranks, folder) as config:
        from vllm.model_executor.layers.quantization import get_quantization_config

        def serve(
            settings: Settings | None, quantization: Any = None, change: Any = None, **parallel: Any
        ) -> Callable[[], Any]:
            place = Path(folder / str(len(list(folder.iterdir()))))
            saved_wan(settings, place)
            if change is not None:
                change(place / "transformer")
            return lambda: loaded(place, config, quantization, **parallel).__enter__()

        option = {"method": "sedialect"}
        return {
            "groups": said(serve(Settings(semantic=True))),
            "part of a joined layer": said(serve(Settings(skip=(r"attn1\.to_v",)))),
            "16 bit": said(serve(None, dict(option))),
            "other weights": said(serve(Settings(), option | {"block_size": 32})),
            "an option that is none": said(serve(Settings(), option | {"salient_ration": 0.5})),
            "damaged codes": said(serve(Settings(), None, damage)),
            "without config": said(serve(Settings(), dict(option), lambda place: (place / "config.json").unlink())),
            "another model": said(serve(Settings(), None, widen)),
            "sharded": said(serve(Settings(), None, None, use_hsdp=True, hsdp_shard_size=1)),
            "unseen weights": said(unseen),
            "vLLM alone": said(lambda: get_quantization_config("sedialect").from_config({})),
        }


def unseen() -> None:
    """A layer whose weights come past vLLM-Omni's loader."""
    from vllm.model_executor.layers.linear import ReplicatedLinear
    from vllm.model_executor.layers.quantization import get_quantization_config

    layer = ReplicatedLinear(COLUMNS, 48, bias=False, quant_config=get_quantization_config("sedialect")(), prefix="one")
    saved = saved_layers("w4a4", (48,))
    layer.quant_method.settle(layer, join(entries(saved)), saved[0].formatbook, "max")
    load(layer, saved, [None])
    layer(torch.zeros(2, COLUMNS))


def damage(place: Path) -> None:
    """Another code in the last quantized weight of a folder."""
    (path,) = place.glob("*.safetensors")
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    begin, _ = header["blocks.1.ffn.net.2.weight"]["data_offsets"]
    content[start + begin] ^= 1
    path.write_bytes(content)


def widen(place: Path) -> None:
    """Say of a folder's model that it is another one."""
    path = place / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"ffn_dim": config["ffn_dim"] * 2}))


def chosen(rank: int, ranks: int, argument: str, folder: Path) -> dict[str, Any]:
    """What vLLM-Omni finds of a folder by itself, and what other live settings do."""
    with groups(rank, ranks, folder) as config:
        from vllm_omni.diffusion.data import OmniDiffusionConfig, TransformerConfig
        from vllm_omni.quantization import build_quant_config

        saved_wan(Settings(), folder / "default")
        plain = saved_wan(Settings(salient_ratio=0.0), folder / "plain")
        found = TransformerConfig.from_dict(json.loads((folder / "default" / "transformer" / "config.json").read_text()))
        omni = OmniDiffusionConfig(model=str(folder / "default"), tf_model_config=found)
        with loaded(folder / "default", config, {"method": "sedialect", "salient_ratio": 0.0}) as served:
            names = {name for name, _ in served.named_parameters()}
            return {
                "by name": build_quant_config("sedialect").get_name(),
                "found": found.quant_method,
                "of the pipeline": omni.quantization_config.get_name(),
                "equal": torch.equal(served(**inputs(), return_dict=False)[0], plain(**inputs(), return_dict=False)[0]),
                "record left": "sedialect_record" in names,
                "bytes": sum(p.numel() for name, p in served.named_parameters() if name.endswith("attn1.to_qkv.weight")),
            }
