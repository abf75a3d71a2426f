"""A comparison in words: everything where there is room, and in a terminal no line that it would break."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lpds.report.compare import CompareReport, Row
from lpds.report.lines import SPARED, lines_of, say

NONE = (math.nan, math.nan, math.nan)
ROW = Row(
    task="hopper",
    label="lpds",
    seeds=3,
    steps=100_000,
    mean=(2757.2, 2546.6, 2967.9),
    iqm=(2801.0, 2611.1, 2999.2),
    success=(0.67, 0.54, 0.79),
    success_difference=(0.39, 0.26, 0.53),
    area=(2300.4, 2200.0, 2400.0),
    difference=(1497.4, 1287.2, 1707.6),
    improvement=(0.9, 0.7, 1.0),
    more=0,
    most_seeds=3,
    pairs=50,
    differ=50,
    same=False,
)
FROZEN = replace(ROW, label="frozen", seeds=1, steps=0, area=NONE, difference=NONE, success_difference=NONE, improvement=NONE)
FROZEN_RETURN = replace(FROZEN, success=NONE)
REPORT = CompareReport(
    (FROZEN, ROW), {"hopper": "frozen"}, ("hopper: a note of " + "many words " * 20,), ("lpds is the highest",)
)


def test_nothing_is_left_out_where_there_is_room():
    title, heads, frozen, steered, *rest = lines_of(REPORT)
    assert title == "hopper: against frozen"
    assert heads.split("  ")[-1] == "verdict (return)"
    assert all(name in heads for name in (*SPARED[1:], "return", "success", "points", "difference"))
    assert frozen.split() == [
        "frozen",
        "-",
        "-",
        *["2757", "[2547,", "2968]", "2801", "[2611,", "2999]", "-", "67%", "[54%,", "79%]", "-", "-", "-"],
    ]
    assert "+1497 [+1287, +1708]" in steered
    assert steered.endswith("better")
    assert rest == ["", REPORT.notes[0], "lpds is the highest"]
    assert str(REPORT) == "\n".join(lines_of(REPORT))


@pytest.mark.parametrize("width", [200, 150, 120, 100])
def test_no_line_is_wider_than_the_terminal_and_what_is_spared_is_said(width):
    lines = list(lines_of(REPORT, width))
    assert max(map(len, lines)) <= width
    columns = SPARED[1:]
    shown = [name for name in columns if name in lines[1]]
    assert shown == list(columns[len(columns) - len(shown) :]), "the less telling go first"
    told = [line for line in lines if line.startswith("left out of a terminal")]
    assert bool(told) == (len(shown) < len(columns))
    assert all(name in lines[1] for name in ("return", "success", "points", "difference", "verdict"))


def test_what_would_decide_it_costs_no_figure_and_eighty_letters_are_enough_for_a_return():
    """A cell of many words would have taken the columns' room."""
    open_ = replace(ROW, difference=(100.0, -50.0, 250.0), success=NONE, success_difference=NONE, more=11, improvement=NONE)
    report = replace(REPORT, rows=(FROZEN_RETURN, open_))
    assert "undecided: about 11 more episodes a seed would decide it" in str(report)
    for width, shown in ((110, ("IQM", "area", "steps", "seeds")), (80, ("seeds", "return", "difference"))):
        lines = list(lines_of(report, width))
        assert max(map(len, lines)) <= width
        assert all(name in lines[1] for name in shown), lines[1]
        assert lines[3].endswith("undecided")


def test_a_column_that_no_row_has_a_figure_for_is_not_there():
    bare = replace(ROW, success=NONE, success_difference=NONE, improvement=NONE)
    heads = list(lines_of(replace(REPORT, rows=(bare,))))[1]
    assert not any(name in heads for name in ("success", "points", "P(better)"))


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ((1234.56, 999.9, 1500.0), "1235 [1000, 1500]"),
        ((12.345, 10.0, 14.0), "12.3 [10.0, 14.0]"),
        ((0.1234, *NONE[1:]), "0.123"),
        (NONE, "-"),
    ],
)
def test_digits_that_say_nothing_are_not_told(found, words):
    assert say(found) == words
