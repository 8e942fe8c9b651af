"""Lists of turns in memory are joined as in files; other texts stay as they are."""

import json

import pandas as pd
import pyarrow as pa
import pytest

from wsdm_ray.config import Columns
from wsdm_ray.errors import DataError
from wsdm_ray.scoring.pair_rows import read_pair_rows

LISTS = {
    "prompt": [["Hi", "And?"], ["Yo"], None],
    "response_a": [["a", None], ["b"], ["c"]],
    "response_b": [["d", "e"], ["f"], ["g"]],
}
JOINED = {
    "prompt": ["[turn 1]\nHi\n\n[turn 2]\nAnd?", "Yo", ""],
    "response_a": ["[turn 1]\na\n\n[turn 2]\n", "b", "c"],
    "response_b": ["[turn 1]\nd\n\n[turn 2]\ne", "f", "g"],
}


def test_lists_of_turns_are_joined():
    as_json = {name: [value and json.dumps(value) for value in column] for name, column in LISTS.items()}
    rows = [dict(zip(LISTS, values, strict=True)) for values in zip(*LISTS.values(), strict=True)]
    for given in (pd.DataFrame(LISTS), pa.table(LISTS), rows, pd.DataFrame(as_json), pa.table(as_json)):
        pairs = read_pair_rows(given, Columns())
        assert pairs.texts == JOINED
        assert pairs.errors_N.tolist() == [None, None, "prompt is null"]


def test_a_text_that_is_json_stays_itself_where_another_column_is_text():
    given = pd.DataFrame(
        {"prompt": ['["x"]', "plain"], "response_a": ['["a"]'] * 2, "response_b": ['["b"]'] * 2}
    )
    assert read_pair_rows(given, Columns()).texts["prompt"] == ['["x"]', "plain"]


@pytest.mark.parametrize("series", [pd.Series(["p"]), pd.DataFrame([{"prompt": "p", "n": 1}]).iloc[0]])
def test_a_column_is_no_table(series):
    with pytest.raises(DataError, match="a Series, which is no table: give a DataFrame"):
        read_pair_rows(series, Columns())
