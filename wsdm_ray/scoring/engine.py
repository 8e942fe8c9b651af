"""Encoded pairs to log-odds: plan micro-batches, lay out, run, gather. Torch, no Ray and no file.

Both orderings of a pair run in the same micro-batch, unless one alone is wanted or memory forces a split. The
one that `first_ordering` names comes first, whichever response the input calls response_a. So a pair and its
swapped twin are computed by the very same operations, and their probabilities add up to exactly 1.

A scorer with static shapes has its micro-batches filled up to the token budget. Groups begin at multiples of
the scorer's alignment, so that a pair's result is bitwise identical in any micro-batch of as many tokens.
While a GPU runs one micro-batch, the next is laid out and started. What follows from a failure is decided in
`recovery`.
"""

import gc
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from wsdm_ray.errors import WsdmRayError
from wsdm_ray.modeling.classifier import preference_log_odds
from wsdm_ray.modeling.memory_errors import is_oom
from wsdm_ray.modeling.scorers import Scorer, in_one_row
from wsdm_ray.packing.layouts import lay_out
from wsdm_ray.packing.plan import batch_tokens, pair_tokens
from wsdm_ray.packing.ragged import Ragged
from wsdm_ray.schema import Ordering
from wsdm_ray.scoring.micro_batches import BatchShapes, plan_micro_batches
from wsdm_ray.scoring.probabilities import NOT_FINITE
from wsdm_ray.scoring.recovery import (
    Action,
    DeviceLostError,
    FailedBatch,
    Failure,
    check_not_all_failed,
    describe_error,
    is_device_lost,
    over_budget_error,
    recover,
    row_error,
)
from wsdm_ray.text.encoding import EncodedPairs

__all__ = ["Scores", "log_odds"]

Result = TypeVar("Result")

OnProgress = Callable[[int, int], None]
"""Takes how many pairs are done, and how many tokens they took."""


class PendingTensor:
    """A tensor on its way to the host. `wait` waits for it alone, not for what the GPU was given later."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor.to("cpu", non_blocking=True)
        self.arrived = torch.cuda.current_stream().record_event() if tensor.is_cuda else None

    def wait(self) -> np.ndarray:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.tensor.numpy()


@dataclass(frozen=True)
class InFlightBatch:
    """A micro-batch that was started: its pairs, its tokens (padding included), and its result."""

    pairs: np.ndarray
    size: int
    result: PendingTensor | Failure


@dataclass(frozen=True)
class PairRun:
    """N pairs, each to be run once in the same number of orderings.

    prefix: what a pair's orderings share. suffixes: the rest of each ordering.
    tokens_N: tokens that each pair takes in a micro-batch, int64.
    log_odds_NS: that the response that comes first wins, float32 [N, suffixes]; filled in as results arrive,
    NaN until then.
    """

    prefix: Ragged
    suffixes: Sequence[Ragged]
    tokens_N: np.ndarray
    log_odds_NS: np.ndarray


@dataclass(frozen=True)
class Scores:
    """The results of N pairs.

    log_odds_NO: float32 [N, orderings asked for], that the given response_a wins; NaN where that ordering was
    not wanted, or failed.
    errors_N: object [N], why a pair that was wanted has no value, else None.
    forward_tokens: tokens that went through the model, padding included.
    token_budget: that of the last micro-batch, in tokens.
    halvings: how many times memory ran out and the token budget was halved.
    """

    log_odds_NO: np.ndarray
    errors_N: np.ndarray
    forward_tokens: int
    token_budget: int
    halvings: int


def log_odds(
    scorer: Scorer,
    pairs: EncodedPairs,
    orderings: tuple[Ordering, ...],
    *,
    layout: str,
    token_budget: int,
    initial_budget: int | None = None,
    wanted_NO: np.ndarray | None = None,
    suspects: Collection[int] = (),
    on_progress: OnProgress = lambda pairs, tokens: None,
) -> Scores:
    """The log-odds of the pairs in the orderings asked for.

    A pair that takes more tokens than the initial budget has an error; one that takes more than the budget,
    which memory may have lowered, has a micro-batch of its own. Of two orderings with the same tokens, one is
    run.

    Args:
        initial_budget: the token budget before memory lowered it; by default `token_budget`.
        wanted_NO: bool [N, orderings], which to run; by default all.
        suspects: indices of pairs that run in a micro-batch of their own, after all others.
        on_progress: is called after each micro-batch.

    Raises:
        ModelError: several pairs were run, and all failed for the same reason.
        DeviceLostError: the process must be replaced.
    """
    wanted_NO = np.ones((len(pairs), len(orderings)), bool) if wanted_NO is None else wanted_NO
    runner = BatchRunner(
        scorer=scorer,
        layout=layout,
        token_budget=token_budget,
        shapes=BatchShapes(static=scorer.static_shapes, initial_budget=initial_budget or token_budget),
        max_in_flight=1 if suspects else scorer.max_in_flight,  # so that the pair that loses a GPU is known
        suspects=suspects,
        errors_N=np.full(len(pairs), None, object),
        on_progress=on_progress,
    )
    result_NO = np.full(wanted_NO.shape, np.nan, np.float32)
    same_N = identical(pairs)
    once_N = (wanted_NO.sum(axis=1) == 1) | (wanted_NO.any(axis=1) & same_N)
    twice_N = wanted_NO.any(axis=1) & ~once_N
    column_N = np.argmax(wanted_NO, axis=1)  # the ordering of a pair that is run once
    for rows, both in ((np.flatnonzero(once_N), False), (np.flatnonzero(twice_N), True)):
        if not len(rows):
            continue
        ba_N = pairs.ba_first_N if both else np.asarray(orderings)[column_N] == Ordering.BA
        suffixes = [choose(pairs, ba_N)] + ([choose(pairs, ~ba_N)] if both else [])
        log_odds_NS = runner.run(pairs.prefix, suffixes, rows)
        for column, ordering in enumerate(orderings):
            index_N = (ba_N != (ordering == Ordering.BA)).astype(int)  # of this ordering in `suffixes`
            known = rows if both else rows[index_N[rows] == 0]
            sign = 1 if ordering == Ordering.AB else -1  # of the response that comes first: b, in ba
            result_NO[known, column] = sign * log_odds_NS[known, index_N[known]]
    if len(orderings) == 2:  # one sequence twice: no rounding may prefer a response
        known = np.flatnonzero(once_N & same_N)
        result_NO[known, 1 - column_N[known]] = -result_NO[known, column_N[known]]
    check_not_all_failed(runner.errors_N[wanted_NO.any(axis=1)])
    return Scores(result_NO, runner.errors_N, runner.forward_tokens, runner.token_budget, runner.halvings)


def identical(pairs: EncodedPairs) -> np.ndarray:
    """Which pairs are the same tokens in both orderings: bool [N]."""
    return np.array([np.array_equal(pairs.suffix_ab[i], pairs.suffix_ba[i]) for i in range(len(pairs))], bool)


def choose(pairs: EncodedPairs, ba_N: np.ndarray) -> Ragged:
    """The suffix of each pair in `ba` where `ba_N`, else in `ab`."""
    return Ragged.from_lists([(pairs.suffix_ba if ba else pairs.suffix_ab)[i] for i, ba in enumerate(ba_N)])


@dataclass
class BatchRunner:
    """Runs the micro-batches of one scorer, and keeps what became of them.

    max_in_flight: micro-batches that may be started and not done.
    in_flight: those that are, the oldest first.
    """

    scorer: Scorer
    layout: str
    token_budget: int
    shapes: BatchShapes
    max_in_flight: int
    suspects: Collection[int]
    errors_N: np.ndarray
    on_progress: OnProgress
    pairs_done: int = 0
    forward_tokens: int = 0
    halvings: int = 0
    in_flight: deque[InFlightBatch] = field(default_factory=deque)

    def run(self, prefix: Ragged, suffixes: Sequence[Ragged], rows: np.ndarray) -> np.ndarray:
        """Log-odds that the first response wins: float32 [N, suffixes], NaN except for `rows` (int [R])."""
        lengths = prefix.lengths, suffixes[0].lengths, len(suffixes)
        tokens_N = pair_tokens(self.layout, *lengths, self.scorer.alignment)
        run = PairRun(prefix, suffixes, tokens_N, np.full((len(prefix), len(suffixes)), np.nan, np.float32))
        waiting = self.plan(run, self.refuse_over_budget(pair_tokens(self.layout, *lengths), rows))
        while waiting or self.in_flight:
            self.start_waiting(run, waiting)
            batch = self.in_flight.popleft()
            result = self.finish(batch)
            if isinstance(result, Failure):
                waiting = self.recover(run, batch, result, waiting)
            else:
                self.record(run, batch.pairs, result)
                self.pairs_done += len(batch.pairs)
                self.on_progress(self.pairs_done, self.forward_tokens)
        return run.log_odds_NS

    def refuse_over_budget(self, tokens_N: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The `rows` that the initial budget allows; the others get their error."""
        over_N = tokens_N > self.shapes.initial_budget
        for row in rows[over_N[rows]].tolist():
            self.errors_N[row] = over_budget_error(
                int(tokens_N[row]), self.layout, self.shapes.initial_budget
            )
        return rows[~over_N[rows]]

    def plan(self, run: PairRun, rows: np.ndarray) -> deque[np.ndarray]:
        return plan_micro_batches(self.layout, run.tokens_N, rows, self.token_budget, self.suspects)

    def start_waiting(self, run: PairRun, waiting: deque[np.ndarray]) -> None:
        """Start micro-batches as long as there is room. Nothing is started behind one that failed already."""
        while (
            waiting
            and len(self.in_flight) < self.max_in_flight
            and not any(isinstance(batch.result, Failure) for batch in self.in_flight)
        ):
            pairs = waiting.popleft()
            size = self.shapes.size(batch_tokens(self.layout, run.tokens_N[pairs]), self.token_budget)
            self.in_flight.append(self.start(run.prefix, run.suffixes, pairs, size))

    def recover(
        self, run: PairRun, batch: InFlightBatch, failure: Failure, waiting: deque[np.ndarray]
    ) -> deque[np.ndarray]:
        """Do what `recovery` decides; returns the micro-batches that are still to be run.

        Those that were started behind the failed one are run again: the decision may concern them, too.
        """
        waiting.extendleft(later.pairs for later in reversed(self.in_flight))
        self.in_flight.clear()
        num_tokens = batch_tokens(self.layout, run.tokens_N[batch.pairs])
        failed = FailedBatch(
            is_oom=failure.is_oom,
            num_pairs=len(batch.pairs),
            num_orderings=len(run.suffixes),
            num_tokens=num_tokens,
            size=batch.size,
            least_size=self.shapes.least_size(num_tokens),
        )
        decision = recover(failed, self.token_budget, self.shapes.budget_step)
        self.token_budget = decision.token_budget
        self.halvings += decision.halvings
        if decision.action is Action.HALVE_BUDGET:
            return self.plan(run, np.sort(np.concatenate([batch.pairs, *waiting])))
        if decision.action is Action.ISOLATE_PAIRS:
            return deque([*batch.pairs[:, None], *waiting])
        split = decision.action is Action.SPLIT_ORDERINGS
        self.record(run, batch.pairs, self.run_orderings_separately(run, batch.pairs) if split else failure)
        return waiting

    def record(self, run: PairRun, pairs: np.ndarray, result: np.ndarray | Failure) -> None:
        """Keep the log-odds of a micro-batch, or the error of its only pair."""
        if isinstance(result, Failure):
            num_tokens = len(run.prefix[pairs[0]]) + len(run.suffixes[0][pairs[0]])
            self.errors_N[pairs] = row_error(result, num_tokens)
            return
        not_finite = pairs[~np.isfinite(result).all(axis=1)]
        run.log_odds_NS[pairs] = result
        run.log_odds_NS[not_finite] = np.nan
        self.errors_N[not_finite] = NOT_FINITE

    def run_orderings_separately(self, run: PairRun, pairs: np.ndarray) -> np.ndarray | Failure:
        """One pair in a micro-batch for each ordering: the least memory that it can take."""
        columns = []
        for suffix in run.suffixes:
            tokens_N = pair_tokens(self.layout, run.prefix.lengths, suffix.lengths, 1, self.scorer.alignment)
            size = self.shapes.least_size(int(tokens_N[pairs[0]]))
            result = self.finish(self.start(run.prefix, [suffix], pairs, size))
            if isinstance(result, Failure):
                return result
            columns.append(result)
        return np.concatenate(columns, axis=1)

    def start(
        self, prefix: Ragged, suffixes: Sequence[Ragged], pairs: np.ndarray, size: int
    ) -> InFlightBatch:
        """Start the micro-batch of these pairs, filled up to `size` tokens where shapes are static."""

        def forward() -> InFlightBatch:
            layout = lay_out(self.layout, prefix, suffixes, pairs, alignment=self.scorer.alignment)
            if self.shapes.static:
                layout = in_one_row(layout, size)
            pending = PendingTensor(preference_log_odds(self.scorer(layout)))
            return InFlightBatch(pairs, layout.tokens_BT.size, pending)

        started = self.attempt(forward, pairs)
        return InFlightBatch(pairs, size, started) if isinstance(started, Failure) else started

    def finish(self, batch: InFlightBatch) -> np.ndarray | Failure:
        """Log-odds that the first response wins: float32 [pairs, suffixes], or why there are none."""
        if isinstance(batch.result, Failure):
            return batch.result
        result = self.attempt(batch.result.wait, batch.pairs)
        if isinstance(result, Failure):
            return result
        self.forward_tokens += batch.size
        return result.reshape(len(batch.pairs), -1)

    def attempt(self, step: Callable[[], Result], pairs: np.ndarray) -> Result | Failure:
        """What `step`, of the micro-batch of these pairs, returns, or why it failed."""
        try:
            with torch.inference_mode():
                return step()
        except WsdmRayError:
            raise
        # A token that is not in the vocabulary is an IndexError on a CPU.
        except (MemoryError, RuntimeError, IndexError, ValueError) as error:
            failure = self.failure(error, pairs)
        # Only here is the traceback gone, and with it the tensors that it held.
        try:
            free_memory()
        except RuntimeError as error:  # of a micro-batch that still ran
            failure = self.failure(error, pairs)
        return failure

    def failure(self, error: Exception, pairs: np.ndarray) -> Failure:
        """Why the micro-batch of these pairs has no logits.

        Raises:
            DeviceLostError: the GPU is lost, by this micro-batch or another that was started.
        """
        reason = describe_error(error)
        if is_device_lost(error):
            started = np.concatenate([pairs, *(batch.pairs for batch in self.in_flight)])
            raise DeviceLostError(np.sort(started).tolist(), reason) from None
        return Failure(reason, is_oom(error))


def free_memory() -> None:
    """Give back what PyTorch holds of the GPU's memory for no tensor."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
