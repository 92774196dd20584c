"""Which layers read equal inputs by equal settings, and so may share one encoding."""

from collections.abc import Hashable, Iterable, Iterator

from ..linear import SeDialectLinear
from ..plan.layers import LayerPlan


def readers(layers: Iterable[tuple[LayerPlan, SeDialectLinear]]) -> Iterator[tuple[Hashable, SeDialectLinear]]:
    """The layers that encode their input, with what those that read equal inputs in the same way have in common: what
    `share_inputs` takes."""
    for entry, layer in layers:
        equalizer = layer.weight_equalizer
        if layer.precision == "w4a16" and not layer.rotation and equalizer is None:
            continue
        shared = entry.shared_input is not None
        settings: tuple[Hashable, ...] = (layer.precision, layer.block_size, layer.rotation, layer.products)
        if equalizer is not None:
            shared = shared and equalizer.device.type != "meta"  # a disk's: nobody can say that they are equal
            settings += (tuple(equalizer.tolist()),) if shared else ()
        yield (entry.shared_input, *settings) if shared else None, layer
