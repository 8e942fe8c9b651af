"""Tables of the fault campaign, and of scoring at scale: rows, files and replicas."""

from typing import Any

__all__ = ["fault_campaign", "many_files", "replica_simulation", "score_scale"]


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
