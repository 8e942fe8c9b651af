"""Writes RESULTS.md from the JSON files in results/:  python tests/benchmarks/report.py"""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def quickstart(results: dict[str, Any]) -> list[str]:
    lines = [
        "| seed | held-out votes | accuracy (95 % interval) | best possible | of the way from 0.5 | seconds | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in results["runs"]:
        low, high = run["accuracy_ci95"]
        lines.append(
            f"| {run['seed']} | {run['rows']} | {run['accuracy']:.3f} ({low:.3f} to {high:.3f}) | "
            f"{run['best_accuracy']:.3f} | {run['share_of_best']:.0%} | {run['seconds']:.0f} | {run['peak_memory_gb']:.1f} GB |"
        )
    return lines


def real_votes(results: dict[str, Any]) -> list[str]:
    metrics, speed = results["metrics"], results["score_throughput"]
    longer = metrics["baselines"]["longer_answer"]
    low, high = metrics["accuracy_ci95"]
    return [
        f"{results['train_rows']} votes, {results['steps']} steps; {metrics['rows']} votes with other prompts held out.",
        "",
        "| predictor | accuracy (95 % interval) | log loss | ECE | position bias | flips |",
        "|---|---|---|---|---|---|",
        f"| trained classifier, both orders | {metrics['accuracy']:.3f} ({low:.3f} to {high:.3f}) | {metrics['log_loss']:.3f} "
        f"| {metrics['ece']:.3f} | {metrics['position_bias']:+.3f} | {metrics['flip_rate']:.3f} |",
        f"| the longer answer wins | {longer['accuracy']:.3f} | {longer['log_loss']:.3f} | | | |",
        "",
        f"Seconds by job: {', '.join(f'{job} {seconds}' for job, seconds in results['seconds'].items())}. Training "
        f"{results['train_tokens_per_second']['median']:,.0f} tokens/s (median step); scoring "
        f"{speed['busy_pairs_per_second']:.1f} pairs/s within the replica, {speed['pairs_per_second']:.1f} with start-up.",
        "",
        *(f"    {command}" for command in results["commands"].values()),
    ]


def rows_per_second(results: list[dict[str, Any]]) -> list[str]:
    lines = ["| job | lengths | rows | rows/s, median (min to max) | peak memory |", "|---|---|---|---|---|"]
    for each in results:
        speed = each["rows_per_second"]
        lines.append(
            f"| {each['job']} | {each['lengths']} | {each['rows']:,} | {speed['median']:,} ({speed['min']:,} to "
            f"{speed['max']:,}) | {each['peak_memory_mib']['max']} MiB |"
        )
    return lines


def pseudolabels(results: dict[str, Any]) -> list[str]:
    first = results["runs"][0]["models"]
    kept = results["runs"][0]["pseudolabels"]["counts"]["kept"]
    names = {
        "teacher": f"teacher: {first['teacher']['train_rows']} votes, {first['teacher']['epochs']:g} epochs",
        "student": f"student: the votes and {kept:,} pseudolabels, {first['student']['epochs']:g} epoch",
        "votes_only": f"the votes alone, {first['votes_only']['steps']} steps (the student: {first['student']['steps']})",
        "wrong_rows": "the student with the pseudolabels on wrong rows",
    }
    seeds = [f"seed {run['seed']}" for run in results["runs"]]
    lines = [
        f"| accuracy; log loss | {' | '.join(seeds)} | mean |",
        f"|{'---|' * (len(seeds) + 2)}",
    ]

    def row(name: str, pairs: list[tuple[float, float]]) -> str:
        means = tuple(sum(column) / len(pairs) for column in zip(*pairs, strict=True))
        cells = (f"{accuracy:.3f}; {log_loss:.3f}" for accuracy, log_loss in [*pairs, means])
        return f"| {name} | {' | '.join(cells)} |"

    for key, name in names.items():
        models = [run["models"][key] for run in results["runs"]]
        lines.append(row(name, [(model["accuracy"], model["log_loss"]) for model in models]))
    best = [run["models"]["teacher"] for run in results["runs"]]
    lines.append(row("best possible", [(model["best_accuracy"], model["best_log_loss"]) for model in best]))
    lines += ["", "Student less another, on the same held-out votes (95 % interval by prompt):", ""]
    lines += [f"| | {' | '.join(seeds)} |", f"|{'---|' * (len(seeds) + 1)}"]
    others = {"teacher": "teacher", "votes_only": "votes alone", "wrong_rows": "wrong rows"}
    for figure, title in (("accuracy", "accuracy"), ("log_loss", "log loss")):
        for key, name in others.items():
            found = [run["student_less"][key][figure] for run in results["runs"]]
            cells = (
                f"{each['mean']:+.3f} ({each['ci95'][0]:+.3f} to {each['ci95'][1]:+.3f})" for each in found
            )
            lines.append(f"| {title}, less {name} | {' | '.join(cells)} |")
    labels = [run["label_accuracy"] for run in results["runs"]]
    lines += [
        "",
        f"Held-out votes: {', '.join(str(model['rows']) for model in best)}. Share of the pseudolabels whose side is that "
        f"of the hidden vote: {', '.join(format(each['right_rows'], '.3f') for each in labels)}; on wrong rows "
        f"{', '.join(format(each['wrong_rows'], '.3f') for each in labels)}.",
    ]
    return lines


def score_cpu(results: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| way | pairs/s, median (min to max) | tokens/s | mean distance from float32 | largest |",
        "|---|---|---|---|---|",
    ]
    for each in results:
        speed = each["pairs_per_second"]
        lines.append(
            f"| {each['way']} | {speed['median']:.3f} ({speed['min']:.3f} to {speed['max']:.3f}) "
            f"| {each['tokens_per_second']:,.0f} | {each['mean_abs_prob']:.2g} | {each['max_abs_prob']:.2g} |"
        )
    return lines


SECTIONS = {
    "score_cpu": score_cpu,
    "quickstart": quickstart,
    "real_votes": real_votes,
    "arena_rows": rows_per_second,
    "pseudolabels": pseudolabels,
}


def section(path: Path) -> str:
    report = json.loads(path.read_text())
    write = next(write for name, write in SECTIONS.items() if path.stem.startswith(name))
    hardware, versions = report["hardware"], report["versions"]
    where = ", ".join([*hardware.get("gpus", []), f"{hardware['cores']} cores of {hardware['cpu']}"])
    what = ", ".join(
        f"{name} {versions[name]}" for name in ("python", "torch", "transformers", "ray") if name in versions
    )
    head = [
        f"## {path.stem}",
        "",
        report["question"],
        "",
        f"{where}. {what}. Commit {report['commit'][:10]}.",
        "",
    ]
    return "\n".join([*head, *write(report["results"]), ""])


def main() -> None:
    sections = [section(path) for path in sorted((HERE / "results").glob("*.json"))]
    text = "# Results\n\nMade by `report.py` from the JSON files in results/, which hold every setting.\n\n"
    (HERE / "RESULTS.md").write_text(text + "\n".join(sections))


if __name__ == "__main__":
    main()
