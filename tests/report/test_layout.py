"""Sections flow over pages: what fits is merged, what belongs together stays together."""

from itertools import pairwise

import pytest

from gatesearch.report.layout import HEIGHT, Block, Section, lay_out


def block(height, name, drawn, **more):
    return Block(height, lambda box: drawn.append((name, box)), **more)


def pages_of(drawn, figures):
    """Names of the blocks of each page."""
    return [[name for name, box in drawn if box.figure is figure] for figure in figures]


def test_sections_share_a_page_while_they_fit():
    drawn = []
    sections = [Section(name, "", [block(1.5, name, drawn)]) for name in "abcd"]
    # A section of 1.5 inches takes about 2 with its heading: three fit into 7.26 inches.
    figures = lay_out(sections)
    assert pages_of(drawn, figures) == [["a", "b", "c"], ["d"]]


def test_blocks_below_each_other_do_not_overlap():
    drawn = []
    lay_out([Section(name, "s", [block(1.0, name, drawn)] * 2, note="n") for name in "ab"])
    edges = [(box.top, box.top + box.height) for _, box in drawn]
    assert all(end <= start for (_, end), (start, _) in pairwise(edges))


def test_a_heading_stays_with_what_follows_it():
    drawn = []
    high = block(HEIGHT - 1.2, "high", drawn)
    blocks = [high, block(0.3, "heading", drawn, with_next=True), block(0.5, "text", drawn)]
    figures = lay_out([Section("a", "", blocks)])
    assert pages_of(drawn, figures) == [["high"], ["heading", "text"]]


def test_a_section_starts_with_at_least_what_it_keeps():
    drawn = []
    rows = [block(0.5, str(i), drawn) for i in range(4)]
    first = Section("a", "", [block(HEIGHT - 2.5, "high", drawn)])
    figures = lay_out([first, Section("b", "", rows, keep=4)])
    assert pages_of(drawn, figures) == [["high"], ["0", "1", "2", "3"]]


def test_blocks_grow_into_the_room_that_is_left_but_no_further():
    drawn = []
    lay_out([Section("a", "", [block(1.0, "a", drawn, most=2.0), block(1.0, "b", drawn)])])
    assert [box.height for _, box in drawn] == pytest.approx([2.0, 1.0])
    drawn.clear()
    lay_out([Section("a", "", [block(1.0, "a", drawn, most=50.0)])])
    ((_, box),) = drawn
    assert box.top + box.height == pytest.approx(0.40 + HEIGHT)


def test_charts_shrink_to_save_a_page():
    drawn = []
    blocks = [block(3.5, name, drawn, most=3.6, shrinks=True) for name in "ab"]
    assert len(lay_out([Section("a", "", blocks)])) == 1
    assert len(lay_out([Section("a", "", [block(3.5, "c", drawn)] * 2)])) == 2


def test_columns_are_balanced():
    drawn = []
    lay_out([Section("a", "", [block(0.5, str(i), drawn) for i in range(9)], columns=3)])
    lefts = [box.left for _, box in drawn]
    assert [lefts.count(left) for left in sorted(set(lefts))] == [3, 3, 3]
    assert len({box.top for _, box in drawn}) == 3


def test_a_block_higher_than_a_page_is_drawn_all_the_same():
    drawn = []
    figures = lay_out([Section("a", "", [block(20.0, "high", drawn), block(1.0, "b", drawn)])])
    assert pages_of(drawn, figures) == [["high"], ["b"]]
