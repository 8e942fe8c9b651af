"""What do spot machines cost a run, and does it end as one that nobody disturbed?

    PYTHONPATH=. python tests/benchmarks/preemptions.py [--preemptions 50] [--seed 0] [--jobs score train]

A training and a scoring job run on a Ray cluster of three nodes of this machine, first undisturbed, then
while at moments that the seed decides a process of theirs gets SIGTERM, the one that started the job among
them, or a node is drained: Ray says that it is taken away, which it is some seconds later, and another one
joins. A job that ends before all that came is run again in another folder, until it came. Each is compared
with the undisturbed one: the same bytes of the trained weights, the same rows and probabilities. Writes
results/preemptions.json, or --json, with the steps and rows that were lost; exits with 1 where one is wrong.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from common import HERE, write_result

from tests.integration.campaign import processes
from tests.integration.preempted import RAY_ENVIRONMENT, Nodes, nodes_of, start_score, start_train
from tests.integration.struck_run import make_model, make_pairs

KINDS = ("worker", "drain", "driver")
"""SIGTERM to a process of the job; the notice that a node will be taken away, which it is; SIGTERM to the
process that started the job, as `ray job stop` begins, after which it is started again."""

WORDS = {"train": ("RayTrainWorker",), "score": ("NotingReplica", "replica", "reader")}
"""What the command lines of a job's processes have, its children of Ray's workers among them."""

STARTS = 20
"""A job that so many drivers do not finish is wrong."""


@dataclass
class Outcome:
    """A job that was disturbed. lost: steps or rows that were done again. wrong: what differs."""

    job: str
    struck: list[str] = field(default_factory=list)
    statuses: list[int | None] = field(default_factory=list)
    seconds: float = 0.0
    noticed: int = 0
    lost: int = 0
    wrong: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Site:
    """Where jobs run. spare: the nodes that may be taken away."""

    nodes: Nodes
    folder: Path
    rows: int
    steps: int
    drain_seconds: float
    spare: list[Any]

    def start(self, job: str, name: str) -> Any:
        """A driver of the job, whose output and log have this name."""
        output, log = self.folder / name, self.folder / f"{name}.log"
        if job == "train":
            prepared = self.folder / "prepared"
            options = f"""
                --preset tiny --base {self.folder}/base --output {output} --train {prepared}/train
                --valid {prepared}/valid --max-steps {self.steps} --checkpoint-steps 10 --pairs-per-step 8
                --micro-batches 2 --lora.dropout 0.1 --num-workers 2 --max-failures 100
            """
            return start_train(self.nodes.address, options.split(), {}, log)
        notes, gate = self.folder / "notes", self.folder / "gate"
        notes.mkdir(exist_ok=True)
        gate.touch()
        options = f"--model {self.folder}/scorer --input {self.folder}/pairs --output {output} --unit-rows 20"
        return start_score(self.nodes.address, [*options.split(), "--token-budget", "2048"], notes, gate, log)

    def done(self, job: str, name: str) -> int:
        """Steps of the last checkpoint, or parts, that there are."""
        if job == "train":
            kept = (self.folder / name / "_checkpoints" / "run").glob("step-*")
            return max((int(path.name.split("-")[1]) for path in kept), default=0)
        return sum(1 for _ in (self.folder / name).glob("part-*.parquet"))

    @property
    def units(self) -> dict[str, int]:
        """How much `done` comes to, by job."""
        return {"train": self.steps, "score": self.rows // 20}


def main() -> None:
    given = arguments()
    os.environ.update(RAY_ENVIRONMENT)
    os.environ.pop("RAY_ADDRESS", None)
    with tempfile.TemporaryDirectory(prefix="preempt-") as folder, nodes_of(1, 2, 2) as nodes:
        site = Site(
            nodes=nodes, folder=Path(folder), rows=given.rows, steps=given.steps,
            drain_seconds=given.drain_seconds, spare=nodes.nodes[1:],
        )  # fmt: skip
        make_inputs(site, given.jobs)
        outcomes: list[Outcome] = []
        for job in given.jobs:
            calm, seconds = run_calm(site, job)
            print(f"{job}, undisturbed: {seconds:.0f} s", flush=True)
            chance, left = random.Random(f"{job} {given.seed}"), given.preemptions
            while left > 0:
                outcome = run_struck(site, job, f"{job}-{len(outcomes)}", chance, left, calm)
                left -= len(outcome.struck)
                outcomes.append(outcome)
                print(asdict(outcome), flush=True)
                write(given, outcomes)
                if outcome.wrong:
                    break
    if any(outcome.wrong for outcome in outcomes):
        sys.exit(1)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preemptions", type=int, default=50, help="of each job")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", nargs="+", choices=["score", "train"], default=["score", "train"])
    parser.add_argument("--rows", type=int, default=4_000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument(
        "--drain-seconds", type=float, default=20.0, help="from the notice to the end of a node"
    )
    parser.add_argument("--json", type=Path, default=HERE / "results" / "preemptions.json")
    return parser.parse_args()


def make_inputs(site: Site, jobs: list[str]) -> None:
    """The model and the pairs to score, the base and the votes to train on."""
    folder = site.folder
    if "score" in jobs:
        make_model(str(folder / "scorer"))
        make_pairs(str(folder / "pairs"), 4, site.rows)
    if "train" in jobs:
        from wsdm_ray.config import ArenaConfig, PrepareConfig
        from wsdm_ray.data.arena import make_arena
        from wsdm_ray.data.prepare import prepare

        make_arena(ArenaConfig(output=str(folder / "votes"), rows=400, lengths="short"))
        prepare(PrepareConfig(input=(f"{folder}/votes",), output=f"{folder}/prepared", valid_fraction=0.2))
        make_base(folder)


def make_base(folder: Path) -> None:
    """A tiny random model in bnb-int8, whose tokenizer is made from the votes."""
    from wsdm_ray.config import QuantizeConfig
    from wsdm_ray.modeling.quantization import quantize
    from wsdm_ray.modeling.tiny import make_tiny_model

    shards = sorted((folder / "votes").glob("*.parquet"))
    table = pq.read_table(shards, columns=["prompt", "response_a", "response_b"])
    texts = [text for column in table.columns for text in column.to_pylist()]
    make_tiny_model(str(folder / "plain"), texts, vocabulary=1024, width=32)
    quantize(QuantizeConfig(base=f"{folder}/plain", output=f"{folder}/base"))


def run_calm(site: Site, job: str) -> tuple[Any, float]:
    """What an undisturbed run leaves, and its seconds."""
    started = time.monotonic()
    name = f"{job}-calm"
    driver = site.start(job, name)
    driver.join()
    if driver.exitcode != 0:
        sys.exit(f"error: the undisturbed run failed:\n{(site.folder / f'{name}.log').read_text()[-3000:]}")
    return READ[job](site.folder / name), time.monotonic() - started


def run_struck(site: Site, job: str, name: str, chance: random.Random, most: int, calm: Any) -> Outcome:
    """A run that is disturbed at most so often, and compared with the undisturbed one."""
    outcome, started = Outcome(job), time.monotonic()
    driver = site.start(job, name)
    times = min(most, max(site.units[job] // 20, 2))
    moments = sorted(chance.sample(range(1, max(site.units[job] * 3 // 4, times + 1)), times))
    for moment in moments:
        while driver.is_alive() and site.done(job, name) < moment:
            time.sleep(0.05)
        if not driver.is_alive():
            break
        kind = chance.choice(KINDS)
        if kind == "driver":
            driver.terminate()
            driver.join()
            outcome.statuses.append(driver.exitcode)
            driver = site.start(job, name)
        if kind == "driver" or STRIKES[kind](site, job, chance):
            outcome.struck.append(kind)
    driver.join()
    outcome.statuses.append(driver.exitcode)
    while outcome.statuses[-1] != 0 and len(outcome.statuses) < STARTS:
        driver = site.start(job, name)
        driver.join()
        outcome.statuses.append(driver.exitcode)
    outcome.seconds = round(time.monotonic() - started, 1)
    compare(site, job, name, calm, outcome)
    return outcome


def compare(site: Site, job: str, name: str, calm: Any, outcome: Outcome) -> None:
    """Note what was lost, and what is not as in the undisturbed run."""
    if outcome.statuses[-1] != 0:
        outcome.wrong.append((site.folder / f"{name}.log").read_text()[-2000:])
        return
    beside = name if job == "train" else f"{name}.run"
    run = json.loads((site.folder / beside / "run.json").read_text())
    if job == "train":
        outcome.noticed, outcome.lost = (run["interruptions"][key] for key in ("noticed", "steps_lost"))
    else:
        outcome.noticed, outcome.lost = (run["preemptions"][key] for key in ("times", "rows_lost"))
        if run["processes_died"] or run["rows_given_up"]:
            outcome.wrong.append(f"{run['processes_died']} deaths were counted against units")
    if not same(READ[job](site.folder / name), calm):
        outcome.wrong.append("differs from the undisturbed run")
    if not outcome.wrong:
        shutil.rmtree(site.folder / name)


def same(found: Any, calm: Any) -> bool:
    return found.equals(calm) if isinstance(found, pa.Table) else found == calm


def read_weights(output: Path) -> str:
    """The digest of the trained weights."""
    return hashlib.sha256((output / "adapter_model.safetensors").read_bytes()).hexdigest()


def read_predictions(output: Path) -> pa.Table:
    """All rows, in the order of the parts."""
    return pa.concat_tables([pq.read_table(path) for path in sorted(output.glob("part-*.parquet"))])


READ: dict[str, Callable[[Path], Any]] = {"train": read_weights, "score": read_predictions}


def ask_a_process(site: Site, job: str, chance: random.Random) -> bool:
    """SIGTERM to a process of the job; whether there was one."""
    found = processes(*WORDS[job])
    if found:
        chance.choice(sorted(found, key=lambda process: process.pid)).terminate()
    return bool(found)


def take_a_node(site: Site, job: str, chance: random.Random) -> bool:
    """Drain a node, of those where the job is at work if there are some, take it away when its time is over,
    and add another."""
    at_work = {process.ppid() for process in processes(*WORDS[job])}
    busy = [node for node in site.spare if raylet_of(node) in at_work]
    node = chance.choice(busy or site.spare)
    site.spare.remove(node)
    site.nodes.drain(node, site.drain_seconds)
    end = time.monotonic() + site.drain_seconds
    site.spare.append(site.nodes.add(2))
    time.sleep(max(end - time.monotonic(), 0))
    site.nodes.lose(node)
    return True


def raylet_of(node: Any) -> int:
    """The process of Ray on a node that starts all others there."""
    return node.all_processes["raylet"][0].process.pid


STRIKES: dict[str, Callable[[Site, str, random.Random], bool]] = {
    "worker": ask_a_process,
    "drain": take_a_node,
}


def write(given: argparse.Namespace, outcomes: list[Outcome]) -> None:
    """Write what is known so far."""
    results = {}
    for job in given.jobs:
        own = [outcome for outcome in outcomes if outcome.job == job]
        struck = Counter(kind for outcome in own for kind in outcome.struck)
        times = sum(struck.values())
        results[job] = {
            "preemptions": times,
            "struck": dict(struck),
            "runs": len(own),
            "right": sum(not outcome.wrong for outcome in own),
            "lost": sum(outcome.lost for outcome in own),
            "lost_per_preemption": round(sum(outcome.lost for outcome in own) / max(times, 1), 3),
            "unit": "steps" if job == "train" else "rows",
            "each": [asdict(outcome) for outcome in own],
        }
    names = ("preemptions", "seed", "rows", "steps", "drain_seconds")
    settings = {name: getattr(given, name) for name in names}
    write_result(given.json, str(__doc__).splitlines()[0], settings, results)


if __name__ == "__main__":
    main()
