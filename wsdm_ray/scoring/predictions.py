"""Log-odds of all models to the rows of a predictions file."""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from wsdm_ray.schema import LOGIT_COLUMNS, MODEL_A, MODEL_B, Ordering, described, predictions_schema
from wsdm_ray.scoring.encode import encoded_pairs
from wsdm_ray.scoring.kept_columns import append_kept
from wsdm_ray.scoring.probabilities import NOT_FINITE, combine_models, to_probability

__all__ = ["predictions_table"]


def predictions_table(
    encoded: pa.Table,
    errors_N: np.ndarray,
    log_odds_MNO: Sequence[np.ndarray],
    temperatures: Sequence[float],
    weights: Sequence[float],
    orderings: tuple[Ordering, ...],
    id_type: pa.DataType,
    logits: bool,
) -> pa.Table:
    """The rows of a predictions file.

    Args:
        encoded: the unit, as `encode_unit` makes it.
        errors_N: object [N], why a row has no probability, else None.
        log_odds_MNO: of each model, that the given response_a wins, float32 [N, orderings]; NaN where an
            ordering was not run.
        weights: of each model in the means.
        logits: add `logit_ab` and `logit_ba`, means over the models.
    """
    ran_MNO = np.isfinite(log_odds_MNO)
    prob_MNO = np.stack(
        [
            to_probability(one, temperature)
            for one, temperature in zip(log_odds_MNO, temperatures, strict=True)
        ]
    )
    prob_N = combine_models(prob_MNO, ran_MNO, weights)
    errors_N = np.where(~np.isfinite(prob_N) & (errors_N == None), NOT_FINITE, errors_N)  # noqa: E711
    null_N = errors_N != None  # noqa: E711

    def column(ordering: Ordering, mean: Callable[[slice], np.ndarray]) -> pa.Array:
        if ordering not in orderings:
            return pa.nulls(len(prob_N), pa.float32())
        here = slice(orderings.index(ordering), orderings.index(ordering) + 1)
        not_run_N = ~ran_MNO[:, :, here].any(axis=(0, 2))
        return pa.array(mean(here), pa.float32(), mask=null_N | not_run_N)

    def probability(here: slice) -> np.ndarray:
        return combine_models(prob_MNO[:, :, here], ran_MNO[:, :, here], weights)

    def logit(here: slice) -> np.ndarray:
        return mean_logits(np.where(ran_MNO, log_odds_MNO, 0)[:, :, here], ran_MNO[:, :, here], weights)

    cut_N = np.max([encoded.column(f"cut_{number}").to_numpy() for number in range(len(weights))], axis=0)
    columns = [
        encoded.column("id").cast(id_type),
        pa.array(prob_N, pa.float32(), mask=null_N),
        pa.array(np.where(prob_N >= 0.5, MODEL_A, MODEL_B), pa.string(), mask=null_N),
        column(Ordering.AB, probability),
        column(Ordering.BA, probability),
        pa.array(encoded_pairs(encoded, 0).tokens_N, pa.int32()),
        pa.array(cut_N, pa.int32()),
        pa.array(errors_N, pa.string()),
    ]
    table = pa.Table.from_arrays(columns, schema=predictions_schema(id_type))
    if logits:
        for name, ordering in zip(LOGIT_COLUMNS, Ordering, strict=True):
            table = table.append_column(described(pa.field(name, pa.float32())), column(ordering, logit))
    return append_kept(table, encoded)


def mean_logits(log_odds_MNO: np.ndarray, ran_MNO: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """The weighted mean of log-odds over the models that ran a row: float64 [N], 0 where none did.

    Args:
        log_odds_MNO: float32 [models, N, 1], 0 where it was not run.
        ran_MNO: bool [models, N, 1].
    """
    weights_MNO = ran_MNO * np.reshape(weights, (-1, 1, 1))
    total_N = (log_odds_MNO * weights_MNO).sum(axis=(0, 2))
    return total_N / np.maximum(weights_MNO.sum(axis=(0, 2)), np.finfo(np.float64).tiny)
