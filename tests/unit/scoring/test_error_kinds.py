"""Errors of rows by kind, with an example each, through the footers of parts."""

import pyarrow as pa

from wsdm_ray.scoring.error_kinds import (
    ErrorKind,
    by_process,
    count_kinds,
    kinds_from_json,
    kinds_to_json,
    merge_kinds,
)
from wsdm_ray.scoring.parts import UnitReport, joined_reports


def predictions(errors):
    return pa.table({"id": pa.array(range(len(errors)), pa.int64()), "error": pa.array(errors, pa.string())})


def test_kinds_are_counted_with_the_first_id():
    errors = [
        None,
        "prompt is null",
        "the model fails on this row (no kernel)",
        "the model fails on this row (NaN)",
        "out of memory at 7 tokens; score it with a lower --max-tokens",
        "process died: signal 9",
        "timed out after 5 s",
    ]
    kinds = count_kinds(predictions(errors))
    assert kinds == {
        "prompt is null": ErrorKind(1, "1"),
        "the model fails on this row": ErrorKind(2, "2"),
        "out of memory at 7 tokens": ErrorKind(1, "4"),
        "process died: signal 9": ErrorKind(1, "5"),
        "timed out after 5 s": ErrorKind(1, "6"),
    }
    assert by_process(kinds) == 2
    assert kinds_from_json(kinds_to_json(kinds)) == kinds
    assert kinds_to_json({}) == ""
    merged = merge_kinds([kinds, {"prompt is null": ErrorKind(5, "x")}])
    assert merged["prompt is null"] == ErrorKind(6, "1")
    assert next(iter(merged)) == "prompt is null"


def test_kinds_are_few_whatever_texts_there_are():
    kinds = count_kinds(predictions([f"takes {number} tokens" for number in range(100)]))
    assert len(kinds) == 21
    assert kinds["other errors"] == ErrorKind(80, "20")


def test_a_footer_keeps_kinds_and_parts_are_joined():
    one = UnitReport(unit=3, rows=4, errors=1, kinds=kinds_to_json({"prompt is null": ErrorKind(1, "a")}))
    assert UnitReport.from_footer(one.to_footer()) == one
    assert "kinds" not in UnitReport(unit=3, rows=4).to_footer().decode()
    other = UnitReport(unit=3, rows=2, tokens=9, token_budget=64)
    joined = joined_reports(3, [one, other])
    assert (joined.rows, joined.errors, joined.tokens, joined.token_budget) == (6, 1, 9, 64)
    assert kinds_from_json(joined.kinds) == {"prompt is null": ErrorKind(1, "a")}
