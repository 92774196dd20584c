"""Text between marks in documents: one writer, strict about both marks."""

import pytest

from sedialect.sedialect_core.errors import InputError
from sedialect.sedialect_core.storage.marked import marked, marks, write_marked

PAGE = "a\n<!-- one -->\nold\n<!-- /one -->\nb\n<!-- two: x -->\nkept\n<!-- /two: x -->\n"


def test_a_part_goes_between_its_own_marks_and_nowhere_else(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(PAGE, encoding="utf-8")
    write_marked(path, {"one": "new\n\nlines \\1"})
    assert path.read_text(encoding="utf-8") == PAGE.replace("old", "new\n\nlines \\1")
    assert marked(PAGE, {"one": "1", "two: x": "2"}, "page") == PAGE.replace("old", "1").replace("kept", "2")
    begin, end = marks("empty")
    assert marked(f"{begin}\n{end}", {"empty": "x"}, "page") == f"{begin}\nx\n{end}"


@pytest.mark.parametrize(
    "text",
    [
        "no marks",
        PAGE.replace("<!-- /one -->", ""),
        PAGE.replace("<!-- one -->", ""),
        PAGE.replace("<!-- /one -->", "<!-- /two -->"),
        "<!-- /one -->\n<!-- one -->",
        PAGE + PAGE,
        PAGE + "<!-- /one -->",
    ],
)
def test_marks_that_are_amiss_are_named_and_nothing_is_written(tmp_path, text):
    path = tmp_path / "page.md"
    path.write_text(text, encoding="utf-8")
    message = r"page\.md must hold <!-- one --> and, after it, <!-- /one -->, each once"
    with pytest.raises(InputError, match=message):
        write_marked(path, {"one": "new"})
    assert path.read_text(encoding="utf-8") == text


def test_of_several_parts_none_is_written_where_one_has_no_place(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(PAGE, encoding="utf-8")
    with pytest.raises(InputError, match="must hold <!-- three -->"):
        write_marked(path, {"one": "new", "three": "new"})
    assert path.read_text(encoding="utf-8") == PAGE


def test_a_page_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*absent\.md"):
        write_marked(tmp_path / "absent.md", {"one": "new"})
