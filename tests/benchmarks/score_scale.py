"""Does the memory of `score` grow with the rows, from S3 to S3?

    PYTHONPATH=. python tests/benchmarks/score_scale.py [--rows 60000 600000] [--cpus 2]

Arena pairs of real lengths are scored on a Ray of this machine, by a model whose answer depends on the number
of tokens alone; all else is as in a real run: reading, repair, tokens, plans, parts. For each number of rows:
the peak memory of the driver, of a reader, of a replica and of Ray's object store, the bytes that were
spilled, and whether every id is in the output once, in order. Writes results/score_scale.json, or --json;
exits with 1 where rows are wrong or bytes were spilled.
"""

import argparse
import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
from common import HERE, ROOT, write_result

from tests.integration.servers import free_ports, run_s3, store_environment
from tests.integration.struck_run import load_hashing, make_model
from wsdm_ray import storage
from wsdm_ray.config import ArenaConfig, ScoreConfig
from wsdm_ray.data.arena import arena_batches, make_arena
from wsdm_ray.schema import TEXTS

SAMPLE_SECONDS = 0.5
TOKENIZER_ROWS = 300

ROLES = {"replica": ("Replica", "replica"), "reader": ("encode", "read)", "reader"), "raylet": ("raylet",)}
"""Words in the command line of a process, by what it is."""


def main() -> None:
    given = arguments()
    if given.drive:
        drive(given)
        return
    with tempfile.TemporaryDirectory(prefix="scale-") as name, store(Path(name)) as bucket:
        make_model(f"{name}/model", given.max_tokens, some_texts(), vocabulary=8_192)
        results = []
        for rows in given.rows:
            results.append(measure(bucket, name, rows, given))
            print(json.dumps(results[-1]), flush=True)
            kept = ("cpus", "max_tokens", "unit_rows", "files")
            settings = {name: getattr(given, name) for name in kept}
            write_result(given.json, str(__doc__).splitlines()[0], settings, {"runs": results})
    if not all(run["rows_right"] and not run["spilled_bytes"] for run in results):
        sys.exit(1)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[60_000, 600_000])
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=1_024)
    parser.add_argument("--files", type=int, help="with rows of all files; by default one for 10,000")
    parser.add_argument("--unit-rows", type=int, default=ScoreConfig.unit_rows)
    parser.add_argument("--object-store-mib", type=int, default=400)
    parser.add_argument("--pace", type=float, default=0.0, help="pairs/s of the replica, as a GPU has one")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "score_scale.json")
    parser.add_argument("--drive", nargs=4, metavar=("MODEL", "INPUT", "OUTPUT", "PEAKS"), help="for itself")
    return parser.parse_args()


@contextlib.contextmanager
def store(folder: Path) -> Iterator[str]:
    """URL of a bucket of an S3 server."""
    port, other = free_ports(2)
    os.environ.update(store_environment(port, other))
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ.pop("RAY_ADDRESS", None)
    (folder / "s3").mkdir()
    with run_s3(folder / "s3", port, volumes=200):
        fs, inner = storage.filesystem("s3://scale")
        fs.mkdir(inner)
        yield "s3://scale"


def some_texts() -> list[str]:
    """Of the arena, for a tokenizer."""
    table = next(arena_batches(TOKENIZER_ROWS))
    return [text for name in TEXTS for text in table[name].to_pylist()]


def measure(bucket: str, folder: str, rows: int, given: argparse.Namespace) -> dict[str, Any]:
    """One run in a process of its own."""
    pairs, output = f"{bucket}/pairs-{rows}", f"{bucket}/out-{rows}"
    make_arena(ArenaConfig(output=pairs, rows=rows))
    if given.files:
        cut_files(pairs, given.files)
    return run_driver(pairs, output, folder, rows, given)


def cut_files(folder: str, files: int) -> None:
    """Cut the parquet files of a folder so that there are so many, or a few more."""
    whole = storage.list_files(folder)
    parts = -(-files // len(whole))
    for path in whole:
        filesystem, inner = storage.filesystem(path)
        with filesystem.open(inner) as file:
            table = pq.read_table(file)
        rows = -(-len(table) // parts)
        for part in range(parts):
            with filesystem.open(inner.replace(".parquet", f"-{part:03}.parquet"), "wb") as file:
                pq.write_table(table.slice(part * rows, rows), file)
        filesystem.rm_file(inner)


def run_driver(pairs: str, output: str, folder: str, rows: int, given: argparse.Namespace) -> dict[str, Any]:
    """Score pairs by the model in `folder`, and delete both; what it took."""
    peaks = f"{folder}/peaks.json"
    command = [sys.executable, str(Path(__file__)), "--drive", f"{folder}/model", pairs, output, peaks]
    command += ["--cpus", str(given.cpus), "--object-store-mib", str(given.object_store_mib)]
    command += ["--pace", str(given.pace)]
    if given.unit_rows:
        command += ["--unit-rows", str(given.unit_rows)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = time.monotonic()
    with subprocess.Popen(command, cwd=ROOT, env=environment) as driver:
        memory = watch(driver)
    seconds = time.monotonic() - started
    if driver.returncode:
        sys.exit(f"error: the driver ended with {driver.returncode}")
    found = {
        "rows": rows,
        "seconds": round(seconds, 1),
        "pairs_per_second": round(rows / seconds, 1),
        "plan_seconds": 0.0,
        "rows_right": ids_of(output) == ids_of(pairs),
        "peak_mib": memory | {"object_store": 0.0},
    }
    of_the_store = json.loads(Path(peaks).read_text())
    found["peak_mib"]["object_store"] = round(of_the_store["used"] / 2**20, 1)
    found["spilled_bytes"] = of_the_store["spilled"]
    found["plan_seconds"] = round(of_the_store["plan_seconds"], 1)
    for path in (pairs, output, f"{output}.run"):
        storage.delete_folder(path)
    return found


def watch(driver: subprocess.Popen[bytes]) -> dict[str, float]:
    """Peak resident memory in MiB of the driver, and of the largest process of each role, until it ends."""
    peaks: dict[str, float] = {}
    while driver.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(driver.pid)
            note(peaks, "driver", process.pid)
            for child in process.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    note(peaks, role_of(" ".join(child.cmdline() or [child.name()])), child.pid)
        time.sleep(SAMPLE_SECONDS)
    return {role: round(peak, 1) for role, peak in sorted(peaks.items()) if role}


def role_of(line: str) -> str:
    """What a process of Ray is by its command line; nothing for one that is not measured."""
    ours = "ray::" in line or "child_process" in line
    named = (role for role, words in ROLES.items() if any(word in line for word in words))
    if ours:
        return next(named, "")
    return "raylet" if "/raylet/raylet" in line.partition(" ")[0] else ""


def note(peaks: dict[str, float], role: str, pid: int) -> None:
    """Raise the peak of a role to that of a process, which the kernel keeps."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                peaks[role] = max(peaks.get(role, 0.0), int(line.split()[1]) / 1024)


def ids_of(folder: str) -> list[str]:
    """The ids of all parquet files of a folder, in their order."""
    ids: list[str] = []
    for path in storage.list_files(folder):
        with storage.open_parquet(path) as file:
            ids += file.read(["id"])["id"].to_pylist()
    return ids


# ---- The driver ----


def drive(given: argparse.Namespace) -> None:
    """Score, and write what the object store held at most and spilled."""
    import ray

    model, pairs, output, peaks = given.drive
    ray.init(
        address="local",
        num_cpus=given.cpus,
        include_dashboard=False,
        object_store_memory=given.object_store_mib << 20,
        logging_level=logging.WARNING,
    )
    from wsdm_ray.scoring.pipeline import check, execute
    from wsdm_ray.telemetry import set_up_logging

    set_up_logging()
    config = ScoreConfig(
        model=(model,), input=(pairs,), output=output, unit_rows=given.unit_rows, token_budget=4_096
    )
    with object_store() as seen:
        started = time.monotonic()
        run = check(config)
        planned = time.monotonic() - started
        execute(run, constant_replica(given.pace))
    Path(peaks).write_text(json.dumps(seen | {"plan_seconds": planned}))


@contextlib.contextmanager
def object_store() -> Iterator[dict[str, int]]:
    """The most bytes that the object store used, and those that it spilled, while the block runs."""
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    seen, ended = {"used": 0, "spilled": 0}, threading.Event()
    state = get_state_from_address(ray.get_runtime_context().gcs_address)

    def look() -> None:
        stats = get_memory_info_reply(state).store_stats
        seen["used"] = max(seen["used"], stats.object_store_bytes_used)
        seen["spilled"] = max(seen["spilled"], stats.spilled_bytes_total)

    def follow() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            look()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()
        look()


def constant_replica(pace: float) -> type:
    """Replicas whose log-odds are a function of the number of tokens. Ray sends the class by value.

    Args:
        pace: pairs/s of each; 0: as many as it can.
    """
    from wsdm_ray.scoring.replica import Replica

    class ConstantReplica(Replica):
        def __init__(self, options: Any):
            super().__init__(options, load_hashing)

        def run(self, unit: Any, number: int, orderings: Any, wanted_NO: np.ndarray) -> np.ndarray:
            if pace:
                time.sleep(len(wanted_NO) / pace)
            lengths = unit.encoded[f"prefix_{number}"].combine_chunks().offsets.to_numpy()
            log_odds = np.tanh(np.diff(lengths) / 100.0)[:, None].astype(np.float32)
            unit.passes_done += 1
            unit.forward_tokens += int(lengths[-1] - lengths[0])
            return np.where(wanted_NO, log_odds, np.float32("nan"))

    return ConstantReplica


if __name__ == "__main__":
    main()
