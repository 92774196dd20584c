"""The part of a sequence that a process has: which tokens, and what is refused. What processes tell each other is tested by
test_context_parallel.py."""

import pytest
import torch
from tiny_models import TINY

from sedialect.sedialect_core.config import SeDialectConfig
from sedialect.sedialect_core.errors import ModelError
from sedialect.sedialect_core.integrations.models import quantize_model
from sedialect.sedialect_core.semantics import hook
from sedialect.sedialect_core.semantics.shard import Shard, as_arguments, from_arguments, packed, shard_of


@pytest.mark.parametrize(
    ("ranks", "total", "uneven"), [(1, 5, False), (2, 8, False), (3, 11, True), (4, 5, True), (8, 64, False)]
)
def test_parts_are_those_that_torch_splits_a_sequence_into(ranks, total, uneven):
    places = torch.arange(total)
    wanted = places.tensor_split(ranks) if uneven else places.chunk(ranks)
    for rank in range(ranks):
        shard = Shard("group", rank, ranks, uneven)
        assert torch.equal(shard.part(places.unsqueeze(0))[0], wanted[rank])
        assert shard.first(total) == wanted[rank][0] and shard.own(total) == len(wanted[rank])


def test_each_process_finds_its_own_among_the_chosen():
    chosen = torch.tensor([[0, 7, 3], [5, 6, 7]])
    parts = [Shard("group", rank, 2).mine(chosen, 8) for rank in range(2)]
    assert parts[0].tolist() == [[True, False, False, True], [False] * 4]
    assert parts[1].tolist() == [[False, False, False, True], [False, True, True, True]]


def test_marked_rows_come_first_and_the_rest_is_none():
    rows = torch.arange(8).view(2, 4) + 10
    marked = torch.tensor([[True, False, False, True], [False, False, True, False]])
    found = packed(marked, rows, 5)
    assert found.tolist() == [10, 13, 16, -1, -1] and found.dtype == torch.int32
    assert packed(torch.zeros_like(marked), rows, 2).tolist() == [-1, -1]
    assert packed(torch.ones_like(marked), rows, 8).tolist() == rows.flatten().tolist()


def test_parts_of_unlike_size_do_not_tell_the_whole():
    assert Shard("group", 0, 4).total(5) == 20
    with pytest.raises(ModelError, match="ulysses_anything and ring_anything split this model's sequence into parts"):
        Shard("group", 0, 4, uneven=True).total(5)


def test_operators_are_told_a_part_in_numbers():
    shard = Shard("group", 1, 4, True)
    assert from_arguments(*as_arguments(shard)) == shard
    assert from_arguments(*as_arguments(None)) is None
    assert shard_of(torch.nn.Linear(2, 2)) is None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("HeliosTransformer3DModel", "holds past frames, and split over processes it does not tell"),
        ("HunyuanVideoTransformer3DModel", "an attention with a mask cannot be looked at"),
    ],
)
def test_attention_that_cannot_be_looked_at_is_refused(monkeypatch, name, says):
    model, inputs = TINY[name]()
    quantize_model(model, SeDialectConfig(salient_by="attention"))
    monkeypatch.setattr(hook, "shard_of", lambda model: Shard("group", 0, 1))
    with torch.no_grad(), pytest.raises(ModelError, match=says):
        model(**inputs)
