"""Records, settings, indexes and books with anything in any place: 2,000 examples, each right or refused in a sentence.

They are the same in every run, so that a change is to blame when one fails. SEDIALECT_FUZZ=20000 takes as many others
of each.
"""

import copy
import json
import os
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sedialect import Formatbook, SeDialectConfig
from sedialect.sedialect_core.checkpoint.record import Record, record_digest
from sedialect.sedialect_core.checkpoint.source import Place, find_source
from sedialect.sedialect_core.errors import SeDialectError

OTHERS = os.environ.get("SEDIALECT_FUZZ")
EXAMPLES = int(OTHERS or 500)  # of each of the four
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**30), 2**63])
    | st.floats()
    | st.text(max_size=40)
    | st.sampled_from(["w4a4", "blocks.0", "../x", "someone/repo", "x" * 3000, "(.+)+!", "\0", "\n"])
)
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=12), inner, max_size=5),
    max_leaves=12,
)
BOOK = Formatbook.builtin()
RECORD = json.loads(
    Record("Model", 16, BOOK, {"a": "w4a4", "b": "w4a8"}, {"a": 64}, {"b": "inputs"})
    .sealed({"a.weight": torch.zeros(2, 8, dtype=torch.uint8)})
    .to_tensor()
    .numpy()
    .tobytes()
)
INDEX = {"metadata": {"total_size": 1}, "weight_map": {"a": "diffusion_pytorch_model-00001-of-00001.safetensors"}}
fuzz = settings(max_examples=EXAMPLES, derandomize=OTHERS is None, suppress_health_check=list(HealthCheck), database=None)


def paths(data: Any) -> list[tuple[Any, ...]]:
    """The place of every value; of long lists, the first three alone."""
    entries = list(data.items()) if isinstance(data, dict) else list(enumerate(data[:3])) if isinstance(data, list) else []
    return [(), *((key, *rest) for key, value in entries for rest in paths(value))]


@st.composite
def changed(draw: Any, data: Any) -> Any:
    """An object with some of its values replaced by anything, taken away, or joined by others."""
    data = copy.deepcopy(data)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(paths(data)))
        if not path:
            data = draw(ANYTHING) if draw(st.integers(0, 9)) == 0 else data
            continue
        at = data
        for step in path[:-1]:
            at = at[step]
        how = draw(st.integers(0, 5))
        if how == 0:
            del at[path[-1]]
        elif how == 1 and isinstance(at, dict):
            at[draw(st.text(max_size=12))] = draw(ANYTHING)
        else:
            at[path[-1]] = draw(ANYTHING)
    return data


def refused(call: Any, *arguments: Any) -> bool:
    """Whether it was refused in a sentence; anything raw goes through and fails the test."""
    try:
        call(*arguments)
    except SeDialectError as error:
        assert "\n" not in str(error) and len(str(error)) <= 300
        return True
    return False


@fuzz
@given(changed(RECORD), st.booleans())
def test_records(data, forged):
    if forged and isinstance(data, dict):
        data["digest"] = record_digest(data)
    tensor = torch.frombuffer(bytearray(json.dumps(data).encode()), dtype=torch.uint8)
    if not refused(Record.from_tensor, tensor, "here"):
        record = Record.from_tensor(tensor, "here")
        assert record.block_size in (16, 32) and record.precisions and record.rotations.keys() <= record.precisions.keys()
        assert Record.from_tensor(record.to_tensor(), "here") == record


@fuzz
@given(changed(SeDialectConfig(skip=("a",), layer_precisions=(("b", "w4a8"),), refresh_at=(0.5,)).to_dict()))
def test_settings(data):
    if not refused(SeDialectConfig.from_dict, data):
        config = SeDialectConfig.from_dict(data)
        assert SeDialectConfig.from_dict(json.loads(config.to_json_string())) == config


@fuzz
@given(changed(BOOK.to_dict()))
def test_formatbooks(data):
    if not refused(Formatbook.from_dict, data):
        book = Formatbook.from_dict(data)
        assert Formatbook.from_dict(json.loads(json.dumps(book.to_dict()))) == book
        assert book.half_units.shape == (8 * book.shapes, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    (place / "config.json").write_text("{}")
    return place


@fuzz
@given(changed(INDEX))
def test_indexes(folder, data):
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(data), encoding="utf-8")
    assert Place(str(folder)).folder == folder
    assert refused(find_source, str(folder)), "the files that it lists are not there"
