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


def votes_study(results: dict[str, Any]) -> list[str]:
    runs, base = results["runs"], results["baselines"]
    lines = [
        f"{runs[0]['metrics']['rows']} held-out votes, mean over seeds (smallest to largest). Pairs/s "
        "are of processes that share GPUs, as many at once as the settings say: not for comparing ways.",
        "",
        "| model | way | seeds | accuracy | log loss | ECE, after a temperature | position bias | flips | pairs/s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]

    def cell(values: list[float], form: str = ".3f") -> str:
        if not values or any(value is None for value in values):
            return ""
        low, high = (format(each, form) for each in (min(values), max(values)))
        mean = format(sum(values) / len(values), form)
        return mean if low == high else f"{mean} ({low} to {high})"

    def row(preset: str, way: str, seeds: str, metrics: list[dict[str, Any]], speeds: list[float]) -> str:
        eces = (cell([each["calibration"][when]["ece"] for each in metrics]) for when in ("before", "after"))
        cells = (
            preset, way, seeds,
            cell([each["accuracy"] for each in metrics]), cell([each["log_loss"] for each in metrics]),
            ", ".join(eces), cell([each["position_bias"] for each in metrics], "+.3f"),
            cell([each["flip_rate"] for each in metrics]), cell(speeds, ".0f"),
        )  # fmt: skip
        return f"| {' | '.join(cells)} |"

    def measured(metrics: dict[str, Any]) -> str:
        return " | ".join(
            f"{metrics[name]:.3f} ({metrics[f'{name}_ci95'][0]:.3f} to {metrics[f'{name}_ci95'][1]:.3f})"
            for name in ("accuracy", "log_loss")
        )

    for preset, way in dict.fromkeys((run["preset"], run["variant"]) for run in sorted(runs, key=way_order)):
        same = [run for run in runs if (run["preset"], run["variant"]) == (preset, way)]
        speeds = [run["score_pairs_per_second"] for run in same]
        lines.append(row(preset, way, str(len(same)), [run["metrics"] for run in same], speeds))
        alone = [run["in_one_order"] for run in same if "in_one_order" in run]
        if alone:
            lines.append(row(preset, f"{way}, scored in one order", str(len(alone)), alone, []))
    for mean in results["mean_of_seeds"]:
        lines.append(
            row(" and ".join(mean["presets"]), "ours, probabilities averaged", "", [mean["metrics"]], [])
        )
    logistic, longer = base["logistic_regression"], base["longer_answer"]
    after = logistic["calibration"]
    lines += [
        f"| logistic regression, TF-IDF and length (95 % interval) | | | {measured(logistic)} "
        f"| {after['before']['ece']:.3f}, {after['after']['ece']:.3f} | | | |",
        f"| the longer answer | | | {longer['accuracy']:.3f} | | | | | |",
        "",
        "A way less another of the same seed, on the same votes (95 % interval by prompt):",
        "",
        "| model | way | less | seed | accuracy | log loss |",
        "|---|---|---|---|---|---|",
    ]

    def figures(less: dict[str, Any]) -> str:
        return " | ".join(
            f"{less[name]['mean']:+.3f} ({less[name]['ci95'][0]:+.3f} to {less[name]['ci95'][1]:+.3f})"
            for name in ("accuracy", "log_loss")
        )

    for each in results["differences"]:
        what = (each[name] for name in ("preset", "way", "less", "seed"))
        lines.append(f"| {' | '.join(map(str, what))} | {figures(each)} |")
    for mean in results["mean_of_seeds"]:
        name = " and ".join(mean["presets"])
        lines.append(
            f"| {name} | ours | logistic_regression | averaged | {figures(mean['less_regression'])} |"
        )
    if every := results["every_vote"]:
        lines += [
            "",
            f"Each of the {every[0]['metrics']['rows']} votes scored by models of the fold that held it out, as "
            "many seeds as folds (95 % interval by prompt):",
            "",
            "| models | accuracy | log loss | accuracy less logistic regression's | log loss less its |",
            "|---|---|---|---|---|",
        ]
    for each in every:
        name = " and ".join(each["presets"]) or "logistic regression"
        less = figures(each["less_regression"]) if each["presets"] else " | "
        lines.append(f"| {name} | {measured(each['metrics'])} | {less} |")
    lines += [
        "",
        "Each run (95 % interval by prompt):",
        "",
        "| model | way | seed | accuracy | log loss |",
        "|---|---|---|---|---|",
    ]
    for run in sorted(runs, key=way_order):
        lines.append(f"| {run['preset']} | {run['variant']} | {run['seed']} | {measured(run['metrics'])} |")
    if missing := results["missing"]:
        lines += ["", f"Not run yet: {', '.join(' '.join(map(str, run)) for run in missing)}."]
    return lines


def way_order(run: dict[str, Any]) -> tuple[str, int, int]:
    """Models by name, then ways as the study lists them, then seeds."""
    ways = ("ours", "shorter", "bf16", "one_order", "recipe")
    return run["preset"], ways.index(run["variant"]), run["seed"]


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


def score_gpu(results: dict[str, Any]) -> list[str]:
    pairs = results["pairs"]
    lines = [
        f"Pairs of {pairs['tokens_of_both_orderings']:,.0f} tokens on average in both orderings "
        f"({pairs['tokens_shared']:,.0f} where they share their prompt), {pairs['cut_share']:.0%} cut; random weights."
    ]
    parts = {"speed": gpu_speed, "ceiling": gpu_ceiling, "timeline": gpu_timeline, "memory": gpu_memory,
             "start": gpu_start, "scaling": gpu_scaling}  # fmt: skip
    for name, write in parts.items():
        if name in results:
            lines += ["", *write(results[name])]
    return lines


def gpu_speed(rows: list[dict[str, Any]]) -> list[str]:
    recipe = next((row["pairs_per_second"]["median"] for row in rows if row["way"] == "recipe"), None)
    lines = [
        "| way | pairs/s, median (min to max) | times the recipe | tokens/s, both orderings | turns | pass filled |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        speed = row["pairs_per_second"]
        times = f"{speed['median'] / recipe:.2f}" if recipe else ""
        filled = f"{row['fill']:.1%}" if "fill" in row else f"batches of {row['batch']}"
        lines.append(
            f"| {row['way']} | {speed['median']:.2f} ({speed['min']:.2f} to {speed['max']:.2f}) | {times} "
            f"| {row['tokens_per_second']['median']:,.0f} | {row['turns']} | {filled} |"
        )
    return lines


def gpu_ceiling(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "The four products of a layer alone, for all layers:",
        "",
        "| precision | TFLOP/s | tokens/s of a pass | pairs/s, shared layout | reached by `shared` |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        reached = f"{row['reached']:.0%}" if row["reached"] else ""
        lines.append(
            f"| {row['precision']} | {row['tflops']:,.0f} | {row['pass_tokens_per_second']:,.0f} "
            f"| {row['pairs_per_second']:.1f} | {reached} |"
        )
    return lines


def gpu_timeline(found: dict[str, Any]) -> list[str]:
    lines = [
        f"`{found.get('precision', 'fp8')} shared` on the GPU's timeline, {found['milliseconds']:,.0f} ms: idle {found['idle_share']:.2%}, "
        f"at most {found['longest_gap_ms']:.2f} ms at a time. Kernels by their share:",
        "",
        "| kernel | share | calls | median |",
        "|---|---|---|---|",
    ]
    for each in found["kernels"]:
        lines.append(
            f"| `{each['name']}` | {each['share']:.1%} | {each['calls']} | {each['median_us']:,.0f} us |"
        )
    return lines


def gpu_memory(found: dict[str, Any]) -> list[str]:
    return [
        f"One `{found.get('precision', 'fp8')} shared` replica: weights {found['weights_gib']:.1f} GiB, at its peak "
        f"{found['allocated_gib']:.1f} GiB in use and {found['reserved_gib']:.1f} GiB reserved."
    ]


def gpu_start(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "Seconds from the start of a process, weights on local disk:",
        "",
        "| compile cache | imported | loaded | compiled | first pass | second pass | of which compiling | peak, loading included |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        stages = " | ".join(
            f"{row[name]:.1f}" for name in ("imported", "loaded", "compiled", "first_pass", "second_pass")
        )
        lines.append(
            f"| {row['compile_cache']} | {stages} | {row['compiling']:.1f} | {row['reserved_gib']:.1f} GiB |"
        )
    return lines


def gpu_scaling(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "The whole pipeline on Ray, parquet to parquet:",
        "",
        "| replicas | pairs/s, all at work | times one | pairs/s within replicas | with start-up |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['replicas']} | {row['steady_pairs_per_second']:.2f} | {row['times_one']:.2f} "
            f"| {row['busy_pairs_per_second']:.2f} | {row['pairs_per_second']:.2f} |"
        )
    return lines


def same_answers(results: list[dict[str, Any]]) -> list[str]:
    lines = [
        "Distances of probabilities are from `bf16 single`, from `fp32 single`, and from what the same way gives "
        "each row alone; the last columns are of the same rows in several batches.",
        "",
        "| way | mean distance | 99th percentile | largest | from fp32, mean | from alone, mean | largest "
        "| over batches, mean | largest | other winner | accuracy | log loss |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    columns = ("mean_abs", "p99_abs", "max_abs", "float32_mean_abs", "alone_mean_abs", "alone_max_abs",
               "batch_spread_mean", "batch_spread_max")  # fmt: skip
    for row in results:
        cells = " | ".join(f"{row[name]:.5f}" if name in row else "" for name in columns)
        lines.append(
            f"| {row['way']} | {cells} "
            f"| {row['other_winner']:.2%} | {row['accuracy']:.4f} | {row['log_loss']:.4f} |"
        )
    return lines


SECTIONS = {
    "votes_study": votes_study,
    "score_cpu": score_cpu,
    "score_gpu": score_gpu,
    "same_answers": same_answers,
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
    commits = [f"Commit {report['commit'][:10]}"]
    for name, value in report["settings"].items():  # of what ran at other times than the rest
        if name.startswith("commit_of_"):
            commits.append(f"{name.removeprefix('commit_of_')} {value[:10]}")
    head = [
        f"## {path.stem}",
        "",
        report["question"],
        "",
        f"{where}. {what}. {', '.join(commits)}.",
        "",
    ]
    return "\n".join([*head, *write(report["results"]), ""])


def main() -> None:
    sections = [section(path) for path in sorted((HERE / "results").glob("*.json"))]
    text = "# Results\n\nMade by `report.py` from the JSON files in results/, which hold every setting.\n\n"
    (HERE / "RESULTS.md").write_text(text + "\n".join(sections))


if __name__ == "__main__":
    main()
