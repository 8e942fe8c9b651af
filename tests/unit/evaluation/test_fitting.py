import numpy as np
import pytest

from wsdm_ray.evaluation.fitting import LEAST_FIT_GROUPS, LEAST_FIT_ROWS, parts_by_prompt, shortage


@pytest.mark.parametrize(
    ("rows", "groups", "enough"), [(200, 100, True), (199, 199, False), (1000, 99, False)]
)
def test_what_is_enough(rows, groups, enough):
    assert (LEAST_FIT_ROWS, LEAST_FIT_GROUPS) == (200, 100)
    assert (shortage(np.arange(rows) % groups) is None) == enough


def test_a_shortage_says_what_there_is():
    assert shortage(np.arange(11) // 2) == (
        "11 votes on 6 prompts are too few (at least 200 votes on 100 prompts)"
    )


def test_rows_of_one_prompt_are_in_one_part():
    groups = np.array([7, 2**64 - 1, 7, 5], dtype=np.uint64)
    assert parts_by_prompt(groups, 5).tolist() == [2, 0, 2, 0]
