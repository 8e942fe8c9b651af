"""The device half of scoring a work unit: run every model on its pairs, and commit the predictions."""

import os
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from wsdm_ray.errors import ModelError
from wsdm_ray.failures import is_deterministic, pack_final
from wsdm_ray.modeling.classifier import set_threads
from wsdm_ray.modeling.gpu_memory import peak_memory_bytes
from wsdm_ray.modeling.loading import load_scorer
from wsdm_ray.modeling.precision import default_device
from wsdm_ray.noise import quiet_libraries
from wsdm_ray.runs import check_same_numbers
from wsdm_ray.schema import Ordering, orderings_of
from wsdm_ray.scoring.crash_records import crash_record_path, record_crash_and_exit, suspect_rows
from wsdm_ray.scoring.encode import encoded_pairs, table_from_bytes
from wsdm_ray.scoring.engine import log_odds
from wsdm_ray.scoring.error_kinds import count_kinds, kinds_to_json
from wsdm_ray.scoring.model_spec import ModelSpec
from wsdm_ray.scoring.models import Load, Models
from wsdm_ray.scoring.parts import UnitReport, provenance, write_part
from wsdm_ray.scoring.predictions import predictions_table
from wsdm_ray.scoring.probabilities import combine_models, to_probability
from wsdm_ray.scoring.recovery import DeviceLostError
from wsdm_ray.storage import STORE_TIMEOUT_SECONDS, set_store_timeout

__all__ = ["Replica", "ReplicaOptions", "ReportProgress"]

ReportProgress = Callable[[int, float, int], None]
"""Takes the number of a unit, the share of it that is done (0 to 1), and the tokens that it took so far."""


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
    """CPU threads of its GEMMs; None leaves torch's default."""
    adaptive_threshold: float = 0.2
    model_weights: tuple[float, ...] = ()
    """One a model; none: all alike."""
    device: str | None = None
    """`cuda` or `cpu`; None: the GPU if there is one."""
    report_progress: ReportProgress | None = None
    """Is called as micro-batches are done."""
    store_timeout_seconds: float = STORE_TIMEOUT_SECONDS
    run_digest: str = ""
    """Of the run's fingerprint; each part carries it."""
    numbers: Mapping[str, str] = field(default_factory=dict)
    """Versions of what changes numbers, where the run was started; none: any will do."""


@dataclass
class Unit:
    """A unit that is being scored.

    errors_N: object [N], why a row has no probability, else None.
    suspects: rows that run in a micro-batch of their own.
    number: the unit's. passes: how many times a model runs over rows of it, at most.
    log_odds_MNO: of each model so far, that the given response_a wins, float32 [N, orderings]; NaN where it
    was not run.
    """

    encoded: pa.Table
    errors_N: np.ndarray
    suspects: Collection[int]
    number: int = 0
    passes: int = 1
    passes_done: int = 0
    forward_tokens: int = 0
    halvings: int = 0
    log_odds_MNO: list[np.ndarray] = field(default_factory=list)

    @property
    def good_N(self) -> np.ndarray:
        return np.array([error is None for error in self.errors_N], bool)


class Replica:
    """One process's models. Called with an encoded unit, it scores the unit and commits its part.

    It is in a process of its own (`replica_slot`). Each call takes one row (`unit`, `encoded`, `error`) and
    gives one row, a `UnitReport`. A token budget that memory lowered stays lowered for the units that follow.

    A process that lost its GPU leaves a crash record and ends itself; its slot starts another.

    Args:
        load: makes a scorer of a model folder, with the options of `load_scorer`.
    """

    def __init__(self, options: ReplicaOptions, load: Load = load_scorer):
        quiet_libraries()
        set_store_timeout(options.store_timeout_seconds, reached=True)
        set_threads(options.threads)
        self.options = options
        self.failure = ""
        self.token_budget = options.token_budget or 0
        try:
            check_same_numbers(options.numbers)
            started = time.monotonic()
            self.models = Models(options.models, load, options.device)
            load_seconds = time.monotonic() - started
            if options.token_budget is None:
                self.token_budget = self.models.token_budget(options.layout)
            if compile_seconds := self.models.warm_up(self.token_budget):
                print(
                    f"process {os.getpid()}: models loaded in {load_seconds:.1f} s, compiled for "
                    f"micro-batches of {self.token_budget} tokens in {compile_seconds:.1f} s",
                    file=sys.stderr,
                )
        except Exception as error:
            if not is_deterministic(error):  # a disk, a GPU or a memory of this node alone: its slot says so
                raise
            self.failure = pack_final(error)  # another replica would fail the same way
        self.initial_budget = self.token_budget

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        number, started = int(batch["unit"][0]), time.monotonic()
        report = UnitReport(unit=number)
        failure = batch["error"][0] or self.failure
        crash_record = crash_record_path(self.options.output, number)
        try:
            if not failure:
                suspects, left_out = suspect_rows(crash_record)
                table, report = self.score(table_from_bytes(batch["encoded"][0]), number, suspects, left_out)
                report = self.commit(table, report)
        except DeviceLostError as error:
            record_crash_and_exit(crash_record, error)
        except Exception as error:
            report, failure = UnitReport(unit=number), pack_final(error)
        seconds = time.monotonic() - started
        return replace(report, seconds=seconds, process=os.getpid(), error=str(failure)).to_row()

    def commit(self, table: pa.Table, report: UnitReport) -> UnitReport:
        """Write the predictions of a unit with its counts; returns what `write_part` does."""
        return write_part(self.options.output, table, report, self.options.run_digest)

    def score(
        self,
        encoded: pa.Table,
        number: int = 0,
        suspects: Collection[int] = (),
        left_out: Mapping[int, str] | None = None,
    ) -> tuple[pa.Table, UnitReport]:
        """The predictions of an encoded unit, and its counts.

        Args:
            number: the unit's.
            suspects: rows that run in a micro-batch of their own.
            left_out: rows that are not to be run, and why.
        """
        passes = len(self.options.models) + (self.options.orders == "adaptive")
        errors_N = np.asarray(encoded.column("error").to_pylist(), object)
        unit = Unit(encoded, errors_N, suspects, number, passes)
        self.show(unit, 0.0, 0)
        for row, why in (left_out or {}).items():
            unit.errors_N[row] = unit.errors_N[row] or why
        rerun = self.run_adaptive(unit) if self.options.orders == "adaptive" else self.run_all(unit)
        table = predictions_table(
            encoded,
            unit.errors_N,
            unit.log_odds_MNO,
            [model.manifest.temperature for model in self.options.models],
            self.options.model_weights or (1.0,) * len(self.options.models),
            orderings_of(self.options.orders),
            self.options.id_type,
            self.options.logits,
        ).replace_schema_metadata(
            provenance([model.fingerprint for model in self.options.models], self.options.orders)
        )
        return table, UnitReport(
            unit=number,
            rows=len(table),
            errors=len(table) - table.column("error").null_count,
            cut=int(np.count_nonzero(table.column("cut_tokens").to_numpy())),
            tokens=int(table.column("tokens").to_numpy().sum()),
            rerun=rerun,
            halvings=unit.halvings,
            token_budget=self.token_budget,
            forward_tokens=unit.forward_tokens,
            peak_memory_bytes=peak_memory_bytes(self.options.device or default_device()),
            kinds=kinds_to_json(count_kinds(table)),
        )

    def run_all(self, unit: Unit) -> int:
        """Every model in every ordering; no row is run again."""
        orderings = orderings_of(self.options.orders)
        for number in range(len(self.options.models)):
            wanted_NO = np.repeat(unit.good_N[:, None], len(orderings), axis=1)
            unit.log_odds_MNO.append(self.run(unit, number, orderings, wanted_NO))
        return 0

    def run_adaptive(self, unit: Unit) -> int:
        """The first model in one ordering, the rest where that leaves doubt; returns how many rows those are.

        Which ordering comes first, and whether there is doubt, is the same for a pair and its swapped twin.
        """
        both = orderings_of("both")
        ba_first_N = unit.encoded.column("ba_first").to_numpy()
        first_NO = np.stack([~ba_first_N, ba_first_N], axis=1)
        log_odds_NO = self.run(unit, 0, both, first_NO & unit.good_N[:, None])
        known_NO = np.isfinite(log_odds_NO)  # both, where they are the same tokens
        temperature = self.options.models[0].manifest.temperature
        prob_N = combine_models(to_probability(log_odds_NO, temperature)[None], known_NO[None], [1.0])
        doubt_N = unit.good_N & (np.abs(prob_N.astype(np.float64) - 0.5) < self.options.adaptive_threshold)
        again_NO = doubt_N[:, None] & ~known_NO
        unit.log_odds_MNO.append(np.where(again_NO, self.run(unit, 0, both, again_NO), log_odds_NO))
        for number in range(1, len(self.options.models)):
            wanted_NO = np.repeat((doubt_N & unit.good_N)[:, None], 2, axis=1)
            unit.log_odds_MNO.append(self.run(unit, number, both, wanted_NO))
        return int(np.count_nonzero(again_NO.any(axis=1) if len(unit.log_odds_MNO) == 1 else doubt_N))

    def run(
        self, unit: Unit, number: int, orderings: tuple[Ordering, ...], wanted_NO: np.ndarray
    ) -> np.ndarray:
        """Log-odds of one model, float32 [N, orderings]; errors and counts go to the unit."""
        wanted = max(int(wanted_NO.any(axis=1).sum()), 1)
        try:
            scores = log_odds(
                self.models.scorers[number],
                encoded_pairs(unit.encoded, number),
                orderings,
                layout=self.options.layout,
                token_budget=self.token_budget,
                initial_budget=self.initial_budget,
                wanted_NO=wanted_NO,
                suspects=unit.suspects,
                on_progress=lambda rows, tokens: self.show(unit, rows / wanted, tokens),
            )
        except ModelError as error:
            raise ModelError(f"{self.options.models[number].folder}: {error}") from error
        self.token_budget = scores.token_budget
        unit.passes_done += 1
        unit.forward_tokens += scores.forward_tokens
        unit.halvings += scores.halvings
        failed_N = unit.good_N & np.array([error is not None for error in scores.errors_N], bool)
        unit.errors_N[failed_N] = scores.errors_N[failed_N]
        return scores.log_odds_NO

    def show(self, unit: Unit, share: float, tokens: int) -> None:
        """Report that of the pass that runs so much is done, by so many tokens."""
        if self.options.report_progress:
            done = (unit.passes_done + share) / unit.passes
            self.options.report_progress(unit.number, min(done, 1.0), unit.forward_tokens + tokens)
