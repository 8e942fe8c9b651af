# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import)
"""Several sets of votes as one: how much of each, what each row counts, and that none knows the valid set.

Not covered: which rows make which step (`wsdm_ray.training.batches`).
"""

import difflib
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wsdm_ray.data.splitting import group_digests
from wsdm_ray.data.votes import Votes
from wsdm_ray.errors import ConfigError, DataError
from wsdm_ray.storage import list_files, open_parquet

__all__ = ["apply_mixture", "check_leakage", "read_teachers", "sample_weights"]


def apply_mixture(votes: Votes, shares: Mapping[str, float], seed: int) -> Votes:
    """The rows of one epoch: of each source that `shares` names so many times its rows, of the others all.

    Of n rows and a share s, every row comes floor(s) times, and those whose hash of seed and id is least once
    more, until there are round(s * n). So the choice depends on neither files nor their order.

    Raises:
        ConfigError: there is no such source; nothing is left.
    """
    if not shares:
        return votes
    sources_N = votes.sources_N
    check_sources(shares, sources_N, "--mix")
    ranks_N = np.array([rank_of(seed, name) for name in votes.table["id"].to_pylist()], np.uint64)
    taken: list[np.ndarray] = [np.flatnonzero(~np.isin(sources_N, list(shares)))]
    for source, share in shares.items():
        rows = np.flatnonzero(sources_N == source)
        rows = rows[np.argsort(ranks_N[rows], kind="stable")]
        whole, more = divmod(round(share * len(rows)), len(rows))
        taken += [rows] * whole + [rows[:more]]
    rows = np.sort(np.concatenate(taken))
    if not len(rows):
        raise ConfigError("--mix: leaves no row to train on; raise a share")
    return votes.take(rows)


def rank_of(seed: int, name: int | str) -> int:
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def sample_weights(sources_N: np.ndarray, weights: Mapping[str, float]) -> np.ndarray:
    """Weight of each row in the loss, with a mean of 1 over all rows: float64 [N].

    Raises:
        ConfigError: there is no such source; all weights are 0.
    """
    check_sources(weights, sources_N, "--objective.source-weights")
    given_N = np.array([weights.get(source, 1.0) for source in sources_N], np.float64)
    if not given_N.any():
        raise ConfigError("--objective.source-weights: leave no row with a weight above 0")
    return given_N / given_N.mean()


def check_sources(named: Mapping[str, float], sources_N: np.ndarray, option: str) -> None:
    there = sorted(set(sources_N.tolist()))
    for source in named:
        if source not in there:
            near = difflib.get_close_matches(source, there, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(there)}"
            raise ConfigError(f"{option} {source}: no row to train on has this source; {hint}")


def check_leakage(train: Votes, valid: Votes) -> None:
    """Raise `DataError` where a prompt stands in both, however it is spaced."""
    train_N, valid_M = (group_digests(votes.table["prompt"].to_pylist()) for votes in (train, valid))
    leaked_M = np.isin(valid_M, train_N)
    if not leaked_M.any():
        return
    row = int(leaked_M.argmax())
    twin = int((train_N == valid_M[row]).argmax())
    raise DataError(
        f"{int(leaked_M.sum()):,} of {len(valid):,} valid rows have a prompt that is in train too (first: id "
        f"{valid.table['id'][row]}, in train as id {train.table['id'][twin]}); run `python -m jobs.prepare` "
        "on the train set with --exclude and the valid set, or give --allow-leakage"
    )


def read_teachers(folders: Sequence[str], ids: pa.ChunkedArray) -> np.ndarray:
    """The mean probability of response_a over the teachers that have a row: float64 [N], NaN where none has.

    Args:
        folders: predictions of `score`, on more rows or fewer, in any order.
        ids: of the rows, each once or more (N).

    Raises:
        DataError: a file is no predictions; an id stands twice in a teacher; a teacher has none of the ids.
    """
    total_N, count_N = np.zeros(len(ids)), np.zeros(len(ids))
    for folder in folders:
        prob_N = read_teacher(folder, ids)
        known_N = ~np.isnan(prob_N)
        total_N[known_N] += prob_N[known_N]
        count_N += known_N
    return np.divide(total_N, count_N, out=np.full(len(ids), np.nan), where=count_N > 0)


def read_teacher(folder: str, ids: pa.ChunkedArray) -> np.ndarray:
    tables = []
    for path in list_files(folder):
        with open_parquet(path) as file:
            missing = [name for name in ("id", "prob_a") if name not in file.schema_arrow.names]
            if missing:
                raise DataError(
                    f"{path}: no column {missing[0]}; --objective.teachers takes folders of `score`"
                )
            tables.append(file.read(["id", "prob_a"]))
    try:
        table = pa.concat_tables([table.cast(tables[0].schema) for table in tables])
        place_N = pc.index_in(ids, table["id"].combine_chunks().cast(ids.type))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        kind = tables[0].schema.field("id").type
        raise DataError(
            f"{folder}: its ids are {kind}, those of the votes {ids.type}; they cannot be joined"
        ) from error
    if pc.count_distinct(table["id"]).as_py() < len(table):
        raise DataError(f"{folder}: an id stands there twice; score it again")
    if place_N.null_count == len(ids):
        raise DataError(
            f"{folder}: has none of the ids to train on (its first is {table['id'][0]}, theirs {ids[0]}); "
            "give predictions on the train rows"
        )
    prob_a = table["prob_a"].to_numpy().astype(np.float64)  # null, of a row with an error, becomes NaN
    place = place_N.fill_null(0).to_numpy()
    return np.where(place_N.is_valid().to_numpy(), prob_a[place], np.nan)
