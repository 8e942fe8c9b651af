"""Tables of `real_models.py`: what makes real models better on real votes."""

from typing import Any

from report_training import over_seeds, with_interval

__all__ = ["real_models"]

WAYS = {
    "alone": "preset",
    "fold": "preset, without one part of the train votes each",
    "w8a8": "base in w8a8-int8",
    "fp8": "base in w8a8-fp8",
    "bf16": "base in bf16",
    "target": "target sources alone",
    "soft": "taught by the teacher's folds",
    "pseudo": "the same, and the teacher's pseudolabels",
    "warm_up": "warmed up on other sources, then the target sources",
    "balanced": "lengths balanced",
    "half_balanced": "lengths half balanced",
    "swap": "swap consistency 0.5",
    "half_scale": "half the adapter's alpha",
}
"""Ways in the order of the tables; what only prepares another way is left out."""

AVERAGES = {
    "adapters": "adapters of the folds averaged",
    "probabilities": "probabilities of the folds averaged",
}
FIGURES = ("accuracy", "log_loss", "shorter_won_accuracy", "shorter_won_log_loss", "longer_won_log_loss")


def real_models(results: dict[str, Any]) -> list[str]:
    runs = results["runs"]
    lines = [
        f"{runs[0]['metrics']['rows']} held-out votes, mean over seeds or folds (smallest to largest).",
        "",
        "| model | way | runs | accuracy | log loss | ECE | flips | accuracy, shorter won | log loss, shorter won | log loss, longer won |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for preset in dict.fromkeys(run["preset"] for run in runs):
        for way, title in WAYS.items():
            same = [run["metrics"] for run in runs if (run["preset"], run["way"]) == (preset, way)]
            if same:
                lines.append(row(preset, title, same))
        for name, title in AVERAGES.items():
            if averaged := results["averaged"].get(preset):
                lines.append(row(preset, title, [averaged[name]["metrics"]]))
    lines += [
        "",
        "A way minus the same model and seed alone; averages minus the best single run by valid log loss (95 % interval by prompt):",
        "",
        "| model | way | seed | accuracy | log loss | accuracy, shorter won | log loss, shorter won | log loss, longer won |",
        "|---|---|---|---|---|---|---|---|",
        *differences(results),
    ]
    if missing := results["missing"]:
        lines += ["", f"Not run yet: {', '.join(' '.join(map(str, run)) for run in missing)}."]
    return lines


def row(preset: str, way: str, metrics: list[dict[str, Any]]) -> str:
    """A line of the first table: some runs of one way."""
    plain = [
        over_seeds([each[name] for each in metrics]) for name in ("accuracy", "log_loss", "ece", "flip_rate")
    ]
    lengths = [over_seeds([each["by_length"][name]["mean"] for each in metrics]) for name in FIGURES[2:]]
    return f"| {' | '.join([preset, way, str(len(metrics)), *plain, *lengths])} |"


def differences(results: dict[str, Any]) -> list[str]:
    """The lines of the second table."""
    found = [
        (each["preset"], WAYS[each["way"]], str(each["seed"]), each["less_alone"])
        for each in results["differences"]
        if each["way"] in WAYS
    ]
    for preset, averaged in results["averaged"].items():
        for name, title in AVERAGES.items() if averaged else ():
            found.append((preset, title, "", averaged[name]["less_best_single"]))
    return [
        f"| {' | '.join([*names, *(with_interval(less[name]['mean'], less[name]['ci95'], '+.3f') for name in FIGURES)])} |"
        for *names, less in found
    ]
