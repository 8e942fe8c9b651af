"""Unlabelled pairs to training shards: score them, join by id, drop what teaches nothing, count every row.

Unit k of the plan and `part-k` of the predictions hold the same rows; both are read one unit at a time and
their ids compared row by row, so that a probability cannot land on another row. Not covered: scoring
(`pipeline`), and rows that are duplicates of each other (`python -m jobs.prepare` on the shards).
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from wsdm_ray import storage
from wsdm_ray.config import Columns, PseudolabelConfig, ScoreConfig
from wsdm_ray.data import cleaning
from wsdm_ray.data.shards import write_shards
from wsdm_ray.data.splitting import among, group_digests, prompt_digests
from wsdm_ray.errors import DataError, RunMismatchError
from wsdm_ray.runs import check_no_overlap, file_versions, finish_run, open_run, options
from wsdm_ray.schema import CANONICAL_TYPES, MODEL_A, MODEL_B, PAIR_COLUMNS, TEXTS
from wsdm_ray.scoring.pipeline import NOT_OF_THE_OUTPUT, check_models, fit_cluster, score
from wsdm_ray.scoring.plan import ScorePlan, WorkUnit, make_plan, part_name, read_unit
from wsdm_ray.telemetry import logger
from wsdm_ray.text.normalize import fix_text

__all__ = ["REASONS", "drop_codes", "labelled", "pseudolabel"]

REASONS = (
    "null_text",
    "not_scored",
    "empty_prompt",
    "empty_response",
    "identical_responses",
    "excluded_prompt",
    "below_threshold",
)
"""Why a row is left out; a row has the first reason that applies."""

CARRIED = ("model_a", "model_b", "language")
"""Canonical columns that a shard has where its input has them; labels of the input are never among them."""

SHARD_ROWS = 20_000
BINS = 10

Floats = NDArray[np.float64]


def pseudolabel(config: PseudolabelConfig) -> dict[str, Any]:
    """Write DIR/predictions, DIR/train and then DIR/run.json; returns what run.json holds.

    Predictions that are finished are not made again, and a folder that holds this very run is left as it is.

    Raises:
        DataError: predictions and input have other ids, a column is missing, or no row is left.
        DataError, ModelError, ConfigError, ClusterError: as of `score`, found before anything runs.
        RunMismatchError: the output folder, or that of the predictions, belongs to another run.
    """
    files = storage.list_files(config.input)
    excluded_files = storage.list_files(config.exclude) if config.exclude else []
    read = [*config.input, *files, *config.model, *config.base, *config.exclude, *excluded_files]
    read += [config.predictions] if config.predictions else []
    check_no_overlap(config.output, read)
    predictions = config.predictions or storage.join(config.output, "predictions")
    to_score = score_config(config, predictions)
    if config.dry_run:
        return score(to_score)
    plan = make_plan(files, config.unit_rows, config.columns)
    extra = carried(files, config.columns)
    schema = shards_schema(plan.id_type, extra.values(), config.hard_threshold is not None)
    excluded = np.unique(prompt_digests(excluded_files))
    fingerprint = fingerprint_of(config, files, excluded_files)
    if config.predictions:
        use_finished(to_score)  # before --restart deletes anything
    done = open_run(config.output, "pseudolabel", fingerprint, config.restart)
    if done:
        logger.info("pseudolabel: %s is finished already, nothing to do", config.output)
        show(done)
        return done
    score(to_score)
    tally = Tally()
    tables = label_units(plan, predictions, extra, schema, excluded, config, tally)
    write_shards(storage.join(config.output, "train"), schema, tables, SHARD_ROWS)
    tally.check_some_kept(config, predictions)
    content = {"config": options(config, leave_out=("restart",)), **tally.summary()}
    run = finish_run(config.output, "pseudolabel", fingerprint, content)
    show(run)
    return run


def use_finished(config: ScoreConfig) -> None:
    """Refuse predictions of another model, input or options; finish them where they are not complete."""
    try:
        score(config)
    except RunMismatchError as error:
        told = str(error).partition(". Give the same options again")[0]
        raise RunMismatchError(
            f"--predictions {told}. Give predictions of the same model, input and options, or "
            "leave the option out"
        ) from error


def score_config(config: PseudolabelConfig, predictions: str) -> ScoreConfig:
    """What `score` is told."""
    shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(ScoreConfig)}
    # What --restart deletes stands in the output folder; predictions elsewhere are not this run's to delete.
    return ScoreConfig(**shared | {"output": predictions, "restart": False})


def fingerprint_of(
    config: PseudolabelConfig, files: Sequence[str], excluded_files: Sequence[str]
) -> dict[str, Any]:
    """All that decides the shards; cluster and models are checked here, before any folder is touched."""
    _, on_gpu = fit_cluster(config.replicas)
    _, models = check_models(config, "cuda" if on_gpu else "cpu")
    return {
        "options": options(config, leave_out=(*NOT_OF_THE_OUTPUT, "predictions", "exclude")),
        "models": models,
        "inputs": file_versions(files),
        "excluded": file_versions(excluded_files),
    }


def carried(files: Sequence[str], columns: Columns) -> dict[str, tuple[str, ...]]:
    """Those of `CARRIED` that each file has, under the names that `columns` gives to them.

    Raises:
        DataError: a name that was chosen for one of them is in no file.
    """
    with ThreadPoolExecutor(16) as pool:
        names_of = dict(zip(files, pool.map(column_names, files), strict=True))
    there = {name for names in names_of.values() for name in names}
    chosen = dataclasses.asdict(columns)
    for name in CARRIED:
        if chosen[name] not in there and chosen[name] != getattr(Columns(), name):
            raise DataError(
                f"{files[0]}: no column {chosen[name]!r} in any input file (there are "
                f"{', '.join(sorted(there))}); leave out --columns.{name.replace('_', '-')}"
            )
    return {
        path: tuple(name for name in CARRIED if chosen[name] in names) for path, names in names_of.items()
    }


def column_names(path: str) -> list[str]:
    with storage.open_parquet(path) as file:
        return file.schema_arrow.names


def shards_schema(id_type: pa.DataType, extra: Iterable[Sequence[str]], hard: bool) -> pa.Schema:
    """Arrow schema of the shards: the pair, its label (`winner` or `prob_a`), what any file has, `source`."""
    any_has = {name for names in extra for name in names}
    label = "winner" if hard else "prob_a"
    names = (*TEXTS, label, *(name for name in CARRIED if name in any_has), "source")
    kind = pa.int64() if pa.types.is_integer(id_type) else pa.string()
    return pa.schema([("id", kind), *((name, CANONICAL_TYPES[name]) for name in names)])


def label_units(
    plan: ScorePlan,
    predictions: str,
    extra: Mapping[str, Sequence[str]],
    schema: pa.Schema,
    excluded: np.ndarray,
    config: PseudolabelConfig,
    tally: "Tally",
) -> Iterator[pa.Table]:
    """The rows of each unit that are kept, with their labels, in input order; every row goes to the tally."""
    for unit in plan.units:
        rows = read_unit(unit, config.columns, (*PAIR_COLUMNS, *extra[unit.path]))
        part = storage.join(predictions, part_name(unit.number))
        prob_N = probabilities(part, rows.column("id"), unit)
        codes_N = drop_codes(rows, prob_N, excluded, config.hard_threshold)
        tally.add(codes_N, prob_N)
        kept = np.flatnonzero(codes_N < 0)
        yield labelled(rows.take(pa.array(kept)), prob_N[kept], schema, config.source, unit.path)


def probabilities(path: str, ids: pa.ChunkedArray, unit: WorkUnit) -> Floats:
    """Probability of response_a of each row of a unit, float64 (N,); NaN where the row has an error.

    Args:
        path: the part of the predictions that belongs to the unit.
        ids: those of the unit (N,).

    Raises:
        DataError: the part's ids are not those of the unit, row by row.
    """
    with storage.open_parquet(path) as file:
        part = file.read(["id", "prob_a", "error"])
    scored = part.column("id")
    if not scored.cast(ids.type).equals(ids):
        both = zip(scored.to_pylist(), ids.to_pylist(), strict=False)
        row = next((row for row, (one, other) in enumerate(both) if one != other), min(len(part), len(ids)))
        raise DataError(
            f"{path}: {len(part)} rows that are not those of {unit.path} from row {unit.start}, first in row "
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
    left = np.flatnonzero(codes_N < 0)  # the others may hold bytes that are no text
    pairs = pa.table({name: rows.column(name).take(pa.array(left)).cast(pa.string()) for name in TEXTS})
    for_itself = cleaning.drop_reasons(pairs, np.zeros(len(left), bool))
    for code in np.unique(for_itself[for_itself >= 0]).tolist():
        codes_N[left[for_itself == code]] = REASONS.index(cleaning.REASONS[code])
    # Canonical shards have mended texts.
    prompts = group_digests(map(fix_text, pairs.column("prompt").to_pylist()))
    codes_N[left[among(prompts, excluded) & (codes_N[left] < 0)]] = REASONS.index("excluded_prompt")
    if hard_threshold is not None:
        unsure = ~(np.maximum(prob_N, 1 - prob_N) >= hard_threshold) | (prob_N == 0.5)
        codes_N[unsure & (codes_N < 0)] = REASONS.index("below_threshold")
    return codes_N


def labelled(rows: pa.Table, prob_N: Floats, schema: pa.Schema, source: str, path: str) -> pa.Table:
    """Rows of a shard: `rows` with their labels, in the columns and types of `schema`.

    Args:
        rows: N rows with the pair and any columns of `CARRIED`; one that they lack is null.
        prob_N: float64 (N,) in [0, 1].
        source: what the column of that name says.
        path: the file that the rows came from, for messages.
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
        elif field.name == "id":
            columns.append(rows.column("id").cast(field.type))
        else:
            columns.append(as_text(rows.column(field.name), field.name, path))
    return pa.table(columns, schema=schema)


def as_text(column: pa.Array | pa.ChunkedArray, name: str, path: str) -> Any:
    try:
        return column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"{path}: column {name!r} holds {column.type}, not text ({storage.reason(error)})"
        ) from error


class Tally:
    """What run.json tells about the rows, gathered as they stream by."""

    def __init__(self) -> None:
        self.rows = 0
        self.dropped: Counter[str] = Counter()
        self.scored, self.kept = Distribution(), Distribution()

    def add(self, codes_N: NDArray[np.int8], prob_N: Floats) -> None:
        self.rows += len(codes_N)
        self.dropped.update(REASONS[code] for code in codes_N[codes_N >= 0])
        self.scored.add(prob_N[~np.isnan(prob_N)])
        self.kept.add(prob_N[codes_N < 0])

    def check_some_kept(self, config: PseudolabelConfig, predictions: str) -> None:
        if self.kept.rows:
            return
        why = ", ".join(f"{name} {self.dropped[name]:,}" for name in REASONS if self.dropped[name])
        remedy = (
            f"; lower --hard-threshold {config.hard_threshold} (the surest row has "
            f"{self.scored.surest:.4f}), with --predictions {predictions} and another --output"
            if self.dropped["below_threshold"]
            else "; nothing to write"
        )
        raise DataError(f"all {self.rows:,} input rows were dropped ({why}){remedy}")

    def summary(self) -> dict[str, Any]:
        """Nothing is lost unnamed: input rows = kept rows + dropped rows."""
        counts = {
            "input_rows": self.rows,
            "kept": self.kept.rows,
            "dropped": {name: self.dropped[name] for name in REASONS},
        }
        assert counts["input_rows"] == counts["kept"] + sum(counts["dropped"].values())
        return {"counts": counts, "labels": {"scored": self.scored.summary(), "kept": self.kept.summary()}}


class Distribution:
    """Of probabilities that are seen a few at a time."""

    def __init__(self) -> None:
        self.rows = self.over_half = 0
        self.confidence = self.surest = 0.0
        self.histogram = np.zeros(BINS, np.int64)

    def add(self, prob_N: Floats) -> None:
        confidence_N = np.maximum(prob_N, 1 - prob_N)
        self.rows += len(prob_N)
        self.over_half += int(np.count_nonzero(prob_N > 0.5))
        self.confidence += float(confidence_N.sum())
        self.surest = max(self.surest, float(confidence_N.max(initial=0)))
        # Probability 1 belongs to the last bin.
        self.histogram += np.bincount(np.minimum(prob_N * BINS, BINS - 1).astype(int), minlength=BINS)

    def summary(self) -> dict[str, Any]:
        """Rows, share of them over 0.5, mean of max(p, 1 - p), rows by tenths of p from 0 to 1."""
        rows = max(self.rows, 1)
        return {
            "rows": self.rows,
            "share_over_half": self.over_half / rows if self.rows else None,
            "mean_confidence": self.confidence / rows if self.rows else None,
            "histogram": self.histogram.tolist(),
        }


def show(run: dict[str, Any]) -> None:
    """Tell the counts and the labels on the screen, one a line."""
    counts = run["counts"]
    logger.info("%12s input rows", f"{counts['input_rows']:,}")
    for name, rows in counts["dropped"].items():
        logger.info("%12s dropped: %s", f"{rows:,}", name)
    logger.info("%12s kept in train/", f"{counts['kept']:,}")
    labels = run["labels"]["kept"]
    logger.info(
        "%12.1f %% of the kept rows favour response_a; mean confidence %.3f",
        100 * labels["share_over_half"], labels["mean_confidence"],
    )  # fmt: skip
    logger.info("rows by tenths of prob_a: %s", " ".join(f"{rows:,}" for rows in labels["histogram"]))
