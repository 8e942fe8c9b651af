"""Progress: lines in a log, a bar in a terminal."""

import io
import logging

import pytest
from rich.console import Console

from wsdm_ray.telemetry import Display, RowProgress, counted, human, logger, set_up_logging, time_left


class Clock:
    """Seconds that pass when a test says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def lines(monkeypatch):
    """What the package logs."""
    records: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record):
            records.append(record.getMessage())

    monkeypatch.setattr(logger, "handlers", [Keep()])
    monkeypatch.setattr(logger, "level", logging.INFO)
    return records


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120, no_color=True)


def log_file() -> Console:
    return Console(file=io.StringIO())


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (0.123456, "0.123"), (999.4, "999"), (999.6, "1k"), (12_345_678, "12.3M"), (5e9, "5G"),
     (1e13, "10T"), (-1500, "-1.5k")],
)  # fmt: skip
def test_human_has_three_figures_and_a_unit(number, text):
    assert human(number) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0 steps"), (1, "1 step"), (2_000, "2,000 steps")])
def test_one_is_told_in_the_singular(number, text):
    assert counted(number, "step") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "ETA 0 s"),
        (119.4, "ETA 119 s"),
        (150, "ETA 2 min"),
        (7_000, "ETA 117 min"),
        (11_100, "ETA 3 h 05 min"),
    ],
)
def test_time_left_in_the_unit_that_people_would_use(seconds, text):
    assert time_left(seconds) == text


def test_log_lines_come_at_intervals_and_at_the_end(lines):
    clock = Clock()
    progress = RowProgress("score", 100, done=20, console=log_file(), clock=clock)
    progress.begin()
    for _ in range(4):
        clock.now += 4
        progress.advance(10, 1_000)
    # 30 rows in 12 s, and 50 of 100 are left; what the earlier run did adds nothing to the speed.
    assert lines == ["score: 50/100 rows, 2.5 pairs/s, 250 tokens/s, ETA 20 s"]
    clock.now += 1
    progress.advance(40, 4_000)
    progress.refresh()
    progress.close()
    assert lines[1:] == ["score: 100/100 rows, 4.71 pairs/s, 471 tokens/s, ETA 0 s"]


def test_lines_are_many_at_first_and_few_later(lines):
    clock = Clock()
    display = Display("train", 10_000, "steps", console=log_file(), clock=clock)
    times = []
    for second in range(1, 601):
        clock.now = 100.0 + second
        display.show(second, "")
        if len(lines) > len(times):
            times.append(second)
    assert times == [*range(10, 121, 10), *range(180, 601, 60)]


def test_start_up_is_no_part_of_the_speed(lines):
    clock = Clock()
    progress = RowProgress("score", 100, console=log_file(), clock=clock)
    clock.now += 60
    progress.refresh()
    assert lines == ["score: 0/100 rows, starting"]
    progress.begin()
    clock.now += 10
    progress.begin()
    progress.advance(50, 500)
    assert lines[1:] == ["score: 50/100 rows, 5 pairs/s, 50 tokens/s, ETA 10 s"]
    late = RowProgress("score", 100, console=log_file(), clock=clock)
    clock.now += 30
    late.begin(seconds_ago=5)
    late.advance(50, 500)
    assert "10 pairs/s" in lines[-1]


def test_rows_that_are_worked_on_move_the_position_and_are_not_counted(lines):
    clock = Clock()
    progress = RowProgress("score", 100, console=log_file(), clock=clock)
    progress.begin()
    clock.now += 10
    progress.look_ahead(30, 300)
    assert lines == ["score: 30/100 rows, 3 pairs/s, 30 tokens/s, ETA 23 s"]
    assert progress.done == 0
    clock.now += 10
    progress.look_ahead(500, 300)
    assert lines[1].startswith("score: 100/100 rows")
    progress.advance(100, 1_000)
    assert (progress.done, progress.rows_ahead) == (100, 0)


def test_bar_in_a_terminal(lines):
    console = terminal()
    progress = RowProgress("score", 10, console=console)
    progress.begin()
    progress.advance(10, 500)
    progress.close()
    shown = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    for part in ("score", "10/10", "rows", "pairs/s", "tokens/s", "ETA"):
        assert part in shown
    assert not lines, "a terminal gets no log lines beside its bar"
    bar = progress.display.bar
    assert bar is not None
    assert not bar.live.is_started


def test_logging_is_set_up_once(capsys):
    set_up_logging()
    set_up_logging()
    logger.info("hello")
    err = capsys.readouterr().err
    assert err.count("hello") == 1
    assert err[2] == err[5] == ":", "the time comes first"


def test_a_narrow_terminal_shows_the_whole_count():
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=60, no_color=True)
    display = Display("score", 30_000, console=console)
    display.show(12_345, "28.3 pairs/s, 29k tokens/s, ETA 37 min, 1 replica at work, 3 errors")
    display.close()
    assert "12345/30000" in shown.getvalue()
