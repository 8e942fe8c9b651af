"""`train` draws its curves after a run, and after a dry run none."""

import dataclasses
from types import SimpleNamespace

import pytest

from jobs import _train
from wsdm_ray.config import TrainConfig
from wsdm_ray.errors import ClusterError, RunMismatchError, StorageError
from wsdm_ray.training import ray_train, runner


@pytest.mark.parametrize("dry_run", [True, False])
def test_curves_are_drawn_of_a_run_and_not_of_a_dry_one(monkeypatch, dry_run):
    drawn: list[str] = []
    monkeypatch.setattr(_train, "train", lambda config, on_failure: {"steps": 3})
    monkeypatch.setattr(_train, "draw", drawn.append)
    given = TrainConfig(base="b", train=("t",), output="o", dry_run=dry_run)
    assert _train.train_and_draw(given) == {"steps": 3}
    assert drawn == ([] if dry_run else ["o"])


def test_what_never_began_leaves_no_curves(tmp_path):
    output = tmp_path / "out"  # of another run, which is under way
    output.mkdir()
    (output / "_run.json").write_text("{}")
    with pytest.raises(StorageError, match="no-such-votes"):
        _train.train_and_draw(TrainConfig(base="b", train=(f"{tmp_path}/no-such-votes",), output=str(output)))
    assert [path.name for path in output.iterdir()] == ["_run.json"]


def test_curves_are_drawn_of_a_run_that_began_and_failed(monkeypatch, tmp_path):
    def fail(checked: object) -> None:
        raise ClusterError("too many failures")

    drawn: list[str] = []
    monkeypatch.setattr(_train, "draw", drawn.append)
    monkeypatch.setattr(runner.preflight, "checked", lambda config: (SimpleNamespace(fingerprint={}), None))
    monkeypatch.setattr(ray_train, "execute", fail)
    output = str(tmp_path / "out")
    given = TrainConfig(base="b", train=("t",), output=output)
    with pytest.raises(ClusterError):
        _train.train_and_draw(given)
    assert drawn == [output]
    monkeypatch.setattr(runner, "numeric_versions", lambda some: {"torch": "0", **dict.fromkeys(some, "0")})
    with pytest.raises(RunMismatchError, match=r"begun with other versions.*torch.*--allow-version-change"):
        _train.train_and_draw(given)
    assert drawn == [output], "nothing was begun"
    with pytest.raises(ClusterError):
        _train.train_and_draw(dataclasses.replace(given, allow_version_change=True))
