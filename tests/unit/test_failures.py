"""Which errors another try would meet again, and how they come back from other processes."""

import pytest
import torch

from wsdm_ray.errors import ClusterError, ConfigError, DataError, ModelError, StorageError, WsdmRayError
from wsdm_ray.failures import WorkerDefectError, is_deterministic, pack_error, unpack_error


def raised_from(cause: BaseException, error: Exception) -> Exception:
    """The error as `raise ... from` leaves it."""
    try:
        raise error from cause
    except Exception as caught:
        return caught


@pytest.mark.parametrize(
    "error",
    [
        AttributeError("no 'x'"), IndexError("3"), TypeError(), ValueError(), KeyError("k"), AssertionError(),
        ImportError(), NameError(), NotImplementedError(), ZeroDivisionError(), UnicodeError(),
        ConfigError("o"), DataError("d"), ModelError("m"), WsdmRayError("diverged"),
        raised_from(KeyError("k"), ValueError("v")), raised_from(OSError("no such file"), ModelError("m")),
    ],
    ids=repr,
)  # fmt: skip
def test_another_try_would_meet_it_again(error):
    assert is_deterministic(error)


@pytest.mark.parametrize(
    "error",
    [
        StorageError("time-out"), ClusterError("no memory"), OSError(), ConnectionResetError(),
        TimeoutError(), MemoryError(), RuntimeError("CUDA error: device-side assert triggered"),
        torch.OutOfMemoryError("CUDA out of memory."), torch.AcceleratorError("NCCL"), KeyboardInterrupt(),
        SystemExit(1), raised_from(ConnectionResetError(), ValueError("half a file")),
        raised_from(raised_from(RuntimeError("NCCL"), KeyError("k")), IndexError("3")),
    ],
    ids=repr,
)  # fmt: skip
def test_another_try_may_do_without_it(error):
    assert not is_deterministic(error)


def test_an_error_that_was_raised_while_a_passing_one_was_handled_may_be_gone_with_it():
    error = AttributeError("no 'x'")
    error.__context__ = TimeoutError()
    assert not is_deterministic(error)
    error.__suppress_context__ = True  # raised `from None`
    assert is_deterministic(error)


def test_a_users_error_comes_back_as_itself():
    found = unpack_error(pack_error(ConfigError("--orders ab: no")))
    assert (type(found), str(found)) == (ConfigError, "--orders ab: no")

    class DivergedError(WsdmRayError):
        pass

    assert type(unpack_error(pack_error(DivergedError("step 3")))) is WsdmRayError


def test_a_defect_comes_back_as_the_traceback_of_where_it_came_up():
    found = unpack_error(pack_error(raised_from(KeyError("k"), AttributeError("no 'x'"))))
    assert type(found) is WorkerDefectError
    lines = str(found).splitlines()
    assert lines[0] == "KeyError: 'k'"
    assert "in raised_from" in str(found)
    assert lines[-1] == "AttributeError: no 'x'"
