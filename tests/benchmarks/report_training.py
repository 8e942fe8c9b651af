"""Tables of the benchmarks of training: the quickstart, real votes, pseudolabels, and data preparation."""

from typing import Any

from report_tables import table

__all__ = [
    "idle_gpu",
    "over_seeds",
    "pseudolabels",
    "quickstart",
    "real_votes",
    "rows_per_second",
    "train_gpu",
    "train_scaling",
    "train_smoke",
    "votes_study",
    "with_interval",
]

WAYS = {
    "ours": "preset",
    "shorter": "1,024 tokens, alpha 64",
    "bf16": "bf16 base",
    "one_order": "trained in one order",
    "recipe": "baseline",
}
"""Ways of the votes study, in its order, and what the documentation calls them."""

OTHERS = {"logistic_regression": "logistic regression"}
"""What a way is compared with besides another way."""

MODELS = {"teacher": "teacher", "votes_only": "votes alone", "wrong_rows": "wrong rows"}
"""What the student of the pseudolabels is compared with."""


def with_interval(mean: float, interval: list[float], form: str = ".3f") -> str:
    """`0.591 (0.555 to 0.627)`."""
    low, high = interval
    return f"{mean:{form}} ({low:{form}} to {high:{form}})"


def quickstart(results: dict[str, Any]) -> list[str]:
    columns = (
        "seed", "held-out votes", "accuracy (95 % interval)", "best possible", "of the way from 0.5", "seconds",
        "peak memory",
    )  # fmt: skip
    return table(
        columns,
        (
            (
                run["seed"], run["rows"], with_interval(run["accuracy"], run["accuracy_ci95"]),
                f"{run['best_accuracy']:.3f}", f"{run['share_of_best']:.0%}", f"{run['seconds']:.0f}",
                f"{run['peak_memory_gb']:.1f} GB",
            )
            for run in results["runs"]
        ),
    )  # fmt: skip


STEPS = {
    "recipe": "LLM.int8(), 8 padded sequences, eager, all recomputed",
    "recipe_float32": "the baseline: the same, what is not quantized in float32",
    "transformers": "transformers with PEFT in bf16, 8 padded sequences, all recomputed",
    "transformers_row": "transformers with PEFT in bf16, one row of the token budget, all recomputed",
}
"""Ways of a training step that are not ours."""


def train_gpu(results: dict[str, Any]) -> list[str]:
    rows = []
    for row in results.get("speed", []):
        figures = ("out of memory", "", "", "")
        if not row.get("out_of_memory"):
            figures = (
                f"{row['tokens_per_second']['median']:,.0f}", f"{row['pairs_per_second']['median']:.2f}",
                f"{row['first_step_seconds']:.0f} s", f"{row['allocated_gib']:.1f} GiB",
            )  # fmt: skip
        rows.append((STEPS.get(row["way"], row["way"]), *figures))
    return table(("way", "tokens/s", "pairs/s, both orders", "first step", "peak memory"), rows)


def idle_gpu(report: dict[str, Any]) -> list[str]:
    """For how long of a step kernels ran: of one under the profiler, which slows the host, and of others."""
    results = report["results"]
    if (timeline := results.get("timeline")) is None:
        return []
    speed = next(row for row in results["speed"] if row["way"] == timeline["way"])
    step = 1e3 * report["settings"]["pairs"] / speed["pairs_per_second"]["median"]
    busy = timeline["milliseconds"] * (1 - timeline["idle_share"])
    lines = [
        "",
        f"`{timeline['way']}`: kernels run for {busy:,.0f} ms under the profiler, whose step took "
        f"{timeline['milliseconds']:,.0f} ms, so the GPU is idle for {timeline['idle_share']:.1%} there. Other "
        f"steps take {step:,.0f} ms.",
    ]
    if rows := results.get("ceiling"):
        speeds = ", ".join(f"{row['pass_tokens_per_second']:,.0f} of `{row['held']}`" for row in rows)
        lines += [
            "",
            f"The GEMMs of all layers alone, forward and of the input's gradient: {speeds} tokens/s.",
        ]
    return lines


def train_scaling(results: dict[str, Any]) -> list[str]:
    """A row a number of workers, and how far their losses are from one worker's."""
    columns = (
        "workers", "seconds of each step", "fastest, tokens/s", "fastest, pairs/s",
        "times as fast: medians; same steps; fastest", "losses off by, at most", "GB a GPU",
    )  # fmt: skip
    rows = []
    for run in results["runs"]:
        name = f"{run['workers']}{', one killed' if run['killed'] else ''}"
        if run["workers"] < run.get("micro_batches", 0):
            name += f", micro-batches for {run['micro_batches']}"
        steps = ", ".join(f"{seconds:.1f}" for seconds in run["all_step_seconds"])
        off = run.get("largest_relative_difference_of_8")
        names = ("speedup", "speedup_of_same_steps", "speedup_of_fastest_steps")
        times = "; ".join(f"{run[name]:.2f}" for name in names if name in run)
        rows.append(
            (
                name, steps,
                f"{run['tokens_per_second']['max']:,.0f}", f"{run['pairs_per_second']['max']:.2f}",
                times, "" if off is None else f"{off:.2%}", f"{run['memory_gb']:.1f}",
            )
        )  # fmt: skip
    return table(columns, rows)


def train_smoke(results: dict[str, Any]) -> list[str]:
    jobs = ", ".join(f"{job} {seconds:.0f}" for job, seconds in results["seconds"].items())
    lines = [
        f"Seconds by job, start of Python and Ray included: {jobs}; {results['all_seconds']:.0f} in all.",
        "",
        "| preset | steps | tokens/s | first step | peak memory in training |",
        "|---|---|---|---|---|",
    ]
    for preset, run in results["presets"].items():
        lines.append(
            f"| `{preset}` | {len(run['losses'])} | {run['tokens_per_second']:,.0f} | {run['first_step_seconds']:.0f} s | {run['memory_gb']:.0f} GB |"
        )
    return lines


def real_votes(results: dict[str, Any]) -> list[str]:
    metrics, speed = results["metrics"], results["score_throughput"]
    longer = metrics["baselines"]["longer_answer"]
    return [
        f"{results['train_rows']} votes, {results['steps']} steps; {metrics['rows']} votes with other prompts held out.",
        "",
        "| predictor | accuracy (95 % interval) | log loss | ECE | position bias | flips |",
        "|---|---|---|---|---|---|",
        f"| trained classifier, both orders | {with_interval(metrics['accuracy'], metrics['accuracy_ci95'])} | {metrics['log_loss']:.3f} "
        f"| {metrics['ece']:.3f} | {metrics['position_bias']:+.3f} | {metrics['flip_rate']:.3f} |",
        f"| the longer answer wins | {longer['accuracy']:.3f} | {longer['log_loss']:.3f} | | | |",
        "",
        f"Seconds by job: {', '.join(f'{job} {seconds}' for job, seconds in results['seconds'].items())}. Training "
        f"{results['train_tokens_per_second']['median']:,.0f} tokens/s (median step); scoring "
        f"{speed['busy_pairs_per_second']:.1f} pairs/s within the replica, {speed['pairs_per_second']:.1f} with start-up.",
        "",
        "```bash",
        *(
            command.replace("--precision int8 ", "--precision bnb-int8 ")
            for command in results["commands"].values()
        ),
        "```",
    ]


def rows_per_second(results: list[dict[str, Any]]) -> list[str]:
    lines = ["| job | lengths | rows | rows/s, median (min to max) | peak memory |", "|---|---|---|---|---|"]
    for row in results:
        speed = row["rows_per_second"]
        lines.append(
            f"| {row['job']} | {row['lengths']} | {row['rows']:,} | {speed['median']:,} ({speed['min']:,} to "
            f"{speed['max']:,}) | {row['peak_memory_mib']['max']} MiB |"
        )
    return lines


def pseudolabels(results: dict[str, Any]) -> list[str]:
    runs = results["runs"]
    seeds = [f"seed {run['seed']}" for run in runs]
    best = [run["models"]["teacher"] for run in runs]
    labels = [run["label_accuracy"] for run in runs]
    right, wrong = (
        ", ".join(f"{each[name]:.3f}" for each in labels) for name in ("right_rows", "wrong_rows")
    )
    return [
        f"| accuracy; log loss | {' | '.join(seeds)} | mean |",
        f"|{'---|' * (len(seeds) + 2)}",
        *(
            pseudolabel_row(name, [(run["models"][key]["accuracy"], run["models"][key]["log_loss"]) for run in runs])
            for key, name in pseudolabel_names(runs[0]).items()
        ),
        pseudolabel_row("best possible", [(model["best_accuracy"], model["best_log_loss"]) for model in best]),
        "",
        "Student minus another model, on the same held-out votes (95 % interval by prompt):",
        "",
        f"| | {' | '.join(seeds)} |",
        f"|{'---|' * (len(seeds) + 1)}",
        *student_differences(runs),
        "",
        f"Held-out votes: {', '.join(str(model['rows']) for model in best)}. Share of the pseudolabels whose side is "
        f"that of the hidden vote: {right}; on wrong rows {wrong}.",
    ]  # fmt: skip


def pseudolabel_names(run: dict[str, Any]) -> dict[str, str]:
    """Each model's key in the JSON file, and how it was trained."""
    models, kept = run["models"], run["pseudolabels"]["counts"]["kept"]
    return {
        "teacher": f"teacher: {models['teacher']['train_rows']} votes, {models['teacher']['epochs']:g} epochs",
        "student": f"student: the votes and {kept:,} pseudolabels, {models['student']['epochs']:g} epoch",
        "votes_only": f"the votes alone, {models['votes_only']['steps']} steps (the student: {models['student']['steps']})",
        "wrong_rows": "the student with the pseudolabels on wrong rows",
    }


def pseudolabel_row(name: str, figures: list[tuple[float, float]]) -> str:
    """A table row of accuracy and log loss by seed, and their means."""
    means = tuple(sum(column) / len(figures) for column in zip(*figures, strict=True))
    cells = (f"{accuracy:.3f}; {log_loss:.3f}" for accuracy, log_loss in [*figures, means])
    return f"| {name} | {' | '.join(cells)} |"


def student_differences(runs: list[dict[str, Any]]) -> list[str]:
    lines = []
    for figure, title in (("accuracy", "accuracy"), ("log_loss", "log loss")):
        for key, name in MODELS.items():
            less = [run["student_less"][key][figure] for run in runs]
            cells = (with_interval(each["mean"], each["ci95"], "+.3f") for each in less)
            lines.append(f"| {title}, minus {name} | {' | '.join(cells)} |")
    return lines


def votes_study(results: dict[str, Any]) -> list[str]:
    lines = [
        f"{results['runs'][0]['metrics']['rows']} held-out votes, mean over seeds (smallest to largest). Pairs/s are "
        "of processes that share GPUs, as many at once as the settings say: do not compare ways by them.",
        "",
        *votes_by_way(results),
        "",
        "A way minus another of the same seed, on the same votes (95 % interval by prompt):",
        "",
        *votes_differences(results),
        *votes_every(results["every_vote"]),
        "",
        "Each run (95 % interval by prompt):",
        "",
        "| model | way | seed | accuracy | log loss |",
        "|---|---|---|---|---|",
    ]
    for run in sorted(results["runs"], key=way_order):
        way, measured = WAYS[run["variant"]], accuracy_and_log_loss(run["metrics"])
        lines.append(f"| {run['preset']} | {way} | {run['seed']} | {measured} |")
    if missing := results["missing"]:
        lines += ["", f"Not run yet: {', '.join(' '.join(map(str, run)) for run in missing)}."]
    return lines


def votes_by_way(results: dict[str, Any]) -> list[str]:
    """The table of all ways, their seeds together, and of the models without training beside them."""
    runs, base = results["runs"], results["baselines"]
    lines = [
        "| model | way | seeds | accuracy | log loss | ECE, after a temperature | position bias | flips | pairs/s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for preset, variant in dict.fromkeys(
        (run["preset"], run["variant"]) for run in sorted(runs, key=way_order)
    ):
        same = [run for run in runs if (run["preset"], run["variant"]) == (preset, variant)]
        speeds = [run["score_pairs_per_second"] for run in same]
        lines.append(way_row(preset, WAYS[variant], str(len(same)), [run["metrics"] for run in same], speeds))
        alone = [run["in_one_order"] for run in same if "in_one_order" in run]
        if alone:
            lines.append(way_row(preset, f"{WAYS[variant]}, scored in one order", str(len(alone)), alone, []))
    for mean in results["mean_of_seeds"]:
        name = " and ".join(mean["presets"])
        lines.append(way_row(name, "preset, probabilities averaged", "", [mean["metrics"]], []))
    logistic, longer = base["logistic_regression"], base["longer_answer"]
    eces = ", ".join(f"{logistic['calibration'][when]['ece']:.3f}" for when in ("before", "after"))
    return [
        *lines,
        f"| logistic regression, TF-IDF and length (95 % interval) | | | {accuracy_and_log_loss(logistic)} | {eces} | | | |",
        f"| the longer answer wins | | | {longer['accuracy']:.3f} | | | | | |",
    ]  # fmt: skip


def way_row(preset: str, way: str, seeds: str, metrics: list[dict[str, Any]], speeds: list[float]) -> str:
    eces = (
        over_seeds([each["calibration"][when]["ece"] for each in metrics]) for when in ("before", "after")
    )
    cells = (
        preset,
        way,
        seeds,
        over_seeds([each["accuracy"] for each in metrics]),
        over_seeds([each["log_loss"] for each in metrics]),
        ", ".join(eces),
        over_seeds([each["position_bias"] for each in metrics], "+.3f"),
        over_seeds([each["flip_rate"] for each in metrics]),
        over_seeds(speeds, ".0f"),
    )
    return f"| {' | '.join(cells)} |"


def over_seeds(values: list[float], form: str = ".3f") -> str:
    """The mean of some seeds with the smallest and the largest; empty where a seed has no value."""
    if not values or any(value is None for value in values):
        return ""
    low, high = (format(value, form) for value in (min(values), max(values)))
    mean = format(sum(values) / len(values), form)
    return mean if low == high else f"{mean} ({low} to {high})"


def accuracy_and_log_loss(metrics: dict[str, Any]) -> str:
    """Two cells of a table, each with its 95 % interval."""
    return " | ".join(
        with_interval(metrics[name], metrics[f"{name}_ci95"]) for name in ("accuracy", "log_loss")
    )


def difference(less: dict[str, Any]) -> str:
    """Two cells of a table: by how much accuracy and log loss differ, each with its 95 % interval."""
    return " | ".join(
        with_interval(less[name]["mean"], less[name]["ci95"], "+.3f") for name in ("accuracy", "log_loss")
    )


def votes_differences(results: dict[str, Any]) -> list[str]:
    lines = ["| model | way | minus | seed | accuracy | log loss |", "|---|---|---|---|---|---|"]
    names = WAYS | OTHERS
    for each in results["differences"]:
        cells = (each["preset"], names[each["way"]], names[each["less"]], str(each["seed"]), difference(each))
        lines.append(f"| {' | '.join(cells)} |")
    for mean in results["mean_of_seeds"]:
        name = " and ".join(mean["presets"])
        lines.append(
            f"| {name} | preset | logistic regression | averaged | {difference(mean['less_regression'])} |"
        )
    return lines


def votes_every(folds: list[dict[str, Any]]) -> list[str]:
    """The table of all votes, each scored by a model that was trained without its fold."""
    if not folds:
        return []
    lines = [
        "",
        f"Each of the {folds[0]['metrics']['rows']} votes scored by models of the fold that held it out, as "
        "many seeds as folds (95 % interval by prompt):",
        "",
        "| models | accuracy | log loss | accuracy minus logistic regression's | log loss minus its |",
        "|---|---|---|---|---|",
    ]
    for fold in folds:
        name = " and ".join(fold["presets"]) or "logistic regression"
        less = difference(fold["less_regression"]) if fold["presets"] else " | "
        lines.append(f"| {name} | {accuracy_and_log_loss(fold['metrics'])} | {less} |")
    return lines


def way_order(run: dict[str, Any]) -> tuple[str, int, int]:
    """Models by name, then ways as the study lists them, then seeds."""
    return run["preset"], list(WAYS).index(run["variant"]), run["seed"]
