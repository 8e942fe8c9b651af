"""Which units are done: the parts in a run's folder, and the counts that each keeps in its parquet footer."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from wsdm_ray.errors import DataError
from wsdm_ray.runs import names_in, versions
from wsdm_ray.scoring.error_kinds import ErrorKind, kinds_from_json, kinds_to_json, merge_kinds
from wsdm_ray.scoring.plan import ScorePlan, part_name
from wsdm_ray.storage import join, open_parquet, write_parquet
from wsdm_ray.telemetry import logger

__all__ = [
    "Totals",
    "UnitReport",
    "add_up",
    "completed_units",
    "joined_reports",
    "list_parts",
    "provenance",
    "write_part",
]

COUNTS_KEY = b"wsdm_ray.counts"
"""The key in a part's parquet footer of its counts, so that a resumed run can add them up."""

PART_NAME = re.compile(r"part-\d{6}\.parquet")

FOOTER_COUNTS = ("unit", "rows", "errors", "cut", "tokens", "rerun")


def provenance(models: Sequence[Mapping[str, Any]], orders: str) -> dict[str, str]:
    """What the schema of every part says of where its values come from.

    Args:
        models: the fingerprint of each model.
    """
    return {
        "wsdm_ray.version": versions().get("wsdm_ray", ""),
        "wsdm_ray.models": json.dumps([dict(model) for model in models]),
        "wsdm_ray.orders": orders,
    }


@dataclass(frozen=True, kw_only=True)
class UnitReport:
    """What became of a unit.

    errors, cut: rows with an error, rows with tokens cut off. rerun: rows run again in adaptive orders.
    tokens: of one ordering, after truncation. forward_tokens: what went through the models, padding included.
    halvings: how many times memory ran out and the token budget was halved; token_budget: the last one.
    seconds, process: how long the replica took, and which one it was.
    kinds: of errors, as JSON (`error_kinds`).
    error: a packed `WsdmRayError` that ended the unit, else "".
    """

    unit: int
    rows: int = 0
    errors: int = 0
    cut: int = 0
    tokens: int = 0
    rerun: int = 0
    halvings: int = 0
    token_budget: int = 0
    forward_tokens: int = 0
    seconds: float = 0.0
    process: int = 0
    kinds: str = ""
    error: str = ""

    def to_row(self) -> dict[str, np.ndarray]:
        """The report as a batch of one row for Ray Data."""
        return {name: np.asarray([value]) for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "UnitReport":
        """The report of a row of Ray Data, whose values may be scalars of NumPy."""
        return cls(**{field.name: np.asarray(row[field.name]).item() for field in dataclasses.fields(cls)})

    def to_footer(self) -> bytes:
        """The counts that a part keeps. A unit that is done again has the same, unless memory ran out."""
        counts = {name: getattr(self, name) for name in FOOTER_COUNTS}
        if self.halvings:
            counts |= {"halved": self.halvings, "token_budget": self.token_budget}
        if self.kinds:
            counts["kinds"] = json.loads(self.kinds)
        return json.dumps(counts).encode()

    @classmethod
    def from_footer(cls, data: bytes) -> "UnitReport | None":
        """The counts of a part; None where a footer has none of `score`."""
        counts = json.loads(data)
        if not {"unit", "rows"} <= counts.keys():
            return None
        known: dict[str, Any] = {name: int(counts.get(name, 0)) for name in (*FOOTER_COUNTS, "token_budget")}
        kinds = json.dumps(counts["kinds"]) if "kinds" in counts else ""
        return cls(**known, halvings=int(counts.get("halved", 0)), kinds=kinds)


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Counts over all units of a run; halvings and smallest_budget say how memory ran out, if it did.

    kinds: of the errors.
    """

    rows: int
    errors: int
    cut: int
    tokens: int
    rerun: int
    units: int
    resumed_units: int
    halvings: int
    smallest_budget: int | None
    kinds: Mapping[str, ErrorKind] = dataclasses.field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """What run.json keeps as its `counts`."""
        left_out = ("halvings", "smallest_budget", "kinds")
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in left_out}


def joined_reports(unit: int, parts: Sequence[UnitReport]) -> UnitReport:
    """What became of a unit that was scored in parts."""
    summed = ("rows", "errors", "cut", "tokens", "rerun", "halvings", "forward_tokens")
    counts: dict[str, Any] = {name: sum(getattr(part, name) for part in parts) for name in summed}
    kinds = merge_kinds(kinds_from_json(part.kinds) for part in parts)
    return UnitReport(unit=unit, **counts, token_budget=parts[-1].token_budget, kinds=kinds_to_json(kinds))


def write_part(output: str, table: pa.Table, report: UnitReport) -> None:
    """Commit a unit: its predictions with its counts in the footer, in one atomic put."""
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), COUNTS_KEY: report.to_footer()})
    write_parquet(join(output, part_name(report.unit)), table)


def list_parts(output: str) -> dict[int, str]:
    """Number to path of the parts that are in a run's folder."""
    return {int(name[5:11]): join(output, name) for name in names_in(output) if PART_NAME.fullmatch(name)}


def read_report(path: str) -> UnitReport | None:
    """The counts in a part's footer. Raises `DataError` where it is not parquet."""
    with open_parquet(path) as file:
        return UnitReport.from_footer((file.metadata.metadata or {}).get(COUNTS_KEY, b"{}"))


def completed_units(plan: ScorePlan, output: str) -> dict[int, UnitReport]:
    """Counts of the units whose parts are there and are theirs; a part that is not is scored again."""
    completed = {}
    rows = {unit.number: unit.rows for unit in plan.units}
    for number, path in list_parts(output).items():
        try:
            report = read_report(path)
        except DataError as error:
            logger.warning("score: %s; its rows are scored again", error)
            continue
        if report and report.unit == number and report.rows == rows.get(number):
            completed[number] = report
        else:
            logger.warning("score: %s: is not the part of that number; its rows are scored again", path)
    return completed


def add_up(
    plan: ScorePlan, output: str, completed: Mapping[int, UnitReport], fresh: Sequence[UnitReport]
) -> Totals:
    """Totals over all parts.

    Args:
        completed: of the units that were there when the run started.
        fresh: of those that this run scored.

    Raises:
        DataError: not every input row is in exactly one part.
    """
    by_unit = {report.unit: report for report in fresh} | dict(completed)
    there = list_parts(output)  # listed anew: a replica on another machine may have another disk
    wrong = [
        unit
        for unit in plan.units
        if unit.number not in there or unit.number not in by_unit or by_unit[unit.number].rows != unit.rows
    ]
    if wrong:
        raise DataError(
            f"{join(output, part_name(wrong[0].number))}: missing or not of {wrong[0].rows} rows; "
            "delete it and run again, with an --output that all nodes share"
        )
    reports = [by_unit[unit.number] for unit in plan.units]
    short_of_memory = [report for report in by_unit.values() if report.halvings]
    return Totals(
        **{name: sum(getattr(report, name) for report in reports) for name in FOOTER_COUNTS[1:]},
        units=len(plan.units),
        resumed_units=len(completed),
        halvings=sum(report.halvings for report in short_of_memory),
        smallest_budget=min((report.token_budget for report in short_of_memory), default=None),
        kinds=merge_kinds(kinds_from_json(report.kinds) for report in reports),
    )
