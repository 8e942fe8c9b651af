"""Submissions: a row for each prediction in their order, and a model of ties that finds a known answer."""

import csv
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.runs import finish_run
from wsdm_ray.config import SubmissionConfig
from wsdm_ray.data.submission import Davidson, SameTies, check_submission, fit_davidson, submit
from wsdm_ray.errors import ConfigError, DataError
from wsdm_ray.runs import read_run


def predictions(folder: Path, ids: list[Any], prob: list[float | None]) -> str:
    """A finished folder of predictions in parts of three rows."""
    finish_run(str(folder), "score", {}, {})
    folder.mkdir()
    winners = [None if p is None else "model_a" if p >= 0.5 else "model_b" for p in prob]
    table = pa.table({"id": ids, "prob_a": pa.array(prob, pa.float32()), "winner": winners})
    for number, start in enumerate(range(0, len(ids), 3)):
        pq.write_table(table.slice(start, 3), folder / f"part-{number:06d}.parquet")
    return str(folder)


def votes(path: Path, ids: list[Any], label: list[float]) -> str:
    texts = {name: ["x"] * len(ids) for name in ("prompt", "response_a", "response_b")}
    pq.write_table(pa.table({"id": ids, **texts, "prob_a": pa.array(label, pa.float64())}), path)
    return str(path)


def written(config: SubmissionConfig, output: str) -> list[list[str]]:
    submit(config, output, check_submission(config, output, []))
    with Path(str(config.submission)).open(newline="") as file:
        return list(csv.reader(file))


def lmsys(tmp_path: Path, **options: Any) -> SubmissionConfig:
    return SubmissionConfig(submission=str(tmp_path / "submission.csv"), submission_format="lmsys", **options)


def test_wsdm_has_a_winner_for_every_row_as_its_id_is_spelled(tmp_path, caplog):
    output = predictions(tmp_path / "out", ["007", "b,c", "7", "ü"], [0.25, 0.75, None, 0.5])
    config = SubmissionConfig(submission=str(tmp_path / "submission.csv"))
    assert written(config, output) == [
        ["id", "winner"], ["007", "model_b"], ["b,c", "model_a"], ["7", "model_a"], ["ü", "model_a"]
    ]  # fmt: skip
    assert "1 rows have an error and are written as if prob_a were 0.5" in caplog.text
    assert read_run(output)["submission"]["rows_with_error"] == 1
    assert "ties" not in read_run(output)["submission"]


def test_an_id_breaks_no_line(tmp_path):
    ids = ["a\nb", "c\rd", "e\r\nf", '"', "../x", "\x00", "y" * 100_000]
    output = predictions(tmp_path / "out", ids, [0.75] * len(ids))
    config = SubmissionConfig(submission=str(tmp_path / "submission.csv"))
    assert written(config, output)[1:] == [[id, "model_a"] for id in ids]
    text = (tmp_path / "submission.csv").read_bytes()
    assert text.startswith(b'id,winner\n"a\nb",model_a\n"c\rd",model_a\n')


def test_lmsys_with_one_probability_of_a_tie_says_so(tmp_path, caplog):
    output = predictions(tmp_path / "out", [5, 3, 4, 2**60], [0.25, 1.0, None, 0.5])
    caplog.set_level(logging.INFO)
    header, *rows = written(lmsys(tmp_path, tie_rate=0.2), output)
    assert header == ["id", "winner_model_a", "winner_model_b", "winner_tie"]
    assert [row[0] for row in rows] == ["5", "3", "4", str(2**60)]
    found = np.array([[float(value) for value in row[1:]] for row in rows])
    np.testing.assert_allclose(
        found, [[0.2, 0.6, 0.2], [0.8, 0, 0.2], [0.4, 0.4, 0.2], [0.4, 0.4, 0.2]], atol=1e-8
    )
    assert "a tie has probability 0.2000 in every row (--tie-rate)" in caplog.text
    assert json.loads((tmp_path / "out.run/run.json").read_text())["submission"]["tie_rate"] == 0.2
    found = written(lmsys(tmp_path), output)
    assert {row[3] for row in found[1:]} == {"0.30901056"}, "the share of ties in the competition's train.csv"
    assert "competition's train.csv" in read_run(output)["submission"]["ties"]


def test_davidson_finds_the_parameter_that_made_the_ties():
    source = np.random.default_rng(0)
    prob_N = 1 / (1 + np.exp(-source.normal(0, 1.5, 200_000)))
    real = Davidson(nu=1.3)
    tie_N = source.random(len(prob_N)) < real.tie_N(prob_N)
    found = fit_davidson(prob_N, tie_N)
    assert found.nu == pytest.approx(1.3, rel=0.02)  # four standard errors
    assert found.tie_N(prob_N).sum() == pytest.approx(tie_N.sum()), "the likelihood's own condition"
    near, far = Davidson(nu=1.0).tie_N(np.array([0.5, 0.9]))
    assert (near, far) == pytest.approx((1 / 3, 0.3 / 1.3))
    assert fit_davidson(np.array([0.0, 0.5, 0.5]), np.array([False, True, False])).nu == pytest.approx(2)
    np.testing.assert_array_equal(SameTies(rate=0.3).tie_N(prob_N[:2]), [0.3, 0.3])


def test_lmsys_with_a_model_fitted_on_votes(tmp_path):
    """Two of three near rows are ties and no others: with p 0.5 the odds of a tie are nu / 2."""
    output = predictions(tmp_path / "out", ["8", "9", "7"], [0.5, 0.8, None])
    valid = predictions(tmp_path / "valid", [1, 2, 3, 4, 5], [0.5, 0.5, 0.5, None, 0.5])
    voted = votes(tmp_path / "votes.parquet", ["3", "1", "2", "4", "99"], [0.5, 0.5, 1.0, 0.5, 0.0])
    config = lmsys(tmp_path, tie_votes=(voted,), tie_predictions=valid)
    _, first, second, third = written(config, output)
    assert [float(value) for value in first[1:]] == pytest.approx([1 / 6, 1 / 6, 2 / 3], abs=1e-6)
    assert third[1:] == first[1:], "a row with an error is as one of 0.5"
    p, q, tie = (float(value) for value in second[1:])
    assert p + q + tie == pytest.approx(1)
    assert p / q == pytest.approx(4, rel=1e-5), "who wins where somebody does is as before"
    assert tie / (p + q) == pytest.approx(4 * 0.4, rel=1e-5)
    run = read_run(output)["submission"]
    assert run["nu"] == pytest.approx(4)
    assert "fitted on 3 votes" in run["ties"]


def test_votes_without_ties_or_without_predictions_are_refused_before_anything_is_scored(tmp_path):
    valid = predictions(tmp_path / "valid", ["a", "b"], [0.5, 0.5])
    config = lmsys(tmp_path, tie_votes=(votes(tmp_path / "none.parquet", ["a", "b"], [1, 0]),))
    with pytest.raises(DataError, match=r"--tie-votes .*: 0 of 2 votes are ties.*--ties soft"):
        check_submission(config, str(tmp_path / "out"), [])
    others = votes(tmp_path / "others.parquet", ["y", "z"], [0.5, 0])
    config = lmsys(tmp_path, tie_votes=(others,), tie_predictions=valid)
    with pytest.raises(DataError, match=r"predictions of 0 of the votes in .*others\.parquet.*--tie-rate"):
        check_submission(config, str(tmp_path / "out"), [])
    taken = SubmissionConfig(submission=others)
    with pytest.raises(ConfigError, match="would overwrite an input"):
        check_submission(taken, str(tmp_path / "out"), [others])
    assert check_submission(SubmissionConfig(), str(tmp_path / "out"), []) is None


def test_a_submission_within_the_output_is_warned_of(tmp_path, caplog):
    output = str(tmp_path / "out")
    check_submission(SubmissionConfig(submission=f"{output}/s.csv"), output, [])
    assert "which pandas and polars then cannot read as one table" in caplog.text
