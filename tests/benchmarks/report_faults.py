"""Tables of the fault campaign, and of memory at two numbers of rows."""

from typing import Any

__all__ = ["fault_campaign", "score_scale"]


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
