"""Progress: lines in a log, a bar in a terminal."""

import io
import logging

import pytest
from rich.console import Console

from wsdm_ray import telemetry
from wsdm_ray.telemetry import RowProgress, human, logger, set_up_logging, track_rows


@pytest.fixture
def lines(monkeypatch):
    """What the package logs; its own handlers are replaced, as they may be those of another test."""
    records: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record):
            records.append(record.getMessage())

    monkeypatch.setattr(logger, "handlers", [Keep()])
    monkeypatch.setattr(logger, "level", logging.INFO)
    return records


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (0.123456, "0.123"), (999.4, "999"), (999.6, "1k"), (12_345_678, "12.3M"), (5e9, "5G"),
     (1e13, "10T"), (-1500, "-1.5k")],
)  # fmt: skip
def test_human_has_three_figures_and_a_unit(number, text):
    assert human(number) == text


def test_log_lines_come_at_intervals_and_at_the_end(lines, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(telemetry.time, "monotonic", lambda: now[0])
    progress = RowProgress("score", 100, done=20, console=Console(file=io.StringIO()))
    for _ in range(4):
        now[0] += 4
        progress.advance(10, 1_000)
    # 30 rows in 12 s, and 50 of 100 are left; what the earlier run did adds nothing to the speed.
    assert lines == ["score: 50/100 rows, 2.5 pairs/s, 250 tokens/s, ETA 20 s"]
    now[0] += 1
    progress.advance(40, 4_000)
    progress.close()
    assert lines[1:] == ["score: 100/100 rows, 4.71 pairs/s, 471 tokens/s, ETA 0 s"]


def test_bar_in_a_terminal(lines, monkeypatch):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, no_color=True)
    monkeypatch.setattr(telemetry, "Console", lambda stderr: console)
    with track_rows("score", 10) as progress:
        progress.advance(10, 500)
    shown = screen.getvalue()
    for part in ("score", "10/10", "rows", "pairs/s", "tokens/s", "ETA"):
        assert part in shown
    assert not lines, "a terminal gets no log lines beside its bar"


def test_bar_is_closed_by_an_error(monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr(telemetry, "Console", lambda stderr: console)
    with pytest.raises(KeyError), track_rows("score", 10) as progress:
        raise KeyError
    assert progress.bar is not None
    assert progress.bar.finished or not progress.bar.live.is_started


def test_logging_is_set_up_once(monkeypatch, capsys):
    monkeypatch.setattr(logger, "handlers", [])
    set_up_logging()
    set_up_logging()
    logger.info("hello")
    err = capsys.readouterr().err
    assert err.count("hello") == 1
    assert err[2] == err[5] == ":", "the time comes first"
