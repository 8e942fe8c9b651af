"""Tables of the fault campaign, and of scoring at scale: rows, files and replicas."""

from typing import Any

from report_tables import table

__all__ = [
    "control_plane",
    "fault_campaign",
    "many_files",
    "plan_ids",
    "preemptions",
    "replica_simulation",
    "score_scale",
]


def fault_campaign(results: dict[str, Any]) -> list[str]:
    """Runs that were right, and what struck how many of them."""
    failed = ", ".join(f"{kind} {number:,}" for kind, number in results["failed_requests"].items())
    return [
        f"{results['right']} of {results['runs']} runs were right, with {results['drivers']} drivers in "
        f"{results['seconds'] / 60:.0f} minutes. Requests that failed: {failed or 'none'}.",
        "",
        *table(("what struck", "runs"), results["struck"].items()),
    ]


def score_scale(results: dict[str, Any]) -> list[str]:
    """A row a number of rows, and one of the growth."""
    roles = list(results["runs"][0]["peak_mib"])
    names = [f"{role.replace('_', ' ')}, MiB" for role in roles]
    rows = [
        (
            f"{run['rows']:,}", f"{run['pairs_per_second']:.1f}",
            *(f"{run['peak_mib'].get(role, 0):,.0f}" for role in roles),
            f"{run['spilled_bytes']:,}", yes_or_no(run["rows_right"]),
        )
        for run in results["runs"]
    ]  # fmt: skip
    first, last = (results["runs"][place]["peak_mib"] for place in (0, -1))
    growth = (f"{last.get(role, 0) / first[role]:.2f}" for role in roles)
    return table(
        ("rows", "pairs/s", *names, "spilled", "right"), [*rows, ("last to first", "", *growth, "", "")]
    )


def yes_or_no(value: bool) -> str:
    return "yes" if value else "no"


def replica_simulation(results: list[dict[str, Any]]) -> list[str]:
    """A row a number of replicas."""
    columns = (
        "replicas", "units", "longest unit, s", "seconds", "pairs/s", "idle, mean", "idle, most",
        "driver, CPU s", "driver, MiB",
    )  # fmt: skip
    return table(
        columns,
        (
            (
                run["replicas"], f"{run['units']:,}", f"{run['longest_unit_seconds']:.1f}",
                f"{run['seconds']:.0f}", f"{run['pairs_per_second']:,.0f}",
                f"{run['idle_share']['mean']:.1%}", f"{run['idle_share']['max']:.1%}",
                f"{run['driver_cpu_seconds']:.0f}", driver_memory(run),
            )
            for run in results
        ),
    )  # fmt: skip


def driver_memory(run: dict[str, Any]) -> str:
    """At its peak, or, in earlier runs, at the end with the pages of the object store that it had seen."""
    if (peak := run.get("driver_peak_mib")) is None:
        return f"{run['driver_memory_mib']:,}"
    return f"{peak['own']:,}; {peak['with_object_store']:,} with pages of the object store"


def many_files(results: list[dict[str, Any]]) -> list[str]:
    """A row a number of files."""
    return table(
        (
            "a replica scores", "files", "rows", "plan, s", "whole run, s", "pairs/s after the plan",
            "peak of the driver, MiB", "right",
        ),
        (
            (
                f"{run['pace']:,.0f} pairs/s" if run["pace"] else "at once", f"{run['files']:,}", f"{run['rows']:,}",
                f"{run['plan_seconds']:.1f}", f"{run['seconds']:.0f}",
                f"{run['pairs_per_second_after_plan']:.1f}", f"{run['peak_mib']['driver']:,.0f}",
                yes_or_no(run["rows_right"]),
            )
            for run in results
        ),
    )  # fmt: skip


def control_plane(results: list[dict[str, Any]]) -> list[str]:
    """A row a turn, then where the time of the last one goes."""
    turns = {"plain": "as they are", "long": "long answers", "profile": "as they are, with a profile"}
    costs = (
        (
            turns[run["turn"]], f"{run['rows']:,}", f"{run['tokens_per_ordering']:,.0f}",
            f"{run['cpu_ms_a_pair']:.2f}", f"{run['wall_ms_a_pair']:.2f}", f"{run['peak_mib']:,}",
        )
        for run in results
    )  # fmt: skip
    profile = list(results[-1]["profile_ms_a_pair"].items())[:12]
    return [
        *table(
            ("pairs", "rows", "tokens an ordering", "CPU, ms a pair", "wall, ms a pair", "peak, MiB"), costs
        ),
        "",
        *table(
            ("function", "ms a pair, without what it calls"),
            ((f"`{name.removeprefix('~:0:')}`", f"{ms:.3f}") for name, ms in profile),
        ),
    ]


def plan_ids(results: dict[str, Any]) -> list[str]:
    """A row a plan."""
    kinds = {"int64": "int64 ids", "text36": "ids of 36 characters", "files": "small files"}
    return table(
        ("plan of", "rows", "files", "units", "seconds", "CPU, s", "peak, MB", "before it, MB"),
        (
            (
                kinds[kind], f"{run['rows']:,}", f"{run['files']:,}", f"{run['units']:,}",
                f"{run['seconds']:.1f}", f"{run['cpu_seconds']:.1f}", f"{run['peak_mb']:,}",
                f"{run['peak_mb_before']:,}",
            )
            for kind, run in results.items()
        ),
    )  # fmt: skip


def preemptions(results: dict[str, Any]) -> list[str]:
    """A row a job."""
    return table(
        ("job", "preemptions", "runs", "right", "done again, all", "a preemption", "of"),
        (
            (
                job, run["preemptions"], run["runs"], run["right"], run["lost"],
                f"{run['lost_per_preemption']:.1f}", run["unit"],
            )
            for job, run in results.items()
        ),
    )  # fmt: skip
