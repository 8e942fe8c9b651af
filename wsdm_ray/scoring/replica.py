"""The two halves of scoring a work unit: encode it (any CPU), score and commit it (where a model is held).

A unit travels between them as the bytes of one Arrow table in one cell, so that Ray Data can neither split
nor join it.
"""

import functools
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from wsdm_ray.config import Columns, TextConfig
from wsdm_ray.errors import WsdmRayError
from wsdm_ray.modeling.checkpoint import Manifest, load_classifier
from wsdm_ray.modeling.classifier import set_threads
from wsdm_ray.packing.ragged import Ragged
from wsdm_ray.schema import MODEL_A, MODEL_B, RESPONSES, Ordering, orderings_of, predictions_schema
from wsdm_ray.scoring.engine import combine, log_odds, to_probability
from wsdm_ray.scoring.plan import WorkUnit, part_name, read_unit
from wsdm_ray.storage import join, local_copy, write_parquet
from wsdm_ray.text.encoding import EncodedPairs, PairEncoder

__all__ = ["ModelSpec", "Replica", "encode_unit", "pack_error", "predictions_table"]

COUNTS = b"wsdm_ray.counts"
"""Key of the parquet footer under which a part keeps its counts, so that a resumed run can add them up."""


@dataclass(frozen=True)
class ModelSpec:
    """A model as every process of a run needs to know it."""

    folder: str
    base: str | None
    manifest: Manifest
    precision: str


@dataclass(frozen=True)
class ReplicaOptions:
    """What a replica does with a unit."""

    models: tuple[ModelSpec, ...]
    output: str
    id_type: pa.DataType
    orders: str
    layout: str
    token_budget: int
    logits: bool
    threads: int | None
    """CPU threads of its products; None leaves torch's default."""


@functools.lru_cache(maxsize=4)
def encoder(folder: str, text: TextConfig) -> PairEncoder:
    """One encoder a process and model; units that follow find it ready."""
    return PairEncoder(local_copy(folder), text)


def encode_unit(unit: WorkUnit, models: Sequence[ModelSpec], columns: Columns) -> pa.Table:
    """The unit's rows as an Arrow table of ids, errors and, for each model, token ids.

    A row with a null text has an `error` and the token ids of empty texts.
    """
    rows = read_unit(unit, columns)
    texts, errors = {}, np.full(len(rows), None, object)
    for name in ("prompt", *RESPONSES):
        values, wrong = text_values(rows.column(name))
        texts[name] = values
        for row, why in wrong:
            errors[row] = errors[row] or f"{name} {why}"
    encoded = {"id": rows.column("id"), "error": pa.array(errors, pa.string())}
    for number, model in enumerate(models):
        pairs = encoder(model.folder, model.manifest.text).encode(
            texts["prompt"], *(texts[name] for name in RESPONSES)
        )
        encoded |= {
            f"prefix_{number}": pairs.prefix.to_arrow(),
            f"suffix_ab_{number}": pairs.suffix_ab.to_arrow(),
            f"suffix_ba_{number}": pairs.suffix_ba.to_arrow(),
            f"cut_{number}": pa.array(pairs.cut_tokens_N),
        }
    return pa.table(encoded)


def text_values(column: pa.ChunkedArray) -> tuple[list[str], list[tuple[int, str]]]:
    """The texts of a column, with "" for those that cannot be read, and (row, why) of these."""
    wrong = [(row, "is null") for row in np.flatnonzero(column.is_null().to_numpy()).tolist()]
    try:
        return [value or "" for value in column.to_pylist()], wrong
    except UnicodeDecodeError:
        values = []
        for row, data in enumerate(column.cast(pa.large_binary()).to_pylist()):
            try:
                values.append((data or b"").decode())
            except UnicodeDecodeError:
                values.append("")
                wrong.append((row, "is not UTF-8"))
        return values, wrong


def pairs_of(encoded: pa.Table, number: int) -> EncodedPairs:
    prefix, suffix_ab, suffix_ba = (
        Ragged.from_arrow(encoded.column(f"{name}_{number}")) for name in ("prefix", "suffix_ab", "suffix_ba")
    )
    return EncodedPairs(prefix, suffix_ab, suffix_ba, encoded.column(f"cut_{number}").to_numpy())


def pack_error(error: WsdmRayError) -> str:
    """Kind and text of an error, for a cell of a row."""
    return json.dumps([type(error).__name__, str(error)])


def to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def from_bytes(data: bytes) -> pa.Table:
    return pa.ipc.open_stream(data).read_all()


class Replica:
    """One process's models; called with a unit, it scores it and commits its file.

    Used by Ray Data as the class of an actor pool: each call takes one row (`unit`, `encoded`) and gives one
    row of counts.
    """

    def __init__(self, options: ReplicaOptions):
        set_threads(options.threads)
        self.options = options
        self.failure = ""
        try:
            self.networks = [
                load_classifier(model.folder, precision=model.precision, base=model.base, verify=False)[0]
                for model in options.models
            ]
        except WsdmRayError as error:  # Ray Data would make other replicas, and fail each the same way
            self.failure = pack_error(error)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        number, start = int(batch["unit"][0]), time.monotonic()
        counts: dict[str, Any] = dict.fromkeys(("rows", "errors", "cut", "tokens", "passed_tokens"), 0)
        failure = batch["error"][0] or self.failure
        try:
            if not failure:
                table, counts = self.score(from_bytes(batch["encoded"][0]))
                write_parquet(join(self.options.output, part_name(number)), table)
        except WsdmRayError as error:
            failure = pack_error(error)
        counts |= {
            "unit": number,
            "seconds": time.monotonic() - start,
            "process": os.getpid(),
            "error": failure,
        }
        return {name: np.asarray([value]) for name, value in counts.items()}

    def score(self, encoded: pa.Table) -> tuple[pa.Table, dict[str, Any]]:
        """The predictions of an encoded unit, and its counts."""
        orderings = orderings_of(self.options.orders)
        parts, passed = [], 0
        for number, network in enumerate(self.networks):
            scores = log_odds(
                network,
                pairs_of(encoded, number),
                orderings,
                layout=self.options.layout,
                token_budget=self.options.token_budget,
            )
            parts.append(scores.log_odds_NO)
            passed += scores.passed_tokens
        temperatures = [model.manifest.temperature for model in self.options.models]
        table = predictions_table(
            encoded, parts, temperatures, orderings, self.options.id_type, self.options.logits
        )
        counts = {
            "rows": len(table),
            "errors": len(table) - table.column("error").null_count,
            "cut": int(np.count_nonzero(table.column("cut_tokens").to_numpy())),
            "tokens": int(table.column("tokens").to_numpy().sum()),
        }
        table = table.replace_schema_metadata({COUNTS: json.dumps(counts).encode()})
        return table, counts | {"passed_tokens": passed}


def predictions_table(
    encoded: pa.Table,
    parts: Sequence[np.ndarray],
    temperatures: Sequence[float],
    orderings: tuple[Ordering, ...],
    id_type: pa.DataType,
    logits: bool,
) -> pa.Table:
    """The rows of a predictions file.

    Args:
        encoded: the unit, as `encode_unit` makes it.
        parts: a model's log-odds of the given response_a, float32 [N, orderings], one array a model.
        logits: add `logit_ab` and `logit_ba`, means over the models.
    """
    probabilities = np.stack(
        [to_probability(part, temperature) for part, temperature in zip(parts, temperatures, strict=True)]
    )  # [models, N, orderings]
    rows = probabilities.shape[1]
    prob_a = combine(probabilities.transpose(1, 0, 2).reshape(rows, -1))
    errors = np.asarray(encoded.column("error").to_pylist(), object)
    not_finite = ~np.isfinite(prob_a)
    errors = np.where(not_finite & (errors == None), "the model's output is not finite", errors)  # noqa: E711
    null = errors != None  # noqa: E711

    def masked(values: np.ndarray, kind: pa.DataType) -> pa.Array:
        return pa.array(values, kind, mask=null)

    of_ordering = {ordering: combine(probabilities[:, :, i].T) for i, ordering in enumerate(orderings)}
    none = pa.nulls(rows, pa.float32())
    pairs = pairs_of(encoded, 0)
    columns = [
        encoded.column("id").cast(id_type),
        masked(prob_a, pa.float32()),
        masked(np.where(prob_a >= 0.5, MODEL_A, MODEL_B), pa.string()),
        *(
            masked(of_ordering[ordering], pa.float32()) if ordering in of_ordering else none
            for ordering in (Ordering.AB, Ordering.BA)
        ),
        pa.array(pairs.tokens_N, pa.int32()),
        pa.array(pairs.cut_tokens_N, pa.int32()),
        pa.array(errors, pa.string()),
    ]
    table = pa.Table.from_arrays(columns, schema=predictions_schema(id_type))
    if logits:
        means = dict(zip(orderings, np.mean(parts, axis=0).T, strict=True))
        for name, ordering in (("logit_ab", Ordering.AB), ("logit_ba", Ordering.BA)):
            column = masked(means[ordering], pa.float32()) if ordering in means else none
            table = table.append_column(name, column)
    return table
