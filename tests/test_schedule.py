"""What is due, and when."""

from __future__ import annotations

import pytest

from lpds.schedule import NEVER, Schedule


def times(schedule, steps, *, last=None):
    """At which steps each of the things was done."""
    done = {what: [] for what in schedule.every}
    for step in steps:
        acts = {what: lambda what=what, step=step: done[what].append(step) for what in schedule.every}
        schedule.do(step, acts, last=step == last)
    return done


def test_each_is_done_at_the_first_step_of_its_period_and_once_more_at_the_end():
    schedule = Schedule({"row": 10, "save": 25, "never": 0}, {"row": 0, "save": 25, "never": 0})
    done = times(schedule, range(0, 61, 3), last=60)
    assert done == {"row": [0, 12, 21, 30, 42, 51, 60], "save": [27, 51, 60], "never": []}
    assert schedule.next == {"row": NEVER, "save": NEVER, "never": 0}
    assert times(schedule, [60, 100]) == {"row": [], "save": [], "never": []}


def test_what_is_due_together_is_done_in_the_given_order():
    schedule, order = Schedule({"a": 1, "b": 1}, {"a": 0, "b": 0}), []
    schedule.do(0, {"b": lambda: order.append("b"), "a": lambda: order.append("a")})
    assert order == ["b", "a"]


def test_what_failed_is_due_again_and_what_came_before_it_is_not():
    schedule = Schedule({"row": 10, "save": 10}, {"row": 0, "save": 0})

    def fail():
        assert schedule.next["save"] == 10  # a checkpoint holds the step after its own
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        schedule.do(0, {"row": lambda: None, "save": fail})
    assert schedule.next == {"row": 10, "save": 0}
    assert times(schedule, [1]) == {"row": [], "save": [1]}


@pytest.mark.parametrize("ended", [True, False])
def test_what_had_ended_goes_on_where_the_budget_grew(ended):
    schedule = Schedule({"row": 10, "save": 25}, {"row": 0, "save": 25})
    schedule.restore({"row": NEVER, "save": 75}, 60, ended=ended)
    assert schedule.next == {"row": NEVER if ended else 70, "save": 75}
