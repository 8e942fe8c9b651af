"""How many replicas does one driver keep at work?

    PYTHONPATH=. python tests/benchmarks/replica_simulation.py [--replicas 64 256] [--rows 600000]

Ray Data runs a whole plan on a Ray of this machine that takes itself for a cluster. Replicas sleep for as
long as a GPU would score a unit (--pairs-per-second of each), readers give bytes of the size of encoded
pairs: what is left is what the driver, the object store and Ray's scheduler do. A process holds several
replicas where there are many. For each number of replicas: how long each was idle between its first unit and
the end of the run, the tail included, and the CPU time of the driver. Writes results/replica_simulation.json,
or --json.
"""

import argparse
import functools
import json
import logging
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from common import HERE, write_result

from tests.integration.struck_run import make_model
from wsdm_ray.config import ScoreConfig

BYTES_A_PAIR = 6_000
"""Encoded, of 1,050 tokens an ordering with a shared prompt."""

PROCESSES = 16
"""At most so many hold replicas: a hundred on two cores would be what is measured, not the driver."""

OBJECT_STORE_BYTES = 24 << 20
"""For each replica: on a cluster every node brings its own."""

READERS = 4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replicas", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--rows", type=int, default=600_000)
    parser.add_argument("--pairs-per-second", type=float, default=33.0, help="of a replica")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "replica_simulation.json")
    given = parser.parse_args()
    if any(replicas > PROCESSES and replicas % PROCESSES for replicas in given.replicas):
        parser.error(f"--replicas: {PROCESSES} or fewer, or a multiple of it")
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ.pop("RAY_ADDRESS", None)
    results = []
    for replicas in given.replicas:
        with tempfile.TemporaryDirectory(prefix="simulation-") as name:
            results.append(simulate(Path(name), replicas, given))
        print(json.dumps(results[-1]), flush=True)
        settings = {"rows": given.rows, "pairs_per_second": given.pairs_per_second}
        write_result(given.json, str(__doc__).splitlines()[0], settings, results)


def simulate(folder: Path, replicas: int, given: argparse.Namespace) -> dict[str, Any]:
    """One run with so many replicas."""
    import ray

    from wsdm_ray.scoring import ray_data, read_ahead
    from wsdm_ray.scoring.pipeline import check

    make_model(str(folder / "model"))
    make_rows(folder / "rows.parquet", given.rows)
    processes = min(replicas, PROCESSES)
    in_one = replicas // processes
    ray.init(
        address="local", num_cpus=2 * processes, num_gpus=0, include_dashboard=False,
        object_store_memory=replicas * OBJECT_STORE_BYTES, logging_level=logging.WARNING,
    )  # fmt: skip
    memory = PeakMemory()
    run = check(
        ScoreConfig(
            model=(str(folder / "model"),),
            input=(str(folder / "rows.parquet"),),
            output=str(folder / "out"),
            replicas=processes,
        )
    )
    (folder / "times").mkdir()
    seconds = functools.partial(seconds_of, given.pairs_per_second)
    ray_data.ReplicaSlot = simulated_slot(folder / "times", seconds)
    ray_data.reader_of_process = lambda *_: encoded_unit
    ray_data.fit_readers = lambda *_: READERS
    for module in (ray_data, read_ahead):
        module.most_open_units = lambda *_: 2 * replicas + READERS
    ray_data.ray.data.ActorPoolStrategy = functools.partial(several_in_one, in_one)
    driver = psutil.Process()
    used = sum(driver.cpu_times()[:2])
    started = time.monotonic()
    reports = ray_data.score_units(run, run.plan.units).reports
    wall, used = time.monotonic() - started, sum(driver.cpu_times()[:2]) - used
    peak = memory.stop()
    ray.shutdown()
    assert sum(report.rows for report in reports) == given.rows
    times = [np.loadtxt(path, ndmin=2) for path in (folder / "times").iterdir()]
    idle, at_the_end = idle_shares(times)
    return {
        "replicas": replicas,
        "units": len(reports),
        "longest_unit_seconds": max(seconds(report.rows) for report in reports),
        "seconds": round(wall, 1),
        "pairs_per_second": round(given.rows / wall, 1),
        "replicas_seen": len(idle),
        "idle_share": {"mean": float(np.mean(idle)), "max": float(np.max(idle))},
        "idle_share_at_the_end": {"mean": float(np.mean(at_the_end)), "max": float(np.max(at_the_end))},
        "driver_cpu_seconds": round(used, 1),
        "driver_peak_mib": peak,
    }


class PeakMemory:
    """The most memory that this process takes until `stop`, looked at every second."""

    def __init__(self) -> None:
        self.peak = {"own": 0, "with_object_store": 0}
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self) -> None:
        while not self.stopping.wait(1.0):
            lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            own, shared, files = (
                int(lines[f"Rss{kind}"].split()[0]) // 1024 for kind in ("Anon", "Shmem", "File")
            )
            for name, taken in (("own", own + files), ("with_object_store", own + files + shared)):
                self.peak[name] = max(self.peak[name], taken)

    def stop(self) -> dict[str, int]:
        """In MiB: memory of its own, with libraries, and with the object store's pages that it has seen."""
        self.stopping.set()
        self.thread.join()
        return self.peak


def make_rows(path: Path, rows: int) -> None:
    """Pairs of which only the ids differ: nobody reads them."""
    same = {name: ["text " * 300] for name in ("prompt", "response_a", "response_b")}
    with pq.ParquetWriter(path, pa.schema({"id": pa.int64()} | dict.fromkeys(same, pa.string()))) as writer:
        for start in range(0, rows, 10_000):
            ids = pa.array(range(start, min(start + 10_000, rows)))
            columns = {name: pa.array(text * len(ids)) for name, text in same.items()}
            writer.write_table(pa.table({"id": ids, **columns}), row_group_size=2_000)


def seconds_of(pairs_per_second: float, rows: int) -> float:
    """How long a GPU scores a unit."""
    return rows / pairs_per_second


def encoded_unit(unit: Any) -> dict[str, Any]:
    """What a reader gives, of random bytes."""
    encoded = os.urandom(BYTES_A_PAIR * unit.rows)
    return {"unit": unit.number, "rows": unit.rows, "encoded": encoded, "error": ""}


def several_in_one(in_one: int, *, size: int) -> Any:
    """A pool of actors with several replicas each."""
    from ray.data._internal.compute import ActorPoolStrategy

    return ActorPoolStrategy(
        size=size,
        max_concurrent_calls_per_actor=in_one,
        max_tasks_in_flight_per_actor=2 * in_one,
        enable_true_multi_threading=True,
    )


def simulated_slot(times: Path, seconds: Any) -> type:
    """Replicas that sleep, and write down when; each thread of a process is one. Ray sends them by value."""

    class SimulatedSlot:
        def __init__(self, supervision: Any, report_progress: Any):
            supervision.coordination.ready()

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            from wsdm_ray.scoring.parts import UnitReport

            rows, begun = int(batch["rows"][0]), time.time()
            time.sleep(max(seconds(rows) - (time.time() - begun), 0.0))
            with (times / f"{os.getpid()}-{threading.get_ident()}").open("a") as file:
                file.write(f"{begun} {time.time()}\n")
            report = UnitReport(unit=int(batch["unit"][0]), rows=rows, seconds=seconds(rows))
            return report.to_row()

    return SimulatedSlot


def idle_shares(times: list[np.ndarray]) -> tuple[list[float], list[float]]:
    """Of each replica, the share of the time from its first unit to the end of the run that it had none, and
    the part of it after its last unit.

    Args:
        times: of each replica, when its units began and ended: float64 [units, 2].
    """
    end = max(each.max() for each in times)
    spans = [end - each.min() for each in times]
    busy = [(each[:, 1] - each[:, 0]).sum() for each in times]
    last = [end - each.max() for each in times]
    return (
        [1 - work / span for work, span in zip(busy, spans, strict=True)],
        [wait / span for wait, span in zip(last, spans, strict=True)],
    )


if __name__ == "__main__":
    main()
