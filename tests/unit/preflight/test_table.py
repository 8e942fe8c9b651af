"""The table of checks: shown in a dry run, quiet else, and one error of one line."""

import logging

import pytest

from wsdm_ray.errors import ClusterError, StorageError
from wsdm_ray.preflight.table import Check, Checks, Outcome


def checks_of(*outcomes: Outcome) -> list[Check]:
    return [Check(name=f"check {n}", outcome=each, found=f"found [{n}]") for n, each in enumerate(outcomes)]


def test_a_dry_run_shows_every_row_as_it_is(capsys, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("wsdm_ray"), "propagate", True)
    checks = Checks("score", shown=True)
    with checks.stage("inputs") as found:
        found += ["3 rows", "1 model"]
    checks.settle(checks_of(Outcome.PASS, Outcome.WARN, Outcome.NOT_CHECKED))
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert ["inputs", "pass", "3", "rows;", "1", "model"] in rows
    assert ["check", "1", "warn", "found", "[1]"] in rows
    assert ["check", "2", "not", "checked", "found", "[2]"] in rows
    assert not caplog.records, "once is enough"


def test_any_other_run_says_what_is_in_doubt_and_no_more(capsys, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("wsdm_ray"), "propagate", True)
    checks = Checks("score", shown=False)
    with checks.stage("inputs"):
        pass
    checks.settle(checks_of(Outcome.PASS, Outcome.WARN))
    assert capsys.readouterr().out == ""
    assert [record.getMessage() for record in caplog.records] == ["score: check 1: found [1]"]


def test_all_that_failed_is_on_one_line():
    checks = Checks("score", shown=False)
    with pytest.raises(ClusterError) as caught:
        checks.settle(checks_of(Outcome.FAIL, Outcome.PASS, Outcome.FAIL))
    assert str(caught.value) == "check 0: found [0]. check 2: found [2]"


@pytest.mark.parametrize("shown", [True, False])
def test_what_a_stage_raises_ends_the_job_as_itself(shown, capsys):
    checks = Checks("train", shown=shown)
    with checks.stage("first"):
        pass
    with pytest.raises(StorageError, match="none: not found"), checks.stage("inputs"):
        raise StorageError("none: not found; check the path")
    out = capsys.readouterr().out
    assert ("none: not found; check the path" in out, "fail" in out, "first" in out) == (shown, shown, shown)
