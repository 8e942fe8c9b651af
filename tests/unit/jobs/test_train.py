"""`train` draws its curves after a run, and after a dry run none."""

import pytest

from jobs import _train
from wsdm_ray.config import TrainConfig


@pytest.mark.parametrize("dry_run", [True, False])
def test_curves_are_drawn_of_a_run_and_not_of_a_dry_one(monkeypatch, dry_run):
    drawn: list[str] = []
    monkeypatch.setattr(_train, "train", lambda config: {"steps": 3})
    monkeypatch.setattr(_train, "draw", drawn.append)
    given = TrainConfig(base="b", train=("t",), output="o", dry_run=dry_run)
    assert _train.train_and_draw(given) == {"steps": 3}
    assert drawn == ([] if dry_run else ["o"])
