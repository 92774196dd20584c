"""Hostile files by class: every eleventh of them here, all in docs/security.md."""

from itertools import islice

import pytest
from hostile_files import Sound, cases
from hostile_table import MARKS, count, markdown

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("first", [0, 5])
def test_hostile_files_are_read_right_or_refused_in_a_sentence(tmp_path, first):
    sound = Sound(tmp_path / "sound")
    table, bad = count(islice(cases(sound, 44), first, None, 11), tmp_path)
    assert not bad
    assert len(table) == 12 and sum(counts["tried"] for counts in table.values()) > 200
    assert MARKS[0].startswith("<!--") and "| **all** |" in markdown(table)
