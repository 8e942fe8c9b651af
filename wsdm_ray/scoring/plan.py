"""What is to be scored, cut into work units before anything runs.

A work unit is so many rows: of one file, or of several small ones; unit k makes `part-k`. The same input and
options always give the same units. Not covered: how the rows of a unit are read (`unit_rows`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from wsdm_ray.errors import DataError
from wsdm_ray.inputs.conversion import ParquetInput
from wsdm_ray.inputs.each_file import EachFile, each_here
from wsdm_ray.inputs.faults import BadFile, BadFiles
from wsdm_ray.inputs.files import InputFile
from wsdm_ray.inputs.parquet_rows import compare_versions
from wsdm_ray.inputs.values import common_id_type
from wsdm_ray.scoring.input_facts import FileFacts, check_ids, read_files, warn_of_lists_in
from wsdm_ray.scoring.unique_ids import IdHashes
from wsdm_ray.storage import file_versions_now
from wsdm_ray.text.digests import digest

__all__ = [
    "CARRIED",
    "ScorePlan",
    "Slice",
    "WorkUnit",
    "check_inputs_unchanged",
    "cut_digest",
    "cut_units",
    "make_plan",
    "narrowed",
    "part_name",
    "place_of",
    "sources_of",
]

CARRIED = ("model_a", "model_b", "language")
"""Canonical columns that a unit has where its input has them, besides those of the pair."""

LARGEST_UNIT = 1_000
"""Rows of a unit of one model where the options say nothing: at 4 pairs/s, four minutes of a GPU."""

SMALLEST_UNIT = 125
"""Smaller units would waste time: the last micro-batch of each is not full."""

UNITS_LEFT = 384
"""A unit has at most this share of the rows that are left, so that units are small where a run ends."""

UNIT_BYTES = 64 << 20
"""Bytes of a unit as its files hold them, by the average row of each."""


@dataclass(frozen=True)
class Slice:
    """Rows `start` to `start + rows` of one parquet file."""

    source: ParquetInput
    start: int
    rows: int


@dataclass(frozen=True)
class WorkUnit:
    """The rows of slices, one after the other; they become the file `part_name(number)`."""

    number: int
    slices: tuple[Slice, ...]

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.slices)


@dataclass(frozen=True)
class ScorePlan:
    """All work units of a run, in input order.

    id_type: int64 or string. files: all files of the input, each with the version that was planned.
    bad_files: those of them that are left out. duplicate_ids: rows whose id an earlier row has.
    """

    units: tuple[WorkUnit, ...]
    id_type: pa.DataType
    files: tuple[InputFile, ...] = ()
    bad_files: tuple[BadFile, ...] = ()
    duplicate_ids: int = 0

    @property
    def rows(self) -> int:
        return sum(unit.rows for unit in self.units)


def part_name(number: int) -> str:
    """The file name of part `number`, counted from 0."""
    return f"part-{number:06d}.parquet"


def place_of(unit: WorkUnit) -> str:
    """Where a unit's rows begin, for messages."""
    first, more = unit.slices[0], len(unit.slices) - 1
    return f"{first.source.shown} from row {first.start}" + (f" and {more:,} more files" if more else "")


def narrowed(unit: WorkUnit, first: int, rows: int) -> WorkUnit:
    """The unit with `rows` of its rows only, from `first` on (counted from 0 within the unit)."""
    slices: list[Slice] = []
    for part in unit.slices:
        begin, end = max(first, 0), min(first + rows, part.rows)
        if begin < end:
            slices.append(Slice(part.source, part.start + begin, end - begin))
        first -= part.rows
    return WorkUnit(unit.number, tuple(slices))


def sources_of(units: Sequence[WorkUnit]) -> list[ParquetInput]:
    """The files of units, each once, in their order."""
    return list(dict.fromkeys(part.source for unit in units for part in unit.slices))


def cut_digest(plan: ScorePlan, unit_rows: int | None) -> str | None:
    """What a fingerprint keeps of the cut, so that no other version's units are taken for its own.

    None where each file is cut by itself in units of as many rows as the options say, which are there, too.
    """
    if unit_rows and all(
        len(unit.slices) == 1 and unit.slices[0].start % unit_rows == 0 for unit in plan.units
    ):
        return None
    places = {source: place for place, source in enumerate(sources_of(plan.units))}
    cut = [
        (unit.number, places[part.source], part.start, part.rows)
        for unit in plan.units
        for part in unit.slices
    ]
    return digest(repr(cut)).hex()


def check_inputs_unchanged(plan: ScorePlan) -> None:
    """Raise `DataError` where an input file is not what it was when the run was planned."""
    planned = {file.path: file.version for file in plan.files if file.version}
    now = file_versions_now(list(planned))
    for path, version in planned.items():
        compare_versions(path, version, now[path])


def make_plan(
    sources: Sequence[ParquetInput],
    unit_rows: int | None,
    *,
    models: int = 1,
    files: Sequence[InputFile] = (),
    bad: BadFiles | None = None,
    keep_duplicates: bool = False,
    each_file: EachFile = each_here,
) -> ScorePlan:
    """The units of `sources`; reads footers and ids.

    Args:
        unit_rows: rows of each unit; None: as many as suit the number of all rows.
        models: that score each row, which units are the smaller for.
        files: all files of the input, those among them that were found bad before, too.
        bad: takes what is wrong with files; by default it is raised.
        keep_duplicates: warn of ids that are there twice, where else they are an error.
        each_file: calls what reads a file.

    Raises:
        DataError: a file is not parquet, lacks a column, or has none of the right type; an id is null or
            there twice; there are no rows.
    """
    bad = bad or BadFiles()
    with IdHashes() as hashes:
        found = read_files(sources, hashes, bad, each_file)
        bad.check(len(files) or len(sources))
        filled = [file for file in found if file.id_type]
        if not filled:
            more = f" in any of {len(found)} files" if found[1:] else ""
            raise DataError(f"{sources[0].shown}: no rows to score{more}")
        duplicates = check_ids(hashes, [file.source for file in filled], keep_duplicates)
    warn_of_lists_in(filled)
    return ScorePlan(
        units=cut_units(filled, unit_rows, models),
        id_type=common_id_type(file.id_type for file in filled if file.id_type),
        files=tuple(files),
        bad_files=tuple(bad.skipped),
        duplicate_ids=duplicates,
    )


def cut_units(files: Sequence[FileFacts], unit_rows: int | None, models: int = 1) -> tuple[WorkUnit, ...]:
    """The rows of files, none of them empty, as units: small files share one, large ones are cut.

    Args:
        unit_rows: rows of a unit; None: `rows_of_next_unit`, of so many models.
    """
    cuts: list[list[Slice]] = []
    left = sum(file.rows for file in files)
    shared: list[Slice] = []
    room, space = 0, 0
    for source, rows, stored_bytes, _ in files:
        most = unit_rows or rows_of_next_unit(left, models)
        if not (shared and rows <= room and stored_bytes <= space):  # begin a unit
            shared, room, space = [], most, UNIT_BYTES
        if rows <= room and stored_bytes <= space:
            if not shared:
                cuts.append(shared)
            shared.append(Slice(source, 0, rows))
            room, space, left = room - rows, space - stored_bytes, left - rows
            continue
        start, of_space = 0, max(UNIT_BYTES * rows // max(stored_bytes, 1), 1)
        while start < rows:
            most = unit_rows or even_part(rows - start, rows_of_next_unit(left, models))
            most = min(most, of_space, rows - start)
            cuts.append([Slice(source, start, most)])
            start, left = start + most, left - most
        room = 0
    return tuple(WorkUnit(number, tuple(slices)) for number, slices in enumerate(cuts))


def rows_of_next_unit(left: int, models: int) -> int:
    """Rows of a unit where `left` rows are in none yet: few at the end, when replicas wait for the last."""
    return max(min(left // UNITS_LEFT, LARGEST_UNIT // models), SMALLEST_UNIT)


def even_part(rows: int, most: int) -> int:
    """The first of the fewest parts of `rows` that are about equal, and at most `most` each."""
    parts = -(-rows // most)
    return -(-rows // parts)
