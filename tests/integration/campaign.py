"""Runs of `score` on S3 that faults strike, each resumed until it is done and compared with a calm run.

Campaign     where runs are: the store, the proxy before it, the Ray cluster, the model and the pairs
KINDS        what can strike, by name
run_once     one run: strike, resume, compare

Drivers are processes of their own, forked from one that has imported what they need. What runs in them is in
`struck_run`.
"""

import contextlib
import multiprocessing
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa

from tests.integration.fault_proxy import FaultProxy, Faults
from tests.integration.struck_run import Injected, drive
from wsdm_ray import storage

__all__ = ["KINDS", "Campaign", "Outcome", "drawn", "ended", "predictions", "run_once", "start_driver"]

DRIVERS = 8
"""A run that so many drivers do not finish is wrong."""

DRIVER_SECONDS = 600.0
"""A driver that takes longer hangs, and is ended."""

STORE_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """Where runs are.

    bucket: URL. proxy: before the store. address: of the Ray cluster. cut_node: takes a node from the cluster
    at once and adds another; None where there is one node. away_seconds: how long the store is, where it is.
    model: a folder. pairs: a folder of the bucket, one file a unit. logs: a folder here.
    """

    bucket: str
    proxy: FaultProxy
    address: str
    model: str
    pairs: str
    logs: Path
    units: int
    unit_rows: int
    cut_node: Callable[[], None] | None = None
    away_seconds: float = 10.0

    @property
    def kinds(self) -> tuple[str, ...]:
        """What can strike here."""
        return tuple(kind for kind in KINDS if kind != "node" or self.cut_node)


@dataclass
class Outcome:
    """What came of a run. wrong: what differs from the calm run; empty where nothing does."""

    seed: int
    struck: list[str] = field(default_factory=list)
    statuses: list[int | None] = field(default_factory=list)
    seconds: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def start_driver(campaign: Campaign, output: str, injected: Injected) -> Any:
    """A process that runs `score`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["wsdm_ray.scoring.pipeline", "jobs._main", "tests.integration.preloaded"])
    options = [
        *("--model", campaign.model, "--input", campaign.pairs, "--output", output),
        *("--unit-rows", str(campaign.unit_rows), "--token-budget", "2048"),
        *("--store-timeout-seconds", str(STORE_TIMEOUT_SECONDS + campaign.away_seconds)),
    ]
    log = str(log_of(campaign, output))
    process = context.Process(target=drive, args=(options, campaign.address, injected, log))
    process.start()
    return process


def log_of(campaign: Campaign, output: str) -> Path:
    """What all drivers of a run have printed."""
    return campaign.logs / f"{output.rpartition('/')[2]}.log"


def predictions(output: str) -> pa.Table:
    """All rows of an output folder, in the order of its parts."""
    tables = []
    for path in storage.list_files(output):
        with storage.open_parquet(path) as file:
            tables.append(file.read())
    return pa.concat_tables(tables)


def parts_written(campaign: Campaign, output: str) -> int:
    """How many parts of a run have been sent to the store."""
    inner = output.partition("://")[2]
    return sum(f"PUT /{inner}/part-" in key for key in campaign.proxy.asked.copy())


def processes(*words: str) -> list[psutil.Process]:
    """Ray's workers, and what they started, whose command line has one of the words."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            line = " ".join(process.cmdline() or [process.name()])
            if ("ray::" in line or "child_process" in line) and any(word in line for word in words):
                found.append(process)
    return found


def kill_one(chance: random.Random, *words: str) -> bool:
    """Kill a process by a word of its command line; returns whether there was one."""
    found = processes(*words)
    if found:
        with contextlib.suppress(psutil.NoSuchProcess):
            chance.choice(found).kill()
    return bool(found)


@dataclass(frozen=True, kw_only=True)
class Strike:
    """A run that is to be struck."""

    campaign: Campaign
    chance: random.Random
    driver: Any

    def replica(self) -> bool:
        return kill_one(self.chance, "Replica", "replica")

    def reader(self) -> bool:
        return kill_one(self.chance, "encode", "read)", "reader")

    def kill_driver(self) -> bool:
        self.driver.kill()
        return True

    def node(self) -> bool:
        assert self.campaign.cut_node
        self.campaign.cut_node()
        return True


KINDS: dict[str, Callable[[Strike], bool] | None] = {
    "replica": Strike.replica,
    "reader": Strike.reader,
    "driver": Strike.kill_driver,
    "node": Strike.node,
    "store faults": None,
    "store away": None,
    "poison row": None,
    "poison file": None,
    "disk full": None,
    "full at start": None,
    "two drivers": None,
    "clock": None,
}
"""What strikes a run, by name: at a moment, or from its start (None)."""


def injected_for(kinds: Sequence[str], chance: random.Random, campaign: Campaign, seed: int) -> Injected:
    """What processes of the run do to themselves."""
    poison = next((kind.split()[1] for kind in kinds if kind.startswith("poison")), "")
    unit = chance.randrange(campaign.units)
    rows = campaign.unit_rows
    return Injected(
        poison=poison,
        id=f"row-{unit * rows + chance.randrange(rows)}",
        full_disk="disk full" in kinds,
        full_cache="full at start" in kinds,
        mark=str(campaign.logs / f"full-{seed}"),
        clock_step=chance.choice([-3_600.0, 3_600.0]) if "clock" in kinds else 0.0,
    )


def faults_for(kinds: Sequence[str], campaign: Campaign, seed: int) -> Faults:
    """What the store does to the run."""
    away = "store away" in kinds
    return Faults(
        seed=seed,
        rate=0.1 if "store faults" in kinds else 0.0,
        away_after=60 + seed % 4 * campaign.units if away else None,
        away_seconds=campaign.away_seconds if away else 0.0,
    )


def drawn(kinds: Sequence[str], seed: int) -> list[str]:
    """One or two of the kinds, by a seed."""
    chance = random.Random(f"kinds {seed}")
    return chance.sample(kinds, min(chance.choice([1, 2, 2]), len(kinds)))


def run_once(campaign: Campaign, calm: pa.Table, seed: int, kinds: Sequence[str]) -> Outcome:
    """A run that all of the kinds strike, at moments that the seed decides.

    Args:
        calm: the predictions of a run that nothing struck.
    """
    chance, started = random.Random(seed), time.monotonic()
    outcome = Outcome(seed)
    output = f"{campaign.bucket}/run-{seed:05d}"
    injected = injected_for(kinds, chance, campaign, seed)
    before = campaign.proxy.counts.copy()
    campaign.proxy.use(faults_for(kinds, campaign, seed))
    drivers = [start_driver(campaign, output, injected)]
    if "two drivers" in kinds:
        drivers.append(start_driver(campaign, output, injected))
    outcome.struck = [kind for kind in kinds if KINDS[kind] is None]
    for kind in kinds:
        if strike := KINDS[kind]:
            at = chance.randrange(1, max(campaign.units * 2 // 3, 2))
            alive = wait_for_parts(campaign, output, at, drivers[0])
            if alive and strike(Strike(campaign=campaign, chance=chance, driver=drivers[0])):
                outcome.struck.append(kind)
    outcome.statuses = [ended(driver) for driver in drivers]
    while outcome.statuses[-1] != 0 and len(outcome.statuses) < DRIVERS:
        outcome.statuses.append(ended(start_driver(campaign, output, injected)))
    campaign.proxy.use(Faults())
    counted = campaign.proxy.counts - before
    outcome.faults = {kind: number for kind, number in counted.items() if kind != "none"}
    outcome.wrong = differences(campaign, output, calm, injected)
    if "Traceback (most recent call last)" in log_of(campaign, output).read_text():
        outcome.wrong.append("a user is shown a traceback")
    outcome.seconds = round(time.monotonic() - started, 1)
    if not outcome.wrong:
        storage.delete_folder(output)
        storage.delete_folder(f"{output}.run")
    return outcome


def wait_for_parts(campaign: Campaign, output: str, parts: int, driver: Any) -> bool:
    """Wait until so many parts are written; returns whether the driver still runs."""
    while driver.is_alive() and parts_written(campaign, output) < parts:
        time.sleep(0.02)
    return driver.is_alive()


def ended(driver: Any) -> int | None:
    """The exit status of a driver; None for one that hung."""
    driver.join(DRIVER_SECONDS)
    if driver.is_alive():
        driver.kill()
        driver.join()
        return None
    return driver.exitcode


def differences(campaign: Campaign, output: str, calm: pa.Table, injected: Injected) -> list[str]:
    """What of an output is not as a calm run leaves it."""
    wrong = []
    try:
        names = sorted(names_below(output))
        beside = sorted(names_below(f"{output}.run"))
        found = predictions(output)
    except Exception as error:
        return [f"cannot be read: {error}"]
    if names != [f"part-{number:06d}.parquet" for number in range(campaign.units)]:
        wrong.append(f"files: {len(names)}, such as {[name for name in names if 'part-' not in name][:3]}")
    if beside != ["run.json"]:
        wrong.append(f"beside the output: {beside[:5]}")
    if found["id"].to_pylist() != calm["id"].to_pylist():
        ids = Counter(found["id"].to_pylist())
        twice = [row for row, times in ids.items() if times > 1]
        return [*wrong, f"ids: {len(found)} rows, {len(ids)} ids, twice {twice[:3]}"]
    lost = {injected.id} if injected.poison else set[str]()
    keep = pa.array([row not in lost for row in calm["id"].to_pylist()])
    for name in calm.column_names:
        if not found[name].filter(keep).equals(calm[name].filter(keep)):
            wrong.append(f"column {name}")
    if lost:
        rows = found.filter(pa.array([row in lost for row in calm["id"].to_pylist()]))
        if rows["prob_a"].null_count != len(rows) or rows["error"].null_count:
            wrong.append(f"the poison row: {rows['error'].to_pylist()}")
    return wrong


def names_below(folder: str) -> Iterator[str]:
    """Names of all files below a folder of a store."""
    fs, inner = storage.filesystem(folder)
    for name in fs.find(inner):
        yield re.sub(rf"^/?{re.escape(inner)}/", "", name)
