"""Several sets of predictions to one, joined by id: a weighted mean of probabilities, then one temperature.

Weights and temperature are options, or are fitted on votes; their metrics are then of rows that they were not
fitted on. Shape suffixes: N rows, S sets of predictions. Not covered: averaging within one run of `score`,
which takes several models and averages them alike.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from wsdm_ray import storage
from wsdm_ray.config import SUBMISSION_OPTIONS, EnsembleConfig
from wsdm_ray.data.shards import write_shards
from wsdm_ray.data.submission import TieVotes, check_submission, submit
from wsdm_ray.errors import ConfigError, DataError
from wsdm_ray.evaluation.fitting import shortage
from wsdm_ray.evaluation.join import (
    check_columns,
    join_by_id,
    read_predictions,
    shown,
)
from wsdm_ray.evaluation.metrics import bootstrap_intervals
from wsdm_ray.evaluation.pages import decimals, percent
from wsdm_ray.evaluation.votes import read_votes
from wsdm_ray.evaluation.weights import combine_sets, cross_fit, fit
from wsdm_ray.inputs.files import input_paths
from wsdm_ray.inputs.rows import Reading
from wsdm_ray.inputs.values import with_common_ids
from wsdm_ray.runs import check_no_overlap, file_versions, hold_run, options, versions
from wsdm_ray.schema import LOGIT_COLUMNS, MODEL_A, MODEL_B, predictions_schema
from wsdm_ray.statistics import (
    Floats,
    agreement,
    cross_entropy,
)
from wsdm_ray.telemetry import logger

__all__ = ["ensemble"]

pc: Any = pyarrow.compute  # its functions are made at import, unseen by type checkers

PART_ROWS = 20_000
EQUAL_MEAN = "the equal mean"
LEAST_DIFFERENCE = 1e-6
"""Differences of log loss up to this, in nats, are rounding."""
PROBABILITIES = ("prob_a", "prob_a_ab", "prob_a_ba")


class PredictionSets(NamedTuple):
    """Predictions of the same rows, in the order of the first set."""

    names: tuple[str, ...]
    tables: list[pa.Table]
    errors: pa.ChunkedArray
    """Why each row has no probability, in words that name the set; null where all sets have one."""
    kept: pa.Table
    """Other columns of the first set that go to the result."""

    @property
    def ids(self) -> pa.ChunkedArray:
        return self.tables[0]["id"]


class Combination(NamedTuple):
    """How the sets are combined, and the metrics on the votes, where there are votes."""

    weights_S: Floats
    """Of sum 1."""
    temperature: float
    metrics: dict[str, Any] | None


def ensemble(config: EnsembleConfig) -> dict[str, Any]:
    """Write the mean predictions to DIR, then DIR/run.json, and the submission; returns what run.json holds.

    A folder that holds this very run is left as it is; the submission is written each time.

    Raises:
        DataError: sets of predictions (or votes) with other ids, an id twice, a submission that lacks a row.
        StorageError: a path is missing or unreadable.
        RunMismatchError: the output folder belongs to another run.
    """
    sets, ties, fingerprint = check(config)
    with hold_run(config.output, "ensemble", fingerprint, config.restart, resumes=False) as held:
        if run := held.finished:
            logger.info("ensemble: %s is finished already", config.output)
        else:
            run = held.finish(write_mean(config, sets, held.check))
    print_weights(run, config)
    warn_of_worse(run)
    return run | {"submission": submit(config, config.output, ties)} if config.submission else run


def check(config: EnsembleConfig) -> tuple[PredictionSets, TieVotes | None, dict[str, Any]]:
    """The sets of predictions, votes with ties, and the fingerprint of the run. Nothing is written."""
    set_files = [storage.list_files(folder) for folder in config.predictions]
    vote_files = input_paths(config.votes) if config.votes else []
    inputs = [
        *config.predictions,
        *config.votes,
        *vote_files,
        *(file for files in set_files for file in files),
    ]
    check_no_overlap(config.output, inputs)
    ties = check_submission(config, config.output, inputs)
    unused = ("predictions", "votes", "output", "restart", *SUBMISSION_OPTIONS)
    unused += () if config.keep_columns else ("keep_columns",)  # runs of earlier versions do not name these
    unused += () if config.format != "canonical" else ("format",)
    unused += () if config.make_ids else ("make_ids",)
    fingerprint = {
        "options": options(config, leave_out=unused),
        "predictions": {str(place): file_versions(files) for place, files in enumerate(set_files)},
        "votes": file_versions(vote_files),
    }
    sets = read_sets(config.predictions, config.keep_columns)
    if config.submission:
        check_complete(sets, config.submission)
    return sets, ties, fingerprint


def write_mean(config: EnsembleConfig, sets: PredictionSets, check: Callable[[], None]) -> dict[str, Any]:
    """Write the combined predictions; returns what run.json says of them. check: of `write_shards`."""
    combination = choose_combination(config, sets)
    table = mean_predictions(sets, combination.weights_S, combination.temperature)
    for field, column in zip(sets.kept.schema, sets.kept.columns, strict=True):
        table = table.append_column(field, column)
    table = table.replace_schema_metadata(provenance(config.predictions, combination))
    write_shards(config.output, table.schema, [table], PART_ROWS, check)
    return {
        "config": options(config, leave_out=("restart",)),
        "weights": combination.weights_S.tolist(),
        "temperature": combination.temperature,
        "fitted": fitted(config),
        "counts": {"rows": len(table), "errors": len(table) - sets.errors.null_count},
        "metrics": combination.metrics,
    }


def provenance(folders: Sequence[str], combination: Combination) -> dict[str, str]:
    """What the schema of every part says of where its values come from: the models of all sets."""
    models = []
    for folder in folders:
        with storage.open_parquet(storage.list_files(folder)[0]) as file:
            models += json.loads((file.metadata.metadata or {}).get(b"wsdm_ray.models", b"[]"))
    weights = {"weights": combination.weights_S.tolist(), "temperature": combination.temperature}
    return {
        "wsdm_ray.version": versions().get("wsdm_ray", ""),
        "wsdm_ray.models": json.dumps(models),
        "wsdm_ray.ensemble": json.dumps(weights),
    }


def kept_columns(folder: str, names: Sequence[str]) -> pa.Table:
    """The columns `names` of a set of predictions, in its order.

    Raises:
        ConfigError: a name is that of a column of the result.
        DataError: a part lacks one, or has another type than the first.
    """
    taken = {*predictions_schema(pa.string()).names, *LOGIT_COLUMNS} & set(names)
    if taken:
        raise ConfigError(f"--keep-columns {min(taken)}: is not copied; the result has values of its own")
    tables = []
    for path in storage.list_files(folder) if names else []:
        with storage.open_parquet(path) as file:
            check_columns(path, file.schema_arrow.names, names)
            tables.append(file.read(columns=list(dict.fromkeys(names))))
            if tables[-1].schema != tables[0].schema:
                raise DataError(
                    f"{path}: has other types than the first part ({', '.join(names)}); score the rows again"
                )
    return pa.concat_tables(tables) if tables else pa.table({})


def fitted(config: EnsembleConfig) -> list[str]:
    """Which of weights and temperature are fitted on votes."""
    free = {"weights": not config.weights, "temperature": config.temperature is None}
    return [name for name, is_free in free.items() if is_free and config.votes]


def read_sets(folders: tuple[str, ...], keep: Sequence[str] = ()) -> PredictionSets:
    """The predictions of each folder, all in the order of the first."""
    first = read_predictions(folders[0])
    others = [in_order_of(first, read_predictions(name), folders[0], name) for name in folders[1:]]
    tables = [first, *others]
    return PredictionSets(folders, tables, merged_errors(tables, folders), kept_columns(folders[0], keep))


def in_order_of(first: pa.Table, other: pa.Table, first_name: str, other_name: str) -> pa.Table:
    """The rows of `other` in the order of the ids of `first`; ids are unique in both.

    Raises:
        DataError: ids that only one of the two has.
    """
    first, other = with_common_ids([first, other])
    places = pc.index_in(first["id"], value_set=other["id"])
    missing = first["id"].filter(pc.is_null(places))
    extra = other["id"].filter(pc.invert(pc.is_in(other["id"], value_set=first["id"])))
    if len(missing) or len(extra):
        parts = [
            f"{len(ids):,} rows of {there} are not in {lacking} ({shown(ids)})"
            for ids, there, lacking in ((missing, first_name, other_name), (extra, other_name, first_name))
            if len(ids)
        ]
        raise DataError(f"{' and '.join(parts)}; give predictions of exactly the same rows")
    return other.take(places)


def merged_errors(tables: Sequence[pa.Table], names: Sequence[str]) -> pa.ChunkedArray:
    """The first error of each row, after the name of its set; null where no set has one."""
    named = [
        pc.binary_join_element_wise(f"{name}: ", table["error"], "", null_handling="emit_null")
        for name, table in zip(names, tables, strict=True)
    ]
    return pc.coalesce(*named).cast(pa.string())


def check_complete(sets: PredictionSets, submission: str) -> None:
    """Raise `DataError` where a row has an error: a submission needs a winner for each."""
    wrong = pc.is_valid(sets.errors)
    if count := pc.sum(wrong).as_py():
        raise DataError(
            f"--submission {submission}: {count:,} rows have an error and so no winner"
            f" ({shown(sets.ids.filter(wrong))}; {sets.errors.filter(wrong)[0]}); correct these rows of the"
            " input, such as an empty text for a null, and score them again, or leave out --submission"
        )


def column_NS(sets: PredictionSets, name: str) -> Floats:
    """A column of probabilities of all sets, float64 (N, S); NaN where it is null."""
    return np.stack([table[name].cast(pa.float64()).to_numpy() for table in sets.tables], axis=1)


def choose_combination(config: EnsembleConfig, sets: PredictionSets) -> Combination:
    """Weights and temperature by the options, or fitted on the votes where an option is missing."""
    option_S = np.array(config.weights) / sum(config.weights) if config.weights else None
    equal_S = np.full(len(sets.tables), 1 / len(sets.tables))
    if not config.votes:
        return Combination(equal_S if option_S is None else option_S, config.temperature or 1.0, None)
    prob_NS, label_N, groups_N = voted_rows(config, sets)
    check_enough(config, groups_N)
    weights_S, temperature = fit(prob_NS, label_N, option_S, config.temperature)
    metrics: dict[str, Any] = {
        "rows": len(label_N),
        "sets": [
            {"predictions": name, **scores(prob_N, label_N)}
            for name, prob_N in zip(config.predictions, prob_NS.T, strict=True)
        ],
        "equal_mean": scores(combine_sets(prob_NS, equal_S, 1.0), label_N),
        "result": None,
        "cross_fitted": None,
        "worse_than": [],
    }
    if fitted(config):
        result_N, halves = cross_fit(prob_NS, label_N, groups_N, option_S, config.temperature)
        metrics["cross_fitted"] = halves
    else:
        result_N = combine_sets(prob_NS, weights_S, temperature)
    if result_N is not None:
        metrics["result"] = scores(result_N, label_N)
        alternatives = dict(zip(config.predictions, prob_NS.T, strict=True))
        alternatives[EQUAL_MEAN] = combine_sets(prob_NS, equal_S, 1.0)
        metrics["worse_than"] = worse_than(result_N, alternatives, label_N, groups_N)
    return Combination(weights_S, temperature, metrics)


def check_enough(config: EnsembleConfig, groups_N: NDArray[np.uint64]) -> None:
    """Raise `DataError` where weights or a temperature would be fitted on too few votes."""
    too_few = shortage(groups_N)
    if too_few and (free := fitted(config)):
        options = " and ".join(f"--{name}" for name in free)
        raise DataError(
            f"{', '.join(config.votes)}: {too_few} to fit {' and '.join(free)}; give {options} yourself, or"
            " leave out --votes"
        )


def worse_than(
    result_N: Floats, alternatives: dict[str, Floats], label_N: Floats, groups_N: NDArray[np.uint64]
) -> list[dict[str, Any]]:
    """The alternatives whose log loss is lower than that of the result on these votes, the lowest first.

    Returns:
        `name`, and `difference` of the log losses with its `ci95` by prompt, of each.
    """
    found = []
    for name, prob_N in alternatives.items():
        more_N = cross_entropy(result_N, label_N) - cross_entropy(prob_N, label_N)
        if more_N.mean() > LEAST_DIFFERENCE:
            (interval,) = bootstrap_intervals(more_N[:, None], groups_N, resamples=1_000, seed=0)
            found.append({"name": name, "difference": float(more_N.mean()), "ci95": interval})
    return sorted(found, key=lambda one: -one["difference"])


def warn_of_worse(run: dict[str, Any]) -> None:
    """Say where the result is worse than doing without it."""
    metrics = run["metrics"] or {}
    for one in (metrics.get("worse_than") or [])[:1]:
        fitted_on = " on prompts that it was not fitted on" if run["fitted"] else " on these votes"
        ends = f" (95 %% interval {one['ci95'][0]:+.4f} to {one['ci95'][1]:+.4f})" if one["ci95"] else ""
        logger.warning(
            f"ensemble: the log loss of the result is higher than that of %s by %.4f{ends},{fitted_on};"
            " it is written all the same: give other --weights and --temperature to write another",
            one["name"],
            one["difference"],
        )


def voted_rows(config: EnsembleConfig, sets: PredictionSets) -> tuple[Floats, Floats, NDArray[np.uint64]]:
    """Of the rows with a vote and no error: probabilities (N, S), labels (N,), hashes of the prompts (N,)."""
    votes = read_votes(
        config.votes, Reading(format=config.format, columns=config.columns, make_ids=config.make_ids)
    )
    joined = []
    for table in sets.tables:
        index = table.column_names.index("error")
        table = table.set_column(index, "error", sets.errors)
        table, of_votes = with_common_ids([table, votes])
        # Votes that no set has are an error of the join.
        joined.append(join_by_id(table.filter(pc.is_in(table["id"], value_set=of_votes["id"])), of_votes))
    return np.stack([rows.prob for rows in joined], axis=1), joined[0].label, joined[0].group


def scores(prob_N: Floats, label_N: Floats) -> dict[str, float]:
    return {
        "accuracy": float(agreement(prob_N, label_N).mean()),
        "log_loss": float(cross_entropy(prob_N, label_N).mean()),
    }


def mean_predictions(sets: PredictionSets, weights_S: Floats, temperature: float) -> pa.Table:
    """The rows of a predictions folder, in the order of the sets.

    The probability of an ordering is combined as that of both is; it is null where a set has none.
    """
    first = sets.tables[0]
    null_N = sets.errors.is_valid().to_numpy()
    columns = dict(zip(first.column_names, first.columns, strict=True)) | {"error": sets.errors}
    for name in PROBABILITIES:
        mean_N = combine_sets(column_NS(sets, name), weights_S, temperature)
        columns[name] = pa.array(mean_N.astype(np.float32), mask=null_N | np.isnan(mean_N))
        if name == "prob_a":
            winners = np.where(mean_N >= 0.5, MODEL_A, MODEL_B)
            columns["winner"] = pa.array(winners, pa.string(), mask=null_N)
    return pa.table(columns, schema=first.schema)


def print_weights(run: dict[str, Any], config: EnsembleConfig) -> None:
    """Print the weight of each set and, where there are votes, the metrics of each and of the result."""
    metrics = run["metrics"]
    table = Table("predictions", box=SIMPLE_HEAD)
    for heading in ("weight", "accuracy %", "log loss")[: 3 if metrics else 1]:
        table.add_column(heading, justify="right")
    for place, (name, weight) in enumerate(zip(config.predictions, run["weights"], strict=True)):
        table.add_row(name, f"{weight:.3f}", *(cells(metrics["sets"][place]) if metrics else ()))
    counts = run["counts"]
    lines = [
        f"{counts['rows']:,} rows in {config.output}, {counts['errors']:,} with an error; "
        f"temperature {run['temperature']:.3f}"
    ]
    if metrics:
        table.add_row("all alike", "", *cells(metrics["equal_mean"]))
        table.add_row("result", "", *cells(metrics["result"]))
        what = (
            f"; {' and '.join(run['fitted'])} of the result fitted on other prompts" if run["fitted"] else ""
        )
        lines.append(f"figures of {metrics['rows']:,} votes" + what)
        if metrics["result"] is None:
            lines.append(
                "none of the result: the votes have too few prompts to fit on some and judge on others"
            )
    Console(markup=False, highlight=False, soft_wrap=True).print(table, *lines, sep="\n")


def cells(scores: dict[str, float] | None) -> tuple[str, str]:
    return (percent(scores["accuracy"]), decimals(scores["log_loss"])) if scores else ("", "")
