"""An error that another try would meet again ends a run; what may pass is raised, to be tried again."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import ControllerError, WorkerGroupError

from wsdm_ray.errors import DataError, StorageError, WsdmRayError
from wsdm_ray.failures import FinalError, WorkerDefectError, unpack_error
from wsdm_ray.training import worker
from wsdm_ray.training.health import TrainingDivergedError
from wsdm_ray.training.ray_train import EndAtFinalErrors, own_error
from wsdm_ray.training.worker import work


def worked(monkeypatch, error: Exception, num_workers: int) -> Any:
    def fail(task: Any) -> None:
        raise error

    monkeypatch.setattr(worker, "run_worker", fail)
    return work({"task": SimpleNamespace(config=SimpleNamespace(num_workers=num_workers))})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("error", [AttributeError("no 'x'"), IndexError("3"), DataError("no rows")])
def test_of_one_worker_it_is_the_result(monkeypatch, error):
    found = unpack_error(worked(monkeypatch, error, 1).error)
    assert str(error) in str(found)
    assert isinstance(found, WsdmRayError if isinstance(error, DataError) else WorkerDefectError)


@pytest.mark.parametrize("error", [AttributeError("no 'x'"), DataError("no rows")])
def test_among_several_it_is_raised_as_final(monkeypatch, error):
    with pytest.raises(FinalError) as caught:
        worked(monkeypatch, error, 2)
    assert str(error) in str(unpack_error(str(caught.value)))
    assert caught.value.__suppress_context__


def test_what_every_worker_has_is_the_result(monkeypatch):
    found = unpack_error(worked(monkeypatch, TrainingDivergedError("step 3: loss nan"), 2).error)
    assert (type(found), str(found)) == (WsdmRayError, "step 3: loss nan")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("error", [RuntimeError("CUDA error"), StorageError("time-out"), MemoryError()])
def test_what_may_pass_is_raised_as_it_is(monkeypatch, error, workers):
    with pytest.raises(type(error)):
        worked(monkeypatch, error, workers)


def test_the_controller_gives_up_at_a_final_error_alone():
    after_exception = EndAtFinalErrors().after_exception
    after_exception(None, {0: RuntimeError("NCCL"), 1: OSError()})
    final = SimpleNamespace(_base_exc=FinalError('["DataError", "no rows"]'))
    with pytest.raises(ControllerError) as caught:
        after_exception(None, {0: RuntimeError("closed by peer"), 1: final})  # pyright: ignore[reportArgumentType]
    error = own_error(caught.value)
    assert (type(error), str(error)) == (DataError, "no rows")


def test_any_other_failure_of_a_run_is_none_of_ours():
    assert own_error(WorkerGroupError("died", {0: RuntimeError()})) is None
    assert own_error(ControllerError(RuntimeError("no placement group"))) is None
