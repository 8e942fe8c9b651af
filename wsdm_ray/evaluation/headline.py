"""What `evaluate` prints: the first screen of the report as text."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from wsdm_ray.evaluation.pages import decimals, percent
from wsdm_ray.evaluation.report import table_rows

__all__ = ["print_headline"]


def print_headline(metrics: dict[str, Any], report: str) -> None:
    """Print the table of the report's first screen, and where the report is."""
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
        *length_line(metrics["length_control"]),
        *adaptive_line(metrics["adaptive"]),
        *few_line(metrics["calibration"]["too_few"]),
        f"report: {report}",
    ]
    tables = [baselines_table(metrics), *([sets_table(metrics)] if "sets" in metrics else [])]
    Console(markup=False, highlight=False, soft_wrap=True).print(*tables, *lines, sep="\n")


def baselines_table(metrics: dict[str, Any]) -> Table:
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
    return table


def sets_table(metrics: dict[str, Any]) -> Table:
    """Accuracy and log loss of each set, and by how much they exceed those of the first."""
    table = Table(Column("predictions", overflow="fold"), box=SIMPLE_HEAD)
    for heading in ("accuracy %", "less the first", "log loss", "less the first"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, one in metrics["sets"].items():
        differences = metrics["differences"].get(name)
        accuracy, log_loss = (
            interval(differences[key], scale) if differences else ""
            for key, scale in (("accuracy", 100), ("log_loss", 1))
        )
        table.add_row(name, percent(one["accuracy"]), accuracy, decimals(one["log_loss"]), log_loss)
    return table


def interval(difference: dict[str, Any], scale: int) -> str:
    places = 1 if scale == 100 else 3
    shown = f"{difference['difference'] * scale:+.{places}f}"
    if not difference["ci95"]:
        return shown
    low, high = (f"{end * scale:+.{places}f}" for end in difference["ci95"])
    return f"{shown} [{low}, {high}]"


def length_line(control: dict[str, Any] | None) -> list[str]:
    """The line about answers of other lengths; none where no shorter answer won."""
    if not control or control["balanced_accuracy"] is None:
        return []
    return [
        f"accuracy {percent(control['longer_won']['accuracy'])} % where the longer answer won,"
        f" {percent(control['shorter_won']['accuracy'])} % where the shorter did"
    ]


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


def few_line(too_few: str | None) -> list[str]:
    return [f"{too_few} to fit a temperature or a threshold; intervals are wide"] if too_few else []
