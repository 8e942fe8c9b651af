"""Errors of rows by kind, with an example each, through the footers of parts."""

import itertools

import pyarrow as pa

from wsdm_ray.inputs.cells import brief
from wsdm_ray.scoring.error_kinds import (
    ErrorKind,
    by_process,
    count_kinds,
    kind_of,
    kinds_from_json,
    kinds_to_json,
    merge_kinds,
)
from wsdm_ray.scoring.parts import UnitReport, joined_reports
from wsdm_ray.scoring.recovery import over_budget_error


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
        "out of memory at N tokens": ErrorKind(1, "4"),
        "process died: signal 9": ErrorKind(1, "5"),
        "timed out after N s": ErrorKind(1, "6"),
    }
    assert by_process(kinds) == 2
    assert kinds_from_json(kinds_to_json(kinds)) == kinds
    assert kinds_to_json({}) == ""
    merged = merge_kinds([kinds, {"prompt is null": ErrorKind(5, "x")}])
    assert merged["prompt is null"] == ErrorKind(6, "1")
    assert next(iter(merged)) == "prompt is null"


def errors_of_row(row: int) -> dict[str, str]:
    """An error of each kind, as a row may have it, by the kind."""
    text = f"some 'text', but not {row}; (x"
    many = [{"role": f"r{row}", "content": text}] * (row % 3)
    return {
        "out of memory at N tokens": f"out of memory at {row} tokens; score it with a lower --max-tokens",
        "takes N tokens in the layout packed, over the token budget of N": over_budget_error(
            row + 1_000, "packed", row
        ),
        "timed out after N s": f"timed out after {row / 7:g} s",
        "cannot be read from row N on": f"s3://b/x (1); {row}: y: cannot be read from row {row} on (?)",
        "process died: signal 9": "process died: signal 9",
        "process died: exit status 7": "process died: exit status 7",
        "process failed: RuntimeError: no file ... at N": (
            f"process failed: RuntimeError: no file /tmp/{row}/x at 0x{row:x}"
        ),
        "prompt is not UTF-8": "prompt is not UTF-8",
        "prompt is ..., but text is needed": f"prompt is {brief(many)}, but text is needed",
        "chosen is ..., but text is needed": f"chosen is {brief(text * (row % 3))}, but text is needed",
        "chosen is ...": f"chosen is {', '.join(['user', f'tool {row}'] * (row + 1))}; the last must be one",
        "x is N, not within N to N": f"x is {row / 3:g}, not within -3 to 3",
    }


def test_a_kind_holds_nothing_that_differs_from_row_to_row():
    for row in range(20):
        for kind, error in errors_of_row(row).items():
            assert kind_of(error) == kind_of(kind_of(error)) == kind


def test_kinds_of_a_run_are_few_whatever_texts_there_are():
    words = ["".join(letters) for letters in itertools.product("abcdefgh", repeat=3)]
    kinds = count_kinds(predictions([*words[:100], *(f"process failed: {word}" for word in words[:5])]))
    assert len(kinds) == 22
    assert kinds["other errors"] == ErrorKind(80, "20")
    assert kinds["process died: in other ways"] == ErrorKind(5, "100")
    assert by_process(kinds) == 5, "also those that are not told apart"
    run = merge_kinds(
        {f"{start} {word * 100}": ErrorKind(1, word)}
        for word in words
        for start in ("wrong", "process failed:")
    )
    assert len(run) == 202
    assert max(map(len, run)) == 100
    assert sum(kind.rows for kind in run.values()) == 2 * len(words)
    assert by_process(run) == len(words)


def test_parts_of_earlier_versions_have_numbers_in_their_kinds():
    old = [{f"out of memory at {tokens} tokens": ErrorKind(1, str(tokens))} for tokens in (7, 9)]
    assert merge_kinds(old) == {"out of memory at N tokens": ErrorKind(2, "7")}


def test_a_footer_keeps_kinds_and_parts_are_joined():
    one = UnitReport(unit=3, rows=4, errors=1, kinds=kinds_to_json({"prompt is null": ErrorKind(1, "a")}))
    assert UnitReport.from_footer(one.to_footer()) == one
    assert "kinds" not in UnitReport(unit=3, rows=4).to_footer().decode()
    other = UnitReport(unit=3, rows=2, tokens=9, token_budget=64)
    joined = joined_reports(3, [one, other])
    assert (joined.rows, joined.errors, joined.tokens, joined.token_budget) == (6, 1, 9, 64)
    assert kinds_from_json(joined.kinds) == {"prompt is null": ErrorKind(1, "a")}
