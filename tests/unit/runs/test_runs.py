"""An output folder belongs to one run."""

import json
from pathlib import Path

import pytest

from tests.runs import finish_run, open_run
from wsdm_ray.config import ArenaConfig
from wsdm_ray.errors import ConfigError, RunBusyError, RunMismatchError, StorageError
from wsdm_ray.runs import (
    PRIVATE_FOLDER,
    changes,
    check_no_overlap,
    check_no_overwrite,
    claims,
    file_versions,
    hold_run,
    options,
    read_run,
    run_folder,
)
from wsdm_ray.runs.names import names_in
from wsdm_ray.storage import filesystem, write_json

OPTIONS = {"options": {"seed": 0, "columns": {"id": "id"}}, "inputs": {"a.parquet": {"bytes": 1}}}


def test_same_run_is_found_again_once_it_is_finished(tmp_path):
    folder = str(tmp_path / "new" / "folder")
    assert open_run(folder, "prepare", OPTIONS, restart=False) is None
    (Path(folder) / "part-000000.parquet").write_bytes(b"half")
    assert open_run(folder, "prepare", OPTIONS, restart=False) is None, "unfinished, and its own"
    run = finish_run(folder, "prepare", OPTIONS, {"rows": (1, 2)})
    assert run["rows"] == [1, 2]
    assert open_run(folder, "prepare", OPTIONS, restart=False) == run
    assert sorted(path.name for path in Path(folder).iterdir()) == ["part-000000.parquet", "run.json"]


def test_another_run_is_refused_by_the_names_of_what_changed(tmp_path):
    folder = str(tmp_path)
    finish_run(folder, "prepare", OPTIONS, {})
    other = {"options": {"seed": 1, "columns": {"id": "key"}}, "inputs": {"b.parquet": {"bytes": 1}}}
    with pytest.raises(RunMismatchError) as caught:
        open_run(folder, "prepare", other, restart=False)
    message = str(caught.value)
    for part in (
        folder,
        "options.seed: 0 -> 1",
        'options.columns.id: "id" -> "key"',
        "inputs.a.parquet: gone",
        "inputs.b.parquet: new",
        "--restart",
    ):
        assert part in message
    with pytest.raises(RunMismatchError, match='job: "prepare" -> "arena"'):
        open_run(folder, "arena", OPTIONS, restart=False)


def test_restart_leaves_the_run_of_another_job(tmp_path):
    finish_run(str(tmp_path), "train", OPTIONS, {})
    with pytest.raises(RunMismatchError, match="holds a run of train, which --restart of prepare does not"):
        open_run(str(tmp_path), "prepare", OPTIONS, restart=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_what_changed_in_a_list_is_named():
    long = "x" * 60
    assert changes({"models": [{"digest": long + "1"}, 2]}, {"models": [{"digest": long + "1"}, 3]}) == [
        "models[1]: 2 -> 3"
    ]


def test_restart_deletes_what_was_there(tmp_path):
    folder = str(tmp_path)
    finish_run(folder, "prepare", OPTIONS, {})
    (tmp_path / "part-000007.parquet").write_bytes(b"old")
    assert open_run(folder, "prepare", {"seed": 2}, restart=True) is None
    assert [path.name for path in tmp_path.iterdir()] == ["_run.json"]


def test_leftovers_of_a_job_that_does_not_resume_are_deleted(tmp_path):
    folder = str(tmp_path)
    open_run(folder, "arena", {"seed": 1}, restart=False)
    (tmp_path / "part-000007.parquet").write_bytes(b"old")
    with pytest.raises(RunMismatchError, match="seed: 1 -> 2"):
        open_run(folder, "arena", {"seed": 2}, restart=False)
    assert open_run(folder, "arena", {"seed": 2}, restart=False, resumes=False) is None
    assert [path.name for path in tmp_path.iterdir()] == ["_run.json"]


@pytest.mark.parametrize("restart", [False, True])
def test_what_a_run_at_work_wrote_is_not_deleted(tmp_path, restart):
    folder = str(tmp_path)
    with hold_run(folder, "prepare", {"seed": 1}, restart=False, resumes=False):
        (tmp_path / "part-000007.parquet").write_bytes(b"rows")
        before = tree(tmp_path)
        assert before == ["_lease-000001.json", "_run.json", "part-000007.parquet"]
        with pytest.raises(RunBusyError, match="is at work on it; wait for it"):
            open_run(folder, "prepare", {"seed": 1}, restart, resumes=False)
        kind, message = (
            (RunBusyError, "is at work on it") if restart else (RunMismatchError, "another command")
        )
        with pytest.raises(kind, match=message):
            open_run(folder, "prepare", {"seed": 2}, restart, resumes=False)
        with pytest.raises(RunMismatchError, match=r'job: "prepare" -> "arena"|holds a run of prepare'):
            open_run(folder, "arena", {"seed": 1}, restart)
        assert tree(tmp_path) == before
    assert tree(tmp_path) == before[1:]


def test_two_kinds_of_jobs_do_not_share_a_folder(tmp_path, monkeypatch):
    """The record of the one lies beside the folder, that of the other within it: each looks for both."""
    output = str(tmp_path / "out")
    before = claims.check_empty

    def late(*place):
        before(*place)
        monkeypatch.setattr(claims, "check_empty", before)
        write_json(f"{output}/_run.json", {"job": "prepare", "fingerprint": {}, "claim": "1 x"})

    monkeypatch.setattr(claims, "check_empty", late)
    with pytest.raises(RunMismatchError, match="a run of prepare begins there, too; choose another --output"):
        open_run(output, "score", OPTIONS, restart=False)
    assert tree(tmp_path) == ["out/_run.json"]


@pytest.mark.parametrize("name", ["holiday.jpg", "part-000000.parquet", ".hidden"])
def test_files_of_no_run_are_refused_even_with_restart(tmp_path, name):
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(RunMismatchError, match=f"holds {name}, which no run of arena left"):
        open_run(str(tmp_path), "arena", {}, restart=True)
    assert (tmp_path / name).exists()


def test_run_json_of_another_program_is_refused(tmp_path):
    (tmp_path / "run.json").write_text('{"distance_km": 10}')
    with pytest.raises(RunMismatchError, match="choose another --output"):
        open_run(str(tmp_path), "arena", {}, restart=True)


def test_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="is a file; give a folder"):
        open_run(str(tmp_path / "file"), "arena", {}, restart=False)


def test_long_lists_of_changes_are_cut():
    assert changes({}, {str(i): i for i in range(7)})[-1] == "and 2 more"


def test_output_around_an_input_is_refused(tmp_path):
    check_no_overlap(
        str(tmp_path / "data"), [str(tmp_path / "data.parquet"), str(tmp_path / "database" / "x")]
    )
    with pytest.raises(ConfigError, match=r"holds the input .*votes.parquet; choose another folder"):
        check_no_overlap(str(tmp_path), [str(tmp_path / "raw" / "votes.parquet")])


def test_options_leave_out_what_does_not_decide_the_output():
    assert options(ArenaConfig(output="x", restart=True)) == {"rows": 5000, "seed": 0, "lengths": "real"}


def test_identity_changes_with_the_file(tmp_path):
    path = tmp_path / "x"
    path.write_text("1")
    before = file_versions([str(path)])
    path.write_text("12")
    assert list(before) == [str(path)]
    assert file_versions([str(path)]) != before


def test_memory_file_system(tmp_path):
    folder = f"memory://runs/{tmp_path.name}"
    assert open_run(folder, "arena", {"seed": 1}, restart=False) is None
    run = finish_run(folder, "arena", {"seed": 1}, {})
    assert open_run(folder, "arena", {"seed": 1}, restart=False) == run
    assert open_run(folder, "arena", {"seed": 2}, restart=True) is None


PART = "part-000000.parquet"


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def begun(tmp_path: Path, job: str = "score") -> str:
    """A run of `job` with one part."""
    output = str(tmp_path / "out")
    assert open_run(output, job, OPTIONS, restart=False) is None
    Path(output).mkdir(exist_ok=True)
    (tmp_path / "out" / PART).write_bytes(b"rows")
    return output


def test_a_table_has_its_run_beside_it(tmp_path):
    output = begun(tmp_path)
    (tmp_path / "out" / f".{PART}.{'0' * 32}.tmp").write_bytes(b"half")
    private = Path(run_folder(output), PRIVATE_FOLDER)
    private.mkdir()
    (private / "input.parquet").write_bytes(b"rows")
    assert read_run(output) == {}, "not finished"
    assert open_run(output, "score", OPTIONS, restart=False) is None, "its own"
    assert (private / "input.parquet").exists()
    run = finish_run(output, "score", OPTIONS, {})
    assert tree(tmp_path) == ["out.run/run.json", f"out/{PART}"]
    assert read_run(output) == open_run(output, "score", OPTIONS, restart=False) == run
    with pytest.raises(RunMismatchError, match="seed: 0 -> 1"):
        open_run(output, "score", {"options": {"seed": 1, **OPTIONS}}, restart=False)
    with pytest.raises(RunMismatchError, match='job: "score" -> "prepare"'):
        open_run(output, "prepare", OPTIONS, restart=False)
    assert open_run(output, "score", {"seed": 2}, restart=True) is None
    assert tree(tmp_path) == ["out.run/_run.json"]


@pytest.mark.parametrize("names", [("run.json",), ("_run.json", "_lost-000001.json")])
def test_a_table_of_an_earlier_version_is_known_and_its_record_moved(tmp_path, names, caplog):
    output = tmp_path / "out"
    output.mkdir()
    (output / PART).write_bytes(b"rows")
    for name in names:
        (output / name).write_text(json.dumps({"job": "score", "fingerprint": OPTIONS}))
    with pytest.raises(RunMismatchError, match="belongs to another run of score"):
        open_run(str(output), "score", {"options": {"seed": 1}}, restart=False)
    assert len(tree(tmp_path / "out")) == 1 + len(names), "another run moves nothing"
    with caplog.at_level("INFO"):
        found = open_run(str(output), "score", OPTIONS, restart=False)
    assert (found is not None) == (names == ("run.json",))
    assert tree(tmp_path) == sorted([f"out/{PART}", *(f"out.run/{name}" for name in names)])
    assert f"moved {names[0]}" in caplog.text


def test_a_table_that_was_deleted_is_made_anew(tmp_path):
    output = begun(tmp_path)
    finish_run(output, "score", OPTIONS, {})
    (tmp_path / "out" / PART).unlink()
    assert open_run(output, "score", {"options": {"seed": 1}}, restart=False) is None
    assert tree(tmp_path) == ["out.run/_run.json"]
    with pytest.raises(RunMismatchError, match="changed"):  # it may be at work on its first part
        open_run(output, "score", OPTIONS, restart=False)
    assert open_run(output, "ensemble", OPTIONS, restart=False) is None


def test_a_folder_beside_a_table_is_of_its_run_or_refused(tmp_path):
    finish_run(str(tmp_path / "out.run"), "train", OPTIONS, {})
    with pytest.raises(
        RunMismatchError, match=r"out\.run: holds run\.json, which no run of score left there"
    ):
        open_run(str(tmp_path / "out"), "score", OPTIONS, restart=True)
    assert run_folder("s3://bucket/a/b/") == "s3://bucket/a/b.run"
    assert run_folder(str(tmp_path / "x" / "..")) == f"{tmp_path}.run"
    for whole in ("s3://bucket", "gs://bucket/", "/"):
        with pytest.raises(ConfigError, match="no place for a folder beside it"):
            run_folder(whole)


def test_nothing_is_written_into_the_folder_beside_a_table(tmp_path):
    output = str(tmp_path / "out")
    check_no_overwrite("--submission", str(tmp_path / "s.csv"), output, [])
    with pytest.raises(ConfigError, match="is of the output itself"):
        check_no_overwrite("--submission", str(tmp_path / "out.run" / "s.csv"), output, [])


def test_a_folder_of_a_store_without_objects_is_nothing():
    """Some stores go on listing a folder whose last object is gone, as after a probe."""
    fs, inner = filesystem("memory://emptied/out")
    fs.makedirs(f"{inner}/predictions")
    assert names_in("memory://emptied/out") == ["predictions"]
    claims.check_empty("memory://emptied/out", "memory://emptied/out", "pseudolabel")
    fs.pipe(f"{inner}/predictions/part-000000.parquet", b"x")
    with pytest.raises(RunMismatchError, match="holds predictions, which no run of pseudolabel left there"):
        claims.check_empty("memory://emptied/out", "memory://emptied/out", "pseudolabel")
