"""Is the output of `score` the same whatever strikes the run?

    PYTHONPATH=. python tests/benchmarks/fault_campaign.py [--runs 100] [--seed 0] [--rows 20000]
    PYTHONPATH=. python tests/benchmarks/fault_campaign.py --join FIRST.json SECOND.json

Each run scores the same pairs from S3 to S3 on a Ray cluster of two nodes of this machine, with a function
of the tokens in place of a network. The seed decides what strikes it, and when: a kill -9 of a replica, a
reader, the driver or a node; requests that fail, or a store that is away; a row or a file that ends the
process which has it; a disk that is full over a unit, or whenever a replica starts; two drivers at once; a
clock that jumps. It is resumed until it is done, and compared with a run that nothing struck: the same ids in
the same order, identical probabilities, no other file; and no traceback is shown. Writes
results/fault_campaign.json, or --json; exits with 1 where a run is wrong. --join writes campaigns of other
seeds, which may run at the same time, as one.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import HERE, write_result

from tests.integration.campaign import (
    KINDS,
    Campaign,
    Outcome,
    drawn,
    ended,
    predictions,
    run_once,
    start_driver,
)
from tests.integration.fault_proxy import run_proxy
from tests.integration.preempted import RAY_ENVIRONMENT, Nodes, nodes_of
from tests.integration.servers import free_ports, run_s3, store_environment
from tests.integration.struck_run import Injected, make_model, make_pairs
from wsdm_ray.storage import filesystem


def main() -> None:
    given = arguments()
    if given.join:
        join(given)
        return
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder, campaign_in(Path(folder), given) as made:
        started = time.monotonic()
        calm_output = f"{made.bucket}/calm"
        status = ended(start_driver(made, calm_output, Injected()))
        if status != 0:
            sys.exit(
                f"error: the calm run ended with {status}:\n{(made.logs / 'calm.log').read_text()[-3000:]}"
            )
        calm = predictions(calm_output)
        print(f"calm: {len(calm)} rows in {time.monotonic() - started:.0f} s", flush=True)
        outcomes = []
        for seed in range(given.seed, given.seed + given.runs):
            outcome = run_once(made, calm, seed, drawn(given.kinds or made.kinds, seed))
            outcomes.append(outcome)
            print(line(outcome), flush=True)
            if outcome.wrong and given.keep:
                (given.keep / f"run-{seed:05d}.log").write_text(
                    (made.logs / f"run-{seed:05d}.log").read_text()
                )
            write(given, outcomes)
    if any(outcome.wrong for outcome in outcomes):
        sys.exit(1)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--files", type=int, default=40)
    parser.add_argument("--away-seconds", type=float, default=60.0, help="of the store")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), help="draw from these")
    parser.add_argument("--keep", type=Path, help="a folder for the logs of runs that are wrong")
    parser.add_argument("--join", nargs="+", type=Path, help="JSON files of campaigns; none is run")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "fault_campaign.json")
    given = parser.parse_args()
    given.rows -= given.rows % given.files
    return given


@contextlib.contextmanager
def campaign_in(folder: Path, given: argparse.Namespace) -> Iterator[Campaign]:
    """The store, the proxy, the cluster, the model and the pairs, all of this machine."""
    server_port, port, other = free_ports(3)
    os.environ.update(store_environment(port, other) | RAY_ENVIRONMENT)
    os.environ.pop("RAY_ADDRESS", None)
    (folder / "logs").mkdir()
    (folder / "s3").mkdir()
    with (
        run_s3(folder / "s3", server_port),
        run_proxy(port, server_port) as proxy,
        nodes_of(2, 2, object_store_memory=150 << 20) as nodes,
    ):
        bucket = "s3://campaign"
        fs, inner = filesystem(bucket)
        fs.mkdir(inner)
        make_pairs(f"{bucket}/pairs", given.files, given.rows)
        make_model(str(folder / "model"))
        yield Campaign(
            bucket=bucket,
            proxy=proxy,
            address=nodes.address,
            model=str(folder / "model"),
            pairs=f"{bucket}/pairs",
            logs=folder / "logs",
            units=given.files,
            unit_rows=given.rows // given.files,
            cut_node=lambda: cut(nodes),
            away_seconds=given.away_seconds,
        )


def cut(nodes: Nodes) -> None:
    """End the second node as a power cut would, and add another."""
    nodes.lose(nodes.nodes[1])
    nodes.nodes[1] = nodes.add(2)


def join(given: argparse.Namespace) -> None:
    """Write the runs of campaigns of the same code, versions, hardware and settings as those of one."""
    reports = [json.loads(path.read_text()) for path in given.join]
    first, results = reports[0], [report.pop("results") for report in reports]
    seed = min(report["settings"].pop("seed") for report in reports)
    if any(report != first for report in reports):
        sys.exit("error: --join: campaigns of different commits, versions, hardware or settings")
    runs = sorted((Outcome(**run) for result in results for run in result["each"]), key=lambda run: run.seed)
    if len({run.seed for run in runs}) < len(runs):
        sys.exit("error: --join: a seed is there twice")
    first["settings"] = {"seed": seed} | first["settings"]
    report = first | {"results": summary(runs)}
    given.json.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")


def line(outcome: Outcome) -> str:
    """A run as one line."""
    found = "WRONG " + "; ".join(outcome.wrong) if outcome.wrong else "right"
    struck = " + ".join(outcome.struck) or "nothing"
    return f"{outcome.seed:5} {struck:32} drivers {outcome.statuses} {outcome.seconds:5.0f} s  {found}"


def summary(outcomes: list[Outcome]) -> dict[str, Any]:
    """What is known of runs."""
    struck = Counter(kind for outcome in outcomes for kind in outcome.struck)
    requests = Counter[str]()
    for outcome in outcomes:
        requests.update(outcome.faults)
    return {
        "runs": len(outcomes),
        "right": sum(not outcome.wrong for outcome in outcomes),
        "struck": {kind: struck[kind] for kind in KINDS},
        "failed_requests": dict(sorted(requests.items())),
        "drivers": sum(len(outcome.statuses) for outcome in outcomes),
        "seconds": round(sum(outcome.seconds for outcome in outcomes)),
        "each": [dataclasses.asdict(outcome) for outcome in outcomes],
    }


def write(given: argparse.Namespace, outcomes: list[Outcome]) -> None:
    """Write what is known so far."""
    settings = {
        "seed": given.seed,
        "rows": given.rows,
        "files": given.files,
        "kinds": given.kinds or list(KINDS),
    }
    write_result(given.json, str(__doc__).splitlines()[0], settings, summary(outcomes))


if __name__ == "__main__":
    main()
