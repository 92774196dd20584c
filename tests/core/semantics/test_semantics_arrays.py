"""Attention, windows, groups and sub-formatbooks against brute-force readings of docs/semantics.md."""

import itertools

import pytest
import torch
from tensor_memory import Memory

from sedialect import Formatbook, SeDialectConfig, TokenLayout
from sedialect.kernels import reference
from sedialect.kernels.sharing import ELEMENT_BYTES, book_errors, choose_books, choose_dialects, shape_errors
from sedialect.sedialect_core.errors import ConfigError, ModelError
from sedialect.sedialect_core.semantics.attention import received_attention, spread, window_attention
from sedialect.sedialect_core.semantics.grouping import COSINE_BYTES, Windows, claim_tokens, members_alike, windows_of
from sedialect.sedialect_core.semantics.saliency import chance, salient_count

GRID = (3, 4, 5)
LAYOUT = TokenLayout("video", patch=(1, 1, 1)).with_grid(GRID)
BOOK = Formatbook.builtin()
BOOKS = torch.tensor([0b0011, 0b0110, 0b1100], dtype=torch.uint8)


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def masks(batch: int, length: int) -> list[torch.Tensor | None]:
    keys = torch.ones(batch, 1, 1, length, dtype=torch.bool)
    keys[0, ..., length // 2 :] = False
    return [None, keys, torch.where(keys, 0.0, -1e4), tokens(length, length, seed=5) > 0]


@pytest.mark.parametrize("mask", masks(2, 7), ids=["none", "keys", "added", "square"])
@pytest.mark.parametrize("key_heads", [4, 2])
def test_received_attention_is_softmax_summed_over_queries(mask, key_heads):
    query, key = tokens(2, 4, 7, 8), tokens(2, key_heads, 7, 8, seed=1)
    full = key.repeat_interleave(4 // key_heads, dim=1)
    values = torch.eye(7).expand(2, 4, 7, 7)  # attention to each key, by the function that models call
    weights = torch.nn.functional.scaled_dot_product_attention(query, full, values, mask).nan_to_num(0)
    assert torch.allclose(received_attention(query, key, mask), weights.mean((1, 2)), atol=1e-6)
    assert torch.allclose(received_attention(query, key, mask, peak=True), weights.amax((1, 2)), atol=1e-6)


def test_sampled_queries_are_a_part_of_all():
    query, key = tokens(1, 3, 50, 8), tokens(1, 3, 50, 8, seed=1)
    chosen = spread(50, 8)
    assert len(set(chosen.tolist())) == 8
    wanted = received_attention(query[:, :, chosen], key)
    assert torch.equal(received_attention(query, key, queries=8), wanted)
    assert torch.allclose(received_attention(query, key, queries=8, megabytes=1e-6), wanted)  # head by head


@pytest.mark.parametrize("megabytes", [1, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_profiling_stays_within_the_memory_that_it_may_take(megabytes, masked):
    tokens_, heads = 1024, 8
    query, key = (torch.randn(2, heads, tokens_, 64) for _ in range(2))
    mask = torch.ones(2, 1, 1, tokens_, dtype=torch.bool) if masked else None
    windows = windows_of(TokenLayout("video", patch=(1, 1, 1)).with_grid((4, 16, 16)), (2, 4, 4), (1, 2, 2))
    for look in (
        lambda: received_attention(query, key, mask, megabytes=megabytes),
        lambda: window_attention(query, key, windows.anchors, windows.members, megabytes=megabytes),
    ):
        with Memory(query, key) as memory:
            result = look()
        assert memory.peak - result.nbytes < megabytes * 1.1e6  # sums over heads and windows are small beside it
        assert memory.peak < query.shape[1] * tokens_**2 * 4 / 4, "an N x N matrix of every head is 33 MB"


def test_forming_groups_stays_within_the_memory_that_it_may_take():
    x, group = tokens(2000, 512), torch.arange(2000) % 100
    for choose in (
        lambda elements: choose_books(x, group, 100, BOOK.tables(), 16, BOOKS, elements),
        lambda elements: choose_dialects(x, group, 100, BOOK.tables(), 16, elements),
    ):
        with Memory(x, *BOOK.tables()) as memory:
            few = choose(2_000_000 // ELEMENT_BYTES)
        assert memory.peak < 2.5e6
        assert torch.equal(few, choose(1 << 30))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_comparing_members_stays_within_the_memory_that_it_may_take(dtype):
    windows = windows_of(TokenLayout("video", patch=(1, 1, 1)).with_grid((5, 20, 20)), (1, 2, 2))
    x = tokens(1, 2000, 512).to(dtype)
    claims = claim_tokens(torch.ones(1, *windows.members.shape), windows, 0.0, 2000)
    with Memory(x, claims, windows.anchors) as memory:
        few = members_alike(x, claims, windows.anchors, 0.0, 1_000_000 // (COSINE_BYTES * 512))
    assert memory.peak < 1.3e6  # a few numbers a token are beside it
    assert torch.equal(few, members_alike(x, claims, windows.anchors, 0.0, 2000))


@pytest.mark.parametrize("spacing", [(0, 0, 0), (1, 2, 2), (2, 1, 3)])
@pytest.mark.parametrize("tile", [0, 2])
def test_windows_lie_around_their_anchors(spacing, tile):
    grid = (3, 4, 6)
    layout = TokenLayout("video", patch=(1, 1, 1), tile=tile).with_grid(grid)
    places = {layout.token_index(*place): place for place in itertools.product(*map(range, grid))}
    windows = windows_of(layout, (2, 3, 2), spacing)
    for anchor, members in zip(windows.anchors.tolist(), windows.members.tolist(), strict=True):
        centre = places[anchor]
        reach = [range(c - (size - 1) // 2, c - (size - 1) // 2 + size) for c, size in zip(centre, (2, 3, 2), strict=True)]
        inside = {token for token, place in places.items() if all(p in r for p, r in zip(place, reach, strict=True))}
        assert {token for token in members if token >= 0} == inside and anchor in inside


def test_windows_as_large_as_their_cells_do_not_overlap():
    assert sorted(windows_of(LAYOUT, (3, 2, 5)).members.flatten().tolist()) == list(range(60))


def test_window_larger_than_the_grid_is_refused():
    with pytest.raises(ModelError, match=r"semantic_window is \(2, 5, 2\), and the grid has \(3, 4, 5\)"):
        windows_of(LAYOUT, (2, 5, 2))


def brute_claims(weight: torch.Tensor, windows: Windows, quantile: float, count: int) -> torch.Tensor:
    claims = torch.full((len(weight), count), -1, dtype=torch.int32)
    anchors, members = windows.anchors.tolist(), windows.members.tolist()
    for b in range(len(weight)):
        wanted: dict[int, list[tuple[float, int]]] = {}
        for a, (anchor, window) in enumerate(zip(anchors, members, strict=True)):
            known = [w for w, token in zip(weight[b, a].tolist(), window, strict=True) if token >= 0]
            bound = torch.tensor(known).quantile(quantile).item()
            for w, token in zip(weight[b, a].tolist(), window, strict=True):
                if token == anchor:
                    wanted.setdefault(token, []).append((float("-inf"), a))
                elif token >= 0 and w >= bound:
                    wanted.setdefault(token, []).append((-w, a))
        for token, offers in wanted.items():
            claims[b, token] = min(offers)[1]
    return claims


@pytest.mark.parametrize("spacing", [(0, 0, 0), (1, 2, 2)])
@pytest.mark.parametrize("quantile", [0.0, 0.4, 0.9])
def test_a_token_goes_to_the_anchor_that_attends_to_it_most(spacing, quantile):
    windows = windows_of(LAYOUT, (2, 3, 3), spacing)
    query, key = tokens(2, 2, 60, 8), tokens(2, 2, 60, 8, seed=1)
    weight = window_attention(query, key, windows.anchors, windows.members)
    for a, window in enumerate(windows.members):
        inside = window[window >= 0]
        logits = query[:, :, windows.anchors[a], None] @ key[:, :, inside].mT * 8**-0.5
        assert torch.allclose(weight[:, a, window >= 0], logits.softmax(-1).mean(1).squeeze(1), atol=1e-6)
    weight = (weight * 16).round() / 16  # ties
    assert torch.equal(claim_tokens(weight, windows, quantile, 60), brute_claims(weight, windows, quantile, 60))


def test_members_are_nearly_their_anchor_and_never_alone():
    windows = windows_of(LAYOUT, (1, 2, 2))
    claims = claim_tokens(torch.ones(2, *windows.members.shape), windows, 0.0, 60)
    x = tokens(2, 60, 16)
    x[0, windows.members[0, 1]] = 2 * x[0, windows.members[0, 0]] + 0.01 * tokens(16, seed=3)
    groups = members_alike(x, claims, windows.anchors, 0.9, rows_at_once=7)
    count = len(windows.anchors)
    for b, token in itertools.product(range(2), range(60)):
        anchor = windows.anchors[claims[b, token]]
        like = [t for t in range(60) if claims[b, t] == claims[b, token]]
        near = [t for t in like if t == anchor or torch.cosine_similarity(x[b, t], x[b, anchor], dim=0) >= 0.9]
        wanted = b * count + int(claims[b, token]) if token in near and len(near) > 1 else -1
        assert groups[b, token] == wanted
    assert (groups[0] == 0).sum() == 2


@pytest.mark.parametrize("block_size", [16, 32])
def test_errors_of_shapes_are_those_of_encoding_with_one_shape_allowed(block_size):
    x, tables = tokens(9, 64) * torch.logspace(-3, 3, 9).unsqueeze(1), BOOK.tables()
    errors = shape_errors(x, tables, block_size)
    for shape in range(4):
        allowed = torch.full((9, 64 // block_size), 1 << shape, dtype=torch.uint8)
        scale = reference.activation_scale(x)
        magnitude = (x.abs() / scale.unsqueeze(1)).view(9, -1, block_size)
        q, delta, dialect = reference.assign(magnitude, tables, "max", reference.ACTIVATION_DELTA, allowed)
        table = tables.errors[dialect.unsqueeze(2), q].sum(2)
        assert torch.equal(errors[..., shape], table * (scale.unsqueeze(1) * torch.pow(2.0, -delta)) ** 2 / 16)


def test_a_group_takes_the_sub_formatbook_of_least_summed_best_error():
    x, tables = tokens(12, 64), BOOK.tables()
    group = torch.tensor([0, 0, 0, 1, 1, -1, -1, 3, 3, 3, 3, -1])
    errors = shape_errors(x, tables, 16)
    choice = choose_books(x, group, 4, tables, 16, BOOKS, 1 << 20)
    for g, block in itertools.product(range(4), range(4)):
        sums = []
        for book in BOOKS.tolist():
            shapes = [shape for shape in range(4) if book >> shape & 1]
            sums.append(sum(float(errors[row, block, shapes].min()) for row in range(12) if group[row] == g))
        assert choice[g, block] == BOOKS[sums.index(min(sums))]
    assert torch.equal(book_errors(errors, torch.tensor([0b1111], dtype=torch.uint8)).squeeze(2), errors.amin(2))


def test_a_group_takes_the_dialect_of_least_summed_error():
    x, tables = tokens(12, 64) * torch.logspace(-3, 3, 12).unsqueeze(1), BOOK.tables()
    group = torch.tensor([0, 0, 0, 1, 1, -1, -1, 3, 3, 3, 3, -1])
    choice = choose_dialects(x, group, 4, tables, 16, 1 << 20)
    assert (choice[[0, 1, 3]] & reference.SHARED_MASK == reference.SHARED_DIALECT).all()
    scale = reference.activation_scale(x)
    for g, block in itertools.product((0, 1, 3), range(4)):
        sums = torch.zeros(32)
        for row in (group == g).nonzero().flatten():
            number = x[row, 16 * block : 16 * block + 16].abs() / scale[row]
            unit = 2.0 ** -(3 - torch.floor(torch.log2(number.max())))
            q = (2 * number / unit).long().clamp(max=31)
            sums += tables.errors[:, q].float().sum(1) * (scale[row] * unit) ** 2
        assert choice[g, block] == reference.SHARED_DIALECT + int(sums.argmin())


def test_chance_repeats_and_touches_no_generator():
    x, before = tokens(3, 40, 16), torch.get_rng_state()
    assert torch.equal(chance(x), chance(x)) and torch.equal(before, torch.get_rng_state())
    assert len(chance(x).unique()) > 100


def test_counts_are_rounded_up_and_bounded():
    assert [salient_count(ratio, 10) for ratio in (0.0, 0.01, 0.25, 1.0)] == [0, 1, 3, 10]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"salient_ratio": 1.5}, "salient_ratio is 1.5; give a number from 0 to 1"),
        ({"salient_ratio": True}, "salient_ratio is True"),
        ({"semantic_quantile": -0.1}, "semantic_quantile is -0.1"),
        ({"semantic_similarity": 2}, "semantic_similarity is 2; give a number from -1 to 1"),
        ({"salient_by": "luck"}, "salient_by is 'luck'; choose one of norm"),
        ({"salient_layers": "some"}, "salient_layers is 'some'"),
        ({"semantic_window": (2, 2)}, r"semantic_window is \(2, 2\); give 3 integers of at least 1"),
        ({"semantic_spacing": (1, 2, -1)}, "semantic_spacing"),
        ({"semantic": True, "semantic_window": (1, 1, 1)}, "holds nothing but the anchor"),
        ({"semantic": "yes"}, "semantic is 'yes'"),
        ({"refresh_every": -1}, "refresh_every is -1"),
        ({"refresh_at": (0.5, 1.5)}, r"refresh_at is \(0.5, 1.5\); give numbers from 0 to 1"),
        ({"profile_megabytes": 0}, "profile_megabytes is 0; give an integer of at least 1"),
        ({"semantic_sharing": "exponent"}, "semantic_sharing is 'exponent'; choose one of sub-formatbook, dialect"),
        ({"protected_steps": (1,)}, r"protected_steps is \(1,\); give 2 integers"),
    ],
)
def test_bad_settings_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        SeDialectConfig(**setting)
