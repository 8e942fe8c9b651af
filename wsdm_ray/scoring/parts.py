"""Which units are done: the parts in a run's folder, and the counts that each keeps in its parquet footer.

A part is created only where there is none, and carries the digest of its run's fingerprint: a process that
works on after another run took the folder neither replaces a part of that run nor passes for it.
"""

import dataclasses
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from wsdm_ray.errors import DataError
from wsdm_ray.runs import names_in, versions
from wsdm_ray.scoring.error_kinds import ErrorKind, kinds_from_json, kinds_to_json, merge_kinds
from wsdm_ray.scoring.plan import ScorePlan, part_name
from wsdm_ray.scoring.preemption import Preemption
from wsdm_ray.storage import delete_file, file_versions_now, join, open_parquet, write_parquet
from wsdm_ray.telemetry import logger
from wsdm_ray.text.digests import digest

__all__ = [
    "Scored",
    "Totals",
    "UnitReport",
    "add_up",
    "completed_units",
    "delete_others",
    "digest_of_sizes",
    "joined_reports",
    "list_parts",
    "part_sizes",
    "parts_are_there",
    "provenance",
    "write_part",
]

COUNTS_KEY = b"wsdm_ray.counts"
"""The key in a part's parquet footer of its counts, so that a resumed run can add them up."""

RUN_KEY = b"wsdm_ray.run"
"""The key in a part's parquet footer of the digest of its run's fingerprint."""

FOOTERS_AT_ONCE = 32

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
    peak_memory_bytes: the most that its process took so far, of its GPU if it has one.
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
    peak_memory_bytes: int = 0
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


class Scored(NamedTuple):
    """What a run did: reports of its units, in the order in which they finished; work that was dropped as
    processes were asked to end; and how many events of each kind there were."""

    reports: Sequence[UnitReport] = ()
    dropped: Sequence[Preemption] = ()
    events: Mapping[str, int] = MappingProxyType({})


def joined_reports(unit: int, parts: Sequence[UnitReport]) -> UnitReport:
    """What became of a unit that was scored in parts."""
    summed = ("rows", "errors", "cut", "tokens", "rerun", "halvings", "forward_tokens")
    counts: dict[str, Any] = {name: sum(getattr(part, name) for part in parts) for name in summed}
    kinds = merge_kinds(kinds_from_json(part.kinds) for part in parts)
    return UnitReport(
        unit=unit,
        **counts,
        token_budget=parts[-1].token_budget,
        peak_memory_bytes=max(part.peak_memory_bytes for part in parts),
        kinds=kinds_to_json(kinds),
    )


def write_part(output: str, table: pa.Table, report: UnitReport, digest: str) -> UnitReport:
    """Commit a unit: its predictions with its counts in the footer, in one atomic put.

    Where the part is there already, as when a process died after it had committed, it stays; an empty file is
    no part.

    Args:
        digest: of the run's fingerprint.

    Returns:
        The report, with the counts of the part that is there.

    Raises:
        DataError: the part that is there is of another run.
    """
    own = {COUNTS_KEY: report.to_footer(), RUN_KEY: digest.encode()}
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **own})
    path = join(output, part_name(report.unit))
    # A process that was killed while it created the part leaves it empty on a disk without hard links.
    if write_parquet(path, table, only_new=True) or (is_empty(path) and write_parquet(path, table)):
        return report
    there, its_digest = read_footer(path)
    if there is None or its_digest != digest or (there.unit, there.rows) != (report.unit, report.rows):
        raise DataError(
            f"{path}: was written by another run meanwhile; end that one, and run the same command again"
        )
    return dataclasses.replace(report, **{name: getattr(there, name) for name in FOOTER_COUNTS})


def is_empty(path: str) -> bool:
    version = file_versions_now([path])[path]
    return version is not None and version.size == 0


def list_parts(output: str) -> dict[int, str]:
    """Number to path of the parts that are in a run's folder."""
    return {int(name[5:11]): join(output, name) for name in names_in(output) if PART_NAME.fullmatch(name)}


def part_sizes(output: str) -> dict[int, int]:
    """Number to bytes of the parts that are in a run's folder, by its listing alone."""
    parts = list_parts(output)
    versions = file_versions_now(list(parts.values()))
    return {number: version.size for number, path in parts.items() if (version := versions[path])}


def digest_of_sizes(sizes: Mapping[int, int]) -> str:
    """What run.json keeps of `part_sizes`."""
    return digest(repr(sorted(sizes.items()))).hex()


def parts_are_there(plan: ScorePlan, output: str, left: str | None = None) -> bool:
    """Whether a folder has a part for each unit, by its listing alone.

    Args:
        left: `digest_of_sizes` when the run was finished; of earlier versions None.
    """
    sizes = part_sizes(output)
    there = sizes.keys() >= {unit.number for unit in plan.units}
    return there and left in (None, digest_of_sizes(sizes))


def read_footer(path: str) -> tuple[UnitReport | None, str]:
    """The counts in a part's footer, and the digest of its run's fingerprint, empty of earlier versions.

    Raises:
        DataError: it is not parquet.
    """
    with open_parquet(path) as file:
        footer = file.metadata.metadata or {}
    return UnitReport.from_footer(footer.get(COUNTS_KEY, b"{}")), footer.get(RUN_KEY, b"").decode()


def fault_of(part: tuple[int, str], rows: Mapping[int, int], digest: str) -> tuple[UnitReport | None, str]:
    """The counts of a part that is the run's own; else why it is not.

    Args:
        part: its number and path.
        rows: of each unit by number.
    """
    number, path = part
    try:
        report, its_digest = read_footer(path)
    except DataError as error:
        return None, str(error)
    if not report or report.unit != number or report.rows != rows.get(number):
        return None, f"{path}: is not the part of that number"
    if its_digest not in ("", digest):  # earlier versions wrote none
        return None, f"{path}: is of another run"
    return report, ""


def read_parts(plan: ScorePlan, output: str, digest: str) -> Iterator[tuple[int, UnitReport | None, str]]:
    """Number of each part that is there, its counts where it is the run's own, and why it is not."""
    rows = {unit.number: unit.rows for unit in plan.units}
    parts = list_parts(output)
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        found = pool.map(lambda part: fault_of(part, rows, digest), parts.items())
        for number, (report, fault) in zip(parts, found, strict=True):
            yield number, report, fault


def completed_units(plan: ScorePlan, output: str, digest: str) -> dict[int, UnitReport]:
    """Counts of the units whose parts are there and are theirs; a part that is not is scored again.

    Args:
        digest: of the run's fingerprint.
    """
    completed = {}
    for number, report, fault in read_parts(plan, output, digest):
        if report:
            completed[number] = dataclasses.replace(report, kinds="")  # `add_up` reads them again
        else:
            logger.warning("score: %s; its rows are scored again", fault)
    return completed


def delete_others(output: str, completed: Collection[int]) -> None:
    """Delete the parts that are not of `completed` units, so that theirs can be created."""
    for number, path in list_parts(output).items():
        if number not in completed:
            delete_file(path)


def add_up(
    plan: ScorePlan, output: str, completed: Collection[int], fresh: Sequence[UnitReport], digest: str
) -> Totals:
    """Totals over all parts, whose footers are read for it: another run may have had the folder meanwhile.

    Args:
        completed: numbers of the units that were there when the run started.
        fresh: reports of those that this run scored.
        digest: of the run's fingerprint.

    Raises:
        DataError: not every input row is in exactly one part of this run.
    """
    there: dict[int, tuple[UnitReport | None, str]] = {}

    def kinds_of_parts() -> Iterator[Mapping[str, ErrorKind]]:
        # Listed anew: a replica on another machine may have another disk.
        for number, report, fault in read_parts(plan, output, digest):
            there[number] = (report and dataclasses.replace(report, kinds=""), fault)
            yield kinds_from_json(report.kinds if report else "")

    kinds = merge_kinds(kinds_of_parts())  # as they are read, and not kept for each
    scored = {*completed, *(report.unit for report in fresh)}
    for unit in plan.units:
        report, fault = there.get(unit.number, (None, ""))
        if report is None or unit.number not in scored:
            path = join(output, part_name(unit.number))
            raise DataError(
                f"{fault or f'{path}: missing or not of {unit.rows} rows'}; delete it and run again, with an "
                "--output that all nodes share"
            )
    for number in there.keys() - {unit.number for unit in plan.units}:
        raise DataError(f"{there[number][1]}; delete it and run again")
    reports = [report for report, _ in there.values() if report]
    short_of_memory = [report for report in reports if report.halvings]
    return Totals(
        **{name: sum(getattr(report, name) for report in reports) for name in FOOTER_COUNTS[1:]},
        units=len(plan.units),
        resumed_units=len(completed),
        halvings=sum(report.halvings for report in short_of_memory),
        smallest_budget=min((report.token_budget for report in short_of_memory), default=None),
        kinds=kinds,
    )
