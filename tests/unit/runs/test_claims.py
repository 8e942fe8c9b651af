"""Records that are empty or cut off, as a process leaves them that is killed on a disk without hard links."""

import errno
import os
from pathlib import Path

import pytest

from tests.runs import finish_run, open_run
from wsdm_ray.errors import RunBusyError, RunMismatchError
from wsdm_ray.runs import hold_run, read_run
from wsdm_ray.runs.names import place_of, run_folder
from wsdm_ray.storage import write_json

OPTIONS = {"seed": 0}
JOBS = ["score", "prepare"]


class KilledError(BaseException):
    """In place of a signal."""


@pytest.fixture
def killed_at(monkeypatch):
    """Lets whoever creates a file of that name on a disk without hard links end before it has content."""
    renamed = os.replace

    def refuse(source, target):
        raise OSError(errno.EPERM, "no hard links")

    def kill_at(name: str) -> None:
        def replace(source, target):
            if os.path.basename(target) == name:
                raise KilledError
            renamed(source, target)

        monkeypatch.setattr(os, "link", refuse)
        monkeypatch.setattr(os, "replace", replace)

    return kill_at


@pytest.mark.parametrize("job", JOBS)
def test_an_empty_claim_is_no_run_with_restart_and_else_named(tmp_path, killed_at, monkeypatch, job):
    output = str(tmp_path / "out")
    killed_at("_run.json")
    with pytest.raises(KilledError):
        open_run(output, job, OPTIONS, restart=False)
    monkeypatch.undo()
    claim = Path(place_of(output, job), "_run.json")
    assert claim.read_bytes() == b""
    for content in (b"", b'{\n  "job": "sco'):
        claim.write_bytes(content)
        with pytest.raises(RunMismatchError) as caught:
            open_run(output, job, OPTIONS, restart=False)
        assert str(caught.value).startswith(f"{claim}: is empty or cut off, as of a process that was killed")
        assert str(caught.value).endswith("; delete it, or add --restart")
        assert claim.read_bytes() == content
    assert open_run(output, job, OPTIONS, restart=True) is None
    with hold_run(output, job, OPTIONS, restart=False) as run:
        run.finish({"rows": 1})
    assert read_run(output)["rows"] == 1


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("restart", [False, True])
def test_a_run_that_was_killed_as_it_finished_goes_on(tmp_path, killed_at, monkeypatch, job, restart):
    output = str(tmp_path / "out")
    killed_at("run.json")
    assert open_run(output, job, OPTIONS, restart=False) is None
    write_json(f"{output}/part-000000.parquet", "rows")
    with pytest.raises(KilledError):
        finish_run(output, job, OPTIONS, {"rows": 1})
    monkeypatch.undo()
    assert Path(place_of(output, job), "run.json").read_bytes() == b""
    with hold_run(output, job, OPTIONS, restart) as run:
        assert run.finished is None
        assert Path(output, "part-000000.parquet").exists() != restart
        run.finish({"rows": 2})
    assert read_run(output)["rows"] == 2


@pytest.mark.parametrize("restart", [False, True])
def test_who_is_about_to_write_a_claim_is_at_work(tmp_path, restart):
    output = str(tmp_path / "out")
    with hold_run(output, "score", OPTIONS, restart=False):
        Path(run_folder(output), "_run.json").write_bytes(b"")
        with pytest.raises(RunBusyError, match="is at work on it"):
            open_run(output, "score", OPTIONS, restart)


@pytest.mark.parametrize("content", [b"", b"{", b"not ours", b'{"not": "ours"}'])
def test_files_beside_a_record_that_says_nothing_are_never_deleted(tmp_path, content):
    output = tmp_path / "out"
    output.mkdir()
    (output / "run.json").write_bytes(content)
    (output / "part-000000.parquet").write_bytes(b"rows")
    with pytest.raises(RunMismatchError) as caught:
        open_run(str(output), "prepare", OPTIONS, restart=True)
    cut = content in (b"", b"{")
    assert (f"and {output}/run.json is empty or cut off; choose another --output" in str(caught.value)) == cut
    assert sorted(path.name for path in output.iterdir()) == ["part-000000.parquet", "run.json"]


@pytest.mark.parametrize("content", [b"not ours", b'{"not": "ours"}'])
def test_a_record_of_another_program_is_not_deleted(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(
        RunMismatchError, match=r"holds run\.json, which no run of prepare left there; choose"
    ):
        open_run(str(tmp_path), "prepare", OPTIONS, restart=True)
    assert (tmp_path / "run.json").read_bytes() == content
