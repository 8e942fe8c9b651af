"""The flow: read predictions and votes, join, measure, write metrics.json and report.html.

Not covered: making predictions. Running it again writes both files anew.
"""

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import wsdm_ray
from wsdm_ray.config import EvaluateConfig, to_dict
from wsdm_ray.evaluation.adaptive import adaptive
from wsdm_ray.evaluation.join import Joined, join_by_id, read_pairs, read_predictions, read_votes
from wsdm_ray.evaluation.metrics import (
    length_bins,
    majority_baseline,
    measure,
    one_sided_baseline,
)
from wsdm_ray.evaluation.report import confident_mistakes, decimals, percent, render_report, table_rows
from wsdm_ray.evaluation.temperature import cross_fit
from wsdm_ray.statistics import agreement, cross_entropy
from wsdm_ray.storage import exists, join, read_json, write_atomic, write_json
from wsdm_ray.telemetry import logger

__all__ = ["evaluate"]

MOST_REASONS = 10


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Write metrics.json and report.html to `config.output`, print the headline, return the metrics.

    Raises:
        StorageError: a path is missing or not writable.
        DataError: predictions and votes do not fit each other, or a value is not what was promised.
    """
    joined = join_by_id(read_predictions(config.predictions), read_votes(config.votes, config.columns))
    warn_of_errors(joined)
    calibration, calibrated_N = cross_fit(joined.prob, joined.label, joined.group)
    run = run_of(config.predictions)
    figures = measure_all(joined, config) | {
        "calibration": calibration,
        "adaptive": adaptive_of(joined, run, config),
    }
    metrics = to_json(figures | provenance(config))
    page = render_report(
        metrics,
        joined,
        calibrated_N,
        mistakes_to_show(joined, config),
        run,
        {"Predictions": config.predictions, "Votes": ", ".join(config.votes)},
    )
    write_atomic(join(config.output, "report.html"), lambda file: file.write(page.encode()))
    write_json(join(config.output, "metrics.json"), metrics)
    print_headline(metrics, config.output)
    return metrics


def measure_all(joined: Joined, config: EvaluateConfig) -> dict[str, Any]:
    """The figures of all rows and of each slice, the baselines, and the best that is possible where known.

    The best is what the true probabilities reach on these very votes, so that their luck is in both figures.
    """
    options = {"resamples": config.bootstrap, "seed": config.seed}
    given: tuple[Any, ...] = (joined.prob, joined.label, joined.prob_ab, joined.prob_ba, joined.group)

    def by(names: Iterable[str | None]) -> dict[str, Any]:
        names_N = np.array(list(names), dtype=object)
        return {
            name: measure(*(values[names_N == name] for values in given), **options)
            for name, _ in Counter(names_N.tolist()).most_common()
            if name is not None
        }

    overall = measure(*given, **options)
    longer_N = np.sign(joined.characters_a - joined.characters_b).astype(np.float64)
    best_accuracy = float(agreement(joined.best_prob, joined.label).mean())
    best_log_loss = float(cross_entropy(joined.best_prob, joined.label).mean())
    best_known = not math.isnan(best_log_loss)
    return overall | {
        "errors": joined.errors.total(),
        "rows_in_both_orders": int(np.count_nonzero(~np.isnan(joined.prob_ab + joined.prob_ba))),
        "error_reasons": dict(joined.errors.most_common(MOST_REASONS)),
        "best_accuracy": best_accuracy if best_known else None,
        "best_log_loss": best_log_loss if best_known else None,
        "share_of_best": (overall["accuracy"] - 0.5) / (best_accuracy - 0.5)
        if best_known and best_accuracy > 0.5
        else None,
        "baselines": {
            "longer_answer": one_sided_baseline(longer_N, joined.label, joined.group, **options),
            "majority": majority_baseline(joined.label),
        },
        "by_language": by(or_unknown(joined.language)),
        "by_length": dict(
            sorted(by(length_bins(joined.tokens)).items(), key=lambda item: lower_bound(item[0]))
        ),
        "by_source": by(or_unknown(joined.source)),
    }


def or_unknown(names_N: NDArray[np.object_]) -> list[str | None]:
    """Rows without a name are a slice of their own, unless there are no names at all."""
    names = names_N.tolist()
    return [name if name is not None else "unknown" for name in names] if any(names) else [None] * len(names)


def lower_bound(length_bin: str) -> int:
    return int(length_bin.split("-")[0])


def adaptive_of(joined: Joined, run: dict[str, Any], config: EvaluateConfig) -> dict[str, Any] | None:
    """What `--orders adaptive` would have given; None of several models, or where an ordering is missing."""
    models = (run.get("config") or {}).get("model") or [None]
    if run.get("job", "score") != "score" or len(models) > 1:
        return None
    return adaptive(
        joined.prob, joined.prob_ab, joined.prob_ba, joined.ba_first, joined.label, joined.group,
        config.adaptive_tolerance,
    )  # fmt: skip


def provenance(config: EvaluateConfig) -> dict[str, Any]:
    return {"config": to_dict(config), "version": wsdm_ray.__version__}


def run_of(predictions: str) -> dict[str, Any]:
    """The run.json beside the predictions, where there is one."""
    path = join(predictions, "run.json")
    return read_json(path) if exists(path) else {}


def mistakes_to_show(joined: Joined, config: EvaluateConfig) -> list[dict[str, Any]]:
    rows = confident_mistakes(joined.prob, joined.label)
    pairs = read_pairs(config.votes, config.columns, [joined.ids[row] for row in rows])
    return [
        {
            "id": joined.ids[row],
            "prob_a": float(joined.prob[row]),
            "label": float(joined.label[row]),
            "language": joined.language[row],
            "tokens": None if np.isnan(joined.tokens[row]) else int(joined.tokens[row]),
            "pair": pairs[joined.ids[row]],
        }
        for row in rows
    ]


def to_json(value: Any) -> Any:
    """`value` for JSON: floats to 6 places (the rest depends on the order of sums), no NaN, no infinity."""
    if isinstance(value, dict):
        return {str(key): to_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(inner) for inner in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def warn_of_errors(joined: Joined) -> None:
    if joined.errors:
        reason, count = joined.errors.most_common(1)[0]
        logger.warning(
            "%d of %d rows carry an error and are left out of every figure (most often, %d rows: %s)",
            joined.errors.total(),
            joined.errors.total() + len(joined.prob),
            count,
            " ".join(reason.split())[:200],
        )


def adaptive_line(found: dict[str, Any] | None) -> list[str]:
    """What `--orders adaptive` would give at its threshold, and what on other prompts."""
    if not found or found["threshold"] is None:
        return []
    here = next(row for row in found["table"] if row["threshold"] == found["threshold"])
    after, both = found["after"], found["both"]
    elsewhere = (
        f"; fitted on half of the prompts, on the other half {percent(after['share_rerun'])} %, "
        f"{decimals(after['log_loss'], 4)}"
        if after
        else ""
    )
    return [
        f"score --orders adaptive --adaptive-threshold {found['threshold']:g}: a second ordering for "
        f"{percent(here['share_rerun'])} % of the rows, log loss {decimals(here['log_loss'], 4)} "
        f"(both orderings {decimals(both['log_loss'], 4)}{elsewhere})"
    ]


def print_headline(metrics: dict[str, Any], output: str) -> None:
    """The table of the report's first screen, and where the report is."""
    table = Table("predictor", box=SIMPLE_HEAD)
    for heading in ("accuracy %", "95 % interval", "log loss"):
        table.add_column(heading, justify="right")
    for row in table_rows(metrics):
        ends = row["accuracy_ci95"]
        table.add_row(
            f"{row['name']}, {row['note']}" if row["kind"] else row["name"],
            percent(row["accuracy"]),
            f"{percent(ends[0])} to {percent(ends[1])}" if ends else "",
            decimals(row["log_loss"]),
        )
    twice = metrics["rows_in_both_orders"]
    told = f" of the {twice:,} rows in both orders" if twice < metrics["rows"] else ""
    position = (
        f"position bias {decimals(metrics['position_bias'])}, flips {percent(metrics['flip_rate'])} %{told}"
        if metrics["flip_rate"] is not None
        else "one ordering only"
    )
    before, after = metrics["calibration"]["before"], metrics["calibration"]["after"]
    lines = [
        f"{metrics['rows']:,} rows, {metrics['errors']:,} left out with an error",
        f"AUC {decimals(metrics['auc'])}, calibration error {decimals(before['ece'])}"
        + (f" ({decimals(after['ece'])} after temperature)" if after else "")
        + f", {position}",
        *adaptive_line(metrics["adaptive"]),
        f"report: {join(output, 'report.html')}",
    ]
    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.print(table, *lines, sep="\n")
