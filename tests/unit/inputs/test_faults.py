"""Files that cannot be read: all are named, or left out with a warning."""

import pytest

from wsdm_ray.errors import DataError
from wsdm_ray.inputs.faults import BadFile, BadFiles


def found(number: int, skip: bool = False) -> BadFiles:
    bad = BadFiles(skip)
    for place in range(number):
        bad.add(f"{place}.parquet", DataError(f"{place}.parquet: damaged"), rows=10 if place else None)
    return bad


def test_one_bad_file_is_its_own_error():
    found(0).check(3)
    with pytest.raises(DataError, match=r"^0\.parquet: damaged$"):
        found(1).check(3)


def test_all_bad_files_are_counted_and_the_first_named():
    with pytest.raises(DataError) as caught:
        found(22).check(40)
    named = "; ".join(f"{place}.parquet: damaged" for place in range(20))
    assert str(caught.value) == (
        f"22 of 40 input files cannot be scored: {named}; and 2 more; mend or remove them, or leave them out "
        "with --on-bad-file skip"
    )


def test_bad_files_are_left_out_with_a_warning(caplog):
    bad = found(2, skip=True)
    bad.check(3)
    assert bad.skipped[1] == BadFile(file="1.parquet", reason="1.parquet: damaged", rows=10)
    assert "2 of 3 input files are left out (--on-bad-file skip), with 10 rows" in caplog.text
    assert "and those of 1 file whose rows are not known" in caplog.text
    with pytest.raises(DataError, match="2 of 2 input files"):
        bad.check(2)
