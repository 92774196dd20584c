"""Books: the published numbers, the rules, files and digests."""

import json

import pytest
import torch
from oracle import HALF_UNITS, HALF_UNITS_16

from sedialect import Dialect, Formatbook, SeDialectConfig, SeDialectLinear, encode
from sedialect.kernels.tables import build_tables
from sedialect.sedialect_core.errors import FormatbookError

FP4 = (0, 1, 2, 3, 4, 6, 8, 12)


def data(**changes: object) -> dict:
    return {**Formatbook.builtin("sedialect-32").to_dict(), **changes}


@pytest.mark.parametrize(("name", "expected"), [("sedialect-32", HALF_UNITS), ("dialectfp4-16", HALF_UNITS_16)])
def test_builtin_books_hold_the_numbers_of_the_papers_and_of_the_notes(name, expected):
    book = Formatbook.builtin(name)
    assert book.half_units.tolist() == [list(row) for row in expected]
    assert [d.maximum for d in book.dialects] == sorted((d.maximum for d in book.dialects), reverse=True)


def test_the_published_dialects_are_marked():
    published = [d.half_units for d in Formatbook.builtin("sedialect-32").dialects if d.published]
    assert published == list(HALF_UNITS_16)
    assert all(d.published for d in Formatbook.builtin("dialectfp4-16").dialects)


def test_sub_formatbooks():
    assert Formatbook.builtin("sedialect-32").sub_formatbooks == ((0, 1), (1, 2), (2, 3))
    assert Formatbook.builtin("dialectfp4-16").sub_formatbooks == ()


def test_saved_books_come_back_equal_and_byte_for_byte(tmp_path):
    for name in ("sedialect-32", "dialectfp4-16"):
        book = Formatbook.builtin(name)
        path = book.save(tmp_path / "folder" / "book.json")
        again = Formatbook.from_file(path)
        assert (again, again.digest) == (book, book.digest)
        assert again.save(tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_digests_are_of_the_numbers_alone_and_never_change():
    """Checkpoints name their book by these."""
    assert Formatbook.builtin("sedialect-32").digest == "2dc781e2d6be3eb73b6fdfaccaceaa60b4d5da2f4ab6e180a5a0a61b1b802092"
    assert Formatbook.builtin("dialectfp4-16").digest == "0b26262c8c5028fd434ec55d653ce1fa750b69b3ba8e88241e5bd385273dd649"
    assert Formatbook.from_dict(data(name="other", description="other")).digest == Formatbook.builtin("sedialect-32").digest
    assert Formatbook.from_dict(data(sub_formatbooks=[[0, 1]])).digest != Formatbook.builtin("sedialect-32").digest


@pytest.mark.parametrize(
    ("half_units", "message"),
    [
        ((0, 1, 2, 3, 4, 6, 8), "must be 8 integers"),
        ((0, 1, 2, 3, 4, 6, 8, 12.0), "must be 8 integers"),
        ((1, 2, 3, 4, 6, 8, 9, 12), "starts at 1"),
        ((0, 1, 2, 4, 3, 6, 8, 12), "not ascending"),
        ((0, 1, 2, 2, 3, 6, 8, 12), "not ascending"),
        ((0, 1, 2, 3, 4, 6, 8, 16), "reaches 16"),
        ((0, 1, 2, 3, 4, 5, 6, 7), "ends at 7"),
    ],
)
def test_dialects_that_break_a_rule_are_refused_by_name(half_units, message):
    with pytest.raises(FormatbookError, match=message):
        Dialect(half_units)


def without(dialects, index):
    return [d for number, d in enumerate(dialects) if number != index]


DIALECTS = Formatbook.builtin("sedialect-32").to_dict()["dialects"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dialects": without(DIALECTS, 5)}, "maximum 14 has 3 of 4 shapes"),
        ({"dialects": [d for d in DIALECTS if d["half_units"][-1] != 9]}, "maximum 9 has 0 of 4 shapes"),
        ({"dialects": DIALECTS[::-1]}, "order the dialects by maximum"),
        ({"dialects": []}, "has 0 shapes"),
        ({"sub_formatbooks": [[0, 4]]}, "sub-formatbook .0, 4. lacks a maximum"),
        ({"sub_formatbooks": [[]]}, "lacks a maximum"),
        ({"sub_formatbooks": [[1, 0]]}, "must ascend"),
        ({"sub_formatbooks": 3}, "'sub_formatbooks' is 3, not of the kind list"),
        ({"format_version": 2}, "update sedialect"),
    ],
)
def test_books_that_break_a_rule_are_refused_by_name(tmp_path, changes, message):
    with pytest.raises(FormatbookError, match=message):
        Formatbook.from_dict(data(**changes))
    path = tmp_path / "book.json"
    path.write_text(json.dumps(data(**changes)))
    with pytest.raises(FormatbookError, match="book.json"):
        Formatbook.from_file(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format_version": 1}'])
def test_files_that_are_no_books_are_refused(tmp_path, text):
    path = tmp_path / "book.json"
    path.write_text(text)
    with pytest.raises(FormatbookError, match="book.json"):
        Formatbook.from_file(path)


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(FormatbookError, match=r"sedialect-32, dialectfp4-16"):
        Formatbook.builtin("sedialect-64")
    with pytest.raises(FormatbookError, match="neither a file nor one of"):
        Formatbook.resolve("nowhere.json")


@pytest.mark.parametrize("name", ["sedialect-32", "dialectfp4-16"])
def test_tables_agree_with_distances_counted_one_by_one(name):
    import oracle

    book = Formatbook.builtin(name)
    tables = build_tables(book.half_units)
    for number, dialect in enumerate(book.dialects):
        for q in range(32):
            assert tables.indices[number, q] == oracle.index_of(dialect.half_units, q)
            assert tables.errors[number, q] == oracle.error_of(dialect.half_units, q)
            packed = int(tables.packed_errors[15 - dialect.maximum, q])
            assert (packed >> (16 * (number % book.shapes))) & 0xFFFF == tables.errors[number, q]
    assert tables.errors.max() <= 961


def test_one_book_is_the_default_everywhere():
    x = torch.randn(2, 32)
    layer = SeDialectLinear.from_linear(torch.nn.Linear(32, 8))
    names = {Formatbook.builtin().name, SeDialectConfig().formatbook, encode(x).formatbook.name, layer.formatbook.name}
    assert names == {"universal-32"}


def test_copies_of_a_model_share_its_book():
    import copy

    book = Formatbook.builtin("sedialect-32")
    assert copy.deepcopy([book])[0] is book
