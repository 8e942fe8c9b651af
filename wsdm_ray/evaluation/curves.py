"""A training run as one page: training.html, from the metrics.jsonl beside it.

Not covered: judging the classifier on votes (`evaluate`).
"""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from wsdm_ray.errors import DataError
from wsdm_ray.evaluation.charts import curve_chart
from wsdm_ray.evaluation.pages import MOST_SETTINGS, flatten, render_page
from wsdm_ray.runs import RUN_FILE, STARTED_FILE
from wsdm_ray.statistics import Floats
from wsdm_ray.storage import exists, join, open_read, read_json, write_atomic

__all__ = ["render_curves", "write_curves"]

MOST_POINTS = 600
"""A line has at most so many points; a longer run is shown by means of neighbouring steps."""
WINDOW = 0.05
"""The running mean is taken over this share of the run."""


def write_curves(folder: str) -> str | None:
    """Write training.html into the output folder of `train`; its path, or None where there is no step yet.

    Raises:
        DataError: metrics.jsonl is not what `train` writes.
    """
    path = join(folder, "metrics.jsonl")
    if not exists(path):
        return None
    with open_read(path) as file:
        lines = file.read().decode().splitlines()
    try:
        rows = [json.loads(line) for line in lines]
    except ValueError as error:
        raise DataError(
            f"{path}: not JSON lines ({error}); it is written by `python -m jobs.train`"
        ) from error
    if not rows:
        return None
    try:
        page = render_curves(rows, run_of(folder, RUN_FILE), folder, run_of(folder, STARTED_FILE))
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: has no {error}; it is not what `python -m jobs.train` writes") from error
    write_atomic(join(folder, "training.html"), lambda file: file.write(page.encode()))
    return join(folder, "training.html")


def run_of(folder: str, name: str) -> dict[str, Any]:
    path = join(folder, name)
    return read_json(path) if exists(path) else {}


def render_curves(
    rows: Sequence[dict[str, Any]], run: dict[str, Any], folder: str, started: dict[str, Any] | None = None
) -> str:
    """The page of a training run as HTML.

    Args:
        rows: metrics of the steps, in order; a step with a checkpoint has `valid_*` too.
        run: the run.json of a finished run, else empty.
        folder: the output folder of `train`.
        started: what is known of an unfinished run, its fingerprint.
    """
    checked = [row for row in rows if "valid_log_loss" in row]
    judged = [row for row in checked if math.isfinite(row["valid_log_loss"])]
    kept = run.get("metrics", {}).get("step")
    lowest = min(judged, key=lambda row: row["valid_log_loss"]) if judged else None
    known = run or started or {}
    config = known.get("config") or known.get("fingerprint", {}).get("options", {})
    return render_page(
        "training.html",
        folder=folder,
        last=rows[-1],
        total=run.get("counts", {}).get("steps"),
        finished=bool(run),
        kept=kept,
        best=next((row for row in checked if row["step"] == kept), lowest),
        facts=training_facts(known, config, kept),
        settings=flatten(config | {"resolved": known.get("resolved", {})})[:MOST_SETTINGS],
        charts=charts(rows, checked),
        checked=checked,
        seconds=sum(row.get("seconds", 0.0) for row in rows),
        pairs=sum(row["pairs"] for row in rows),
        tokens=sum(row["tokens"] for row in rows),
    )


def training_facts(run: dict[str, Any], config: dict[str, Any], kept: int | None) -> list[tuple[str, str]]:
    """Titles and values for people of what was trained, on what, and how; what is not known is left out."""
    counts, resolved = run.get("counts", {}), run.get("resolved", {})
    digest, inputs = run.get("fingerprint", {}).get("base"), run.get("fingerprint", {}).get("inputs", {})
    data = {name: config.get(name) or list(inputs.get(name) or {}) for name in ("train", "valid")}
    rows = {name: f" ({counts[name]:,} rows)" if counts.get(name) else "" for name in data}
    lora, optimizer = config.get("lora") or {}, config.get("optimizer") or {}
    found = [
        ("Base", f"{config.get('base', '')}" + (f" (digest {digest[:12]})" if digest else "")),
        *(
            (title, ", ".join(data[name]) + rows[name])
            for title, name in (("Train", "train"), ("Valid", "valid"))
        ),
        ("Classifier", f"the checkpoint of step {kept:,}" if kept else ""),
        ("Seed", config.get("seed")),
        ("Epochs", config.get("epochs")),
        ("Pairs a step", config.get("pairs_per_step")),
        ("Orders", config.get("orders")),
        ("Precision", resolved.get("precision") or config.get("precision")),
        ("Base weights", resolved.get("quantization") or config.get("quantization")),
        ("LoRA", f"rank {lora['r']}, alpha {lora['alpha']}, {', '.join(lora['targets'])}" if lora else ""),
        ("Optimizer", optimizer_in_words(optimizer) if optimizer else ""),
        ("Tokens", f"at most {config['text']['max_tokens']:,} of a pair" if config.get("text") else ""),
        ("Date", run.get("finished")),
        ("Version", run.get("versions", {}).get("wsdm_ray")),
    ]
    return [(title, str(value)) for title, value in found if value not in ("", None)]


def optimizer_in_words(optimizer: dict[str, Any]) -> str:
    return (
        f"{optimizer['kind']}, learning rate {optimizer['learning_rate']:g}, {optimizer['schedule']} schedule"
    )


def charts(rows: Sequence[dict[str, Any]], checked: Sequence[dict[str, Any]]) -> dict[str, Markup]:
    """The charts of the page by name."""

    def curve(name: str, title: str, *, smooth: bool = True, valid: str = "", form: str = "g") -> Markup:
        steps, values = thinned(
            np.array([row["step"] for row in rows], np.float64),
            np.array([row[name] for row in rows], np.float64),
        )
        points = [
            (row["step"], row[valid], row.get(f"{valid}_ci95"))
            for row in checked
            if valid and math.isfinite(row[valid])
        ]
        mean = running_mean(values) if smooth and len(values) > 10 else None
        return curve_chart(steps, values, title, smooth=mean, points=points, form=form)

    return {
        "loss": curve("loss", "loss", valid="valid_log_loss"),
        "accuracy": curve("accuracy", "share of orderings that are right", valid="valid_accuracy"),
        "grad_norm": curve("grad_norm", "gradient norm before clipping"),
        "learning_rate": curve("learning_rate", "learning rate", smooth=False),
        "tokens_per_second": curve("tokens_per_second", "tokens a second", form=",.0f"),
        "padding_share": curve("padding_share", "padding, share of a pass", form=".0%"),
        "memory_gb": curve("memory_gb", "most memory so far, GB", smooth=False),
    }


def thinned(steps: Floats, values: Floats) -> tuple[Floats, Floats]:
    """At most `MOST_POINTS` of both, each the mean of its neighbours."""
    if len(steps) <= MOST_POINTS:
        return steps, values
    parts = np.array_split(np.arange(len(steps)), MOST_POINTS)
    return np.array([steps[part[-1]] for part in parts]), np.array([values[part].mean() for part in parts])


def running_mean(values: Floats) -> Floats:
    """The mean over a window around each value that is cut at the ends: float64, same shape."""
    half = max(int(len(values) * WINDOW / 2), 2)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)
