"""Libraries' noise is dropped by its own text; whatever else they say is shown."""

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from wsdm_ray.noise import (
    MESSAGES,
    SCALING,
    Drop,
    quiet_environment,
    quiet_forwarded,
    quiet_libraries,
    without_noise,
)

ROOT = Path(__file__).parents[2]
RESTART = (
    "[2026-11-29 05:40:17,411 E 12 12] core_worker.cc:2465: Actor with class name: '{}' and ID: '0a' has "
    "constructor arguments in the object store and max_restarts > 0. If the arguments in the object store ..."
)


@pytest.mark.parametrize(
    ("logger", "noise", "real"),
    [
        ("ray._private.authentication.authentication_token_setup",
         "Token authentication is enabled for this Ray cluster. Set RAY_AUTH_MODE=disabled to opt out.",
         "Token authentication is disabled for this Ray cluster. Anyone with network access can run code."),
        ("bitsandbytes.autograd._functions",
         "MatMul8bitLt: inputs will be cast from torch.float32 to float16 during quantization",
         "MatMul8bitLt: weights are not contiguous"),
        ("ray.train.v2._internal.util",
         "Error in training function:\nTraceback\n  File ...\nwsdm_ray.failures.FinalError: []",
         "Error in training function:\nTraceback\n  File ...\nRuntimeError: NCCL error"),
    ],
)  # fmt: skip
def test_messages_of_loggers(logger, noise, real, caplog):
    assert logger in MESSAGES
    quiet_libraries()
    quiet_libraries()
    assert sum(isinstance(each, Drop) for each in logging.getLogger(logger).filters) == 1
    with caplog.at_level(logging.WARNING, logger):
        logging.getLogger(logger).warning(noise)
        logging.getLogger(logger).warning(real)
    assert caplog.messages == [real]


@pytest.mark.parametrize(
    ("logger", "message", "shown"),
    [
        ("autoscaling_coordinator_client", "Failed to send resource request for train-1.", False),
        ("autoscaling_coordinator_client", "Failed to cancel resource request for train-1.", False),
        ("autoscaling_coordinator_client", "Failed otherwise", True),
        ("elastic", "Failed to get reserved resources for train-1.", False),
        ("elastic", "Failed otherwise", True),
    ],
)
def test_warnings_that_are_safe_to_ignore_come_without_a_traceback(logger, message, shown, caplog):
    quiet_libraries()
    name = f"{SCALING}.{logger}"
    with caplog.at_level(logging.WARNING, name):
        try:
            raise TimeoutError
        except TimeoutError:
            logging.getLogger(name).warning(message, exc_info=True)
    [record] = caplog.records
    assert (record.message, bool(record.exc_info)) == (message, shown)


def test_future_warnings_of_others_alone():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        quiet_libraries()
        for module in ("transformers.utils", "torchvision.x", "wsdm_ray.modeling.lora"):
            warnings.warn_explicit("later", FutureWarning, "file.py", 1, module)
        warnings.warn_explicit("now", UserWarning, "file.py", 1, "transformers.utils")
    assert [str(each.message) for each in seen] == ["later", "later", "now"]


def test_a_users_own_variables_stay(monkeypatch):
    monkeypatch.setenv("RAY_DEDUP_LOGS", "1")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "")
    quiet_environment()
    assert os.environ["RAY_DEDUP_LOGS"] == "1"


@pytest.mark.parametrize(
    ("actor", "lines", "shown"),
    [
        ("TrainController", [RESTART.format("PreemptionWatcher"), "NCCL timed out"], ["NCCL timed out"]),
        ("PlacementGroupCleaner",
         ["Exception in thread PlacementGroupCleanerMonitor:", "Traceback (most recent call last):",
          "  File placement_group_cleaner.py", "ConnectionError: Found multiple active Ray instances",
          "Detected that the Ray Train controller actor (0a) is dead. Cleaning up"],
         ["Detected that the Ray Train controller actor (0a) is dead. Cleaning up"]),
        ("RayTrainWorker", ["Traceback (most recent call last):"], ["Traceback (most recent call last):"]),
        (None, [RESTART.format("Mine")], [RESTART.format("Mine")]),
    ],
)  # fmt: skip
def test_lines_of_other_processes(actor, lines, shown):
    batch = {"lines": lines, "actor_name": actor, "pid": 7, "is_err": True}
    assert without_noise(batch) == batch | {"lines": shown}
    seen: list[dict] = []
    handlers = [("print", seen.append)]
    quiet_forwarded(handlers)
    handlers[0][1](batch)
    assert (handlers[0][0], seen) == ("print", [batch | {"lines": shown}])


def test_rays_core_writes_to_standard_error_itself():
    code = f"""
import os, sys
from wsdm_ray.noise import filter_native_lines
filter_native_lines()
os.write(2, {(RESTART.format("Replica") + chr(10)).encode()!r})
os.write(2, b"raylet: out of disk\\n")
print("of Python", file=sys.stderr)
os.abort()
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert sorted(run.stderr.splitlines()) == ["of Python", "raylet: out of disk"], "of a crash too"


def test_what_is_logged_when_a_whole_group_of_processes_is_asked_to_end():
    """As `ray job stop` does. The log's lines do not go through the filter, and it stays for Ray's core."""
    code = """
import os, signal
from wsdm_ray.noise import filter_native_lines
from wsdm_ray.telemetry import logger, set_up_logging
set_up_logging()
filter_native_lines()
def stop(*_):
    logger.warning("stopped: 3 of 9 done")
    os.write(2, b"raylet: ended\\n")
signal.signal(signal.SIGTERM, stop)
os.killpg(0, signal.SIGTERM)
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, capture_output=True, text=True, check=False, start_new_session=True,
    )  # fmt: skip
    first, second = sorted(run.stderr.splitlines())
    assert first.endswith(" stopped: 3 of 9 done")
    assert second == "raylet: ended"
