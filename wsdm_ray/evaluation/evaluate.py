"""The flow of `evaluate`: read predictions and votes, measure, write metrics.json and report.html.

Running it again writes both files anew. Not covered: making predictions.
"""

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

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
from wsdm_ray.evaluation.report import (
    Mistake,
    confident_mistakes,
    decimals,
    percent,
    render_report,
    table_rows,
)
from wsdm_ray.evaluation.temperature import cross_fit
from wsdm_ray.runs import read_run
from wsdm_ray.statistics import Floats, agreement, cross_entropy
from wsdm_ray.storage import join, write_atomic, write_json
from wsdm_ray.telemetry import logger

__all__ = ["evaluate"]

MOST_REASONS = 10


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Write metrics.json and report.html to `config.output`, print the headline, return the metrics.

    Raises:
        StorageError: a path is missing or not writable.
        DataError: predictions and votes do not fit each other, or a value is not what was promised.
    """
    inputs = read_inputs(config)
    measured = measure_inputs(inputs, config)
    write_outputs(inputs, measured, config)
    print_headline(measured.metrics, config.output)
    return measured.metrics


class Inputs(NamedTuple):
    """Predictions with their votes, and the run.json of the predictions (empty where there is none)."""

    joined: Joined
    run: dict[str, Any]


class Measured(NamedTuple):
    """What metrics.json holds, and the probabilities after the temperature, float64 (N,) or None."""

    metrics: dict[str, Any]
    calibrated_N: Floats | None


def read_inputs(config: EvaluateConfig) -> Inputs:
    """The rows that have both a prediction and a vote. A warning counts those with an error."""
    joined = join_by_id(read_predictions(config.predictions), read_votes(config.votes, config.columns))
    warn_of_errors(joined)
    return Inputs(joined, read_run(config.predictions))


def measure_inputs(inputs: Inputs, config: EvaluateConfig) -> Measured:
    """All metrics, in the form of metrics.json."""
    joined = inputs.joined
    calibration, calibrated_N = cross_fit(joined.prob, joined.label, joined.group)
    metrics = measure_all(joined, config) | {
        "calibration": calibration,
        "adaptive": adaptive_of(inputs, config),
        "config": to_dict(config),
        "version": wsdm_ray.__version__,
    }
    return Measured(to_json(metrics), calibrated_N)


def write_outputs(inputs: Inputs, measured: Measured, config: EvaluateConfig) -> None:
    """Write report.html, then metrics.json."""
    page = render_report(
        measured.metrics,
        inputs.joined,
        measured.calibrated_N,
        mistakes_to_show(inputs.joined, config),
        inputs.run,
        {"Predictions": config.predictions, "Votes": ", ".join(config.votes)},
    )
    write_atomic(join(config.output, "report.html"), lambda file: file.write(page.encode()))
    write_json(join(config.output, "metrics.json"), measured.metrics)


def measure_all(joined: Joined, config: EvaluateConfig) -> dict[str, Any]:
    """The metrics of all rows and of each slice, the baselines, and the best that is possible where known.

    The best is what the true probabilities reach on these very votes, so the luck of the draw is in both.
    """
    options = {"resamples": config.bootstrap, "seed": config.seed}
    columns: tuple[Any, ...] = (joined.prob, joined.label, joined.prob_ab, joined.prob_ba, joined.group)

    def by_name(names: Iterable[str | None]) -> dict[str, Any]:
        names_N = np.array(list(names), dtype=object)
        return {
            name: measure(*(values[names_N == name] for values in columns), **options)
            for name, _ in Counter(names_N.tolist()).most_common()
            if name is not None
        }

    overall = measure(*columns, **options)
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
        "by_language": by_name(named_slices(joined.language)),
        "by_length": dict(
            sorted(by_name(length_bins(joined.tokens)).items(), key=lambda item: lower_bound(item[0]))
        ),
        "by_source": by_name(named_slices(joined.source)),
    }


def named_slices(names_N: NDArray[np.object_]) -> list[str | None]:
    """The slice of each row: rows without a name are one slice, unless no row has a name."""
    names = names_N.tolist()
    return [name if name is not None else "unknown" for name in names] if any(names) else [None] * len(names)


def lower_bound(length_bin: str) -> int:
    return int(length_bin.split("-")[0])


def adaptive_of(inputs: Inputs, config: EvaluateConfig) -> dict[str, Any] | None:
    """What `--orders adaptive` would have given; None of several models, or where an ordering is missing."""
    joined, run = inputs
    models = (run.get("config") or {}).get("model") or [None]
    if run.get("job", "score") != "score" or len(models) > 1:
        return None
    return adaptive(
        joined.prob, joined.prob_ab, joined.prob_ba, joined.ba_first, joined.label, joined.group,
        config.adaptive_tolerance,
    )  # fmt: skip


def mistakes_to_show(joined: Joined, config: EvaluateConfig) -> list[Mistake]:
    """The most confident mistakes, with their texts."""
    rows = confident_mistakes(joined.prob, joined.label)
    pairs = read_pairs(config.votes, config.columns, [joined.ids[row] for row in rows])
    return [
        Mistake(
            id=joined.ids[row],
            prob_a=float(joined.prob[row]),
            label=float(joined.label[row]),
            language=joined.language[row],
            tokens=None if np.isnan(joined.tokens[row]) else int(joined.tokens[row]),
            pair=pairs[joined.ids[row]],
        )
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


def adaptive_line(adaptive: dict[str, Any] | None) -> list[str]:
    """The line about `--orders adaptive` at its threshold; none where there is no such threshold."""
    if not adaptive or adaptive["threshold"] is None:
        return []
    row = next(row for row in adaptive["table"] if row["threshold"] == adaptive["threshold"])
    after, both = adaptive["after"], adaptive["both"]
    other_prompts = (
        f"; fitted on half of the prompts, on the other half {percent(after['share_rerun'])} %, "
        f"{decimals(after['log_loss'], 4)}"
        if after
        else ""
    )
    return [
        f"score --orders adaptive --adaptive-threshold {adaptive['threshold']:g}: a second ordering for "
        f"{percent(row['share_rerun'])} % of the rows, log loss {decimals(row['log_loss'], 4)} "
        f"(both orderings {decimals(both['log_loss'], 4)}{other_prompts})"
    ]


def print_headline(metrics: dict[str, Any], output: str) -> None:
    """Print the table of the report's first screen, and where the report is."""
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
    in_both = metrics["rows_in_both_orders"]
    among = f" of the {in_both:,} rows in both orders" if in_both < metrics["rows"] else ""
    position = (
        f"position bias {decimals(metrics['position_bias'])}, flips {percent(metrics['flip_rate'])} %{among}"
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
