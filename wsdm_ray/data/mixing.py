# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import)
"""A mixture of several sets of votes: share and weight of each source, teachers, no leakage into valid.

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
from wsdm_ray.inputs.values import ids_of
from wsdm_ray.storage import list_files, open_parquet

__all__ = ["apply_mixture", "check_leakage", "read_teachers", "sample_weights"]


def apply_mixture(votes: Votes, shares: Mapping[str, float], seed: int) -> Votes:
    """The rows of one epoch: the share of each source that `shares` names, and all rows of other sources.

    Of n rows and a share s, every row comes floor(s) times. Those with the smallest hash of seed and id come
    once more, until there are round(s * n). So the choice does not depend on the files or their order.

    Raises:
        ConfigError: no row has such a source; no row is left.
    """
    if not shares:
        return votes
    sources_N = votes.sources_N
    check_sources(shares, sources_N, "--mix")
    ranks_N = np.array([hash_rank(seed, name) for name in votes.table["id"].to_pylist()], np.uint64)
    chosen: list[np.ndarray] = [np.flatnonzero(~np.isin(sources_N, list(shares)))]
    for source, share in shares.items():
        rows = np.flatnonzero(sources_N == source)
        rows = rows[np.argsort(ranks_N[rows], kind="stable")]
        repeats, remainder = divmod(round(share * len(rows)), len(rows))
        chosen += [rows] * repeats + [rows[:remainder]]
    rows = np.sort(np.concatenate(chosen))
    if not len(rows):
        raise ConfigError("--mix: leaves no row to train on; raise a share")
    return votes.take(rows)


def hash_rank(seed: int, name: int | str) -> int:
    """A number in 0..2**64 - 1 that decides which rows come once more."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def sample_weights(sources_N: np.ndarray, weights: Mapping[str, float]) -> np.ndarray:
    """Weight of each row in the loss, with a mean of 1 over all rows: float64 [N].

    Raises:
        ConfigError: no row has such a source; all weights are 0.
    """
    check_sources(weights, sources_N, "--objective.source-weights")
    weights_N = np.array([weights.get(source, 1.0) for source in sources_N], np.float64)
    if not weights_N.any():
        raise ConfigError("--objective.source-weights: leave no row with a weight above 0")
    return weights_N / weights_N.mean()


def check_sources(named: Mapping[str, float], sources_N: np.ndarray, option: str) -> None:
    """Raise `ConfigError` where `option` names a source that no row has."""
    known = sorted(set(sources_N.tolist()))
    for source in named:
        if source not in known:
            near = difflib.get_close_matches(source, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
            raise ConfigError(f"{option} {source}: no row to train on has this source; {hint}")


def check_leakage(train: Votes, valid: Votes) -> None:
    """Raise `DataError` where both have a prompt of the same group."""
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
    """Mean probability of response_a over the teachers that have a row: float64 [N], NaN where none has it.

    Args:
        folders: predictions of `score`, each of any rows in any order.
        ids: of the rows, each once or more (N).

    Raises:
        DataError: a file holds no predictions; a teacher has an id twice; a teacher has none of the ids.
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
            part = file.read(["id", "prob_a"])
        ids_of_part = ids_of(part["id"], path, 0).cast(pa.string())
        tables.append(pa.table({"id": ids_of_part, "prob_a": part["prob_a"].cast(pa.float64())}))
    table = pa.concat_tables(tables)
    # As text: an id that one tool wrote as a number and another as text is the same id.
    index_N = pc.index_in(ids.cast(pa.string()), table["id"].combine_chunks())
    if pc.count_distinct(table["id"]).as_py() < len(table):
        raise DataError(f"{folder}: holds an id twice; score it again")
    if index_N.null_count == len(ids):
        raise DataError(
            f"{folder}: has none of the ids to train on (its first is {table['id'][0]}, theirs {ids[0]}); "
            "give predictions on the train rows"
        )
    prob_a = table["prob_a"].to_numpy()  # null, of a row with an error, becomes NaN
    index = index_N.fill_null(0).to_numpy()
    return np.where(index_N.is_valid().to_numpy(), prob_a[index], np.nan)
