"""The arithmetic of the study of sharing, and what reports say about tokens."""

import itertools

import pytest
import tiny_models
import torch

from sedialect import Formatbook, SeDialectConfig, quantize_model
from sedialect.bench.studies.shared_formats import COSINES, STRENGTHS, Study, render, shared_values
from sedialect.kernels import reference
from sedialect.sedialect_core.plan.report import report_of

BOOK = Formatbook.builtin()


def pairs(noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(12, 64, generator=generator)
    return a, a + noise * torch.randn(12, 64, generator=generator)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_equal_tokens_get_equal_values_and_unequal_ones_their_own(strength):
    a, b = pairs(0.0)
    p, q = shared_values(a, b, strength, BOOK)
    assert torch.equal(p, q) and (p - a).norm() < 0.12 * a.norm()
    a, b = pairs(0.5)
    p, q = shared_values(a, 100 * b, strength, BOOK)
    assert (p - a).norm() < 0.2 * a.norm() or strength == "dialect and exponent"
    assert (q - 100 * b).norm() < 0.2 * (100 * b).norm()


def test_a_shared_dialect_is_the_best_of_all_for_both():
    a, b = pairs(0.3)
    p, q = shared_values(a, b, "dialect", BOOK)
    tables = BOOK.tables()
    values = tables.half_units.gather(1, tables.indices.long()).float()
    for row, block in itertools.product(range(12), range(4)):
        part = slice(16 * block, 16 * block + 16)
        options = []
        for dialect in range(32):
            total, decoded = 0.0, []
            for x in (a, b):
                scale = reference.activation_scale(x)[row]
                delta = 3 - torch.floor(torch.log2(x[row, part].abs().max() / scale))
                unit = scale * 2**-delta
                bins = (2 * x[row, part].abs() / unit).long().clamp(max=31)
                total += float(tables.errors[dialect, bins].sum() * unit**2)
                decoded.append(torch.copysign(values[dialect, bins] * unit, x[row, part]))
            options.append((total, dialect, decoded))
        *_, (first, second) = min(options, key=lambda option: option[:2])
        assert torch.equal(p[row, part], first) and torch.equal(q[row, part], second)


def test_pairs_fall_into_the_bin_of_their_cosine():
    found = Study()
    a, b = pairs(0.0)
    found.add("right", 0, a, b, BOOK)
    found.add("right", 0, a, -b, BOOK)
    assert [tally.pairs for tally in found.bins] == [12, *[0] * (len(COSINES) - 2), 12]
    assert found.bins[-1].between == [0.0] * len(STRENGTHS) and found.bins[-1].difference == 0
    assert found.bins[0].difference == pytest.approx(2 * found.bins[0].energy)
    text = render(found, 1, {"versions": {"torch": "0"}, "device": "none", "date": "today"})
    assert "| from 0.999 | 50.0% | 0.00 |" in text and "24 pairs, 1 prompts. none; torch 0; today." in text


def test_reports_count_second_terms_and_name_what_is_done_for_tokens():
    bits = {}
    for ratio in (0.0, 0.5):
        model, _ = tiny_models.TINY["WanTransformer3DModel"]()
        settings = {"salient_layers": "all", "semantic": True, "protected_steps": (1, 2)} if ratio else {}
        plan = quantize_model(model, SeDialectConfig(salient_ratio=ratio, **settings))
        report = report_of("transformer", model, plan, 0)
        bits[ratio] = report.activation_bits
    assert 1.5 * bits[0.0] < bits[0.5] < 2 * bits[0.0], "half the video tokens and all text count twice"
    text = str(report)
    assert "50% of the video tokens by norm, 16 layers" in text and "in windows of 2 x 2 x 2 tokens" in text
    assert "the first 1 and the last 2 steps" in text
