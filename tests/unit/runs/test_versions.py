"""Versions that change numbers: a run that was begun with others is refused, or goes on where it may."""

import platform

import pytest

from wsdm_ray.errors import RunMismatchError
from wsdm_ray.runs import hold_run, numeric_versions, read_run, versions
from wsdm_ray.runs.names import run_folder
from wsdm_ray.runs.versions import CHANGE_SOME_NUMBERS, NUMERIC_VERSION, check_same_numbers, version_changes
from wsdm_ray.storage import read_json, write_json

OLD = {"wsdm_ray numbers": "0", "torch": "2.1.0", "ftfy": "6.3.1"}
NEW = OLD | {"torch": "2.2.0"}


def hold(output: str, allow: bool = False, numbers=NEW, **options):
    return hold_run(
        output, "score", {"seed": 0}, restart=False, numbers=numbers, allow_version_change=allow, **options
    )


@pytest.fixture
def begun(tmp_path) -> str:
    """An output that was begun with old versions, where now there are new ones."""
    output = str(tmp_path / "out")
    with hold(output, numbers=OLD) as run:
        assert run.numbers == OLD
        write_json(f"{output}/part-000000.parquet", "rows")
    return output


def test_other_versions_are_refused_by_name(begun):
    with pytest.raises(RunMismatchError) as caught, hold(begun):
        pass
    assert "torch: 2.1.0 -> 2.2.0. Install those again, add --allow-version-change" in str(caught.value)
    assert "ftfy" not in str(caught.value)


def test_versions_that_may_change_are_recorded(begun):
    with hold(begun, allow=True) as run:
        assert run.numbers == NEW
    with hold(begun) as run:
        run.finish({})
    record = read_run(begun)
    assert record["computed_with"] == NEW
    assert record["version_changes"] == [{"torch": ["2.1.0", "2.2.0"]}]


def test_a_finished_run_is_complete_with_any_version(begun):
    with hold(begun, allow=True) as run:
        run.finish({})
    with hold(begun, numbers=OLD) as run:
        assert run.finished == read_run(begun)
    with (
        pytest.raises(RunMismatchError, match=r"torch: 2\.2\.0 -> 2\.1\.0"),
        hold(begun, numbers=OLD, is_whole=lambda _: False),
    ):
        pass
    assert read_run(begun), "nothing was changed"


def test_runs_of_earlier_versions_have_none_and_go_on(begun):
    path = f"{run_folder(begun)}/_run.json"
    record = read_json(path)
    write_json(path, {name: record[name] for name in ("job", "fingerprint")})
    with hold(begun) as run:
        assert run.numbers == NEW
        run.finish({})
    assert "version_changes" not in read_run(begun)


def test_a_library_that_the_run_did_not_name_when_it_was_begun_is_no_difference(begun):
    """As of earlier versions; from then on it is compared."""
    with_bnb = OLD | {"bitsandbytes": "0.50.2"}
    with hold(begun, numbers=with_bnb) as run:
        assert run.numbers == with_bnb
    other = pytest.raises(RunMismatchError, match=r"numbers: bitsandbytes: 0\.50\.2 -> 0\.51\.0\. Install")
    with other, hold(begun, numbers=OLD | {"bitsandbytes": "0.51.0"}):
        pass


def test_what_changes_numbers():
    found = numeric_versions()
    assert found["wsdm_ray numbers"] == NUMERIC_VERSION
    assert {"torch", "transformers", "tokenizers", "ftfy"} <= found.keys()
    assert versions()["torch"].partition("+")[0] == found["torch"], "its builds have one version"
    assert not {*CHANGE_SOME_NUMBERS} & found.keys()
    some = numeric_versions(["bitsandbytes"])
    assert some == found | {"bitsandbytes": versions()["bitsandbytes"]}
    assert version_changes({"a": "1", "b": "1"}, {"a": "1", "c": "2"}) == {"b": ["1", "none"]}


def test_all_nodes_have_the_versions_of_the_one_where_the_job_was_started():
    check_same_numbers({})
    check_same_numbers(numeric_versions())
    other = numeric_versions() | {"torch": "1.0"}
    with pytest.raises(RunMismatchError, match=f"{platform.node()}: has torch .* instead of 1.0"):
        check_same_numbers(other)
    check_same_numbers(numeric_versions(CHANGE_SOME_NUMBERS))
    with pytest.raises(RunMismatchError, match=r"has bitsandbytes .* instead of 1\.0, which"):
        check_same_numbers(numeric_versions() | {"bitsandbytes": "1.0"})
