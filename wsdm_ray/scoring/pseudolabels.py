"""Unlabelled pairs to training shards: score them, join by id, drop what teaches nothing, count every row.

Unit k of the plan and `part-k` of the predictions hold the same rows; both are read one unit at a time and
their ids compared row by row, so that a probability cannot land on another row. Not covered: scoring
(`pipeline`), and rows that are duplicates of each other (`python -m jobs.prepare` on the shards).
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from wsdm_ray.config import Columns, PseudolabelConfig, ScoreConfig
from wsdm_ray.data import cleaning
from wsdm_ray.data.shards import write_shards
from wsdm_ray.data.splitting import among, group_digests, prompt_digests
from wsdm_ray.errors import DataError, RunMismatchError
from wsdm_ray.inputs.conversion import ParquetInput, is_added
from wsdm_ray.inputs.files import input_paths
from wsdm_ray.runs import check_no_overlap, file_versions, hold_run, options
from wsdm_ray.schema import CANONICAL_TYPES, MODEL_A, MODEL_B, TEXTS
from wsdm_ray.scoring import pipeline
from wsdm_ray.scoring.check import NOT_OF_THE_OUTPUT, ScoreRun, describe
from wsdm_ray.scoring.label_counts import REASONS, Tally, log_counts
from wsdm_ray.scoring.plan import CARRIED, ScorePlan, WorkUnit, part_name, place_of, sources_of
from wsdm_ray.scoring.unit_rows import read_unit
from wsdm_ray.storage import check_writable, join, open_parquet
from wsdm_ray.telemetry import logger
from wsdm_ray.text.normalize import fix_text

__all__ = ["drop_codes", "labelled", "pseudolabel"]

JOB = "pseudolabel"

SHARD_ROWS = 20_000

Floats = NDArray[np.float64]


class Scoring(Protocol):
    """What `pseudolabel` needs of the scoring pipeline."""

    def check(self, config: ScoreConfig) -> ScoreRun: ...

    def execute(self, run: ScoreRun) -> dict[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class LabelRun:
    """A run of `pseudolabel` that has been checked.

    output: the folder. restart: delete what it holds.
    score: the run that makes the predictions; its output may be a folder of another run.
    schema: of the shards.
    excluded: digests of the prompts to leave out, S16, in ascending order.
    hard_threshold: the least probability of a kept row's winner; None makes soft labels.
    source: what the shards' `source` column says.
    fingerprint: all that decides the shards. config: the options, for run.json.
    """

    output: str
    restart: bool
    score: ScoreRun
    schema: pa.Schema
    excluded: np.ndarray
    hard_threshold: float | None
    source: str
    fingerprint: Mapping[str, Any]
    config: Mapping[str, Any]


def pseudolabel(config: PseudolabelConfig, scoring: Scoring = pipeline) -> dict[str, Any]:
    """Write DIR/predictions, DIR/train and then DIR/run.json; returns what run.json holds.

    Predictions that are finished are not made again, and a folder that holds this very run is left as it is.

    Args:
        scoring: checks and executes the run that makes the predictions.

    Raises:
        DataError: predictions and input have other ids, a column is missing, or no row is left.
        DataError, ModelError, ConfigError, ClusterError: as of `score`, found before anything runs.
        RunMismatchError: the output folder, or that of the predictions, belongs to another run.
    """
    given = [*config.input, *config.model, *config.base, *config.exclude]
    check_no_overlap(config.output, [*given, config.predictions] if config.predictions else given)
    excluded_files = input_paths(config.exclude)
    check_writable(config.output)
    score_run = scoring.check(score_config(config))
    if config.dry_run:
        return describe(score_run)
    run = check_labels(config, score_run, excluded_files)
    if config.predictions:
        use_finished(run.score, scoring)  # before --restart deletes anything
    with hold_run(run.output, JOB, run.fingerprint, run.restart) as held:
        if written := held.finished:
            logger.info("pseudolabel: %s is finished already, nothing to do", run.output)
        else:
            if not config.predictions:
                scoring.execute(run.score)
            tally = Tally()
            write_shards(
                join(run.output, "train"), run.schema, label_units(run, tally), SHARD_ROWS, held.check
            )
            tally.check_some_kept(run.hard_threshold, run.score.output)
            written = held.finish({"config": run.config, **tally.summary()})
    log_counts(written)
    return written


def score_config(config: PseudolabelConfig) -> ScoreConfig:
    """The options of the run that makes the predictions."""
    of_score, own = ({field.name for field in dataclasses.fields(kind)} for kind in (ScoreConfig, config))
    shared = {name: getattr(config, name) for name in of_score & own}
    predictions = config.predictions or join(config.output, "predictions")
    # --restart deletes the output folder; predictions elsewhere are not this run's to delete.
    return ScoreConfig(**shared | {"output": predictions, "restart": False})


def check_labels(config: PseudolabelConfig, score_run: ScoreRun, excluded_files: Sequence[str]) -> LabelRun:
    """The run that `config` asks for, beside the checked run that makes the predictions.

    Args:
        excluded_files: shards whose prompts are left out.

    Raises:
        DataError: a column or a shard to exclude cannot be read.
        ConfigError: the output folder holds an input.
    """
    check_no_overlap(config.output, [*score_run.files, *excluded_files])
    carried_names = carried(score_run.plan, config.columns)
    return LabelRun(
        output=config.output,
        restart=config.restart,
        score=score_run,
        schema=shards_schema(score_run.plan.id_type, carried_names, config.hard_threshold is not None),
        excluded=np.unique(prompt_digests(excluded_files)),
        hard_threshold=config.hard_threshold,
        source=config.source,
        fingerprint={
            "options": options(config, leave_out=(*NOT_OF_THE_OUTPUT, "predictions", "exclude")),
            "models": score_run.fingerprint["models"],
            "inputs": score_run.fingerprint["inputs"],
            "excluded": file_versions(excluded_files),
        },
        config=options(config, leave_out=("restart",)),
    )


def use_finished(run: ScoreRun, scoring: Scoring) -> None:
    """Finish predictions that another run began. Raises `RunMismatchError` where they are not of this run."""
    try:
        scoring.execute(run)
    except RunMismatchError as error:
        mismatch = str(error).partition(". Give the same options again")[0]
        raise RunMismatchError(
            f"--predictions {mismatch}. Give predictions of the same model, input and options, or "
            "leave the option out"
        ) from error


def carried(plan: ScorePlan, columns: Columns) -> list[str]:
    """The columns of `CARRIED` that any input file has.

    Args:
        columns: the names that the options give to them.

    Raises:
        DataError: a name that was chosen for one of them is in no file.
    """
    sources = sources_of(plan.units)
    with ThreadPoolExecutor(16) as pool:
        names_of = dict(zip(sources, pool.map(column_names, sources), strict=True))
    there = [
        name
        for name in CARRIED
        if any(getattr(source.columns, name) in names for source, names in names_of.items())
    ]
    for name in CARRIED:
        chosen = getattr(columns, name)
        if name not in there and chosen != getattr(Columns(), name):
            all_names = {name for names in names_of.values() for name in names}
            raise DataError(
                f"{sources[0].shown}: no column {chosen!r} in any input file (there are "
                f"{', '.join(sorted(all_names))}); leave out --columns.{name.replace('_', '-')}"
            )
    return there


def column_names(source: ParquetInput) -> list[str]:
    with open_parquet(source.file.path) as file:
        own = [field.name for field in file.schema_arrow if not (source.converted and is_added(field))]
    return [*own, *(name for name, _ in source.file.partitions)]


def shards_schema(id_type: pa.DataType, extra: Sequence[str], hard: bool) -> pa.Schema:
    """Arrow schema of the shards: the pair, its label (`winner` or `prob_a`), `extra` columns, `source`."""
    label = "winner" if hard else "prob_a"
    names = (*TEXTS, label, *extra, "source")
    return pa.schema([("id", id_type), *((name, CANONICAL_TYPES[name]) for name in names)])


def label_units(run: LabelRun, tally: Tally) -> Iterator[pa.Table]:
    """The rows of each unit that are kept, with their labels, in input order; every row goes to the tally."""
    for unit in run.score.plan.units:
        rows = read_unit(unit, CARRIED).table
        part = join(run.score.output, part_name(unit.number))
        prob_N = probabilities(part, rows.column("id"), unit)
        codes_N = drop_codes(rows, prob_N, run.excluded, run.hard_threshold)
        tally.add(codes_N, prob_N)
        kept = np.flatnonzero(codes_N < 0)
        yield labelled(rows.take(pa.array(kept)), prob_N[kept], run.schema, run.source)


def probabilities(path: str, ids: pa.ChunkedArray, unit: WorkUnit) -> Floats:
    """Probability of response_a of each row of a unit, float64 (N,); NaN where the row has an error.

    Args:
        path: the part of the predictions that belongs to the unit.
        ids: those of the unit (N,).

    Raises:
        DataError: the part's ids are not those of the unit, row by row.
    """
    with open_parquet(path) as file:
        part = file.read(["id", "prob_a", "error"])
    scored = part.column("id")
    if not scored.cast(ids.type).equals(ids):
        both = zip(scored.to_pylist(), ids.to_pylist(), strict=False)
        row = next((row for row, (one, other) in enumerate(both) if one != other), min(len(part), len(ids)))
        raise DataError(
            f"{path}: {len(part)} rows that are not those of {place_of(unit)}, first in row "
            f"{row}; delete the predictions and score again"
        )
    prob_N = part.column("prob_a").cast(pa.float64()).to_numpy()
    return np.where(part.column("error").is_null().to_numpy(), prob_N, np.nan)


def drop_codes(
    rows: pa.Table, prob_N: Floats, excluded: np.ndarray, hard_threshold: float | None
) -> NDArray[np.int8]:
    """Index into `REASONS` of the first reason to leave out each row, -1 where there is none (N, int8).

    Args:
        rows: N rows with the three texts.
        prob_N: float64 (N,) in [0, 1], NaN where a row has no probability.
        excluded: digests of normalized prompts, S16, in ascending order.
        hard_threshold: the least probability of the winner, in [0.5, 1); a tie has none. None keeps all.
    """
    codes_N = np.full(len(rows), -1, np.int8)
    codes_N[np.isnan(prob_N)] = REASONS.index("not_scored")
    for name in TEXTS:
        codes_N[rows.column(name).is_null().to_numpy()] = REASONS.index("null_text")
    left = np.flatnonzero(codes_N < 0)
    pairs = pa.table({name: rows.column(name).take(pa.array(left)).cast(pa.string()) for name in TEXTS})
    for_itself = cleaning.drop_reasons(pairs)
    for code in np.unique(for_itself[for_itself >= 0]).tolist():
        codes_N[left[for_itself == code]] = REASONS.index(cleaning.REASONS[code])
    # Canonical shards have repaired texts.
    prompts = group_digests(map(fix_text, pairs.column("prompt").to_pylist()))
    codes_N[left[among(prompts, excluded) & (codes_N[left] < 0)]] = REASONS.index("excluded_prompt")
    if hard_threshold is not None:
        unsure = ~(np.maximum(prob_N, 1 - prob_N) >= hard_threshold) | (prob_N == 0.5)
        codes_N[unsure & (codes_N < 0)] = REASONS.index("below_threshold")
    return codes_N


def labelled(rows: pa.Table, prob_N: Floats, schema: pa.Schema, source: str) -> pa.Table:
    """Rows of a shard: `rows` with their labels, in the columns and types of `schema`.

    Args:
        rows: N canonical rows; a column that they lack is null.
        prob_N: float64 (N,) in [0, 1].
        source: what the column of that name says.
    """
    made = {
        "winner": lambda: pa.array(np.where(prob_N > 0.5, MODEL_A, MODEL_B), pa.string()),
        "prob_a": lambda: pa.array(prob_N),
        "source": lambda: pa.array([source] * len(rows), pa.string()),
    }
    columns = []
    for field in schema:
        if field.name in made:
            columns.append(made[field.name]())
        elif field.name not in rows.column_names:
            columns.append(pa.nulls(len(rows), field.type))
        else:
            columns.append(rows.column(field.name).cast(field.type))
    return pa.table(columns, schema=schema)
