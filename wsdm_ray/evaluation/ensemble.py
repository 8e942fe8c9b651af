"""Several sets of predictions to one, joined by id: a weighted mean of probabilities, then one temperature.

Weights and temperature are given, or fitted on votes; what they reach is then told of rows that they were not
fitted on. Shape suffixes: N rows, S sets of predictions. Not covered: averaging within one run of `score`,
which takes several models and averages them alike.
"""

import csv
import io
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from wsdm_ray import storage
from wsdm_ray.config import EnsembleConfig
from wsdm_ray.data.shards import write_shards
from wsdm_ray.errors import DataError
from wsdm_ray.evaluation.join import join_by_id, read_predictions, read_votes, shown
from wsdm_ray.evaluation.report import decimals, percent
from wsdm_ray.evaluation.temperature import fit_temperature
from wsdm_ray.runs import check_no_overlap, check_no_overwrite, file_versions, finish_run, open_run, options
from wsdm_ray.schema import MODEL_A, MODEL_B
from wsdm_ray.statistics import (
    EPSILON,
    Floats,
    agreement,
    centered_sigmoid,
    cross_entropy,
    log_odds,
    round_to_grid,
)
from wsdm_ray.telemetry import logger

__all__ = ["combine_sets", "cross_fit", "ensemble", "fit_weights", "in_order_of"]

pc: Any = pyarrow.compute  # its functions are made at import, unseen by type checkers

PART_ROWS = 20_000
PROBABILITIES = ("prob_a", "prob_a_ab", "prob_a_ba")

GAP = 1e-7
"""The fit of the weights stops where no weights have a log loss lower by more than this, in nats."""
MOST_STEPS = 5_000
MOST_POWER = 1_000.0


def ensemble(config: EnsembleConfig) -> dict[str, Any]:
    """Write the mean predictions to DIR, then DIR/run.json, and the submission; returns what run.json holds.

    A folder that holds this very run is left as it is; the submission is written each time.

    Raises:
        DataError: sets of predictions (or votes) with other ids, an id twice, a submission that lacks a row.
        StorageError: a path is missing or unreadable.
        RunMismatchError: the output folder belongs to another run.
    """
    set_files = [storage.list_files(folder) for folder in config.predictions]
    vote_files = storage.list_files(config.votes) if config.votes else []
    read = [*config.predictions, *config.votes, *vote_files, *(path for files in set_files for path in files)]
    check_no_overlap(config.output, read)
    if config.submission:
        check_no_overwrite("--submission", config.submission, config.output, read)
    fingerprint = {
        "options": options(config, leave_out=("predictions", "votes", "output", "submission", "restart")),
        "predictions": {str(place): file_versions(files) for place, files in enumerate(set_files)},
        "votes": file_versions(vote_files),
    }
    sets = read_sets(config.predictions)
    errors = merged_errors(sets, config.predictions)
    if config.submission:
        check_complete(sets[0]["id"], errors, config)
    done = open_run(config.output, "ensemble", fingerprint, config.restart, resumes=False)
    if done:
        logger.info("ensemble: %s is finished already", config.output)
        run = done
    else:
        weights_S, temperature, measured = settle(config, sets, errors)
        table = mean_predictions(sets, errors, weights_S, temperature)
        write_shards(config.output, table.schema, [table], PART_ROWS)
        content = {
            "config": options(config, leave_out=("restart",)),
            "weights": weights_S.tolist(),
            "temperature": temperature,
            "fitted": fitted(config),
            "counts": {"rows": len(table), "errors": len(table) - errors.null_count},
            "metrics": measured,
        }
        run = finish_run(config.output, "ensemble", fingerprint, content)
    show(run, config)
    if config.submission:
        write_submission(read_predictions(config.output), config.submission)
        logger.info("ensemble: %s rows in %s", f"{run['counts']['rows']:,}", config.submission)
    return run


def fitted(config: EnsembleConfig) -> list[str]:
    """Which of the two are fitted."""
    free = {"weights": not config.weights, "temperature": config.temperature is None}
    return [name for name, is_free in free.items() if is_free and config.votes]


def read_sets(folders: Sequence[str]) -> list[pa.Table]:
    """The predictions of each folder, all in the order of the first."""
    first = read_predictions(folders[0])
    return [first, *(in_order_of(first, read_predictions(name), folders[0], name) for name in folders[1:])]


def in_order_of(first: pa.Table, other: pa.Table, first_name: str, other_name: str) -> pa.Table:
    """The rows of `other` in the order of the ids of `first`; ids are unique in both.

    Raises:
        DataError: ids of different types, or ids that only one of the two has.
    """
    kinds = [table.schema.field("id").type for table in (first, other)]
    if kinds[0] != kinds[1]:
        raise DataError(
            f"ids are {kinds[0]} in {first_name} ({shown(first['id'])}) and {kinds[1]} in {other_name}"
            f" ({shown(other['id'])}), so they cannot be joined; score inputs whose ids have one type"
        )
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


def merged_errors(sets: Sequence[pa.Table], names: Sequence[str]) -> pa.ChunkedArray:
    """Why each row has no probability, in words that say which set; null where all sets have one."""
    told = [
        pc.binary_join_element_wise(f"{name}: ", table["error"], "", null_handling="emit_null")
        for name, table in zip(names, sets, strict=True)
    ]
    return pc.coalesce(*told).cast(pa.string())


def check_complete(ids: pa.ChunkedArray, errors: pa.ChunkedArray, config: EnsembleConfig) -> None:
    """Raise `DataError` where a row has an error: a submission needs a winner for each."""
    wrong = pc.is_valid(errors)
    if count := pc.sum(wrong).as_py():
        raise DataError(
            f"--submission {config.submission}: {count:,} rows have an error and so no winner"
            f" ({shown(ids.filter(wrong))}; {errors.filter(wrong)[0]}); mend these rows of the input, such as"
            " an empty text for a null, and score them again, or leave out --submission"
        )


def column_NS(sets: Sequence[pa.Table], name: str) -> Floats:
    """A column of probabilities of all sets, float64 (N, S); NaN where it is null."""
    return np.stack([table[name].cast(pa.float64()).to_numpy() for table in sets], axis=1)


def combine_sets(prob_NS: Floats, weights_S: Floats, temperature: float) -> Floats:
    """The weighted mean with its log-odds divided by a temperature, on the grid: float64 (N,).

    With 1 - p for every p it gives exactly the rest to 1.

    Args:
        prob_NS: float64 (N, S) in [0, 1] on the grid of `score`; NaN gives NaN.
        weights_S: float64 (S,), 0 or more, of sum 1.
        temperature: above 0; 1 leaves the mean as it is.
    """
    mean_N = round_to_grid(((prob_NS - 0.5) * weights_S).sum(axis=1))
    if temperature == 1:
        return mean_N
    return round_to_grid(centered_sigmoid(log_odds(mean_N), temperature))


def fit_weights(prob_NS: Floats, label_N: Floats) -> Floats:
    """The weights of the mean with the least log loss, float64 (S,), 0 or more and of sum 1.

    Each step of expectation maximization (Dempster et al., 1977) multiplies a weight by its set's mean gain,
    the mean over the votes of its probability of what was said over the mixture's. That never raises the log
    loss. Steps grow while they help and fall back to one where they do not (Salakhutdinov and Roweis, 2003).
    The log loss is convex, so the largest gain bounds what is left to win: the fit stops at 1e-7 nats.

    Args:
        prob_NS: float64 (N, S) in [0, 1], N at least 1; none counts as nearer to 0 or 1 than 1e-7.
        label_N: float64 (N,) in [0, 1].
    """
    said_NS = np.clip(prob_NS, EPSILON, 1 - EPSILON)

    def loss_and_gain(weights_S: Floats) -> tuple[float, Floats]:
        mean_N = said_NS @ weights_S
        for_a_N, for_b_N = label_N / mean_N, (1 - label_N) / (1 - mean_N)
        gain_S = (for_a_N @ said_NS + for_b_N @ (1 - said_NS)) / len(label_N)
        return float(cross_entropy(mean_N, label_N).mean()), gain_S

    weights_S = np.full(prob_NS.shape[1], 1 / prob_NS.shape[1])
    loss, gain_S = loss_and_gain(weights_S)
    power = 1.0
    for _ in range(MOST_STEPS):
        if gain_S.max() - 1 < GAP:
            break
        logs_S = np.log(np.maximum(weights_S, 1e-300)) + power * np.log(gain_S)
        tried_S = np.exp(logs_S - logs_S.max())
        tried_S /= tried_S.sum()
        tried_loss, tried_gain_S = loss_and_gain(tried_S)
        if tried_loss > loss and power > 1:
            power = 1.0
            continue
        weights_S, loss, gain_S, power = tried_S, tried_loss, tried_gain_S, min(1.5 * power, MOST_POWER)
    return weights_S


def fit(
    prob_NS: Floats, label_N: Floats, weights_S: Floats | None, temperature: float | None
) -> tuple[Floats, float]:
    """Weights and temperature, each fitted where it is None: first the weights, then the temperature."""
    if weights_S is None:
        weights_S = fit_weights(prob_NS, label_N)
    if temperature is None:
        temperature = fit_temperature(combine_sets(prob_NS, weights_S, 1.0), label_N)
    return weights_S, temperature


def cross_fit(
    prob_NS: Floats,
    label_N: Floats,
    groups_N: NDArray[np.uint64],
    weights_S: Floats | None,
    temperature: float | None,
) -> tuple[Floats | None, list[dict[str, Any]]]:
    """Probabilities of which each is made without the votes on its own prompt, and what each half was given.

    The rows are split in two by a bit of their prompt's hash; each half gets what the other was fitted to.

    Args:
        prob_NS, label_N: as for `fit_weights`.
        groups_N: uint64 (N,), a hash of each row's prompt.
        weights_S, temperature: None where they are to be fitted.

    Returns:
        Float64 (N,), or None where one half is empty; `weights` and `temperature` of each half.
    """
    half_N = (groups_N & np.uint64(1)).astype(bool)
    if half_N.all() or not half_N.any():
        return None, []
    made_N, used = np.empty(len(label_N)), []
    for mine_N in (half_N, ~half_N):
        fitted_S, own = fit(prob_NS[~mine_N], label_N[~mine_N], weights_S, temperature)
        made_N[mine_N] = combine_sets(prob_NS[mine_N], fitted_S, own)
        used.append({"weights": fitted_S.tolist(), "temperature": own, "rows": int(mine_N.sum())})
    return made_N, used


def settle(
    config: EnsembleConfig, sets: Sequence[pa.Table], errors: pa.ChunkedArray
) -> tuple[Floats, float, dict[str, Any] | None]:
    """Weights (S,) of sum 1, the temperature, and the figures on the votes, if there are any."""
    given_S = np.array(config.weights) / sum(config.weights) if config.weights else None
    equal_S = np.full(len(sets), 1 / len(sets))
    if not config.votes:
        return equal_S if given_S is None else given_S, config.temperature or 1.0, None
    prob_NS, label_N, groups_N = voted_rows(config, sets, errors)
    weights_S, temperature = fit(prob_NS, label_N, given_S, config.temperature)
    measured: dict[str, Any] = {
        "rows": len(label_N),
        "sets": [
            {"predictions": name, **scores(prob_N, label_N)}
            for name, prob_N in zip(config.predictions, prob_NS.T, strict=True)
        ],
        "equal_mean": scores(combine_sets(prob_NS, equal_S, 1.0), label_N),
        "result": None,
        "cross_fitted": None,
    }
    if fitted(config):
        made_N, halves = cross_fit(prob_NS, label_N, groups_N, given_S, config.temperature)
        measured["cross_fitted"] = halves
    else:
        made_N = combine_sets(prob_NS, weights_S, temperature)
    if made_N is not None:
        measured["result"] = scores(made_N, label_N)
    return weights_S, temperature, measured


def voted_rows(
    config: EnsembleConfig, sets: Sequence[pa.Table], errors: pa.ChunkedArray
) -> tuple[Floats, Floats, NDArray[np.uint64]]:
    """Of the rows with a vote and no error: probabilities (N, S), labels (N,), hashes of the prompts (N,)."""
    votes = read_votes(config.votes, config.columns)
    joined = []
    for table in sets:
        index = table.column_names.index("error")
        table = table.set_column(index, "error", errors)
        # Ids of other types, and votes that no set has, are errors of the join.
        if table.schema.field("id").type == votes.schema.field("id").type:
            table = table.filter(pc.is_in(table["id"], value_set=votes["id"]))
        joined.append(join_by_id(table, votes))
    return np.stack([rows.prob for rows in joined], axis=1), joined[0].label, joined[0].group


def scores(prob_N: Floats, label_N: Floats) -> dict[str, float]:
    return {
        "accuracy": float(agreement(prob_N, label_N).mean()),
        "log_loss": float(cross_entropy(prob_N, label_N).mean()),
    }


def mean_predictions(
    sets: Sequence[pa.Table], errors: pa.ChunkedArray, weights_S: Floats, temperature: float
) -> pa.Table:
    """The rows of a predictions folder, in the order of the sets.

    The probability of an ordering is made as that of both is; it is null where a set has none.
    """
    null_N = errors.is_valid().to_numpy()
    columns = dict(zip(sets[0].column_names, sets[0].columns, strict=True)) | {"error": errors}
    for name in PROBABILITIES:
        mean_N = combine_sets(column_NS(sets, name), weights_S, temperature)
        columns[name] = pa.array(mean_N.astype(np.float32), mask=null_N | np.isnan(mean_N))
        if name == "prob_a":
            winners = np.where(mean_N >= 0.5, MODEL_A, MODEL_B)
            columns["winner"] = pa.array(winners, pa.string(), mask=null_N)
    return pa.table(columns, schema=sets[0].schema)


def write_submission(table: pa.Table, path: str) -> None:
    """Write `id,winner` as CSV, one line a row in the order of the rows, quoted where an id needs it."""

    def write(file: IO[bytes]) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(("id", "winner"))
        for batch in table.select(["id", "winner"]).to_batches(PART_ROWS):
            lines.writerows(zip(*(column.to_pylist() for column in batch.columns), strict=True))
        text.flush()
        text.detach()  # the file is not ours to close

    storage.write_atomic(path, write)


def show(run: dict[str, Any], config: EnsembleConfig) -> None:
    """The weight of each set and, where there are votes, figures: of each, of all alike and of the result."""
    measured = run["metrics"]
    table = Table("predictions", box=SIMPLE_HEAD)
    for heading in ("weight", "accuracy %", "log loss")[: 3 if measured else 1]:
        table.add_column(heading, justify="right")
    for place, (name, weight) in enumerate(zip(config.predictions, run["weights"], strict=True)):
        table.add_row(name, f"{weight:.3f}", *(cells(measured["sets"][place]) if measured else ()))
    counts = run["counts"]
    lines = [
        f"{counts['rows']:,} rows in {config.output}, {counts['errors']:,} with an error; "
        f"temperature {run['temperature']:.3f}"
    ]
    if measured:
        table.add_row("all alike", "", *cells(measured["equal_mean"]))
        table.add_row("result", "", *cells(measured["result"]))
        what = (
            f"; {' and '.join(run['fitted'])} of the result fitted on other prompts" if run["fitted"] else ""
        )
        lines.append(f"figures of {measured['rows']:,} votes" + what)
        if measured["result"] is None:
            lines.append(
                "none of the result: the votes have too few prompts to fit on some and judge on others"
            )
    Console(markup=False, highlight=False, soft_wrap=True).print(table, *lines, sep="\n")


def cells(figures: dict[str, float] | None) -> tuple[str, str]:
    return (percent(figures["accuracy"]), decimals(figures["log_loss"])) if figures else ("", "")
