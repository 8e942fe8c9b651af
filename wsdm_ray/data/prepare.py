"""Raw votes to canonical shards: read, clean, drop, split by prompt group, write.

Two passes in bounded memory. The first cleans every row and spills it to a temporary file on the local disk;
of each row only 56 bytes stay in memory (digests of id, prompt and pair, and the label), and of each row of
`--exclude` 16. Once it is known which rows are duplicates and which prompts go to valid, the second pass
writes train/ and valid/ from the spilled rows.
"""

import dataclasses
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from wsdm_ray import storage
from wsdm_ray.config import PrepareConfig
from wsdm_ray.data.cleaning import REASONS, clean_texts, drop_reasons, labels, probability_of_a
from wsdm_ray.data.shards import write_shards
from wsdm_ray.data.spill import Spill
from wsdm_ray.data.splitting import (
    among,
    choose_valid,
    duplicate_reasons,
    every_nth,
    first_repeated,
    pair_digests,
    prompt_digests,
)
from wsdm_ray.errors import DataError
from wsdm_ray.inputs.faults import FaultCounts
from wsdm_ray.inputs.files import InputFile, input_paths, list_inputs
from wsdm_ray.inputs.rows import Reading, read_rows
from wsdm_ray.runs import check_no_overlap, file_versions, hold_run, names_in, options
from wsdm_ray.telemetry import logger
from wsdm_ray.text.digests import digests

__all__ = ["prepare"]


def prepare(config: PrepareConfig) -> dict[str, Any]:
    """Write DIR/train, DIR/valid and then DIR/run.json; returns what run.json holds.

    A folder that holds this very run already is left as it is.

    Raises:
        ConfigError: an input within the output folder.
        DataError: an input is not what it should be; the message names file, column or id, and the remedy.
        StorageError: a path is missing or unreadable.
        RunMismatchError: the output folder belongs to another run.
    """
    files, fingerprint = check(config)
    with hold_run(config.output, "prepare", fingerprint, config.restart, resumes=False) as run:
        if done := run.finished:
            check_shards(config.output, done["counts"]["kept"])
            logger.info("prepare: %s is finished already, nothing to do", config.output)
        else:
            content = {
                "config": options(config, leave_out=("restart",)),
                "counts": write_splits(files, config, run.check),
            }
            done = run.finish(content)
    show(done["counts"])
    return done


def check(config: PrepareConfig) -> tuple[list[InputFile], dict[str, Any]]:
    """The input files, and the fingerprint of the run. Nothing is written."""
    files = list_inputs(config.input)
    paths = [file.path for file in files]
    excluded = input_paths(config.exclude)
    check_no_overlap(config.output, [*config.input, *paths, *config.exclude, *excluded])
    return files, {
        "options": options(config, leave_out=("input", "exclude", "output", "restart")),
        "inputs": file_versions(paths),
        "exclude": file_versions(excluded),
    }


def write_splits(
    files: list[InputFile], config: PrepareConfig, check_held: Callable[[], None]
) -> dict[str, Any]:
    """Write DIR/train and DIR/valid; returns the counts of run.json. check_held: of `write_shards`."""
    with tempfile.TemporaryDirectory(prefix="wsdm_ray_prepare_") as folder:
        spill = Spill(Path(folder) / "rows.arrow")
        survey = first_pass(files, config, spill)
        reasons = duplicate_reasons(survey.pairs, survey.prob)
        kept = reasons < 0
        survey.dropped.update(REASONS[code] for code in reasons[~kept])
        check_some_kept(survey, int(kept.sum()))
        valid = np.zeros(len(kept), bool)
        if config.split == "modulo":
            valid[kept] = every_nth(int(kept.sum()), config.valid_fraction)
        else:
            valid[kept] = choose_valid(survey.prompts[kept], config.valid_fraction, config.seed)
        for split, mask in (("train", kept & ~valid), ("valid", valid)):
            if mask.any():
                tables = spill.rows(mask)
                place = storage.join(config.output, split)
                write_shards(place, spill.schema, tables, config.shard_rows, check_held)
        return count(survey, kept, valid)


def check_shards(output: str, kept: dict[str, int]) -> None:
    """Raise `DataError` where shards of a finished run do not hold the rows that it wrote."""
    for split, rows in kept.items():
        folder = storage.join(output, split)
        there = 0
        for name in names_in(folder) if rows else []:
            with storage.open_parquet(storage.join(folder, name)) as file:
                there += file.metadata.num_rows
        if there != rows:
            raise DataError(
                f"{folder}: holds {there:,} of the {rows:,} rows that the finished run wrote; copy the "
                "shards back, or prepare anew with --restart"
            )


class Survey:
    """What the first pass remembers: every row's id; prompt, pair and label of every row that may be kept."""

    def __init__(self) -> None:
        self.input_rows = self.texts_fixed = 0
        self.dropped: Counter[str] = Counter()
        self.malformed: Counter[str] = Counter()
        self.parts: list[tuple[np.ndarray, ...]] = []
        self.ids: list[np.ndarray] = []

    def close(self) -> None:
        self.prompts, self.pairs, self.prob = (
            np.concatenate(column) for column in zip(*self.parts, strict=True)
        )
        self.parts = []


def first_pass(files: list[InputFile], config: PrepareConfig, spill: Spill) -> Survey:
    """Read, label and clean every row; spill those that may be kept."""
    survey = Survey()
    known = np.unique(prompt_digests(config.exclude))
    reading = reading_of(config)
    malformed = FaultCounts()
    for file in files:
        first_row = 0
        for table, faults in read_rows(file, reading):
            survey.input_rows += len(table)
            survey.ids.append(digests(table["id"].to_pylist()))
            malformed.add(len(table), faults, file.path, first_row, table["id"])
            first_row += len(table)
            labelled = labels(table, file.path, config.ties)
            table, fixed = clean_texts(labelled.table)
            survey.texts_fixed += fixed
            reasons = drop_reasons(table, labelled, faults)
            survey.dropped.update(REASONS[code] for code in reasons[reasons >= 0])
            table = table.filter(pa.array(reasons < 0))
            part = pair_digests(table, probability_of_a(table))
            excluded = among(part[0], known)
            survey.dropped["excluded_prompt"] += int(excluded.sum())
            survey.parts.append(tuple(column[~excluded] for column in part))
            spill.add(table.filter(pa.array(~excluded)), file.path)
    if not survey.input_rows:
        raise DataError(f"{', '.join(config.input)}: no rows")
    malformed.check()
    survey.malformed = malformed.kinds
    check_ids(survey, files, config)
    survey.close()
    return survey


def reading_of(config: PrepareConfig) -> Reading:
    """How the input is read."""
    return Reading(format=config.format, columns=config.columns, make_ids=config.make_ids)


def check_ids(survey: Survey, files: list[InputFile], config: PrepareConfig) -> None:
    """Raise `DataError` for an id that two input rows share."""
    ids, survey.ids = np.concatenate(survey.ids), []
    row = first_repeated(ids)
    if row is None:
        return
    earlier = int((ids == ids[row]).argmax())
    (_, first_path), (name, path) = (locate(wanted, files, config) for wanted in (earlier, row))
    raise DataError(
        f"{path}: the id {name!r} is there twice (first in {first_path}); ids must be unique, so that "
        "those made of file names need different file names"
    )


def locate(row: int, files: list[InputFile], config: PrepareConfig) -> tuple[Any, str]:
    """Id and file of an input row; it reads the inputs again, as no error needs this but one."""
    for file in files:
        for table, _ in read_rows(file, dataclasses.replace(reading_of(config), others=())):
            if row < len(table):
                return table["id"][row].as_py(), file.path
            row -= len(table)
    raise AssertionError("the inputs have fewer rows than a moment ago")


def check_some_kept(survey: Survey, kept: int) -> None:
    if not kept:
        why = ", ".join(f"{name} {survey.dropped[name]:,}" for name in REASONS if survey.dropped[name])
        raise DataError(f"all {survey.input_rows:,} input rows were dropped ({why}); nothing to write")


def count(survey: Survey, kept: np.ndarray, valid: np.ndarray) -> dict[str, Any]:
    """The counts of run.json. Nothing is lost unnamed: input rows = kept rows + dropped rows."""
    counts = {
        "input_rows": survey.input_rows,
        "kept": {"train": int((kept & ~valid).sum()), "valid": int(valid.sum())},
        "dropped": {name: survey.dropped[name] for name in REASONS},
        "malformed": dict(survey.malformed),
        "prompt_groups": {
            "train": len(np.unique(survey.prompts[kept & ~valid])),
            "valid": len(np.unique(survey.prompts[valid])),
        },
        "texts_fixed": survey.texts_fixed,
    }
    assert counts["input_rows"] == sum(counts["kept"].values()) + sum(counts["dropped"].values())
    return counts


def show(counts: dict[str, Any]) -> None:
    """Log the counts, one a line."""
    logger.info("%12s input rows", f"{counts['input_rows']:,}")
    for name, rows in counts["dropped"].items():
        logger.info("%12s dropped: %s", f"{rows:,}", name)
    for split, rows in counts["kept"].items():
        logger.info(
            "%12s kept in %s/, %s prompt groups", f"{rows:,}", split, f"{counts['prompt_groups'][split]:,}"
        )
    logger.info("%12s texts repaired", f"{counts['texts_fixed']:,}")
    if not counts["kept"]["valid"]:
        logger.warning("no rows in valid: --valid-fraction is 0, or there are too few prompt groups")
