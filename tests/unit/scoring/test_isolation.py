"""Rows that end their processes are found among those that do not, at a bounded price."""

import math

from hypothesis import given
from hypothesis import strategies as st

from wsdm_ray.scoring.child_process import Death
from wsdm_ray.scoring.isolation import Part, PartDeath, isolate, parts_of


def run_all(rows, dies, deaths=None):
    """Deaths that it took, and by row the value or the reason why it was given up."""
    kept: list[list[PartDeath]] = []
    ran: list[Part] = []

    def run(part):
        ran.append(part)
        return Death("process died: signal 9") if dies(part) else list(range(part.start, part.stop))

    done = isolate(rows, deaths if deaths is not None else [], run, lambda deaths: kept.append(list(deaths)))
    by_row = []
    for one in done:
        by_row += [one.part.reason] * one.part.rows if one.value is None else one.value
    return len(kept), by_row, kept, ran


@given(st.data())
def test_every_other_row_is_run_and_deaths_are_bounded(data):
    rows = data.draw(st.integers(1, 300))
    poison = data.draw(st.sets(st.integers(0, rows - 1), max_size=6))
    count, by_row, kept, ran = run_all(
        rows, lambda part: any(part.start <= row < part.stop for row in poison)
    )
    assert by_row == ["process died: signal 9" if row in poison else row for row in range(rows)]
    assert count <= 3 * bool(poison) + len(poison) * (math.ceil(math.log2(rows)) + 1)
    assert [len(deaths) for deaths in kept] == list(range(1, count + 1))
    survived = [part for part in ran if not any(part.start <= row < part.stop for row in poison)]
    assert len(survived) == len(set(survived)), "nothing that was run is run again"


@given(st.integers(1, 64), st.lists(st.booleans(), max_size=200))
def test_deaths_without_a_cause_in_the_rows_end_too(rows, fates):
    """Every row is run or given up, whatever dies; what dies by chance less than three times costs no row."""
    left = list(fates)
    count, by_row, _, _ = run_all(rows, lambda part: left.pop() if left else False)
    assert len(by_row) == rows
    assert all(value == row or value == "process died: signal 9" for row, value in enumerate(by_row))
    if count < 3:
        assert by_row == list(range(rows))


def test_a_unit_is_tried_three_times_then_halved_and_a_row_alone_twice():
    def died(*parts):
        return [PartDeath(start=start, stop=stop, reason=f"{start}-{stop}") for start, stop in parts]

    whole = [(0, 4)] * 2
    assert parts_of(4, died(*whole)) == (Part(0, 4),)
    assert parts_of(4, died(*whole, (0, 4))) == (Part(0, 2), Part(2, 4))
    assert parts_of(4, died(*whole, (0, 4), (2, 4), (3, 4))) == (Part(0, 2), Part(2, 3), Part(3, 4))
    assert parts_of(4, died(*whole, (0, 4), (2, 4), (3, 4), (3, 4)))[2] == Part(3, 4, "3-4")
    assert parts_of(1, died((0, 1), (0, 1))) == (Part(0, 1),), "a unit of one row has three tries, too"


def test_deaths_of_an_earlier_run_count():
    earlier = [PartDeath(start=0, stop=8, reason="timed out after 5 s")] * 3
    count, by_row, _, ran = run_all(8, lambda part: part.start <= 5 < part.stop, earlier)
    assert Part(0, 8) not in ran
    assert by_row == [0, 1, 2, 3, 4, "process died: signal 9", 6, 7]
    assert count == 4
