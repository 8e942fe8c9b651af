"""Predictions to a submission: a CSV file with one row for each prediction, in their order.

The format `lmsys` needs the probability of a tie, of which a classifier of two classes says nothing. Either
it is the same for every row, or it is Davidson's (1970, "On extending the Bradley-Terry model to accommodate
ties in paired comparison experiments"), one parameter fitted on votes with ties: with p the probability that
response_a wins where there is a winner, the odds of a : b : tie are p : 1 - p : nu sqrt(p (1 - p)).

Shape suffix: N rows. Not covered: predictions themselves.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute

from wsdm_ray import storage
from wsdm_ray.config import SubmissionConfig
from wsdm_ray.data.votes import read_votes
from wsdm_ray.errors import DataError
from wsdm_ray.runs import amend_run, check_no_overwrite, comparable
from wsdm_ray.schema import MODEL_A
from wsdm_ray.statistics import Floats
from wsdm_ray.telemetry import logger

__all__ = ["Davidson", "SameTies", "TieVotes", "check_submission", "fit_davidson", "submit"]

pc: Any = pyarrow.compute  # its functions are made at import, unseen by type checkers

PUBLISHED_TIE_RATE = 17_761 / 57_477
"""Share of ties in the train.csv of Kaggle's "LMSYS - Chatbot Arena Human Preference Predictions"."""

COLUMNS = {"wsdm": ("id", "winner"), "lmsys": ("id", "winner_model_a", "winner_model_b", "winner_tie")}
"""Columns of each format of a submission."""

ERROR_PROB = 0.5
"""What a row with an error has for its `prob_a`; its winner is then model_a."""


@dataclass(frozen=True, kw_only=True)
class SameTies:
    """Every row is a tie with the same probability."""

    rate: float

    def tie_N(self, prob_N: Floats) -> Floats:
        """The probability of a tie, float64 (N,), from those of `response_a`, float64 (N,)."""
        return np.full(len(prob_N), self.rate)


@dataclass(frozen=True, kw_only=True)
class Davidson:
    """A tie is the more probable, the nearer the two responses are."""

    nu: float

    def tie_N(self, prob_N: Floats) -> Floats:
        """The probability of a tie, float64 (N,), from those of `response_a`, float64 (N,)."""
        odds_N = self.nu * np.sqrt(prob_N * (1 - prob_N))
        return odds_N / (1 + odds_N)


class TieVotes(NamedTuple):
    """Votes with ties: ids as text, and which are ties, bool (N,)."""

    name: str
    ids: pa.Array
    tie_N: np.ndarray


def fit_davidson(prob_N: Floats, tie_N: np.ndarray) -> Davidson:
    """The model of greatest likelihood: its expected number of ties is the number of ties.

    Args:
        prob_N: probability that response_a wins, float64 (N,).
        tie_N: which rows are ties, bool (N,): some, not all.
    """
    log_s_N = np.log(np.clip(prob_N * (1 - prob_N), 1e-300, None)) / 2
    low, high = -700.0, 700.0  # of log nu
    for _ in range(100):
        middle = (low + high) / 2
        expected = (1 / (1 + np.exp(-np.clip(middle + log_s_N, -700, 700)))).sum()
        low, high = (middle, high) if expected < tie_N.sum() else (low, middle)
    return Davidson(nu=float(np.exp((low + high) / 2)))


def check_submission(config: SubmissionConfig, output: str, inputs: Sequence[str]) -> TieVotes | None:
    """The votes with ties that the submission needs, if any. Nothing is written.

    Raises:
        ConfigError: the file would overwrite something.
        DataError: the votes cannot be read, or have no ties; no prediction of theirs is in --tie-predictions.
    """
    if config.submission is None:
        return None
    check_no_overwrite("--submission", config.submission, output, [*inputs, *config.tie_votes])
    if comparable(config.submission).startswith(comparable(output)):
        logger.warning(
            "--submission %s: lies within the output, which pandas and polars then cannot read as one table",
            config.submission,
        )
    if not config.tie_votes:
        return None
    votes, name = read_votes(config.tie_votes), ", ".join(config.tie_votes)
    tied = TieVotes(name, votes.table["id"].cast(pa.string()).combine_chunks(), votes.prob_a_N == 0.5)
    if not 0 < tied.tie_N.sum() < len(tied.tie_N):
        raise DataError(
            f"--tie-votes {name}: {tied.tie_N.sum():,} of {len(tied.tie_N):,} votes are ties, so there is no "
            "model of them; `prepare --ties soft` keeps ties, and --tie-rate gives a probability"
        )
    if config.tie_predictions:
        fit_ties(tied, config.tie_predictions)
    return tied


def submit(config: SubmissionConfig, output: str, votes: TieVotes | None) -> dict[str, Any]:
    """Write the submission of finished predictions; returns what run.json then says of it, as `submission`.

    Args:
        output: the folder of the predictions.
        votes: what `check_submission` found.
    """
    path = config.submission
    assert path is not None
    ties, facts = None, {}
    if config.submission_format == "lmsys":
        ties, facts = tie_model(config, output, votes)
    errors = write_rows(path, output, config.submission_format, ties)
    facts = {"file": path, "format": config.submission_format, "rows_with_error": errors, **facts}
    amend_run(output, {"submission": facts})
    if errors:
        logger.warning(
            "submission: %d rows have an error and are written as if prob_a were %s", errors, ERROR_PROB
        )
    logger.info("submission: %s%s", path, f"; {facts['ties']}" if ties else "")
    return facts


def tie_model(
    config: SubmissionConfig, output: str, votes: TieVotes | None
) -> tuple[SameTies | Davidson, dict[str, Any]]:
    """The probability of a tie as a function of `prob_a`, and what run.json says of it."""
    if votes is not None:
        model, rows = fit_ties(votes, config.tie_predictions or output)
        said = f"Davidson's model of ties with nu {model.nu:.4f}, fitted on {rows:,} votes of {votes.name}"
        return model, {"ties": said, "nu": model.nu}
    rate, source = config.tie_rate, "--tie-rate"
    if rate is None:
        rate, source = PUBLISHED_TIE_RATE, "the share of ties in the competition's train.csv"
    said = f"a tie has probability {rate:.4f} in every row ({source}); --tie-votes fits a model"
    return SameTies(rate=rate), {"ties": said, "tie_rate": rate}


def fit_ties(votes: TieVotes, folder: str) -> tuple[Davidson, int]:
    """The model of ties on the votes that `folder` has predictions of, and how many they are.

    Raises:
        DataError: there are none, or none of them is a tie, or all are.
    """
    rows = pa.Table.from_batches(list(prediction_batches(folder, ("id", "prob_a"))))
    rows = rows.filter(pc.is_valid(rows["prob_a"]))
    places = pc.index_in(rows["id"].cast(pa.string()), value_set=votes.ids)
    known_N = places.is_valid().to_numpy()
    tie_N = votes.tie_N[places.drop_null().to_numpy()]
    if not 0 < tie_N.sum() < len(tie_N):
        raise DataError(
            f"{folder}: has predictions of {len(tie_N):,} of the votes in {votes.name}, {tie_N.sum():,} of "
            "them ties, so there is no model of ties; score these votes with the same model and give "
            "--tie-predictions, or give --tie-rate"
        )
    return fit_davidson(rows["prob_a"].to_numpy()[known_N].astype(np.float64), tie_N), len(tie_N)


def prediction_batches(folder: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The predictions in a folder, in order."""
    for path in storage.list_files(folder):
        with storage.open_parquet(path) as file:
            missing = set(columns) - set(file.schema_arrow.names)
            if missing:
                raise DataError(f"{path}: no column {min(missing)}; give a folder of predictions")
            for batch in file.iter_batches(columns=list(columns), use_threads=False):
                yield batch.select(list(columns))


class UnixLines:
    """Writes the lines of a `csv.writer` with `\\n` at their ends.

    Args:
        file: takes text.
    """

    def __init__(self, file: IO[str]):
        self.file = file

    def write(self, line: str) -> int:
        return self.file.write(line.removesuffix("\r\n") + "\n")


def write_rows(path: str, output: str, style: str, ties: SameTies | Davidson | None) -> int:
    """Write the CSV file, quoted where an id needs it; returns how many rows have an error."""
    errors = 0

    def write(file: IO[bytes]) -> None:
        nonlocal errors
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        lines = csv.writer(UnixLines(text), lineterminator="\r\n")  # it quotes what holds either of them
        lines.writerow(COLUMNS[style])
        for batch in prediction_batches(output, ("id", "prob_a", "winner")):
            errors += batch["prob_a"].null_count
            lines.writerows(zip(batch["id"].to_pylist(), *values(batch, ties), strict=True))
        text.flush()
        text.detach()  # the file is not ours to close

    storage.write_atomic(path, write)
    return errors


def values(batch: pa.RecordBatch, ties: SameTies | Davidson | None) -> list[list[str]]:
    """The columns of a submission after its ids."""
    if ties is None:
        return [batch["winner"].fill_null(MODEL_A).to_pylist()]
    prob_N = batch["prob_a"].fill_null(ERROR_PROB).to_numpy().astype(np.float64)
    tie_N = ties.tie_N(prob_N)
    columns = ((1 - tie_N) * prob_N, (1 - tie_N) * (1 - prob_N), tie_N)
    return [[f"{value:.8f}" for value in column.tolist()] for column in columns]
