"""The two halves of scoring a work unit: encode it (any CPU), score and commit it (where a model is held).

A unit travels between them as the bytes of one Arrow table in one cell, so that Ray Data can neither split
nor join it.
"""

import functools
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from wsdm_ray.config import Columns, TextConfig
from wsdm_ray.errors import ClusterError, ModelError, WsdmRayError
from wsdm_ray.modeling.classifier import set_threads
from wsdm_ray.packing.ragged import Ragged
from wsdm_ray.schema import MODEL_A, MODEL_B, RESPONSES, Ordering, orderings_of, predictions_schema
from wsdm_ray.scoring.engine import (
    NOT_FINITE,
    DeviceLostError,
    combine_models,
    log_odds,
    to_probability,
)
from wsdm_ray.scoring.models import Models, ModelSpec
from wsdm_ray.scoring.plan import WorkUnit, part_name, read_unit
from wsdm_ray.storage import exists, join, local_copy, read_json, write_json, write_parquet
from wsdm_ray.text.encoding import EncodedPairs, PairEncoder

__all__ = [
    "CRASH_RECORD_NAME",
    "Replica",
    "crash_record_name",
    "encode_unit",
    "pack_error",
    "predictions_table",
]

COUNTS = b"wsdm_ray.counts"
"""Key of the parquet footer under which a part keeps its counts, so that a resumed run can add them up."""

COUNTED = ("rows", "errors", "cut", "tokens", "rerun", "forward_tokens", "halved", "token_budget")
"""What a unit's report counts; `halved` and the smallest `token_budget` tell of memory that ran out."""

CRASH_RECORD_NAME = re.compile(r"_lost-\d{6}\.json")

MAX_CRASHES = 8
"""How many processes one unit may cost before the run fails."""


@dataclass(frozen=True)
class ReplicaOptions:
    """What a replica does with a unit."""

    models: tuple[ModelSpec, ...]
    output: str
    id_type: pa.DataType
    orders: str
    layout: str
    token_budget: int | None
    """None: what fits this process's device."""
    logits: bool
    threads: int | None
    """CPU threads of its products; None leaves torch's default."""
    adaptive_threshold: float = 0.2
    model_weights: tuple[float, ...] = ()
    """One a model; none: all alike."""


def crash_record_name(number: int) -> str:
    """The file that tells which processes a unit cost, in a run's folder while it lasts.

    It holds a list of `rows`, those of the passes that a process did not survive, and `reason`.
    """
    return f"_lost-{number:06d}.json"


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
            "ba_first": pa.array(pairs.ba_first_N),  # the same for every model
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
    cut, ba_first = (encoded.column(name).to_numpy() for name in (f"cut_{number}", "ba_first"))
    return EncodedPairs(prefix, suffix_ab, suffix_ba, cut, ba_first)


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


@dataclass
class Unit:
    """A unit under way."""

    encoded: pa.Table
    errors_N: np.ndarray
    """object [N], why a row has no probability, else None."""
    alone: Collection[int]
    """Rows that run each in a pass of their own."""
    forward_tokens: int = 0
    halved: int = 0
    parts: list[np.ndarray] = field(default_factory=list)
    """A model's log-odds of the given response_a, float32 [N, orderings]; NaN where it was not run."""

    @property
    def good_N(self) -> np.ndarray:
        return np.array([error is None for error in self.errors_N], bool)


class Replica:
    """One process's models; called with a unit, it scores it and commits its file.

    Used by Ray Data as the class of an actor pool: each call takes one row (`unit`, `encoded`) and gives one
    row of counts. A token budget that memory lowered stays so for the units that follow.

    A process that lost its GPU ends itself, and Ray makes another. What it was at is left in the file
    `crash_record_name`: the next one runs those rows each by itself, and leaves out one that does it again.
    """

    def __init__(self, options: ReplicaOptions):
        set_threads(options.threads)
        self.options = options
        self.failure = ""
        self.token_budget = options.token_budget or 0
        try:
            started = time.monotonic()
            self.models = Models(options.models)
            loaded = time.monotonic() - started
            if options.token_budget is None:
                self.token_budget = self.models.token_budget(options.layout)
            if compiled := self.models.warm_up(self.token_budget):
                print(
                    f"process {os.getpid()}: models loaded in {loaded:.1f} s, compiled for passes of "
                    f"{self.token_budget} tokens in {compiled:.1f} s",
                    file=sys.stderr,
                )
        except WsdmRayError as error:  # Ray Data would make other replicas, and fail each the same way
            self.failure = pack_error(error)
        self.most_tokens = self.token_budget

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        number, start = int(batch["unit"][0]), time.monotonic()
        counts: dict[str, Any] = dict.fromkeys(COUNTED, 0)
        failure = batch["error"][0] or self.failure
        try:
            if not failure:
                alone, lost = suspect_rows(join(self.options.output, crash_record_name(number)))
                table, counts = self.score(from_bytes(batch["encoded"][0]), alone, lost, number)
                write_parquet(join(self.options.output, part_name(number)), table)
        except WsdmRayError as error:
            failure = pack_error(error)
        except DeviceLostError as error:
            record_crash_and_exit(join(self.options.output, crash_record_name(number)), error)
        counts |= {
            "unit": number,
            "seconds": time.monotonic() - start,
            "process": os.getpid(),
            "error": failure,
        }
        return {name: np.asarray([value]) for name, value in counts.items()}

    def score(
        self,
        encoded: pa.Table,
        alone: Collection[int] = (),
        lost: Mapping[int, str] | None = None,
        number: int = 0,
    ) -> tuple[pa.Table, dict[str, Any]]:
        """The predictions of an encoded unit, and its counts.

        Args:
            alone: rows that run each in a pass of their own.
            lost: rows that are not to be run, and why.
            number: the unit's; the part keeps it beside its counts.
        """
        unit = Unit(encoded, np.asarray(encoded.column("error").to_pylist(), object), alone)
        for row, why in (lost or {}).items():
            unit.errors_N[row] = unit.errors_N[row] or why
        rerun = self.run_adaptive(unit) if self.options.orders == "adaptive" else self.run_all(unit)
        table = predictions_table(
            encoded,
            unit.errors_N,
            unit.parts,
            [model.manifest.temperature for model in self.options.models],
            self.weights,
            orderings_of(self.options.orders),
            self.options.id_type,
            self.options.logits,
        )
        counts = {
            "rows": len(table),
            "errors": len(table) - table.column("error").null_count,
            "cut": int(np.count_nonzero(table.column("cut_tokens").to_numpy())),
            "tokens": int(table.column("tokens").to_numpy().sum()),
            "rerun": rerun,
        }
        # Without a oom_backoff of memory, a unit that is done again gives the same bytes.
        oom_backoff = {"halved": unit.halved, "token_budget": self.token_budget}
        kept = {"unit": number} | counts | (oom_backoff if unit.halved else {})
        table = table.replace_schema_metadata({COUNTS: json.dumps(kept).encode()})
        return table, counts | oom_backoff | {"forward_tokens": unit.forward_tokens}

    @property
    def weights(self) -> tuple[float, ...]:
        return self.options.model_weights or (1.0,) * len(self.options.models)

    def run_all(self, unit: Unit) -> int:
        """Every model in every ordering; no row is run again."""
        orderings = orderings_of(self.options.orders)
        for number in range(len(self.options.models)):
            wanted_NO = np.repeat(unit.good_N[:, None], len(orderings), axis=1)
            unit.parts.append(self.run(unit, number, orderings, wanted_NO))
        return 0

    def run_adaptive(self, unit: Unit) -> int:
        """The first model in one ordering, the rest where that leaves doubt; returns how many rows those are.

        Which ordering comes first, and whether there is doubt, is the same for a pair and its swapped twin.
        """
        both = orderings_of("both")
        ba_first_N = unit.encoded.column("ba_first").to_numpy()
        first_NO = np.stack([~ba_first_N, ba_first_N], axis=1)
        part_NO = self.run(unit, 0, both, first_NO & unit.good_N[:, None])
        known_NO = np.isfinite(part_NO)  # both, where they are the same tokens
        temperature = self.options.models[0].manifest.temperature
        prob_N = combine_models(to_probability(part_NO, temperature)[None], known_NO[None], [1.0])
        doubt_N = unit.good_N & (np.abs(prob_N.astype(np.float64) - 0.5) < self.options.adaptive_threshold)
        again_NO = doubt_N[:, None] & ~known_NO
        unit.parts.append(np.where(again_NO, self.run(unit, 0, both, again_NO), part_NO))
        for number in range(1, len(self.options.models)):
            wanted_NO = np.repeat((doubt_N & unit.good_N)[:, None], 2, axis=1)
            unit.parts.append(self.run(unit, number, both, wanted_NO))
        return int(np.count_nonzero(again_NO.any(axis=1) if len(unit.parts) == 1 else doubt_N))

    def run(
        self, unit: Unit, number: int, orderings: tuple[Ordering, ...], wanted_NO: np.ndarray
    ) -> np.ndarray:
        """Log-odds of one model, float32 [N, orderings]; errors and counts go to the unit."""
        try:
            scores = log_odds(
                self.models.select(number),
                pairs_of(unit.encoded, number),
                orderings,
                layout=self.options.layout,
                token_budget=self.token_budget,
                most_tokens=self.most_tokens,
                wanted_NO=wanted_NO,
                alone=unit.alone,
            )
        except ModelError as error:
            raise ModelError(f"{self.options.models[number].folder}: {error}") from error
        self.token_budget = scores.token_budget
        unit.forward_tokens += scores.forward_tokens
        unit.halved += scores.halved
        failed_N = unit.good_N & np.array([error is not None for error in scores.errors_N], bool)
        unit.errors_N[failed_N] = scores.errors_N[failed_N]
        return scores.log_odds_NO


def suspect_rows(path: str) -> tuple[set[int], dict[int, str]]:
    """Of a unit's losses (in the file `path`, if there is one): rows to run alone, and rows not to run.

    Raises:
        ClusterError: the unit cost too many processes.
    """
    losses = read_json(path) if exists(path) else []
    if len(losses) >= MAX_CRASHES:
        raise ClusterError(
            f"{path}: {len(losses)} processes lost their GPU over this unit, the last by "
            f"{losses[-1]['reason']!r}; check the GPU and the model, then delete this file"
        )
    times = Counter(row for loss in losses for row in loss["rows"])
    lost = {
        loss["rows"][0]: f"the GPU is lost on this row ({loss['reason']})"
        for loss in losses
        if len(loss["rows"]) == 1 and times[loss["rows"][0]] > 1
    }
    return set(times) - set(lost), lost


def record_crash_and_exit(path: str, error: DeviceLostError) -> None:
    """Add to the losses of a unit and end this process."""
    losses = read_json(path) if exists(path) else []
    write_json(path, [*losses, {"rows": error.pairs, "reason": error.reason}])
    print(f"process {os.getpid()} lost its GPU ({error.reason}); Ray starts another", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)


def predictions_table(
    encoded: pa.Table,
    errors_N: np.ndarray,
    parts: Sequence[np.ndarray],
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
        parts: a model's log-odds of the given response_a, float32 [N, orderings], one array a model; NaN
            where an ordering was not run.
        weights: of each model in the means.
        logits: add `logit_ab` and `logit_ba`, means over the models.
    """
    ran_MNO = np.isfinite(parts)
    prob_MNO = np.stack(
        [to_probability(part, temperature) for part, temperature in zip(parts, temperatures, strict=True)]
    )
    prob_a = combine_models(prob_MNO, ran_MNO, weights)
    errors = np.where(~np.isfinite(prob_a) & (errors_N == None), NOT_FINITE, errors_N)  # noqa: E711
    null_N = errors != None  # noqa: E711

    def column(values: np.ndarray, kind: pa.DataType, null_N: np.ndarray = null_N) -> pa.Array:
        return pa.array(values, kind, mask=null_N)

    def of_ordering(ordering: Ordering, values: Callable[[slice], np.ndarray]) -> pa.Array:
        if ordering not in orderings:
            return pa.nulls(len(prob_a), pa.float32())
        here = slice(orderings.index(ordering), orderings.index(ordering) + 1)
        return column(values(here), pa.float32(), null_N | ~ran_MNO[:, :, here].any(axis=(0, 2)))

    def probability(here: slice) -> np.ndarray:
        return combine_models(prob_MNO[:, :, here], ran_MNO[:, :, here], weights)

    def logit(here: slice) -> np.ndarray:
        weights_MNO = ran_MNO[:, :, here] * np.reshape(weights, (-1, 1, 1))
        total_N = (np.where(ran_MNO, parts, 0)[:, :, here] * weights_MNO).sum(axis=(0, 2))
        return total_N / np.maximum(weights_MNO.sum(axis=(0, 2)), np.finfo(np.float64).tiny)

    tokens_N = pairs_of(encoded, 0).tokens_N
    cut_N = np.max([encoded.column(f"cut_{number}").to_numpy() for number in range(len(weights))], axis=0)
    columns = [
        encoded.column("id").cast(id_type),
        column(prob_a, pa.float32()),
        column(np.where(prob_a >= 0.5, MODEL_A, MODEL_B), pa.string()),
        of_ordering(Ordering.AB, probability),
        of_ordering(Ordering.BA, probability),
        pa.array(tokens_N, pa.int32()),
        pa.array(cut_N, pa.int32()),
        pa.array(errors, pa.string()),
    ]
    table = pa.Table.from_arrays(columns, schema=predictions_schema(id_type))
    if logits:
        for name, ordering in (("logit_ab", Ordering.AB), ("logit_ba", Ordering.BA)):
            table = table.append_column(name, of_ordering(ordering, logit))
    return table
