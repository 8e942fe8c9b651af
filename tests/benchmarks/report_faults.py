"""Tables of the fault campaign, and of scoring at scale: rows, files and replicas."""

from typing import Any

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
        "| what struck | runs |",
        "|---|---|",
        *(f"| {kind} | {number} |" for kind, number in results["struck"].items()),
    ]


def score_scale(results: dict[str, Any]) -> list[str]:
    """A row a number of rows, and one of the growth."""
    roles = list(results["runs"][0]["peak_mib"])
    names = " | ".join(f"{role.replace('_', ' ')}, MiB" for role in roles)
    lines = [
        f"| rows | pairs/s | {names} | spilled | right |",
        f"|---|---|{'---|' * len(roles)}---|---|",
    ]
    for run in results["runs"]:
        peaks = " | ".join(f"{run['peak_mib'].get(role, 0):,.0f}" for role in roles)
        right = "yes" if run["rows_right"] else "no"
        lines.append(
            f"| {run['rows']:,} | {run['pairs_per_second']:.1f} | {peaks} | {run['spilled_bytes']:,} | {right} |"
        )
    growth = " | ".join(f"{results['growth'].get(role, 0):.2f}" for role in roles)
    return [*lines, f"| last to first | | {growth} | | |"]


def replica_simulation(results: list[dict[str, Any]]) -> list[str]:
    """A row a number of replicas."""
    lines = [
        "| replicas | units | longest unit, s | seconds | pairs/s | idle, mean | idle, most | driver, CPU s | driver, MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for run in results:
        idle = run["idle_share"]
        lines.append(
            f"| {run['replicas']} | {run['units']:,} | {run['longest_unit_seconds']:.1f} | {run['seconds']:.0f} | "
            f"{run['pairs_per_second']:,.0f} | {idle['mean']:.1%} | {idle['max']:.1%} | "
            f"{run['driver_cpu_seconds']:.0f} | {run['driver_memory_mib']:,} |"
        )
    return lines


def many_files(results: list[dict[str, Any]]) -> list[str]:
    """A row a number of files."""
    lines = [
        "| files | rows | plan, s | whole run, s | pairs/s | peak of the driver, MiB | right |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in results:
        right = "yes" if run["rows_right"] else "no"
        lines.append(
            f"| {run['files']:,} | {run['rows']:,} | {run['plan_seconds']:.1f} | {run['seconds']:.0f} | "
            f"{run['pairs_per_second']:.1f} | {run['peak_mib']['driver']:,.0f} | {right} |"
        )
    return lines


def control_plane(results: list[dict[str, Any]]) -> list[str]:
    """A row a turn, then where the time of the last one goes."""
    turns = {"plain": "as they are", "long": "long answers", "profile": "as they are, with a profile"}
    lines = [
        "| pairs | rows | tokens an ordering | CPU, ms a pair | wall, ms a pair | peak, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for run in results:
        lines.append(
            f"| {turns[run['turn']]} | {run['rows']:,} | {run['tokens_per_ordering']:,.0f} | {run['cpu_ms_a_pair']:.2f} | "
            f"{run['wall_ms_a_pair']:.2f} | {run['peak_mib']:,} |"
        )
    lines += ["", "| function | ms a pair, without what it calls |", "|---|---|"]
    profile = results[-1]["profile_ms_a_pair"]
    return lines + [
        f"| `{name.removeprefix('~:0:')}` | {ms:.3f} |" for name, ms in list(profile.items())[:12]
    ]


def plan_ids(results: dict[str, Any]) -> list[str]:
    """A row a plan."""
    kinds = {"int64": "int64 ids", "text36": "ids of 36 characters", "files": "small files"}
    lines = [
        "| plan of | rows | files | units | seconds | CPU, s | peak, MB | before it, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind, run in results.items():
        lines.append(
            f"| {kinds[kind]} | {run['rows']:,} | {run['files']:,} | {run['units']:,} | {run['seconds']:.1f} | "
            f"{run['cpu_seconds']:.1f} | {run['peak_mb']:,} | {run['peak_mb_before']:,} |"
        )
    return lines


def preemptions(results: dict[str, Any]) -> list[str]:
    """A row a job."""
    lines = [
        "| job | preemptions | runs | right | done again, all | a preemption | of |",
        "|---|---|---|---|---|---|---|",
    ]
    for job, run in results.items():
        lines.append(
            f"| {job} | {run['preemptions']} | {run['runs']} | {run['right']} | {run['lost']} | "
            f"{run['lost'] / max(run['preemptions'], 1):.1f} | {run['unit']} |"
        )
    return lines
