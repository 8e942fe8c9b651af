"""The rows of a unit: a row is read alike in whatever unit it is."""

import pyarrow as pa
import pytest

from tests.unit.scoring.fakes import plan_of
from wsdm_ray.scoring.unit_rows import read_unit


def test_lists_of_turns_are_joined_with_a_warning(write, caplog):
    lists = {name: pa.array([["one"], ["1", None]]) for name in ("prompt", "response_a", "response_b")}
    as_json = {name: pa.array(['["one"]', '["1", null]']) for name in lists}
    for columns in (lists, as_json):
        [unit] = plan_of([write(pa.table({"id": [1, 2], **columns}))], 10).units
        assert read_unit(unit).table["prompt"].to_pylist() == ["one", "[turn 1]\n1\n\n[turn 2]\n"]
        assert "their texts are joined as by --format lmsys-57k" in caplog.text
        caplog.clear()


@pytest.mark.parametrize("odd", [3, 150])
def test_a_text_is_the_same_in_whatever_unit_it_is_read(write, odd):
    """Whether texts are lists is a matter of the file, not of what a row is read with."""
    plain = [f"text {row}" for row in range(200)]
    lists = [f'["turn {row}", "more"]' for row in range(200)]
    for most, few in ((plain, lists), (lists, plain)):
        texts = [few[row] if row == odd else most[row] for row in range(200)]
        columns = dict.fromkeys(("prompt", "response_a", "response_b"), texts)
        path = write(pa.table({"id": range(200), **columns}))
        whole, *parts = (
            [
                text
                for unit in plan_of([path], rows).units
                for text in read_unit(unit).table["prompt"].to_pylist()
            ]
            for rows in (200, 7, 1)
        )
        assert parts == [whole, whole]
        assert whole[0] == (texts[0] if most is plain or odd < 100 else "[turn 1]\nturn 0\n\n[turn 2]\nmore")
