"""Encoded pairs to probabilities: plan, lay out, run, gather. Torch, no Ray and no file.

Both orderings of a pair run in the same pass. Of the two, the one that `first_ordering` names stands first,
whichever the input calls response_a; so a pair and its swapped twin are computed by the very same operations,
and their probabilities add up to exactly 1.

A stack on a GPU takes rows of a fixed number of tokens: all its passes are filled up to the token budget. It
says what groups are to be aligned to there, so that a pair's result is the same to the bit in any pass.
While a GPU runs a pass, the next is laid out and started, so that it need not wait for the host.

What a pass may fail of, and what becomes of its pairs:

    memory          the token budget is halved for all that follows; a pair alone loses only itself
    anything else   its pairs run one by one; those that fail alone have an error in place of a value
    a lost GPU      nothing more can run in this process: `DeviceLostError`
"""

import gc
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from wsdm_ray.errors import ModelError, WsdmRayError
from wsdm_ray.modeling.attention import BLOCK
from wsdm_ray.modeling.classifier import ordering_logits, preference_log_odds
from wsdm_ray.modeling.scorers import FusedClassifier, in_one_row, round_up_to_block
from wsdm_ray.packing.layouts import lay_out, round_up
from wsdm_ray.packing.plan import batch_tokens, pair_tokens, plan_batches
from wsdm_ray.packing.ragged import Ragged
from wsdm_ray.schema import Ordering
from wsdm_ray.statistics import centered_sigmoid, round_to_grid
from wsdm_ray.text.encoding import EncodedPairs

__all__ = [
    "NOT_FINITE",
    "DeviceLostError",
    "Scores",
    "combine",
    "combine_models",
    "is_oom",
    "log_odds",
    "to_probability",
]

NOT_FINITE = "the model's output is not finite"

OUT_OF_MEMORY = "out of memory"

OVER_BUDGET = "over the token budget"

MEMORY = (OUT_OF_MEMORY, "can't allocate memory", "not enough memory", "ALLOC_FAILED")
"""What errors of CUDA, cuBLAS and PyTorch's CPU allocator say when there is no memory left."""

LOST = (
    "device-side assert",
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "unspecified launch failure",
    "launch timed out",
    "uncorrectable",
    "device is lost",
)
"""What CUDA errors say after which every further call of the process fails."""

SHOWN_CHARACTERS = 200
"""Of a library's message."""

Result = TypeVar("Result")


class DeviceLostError(Exception):
    """The GPU of this process can do nothing more.

    pairs: indices of those in the passes that were started and not done.
    """

    def __init__(self, pairs: Sequence[int], reason: str):
        super().__init__(reason)
        self.pairs, self.reason = list(pairs), reason


@dataclass(frozen=True)
class Failure:
    """Why a pass has no logits: the first line of the reason."""

    reason: str
    of_memory: bool


class PendingTensor:
    """A tensor on its way to the host: it waits for what the GPU was given before it, and for no more."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor.to("cpu", non_blocking=True)
        self.arrived = torch.cuda.current_stream().record_event() if tensor.is_cuda else None

    def wait(self) -> np.ndarray:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.tensor.numpy()


@dataclass(frozen=True)
class InFlightBatch:
    """A pass that was started: its pairs, its tokens (padding included), and what comes of it."""

    pairs: np.ndarray
    size: int
    found: PendingTensor | Failure


@dataclass(frozen=True)
class Scores:
    """What the engine says of N pairs.

    log_odds_NO: float32 [N, orderings asked for], that the given response_a wins; NaN where that ordering was
    not wanted, or failed.
    errors_N: object [N], why a pair that was wanted has no value, else None.
    forward_tokens: tokens that went through the model, padding included.
    token_budget: that of the last pass; `halved` says how often it was halved on the way.
    """

    log_odds_NO: np.ndarray
    errors_N: np.ndarray
    forward_tokens: int
    token_budget: int
    halved: int


def log_odds(
    network: nn.Module,
    pairs: EncodedPairs,
    orderings: tuple[Ordering, ...],
    *,
    layout: str,
    token_budget: int,
    most_tokens: int | None = None,
    wanted_NO: np.ndarray | None = None,
    alone: Collection[int] = (),
) -> Scores:
    """Run the pairs in the orderings asked for.

    A pair that takes more tokens than `most_tokens` has an error; one that takes more than the budget, which
    memory may have lowered, has a pass of its own. Of two orderings of the same tokens one alone is run.

    Args:
        most_tokens: the budget that was asked for; by default `token_budget`.
        wanted_NO: bool [N, orderings], which to run; by default all.
        alone: indices of pairs that are to run in a pass of their own, after all others.

    Raises:
        ModelError: several pairs were run, and all failed of the same reason.
        DeviceLostError: the process must be replaced.
    """
    wanted_NO = np.ones((len(pairs), len(orderings)), bool) if wanted_NO is None else wanted_NO
    runs = BatchRunner(
        network=network,
        layout=layout,
        token_budget=token_budget,
        most_tokens=token_budget if most_tokens is None else most_tokens,
        static_shapes=isinstance(network, FusedClassifier) and network.static_shapes,
        alignment=network.alignment if isinstance(network, FusedClassifier) else 1,
        at_once=max_in_flight(network) if not alone else 1,  # one that loses the GPU is to be known
        alone=set(alone),
        errors_N=np.full(len(pairs), None, object),
    )
    result_NO = np.full(wanted_NO.shape, np.nan, np.float32)
    same_N = identical(pairs)
    once_N = (wanted_NO.sum(axis=1) == 1) | (wanted_NO.any(axis=1) & same_N)
    twice_N = wanted_NO.any(axis=1) & ~once_N

    column_N = np.argmax(wanted_NO, axis=1)  # the ordering of a pair that is run once
    for rows, second in ((np.flatnonzero(once_N), False), (np.flatnonzero(twice_N), True)):
        if not len(rows):
            continue
        ba_N = pairs.ba_first_N if second else np.asarray(orderings)[column_N] == Ordering.BA
        sides = [choose(pairs, ba_N)] + ([choose(pairs, ~ba_N)] if second else [])
        found_NS = runs.run(pairs.prefix, sides, rows)
        for column, ordering in enumerate(orderings):
            side_N = (ba_N != (ordering == Ordering.BA)).astype(int)
            here = rows if second else rows[side_N[rows] == 0]
            sign = 1 if ordering == Ordering.AB else -1  # of the response that stands first: b, in ba
            result_NO[here, column] = sign * found_NS[here, side_N[here]]
    if len(orderings) == 2:  # one sequence twice: no rounding may prefer a side
        known = np.flatnonzero(once_N & same_N)
        result_NO[known, 1 - column_N[known]] = -result_NO[known, column_N[known]]
    check_not_all_failed(runs.errors_N[wanted_NO.any(axis=1)])
    return Scores(result_NO, runs.errors_N, runs.forward_tokens, runs.token_budget, runs.halved)


def max_in_flight(network: nn.Module) -> int:
    """How many passes may be started before the first is done."""
    return 2 if any(parameter.is_cuda for parameter in network.parameters()) else 1


def identical(pairs: EncodedPairs) -> np.ndarray:
    """Which pairs are the same tokens in both orderings: bool [N]."""
    return np.array([np.array_equal(pairs.suffix_ab[i], pairs.suffix_ba[i]) for i in range(len(pairs))], bool)


def choose(pairs: EncodedPairs, ba_N: np.ndarray) -> Ragged:
    """The suffix of each pair in `ba` where `ba_N`, else in `ab`."""
    return Ragged.from_lists([(pairs.suffix_ba if ba else pairs.suffix_ab)[i] for i, ba in enumerate(ba_N)])


@dataclass
class BatchRunner:
    """Passes of one network, and what came of them so far.

    at_once: how many may be started and not done. started: those, the oldest first.
    """

    network: nn.Module
    layout: str
    token_budget: int
    most_tokens: int
    static_shapes: bool
    alignment: int
    at_once: int
    alone: set[int]
    errors_N: np.ndarray
    forward_tokens: int = 0
    halved: int = 0
    started: deque[InFlightBatch] = field(default_factory=deque)

    def run(self, prefix: Ragged, sides: Sequence[Ragged], rows: np.ndarray) -> np.ndarray:
        """Log-odds that the first response wins: float32 [N, sides], NaN but for `rows` (int [R])."""
        found_NS = np.full((len(prefix), len(sides)), np.nan, np.float32)
        lengths = prefix.lengths, sides[0].lengths, len(sides)
        tokens_N = pair_tokens(self.layout, *lengths, self.alignment)
        waiting = self.plan(tokens_N, self.within(pair_tokens(self.layout, *lengths), rows))
        while waiting or self.started:
            while waiting and len(self.started) < self.at_once and not self.fails():
                indices = waiting.popleft()
                tokens = batch_tokens(self.layout, tokens_N[indices])
                self.started.append(self.start(prefix, sides, indices, self.size(tokens)))
            first = self.started.popleft()
            found, indices, size = self.finish(first), first.pairs, first.size
            if isinstance(found, Failure):  # what follows from it may be for those after it too
                waiting.extendleft(each.pairs for each in reversed(self.started))
                self.started.clear()
            tokens = batch_tokens(self.layout, tokens_N[indices])
            least = self.least(tokens)
            alone = len(indices) == 1 and (size <= least or not is_of_memory(found))
            if is_of_memory(found) and alone and len(sides) > 1:
                found = self.run_orderings_separately(prefix, sides, indices)
            if isinstance(found, np.ndarray):
                found_NS[indices] = found
                bad = indices[~np.isfinite(found).all(axis=1)]
                self.errors_N[bad] = NOT_FINITE
                found_NS[bad] = np.nan
            elif alone:
                of_one = len(prefix[indices[0]]) + len(sides[0][indices[0]])
                self.errors_N[indices] = error_of(found, of_one)
            elif found.of_memory:
                self.halve(size if size > least else tokens)
                waiting = self.plan(tokens_N, np.sort(np.concatenate([indices, *waiting])))
            else:
                waiting.extendleft(np.asarray([index]) for index in indices[::-1])
        return found_NS

    def fails(self) -> bool:
        """Whether a pass that was started has failed already: what follows waits for what comes of it."""
        return any(isinstance(each.found, Failure) for each in self.started)

    def within(self, tokens_N: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Of `rows` those that the budget that was asked for allows; the others have their error."""
        over_N = tokens_N > self.most_tokens
        for row in rows[over_N[rows]].tolist():
            self.errors_N[row] = (
                f"takes {tokens_N[row]} tokens in the layout {self.layout}, {OVER_BUDGET} of "
                f"{self.most_tokens}; score it with a higher --token-budget or a lower --max-tokens"
            )
        return rows[~over_N[rows]]

    def least(self, tokens: int) -> int:
        """The fewest tokens, padding included, that a pass of so many can have.

        Fixed rows have four sizes between powers of two, and that of the budget that was asked for: each is
        compiled for itself.
        """
        if not self.static_shapes:
            return tokens
        size = round_up(tokens, max(BLOCK, (1 << tokens.bit_length()) // 8))
        most = round_up_to_block(self.most_tokens)
        return most if tokens <= most < size else size

    def size(self, tokens: int) -> int:
        """The tokens, padding included, of a pass of so many."""
        if self.static_shapes and tokens <= self.token_budget:
            return round_up_to_block(self.token_budget)
        return self.least(tokens)

    def halve(self, below: int) -> None:
        """Halve the budget, again where it is not less than `below` then."""
        # Fixed rows are filled up to whole blocks: the rest of a budget would be padding always.
        step = BLOCK if self.static_shapes else 1
        while True:
            half = self.token_budget // 2
            self.token_budget, self.halved = half // step * step or half, self.halved + 1
            if self.token_budget < below:
                return

    def plan(self, tokens_N: np.ndarray, rows: np.ndarray) -> deque[np.ndarray]:
        """The passes of `rows`, those that must run alone last: what they break, breaks nothing else."""
        suspect = np.isin(rows, list(self.alone))
        over = ~suspect & (tokens_N[rows] > self.token_budget)
        single, last, rest = rows[over], rows[suspect], rows[~over & ~suspect]
        passes = [rest[indices] for indices in plan_batches(self.layout, tokens_N[rest], self.token_budget)]
        return deque([*single[:, None], *passes, *last[:, None]])

    def run_orderings_separately(
        self, prefix: Ragged, sides: Sequence[Ragged], indices: np.ndarray
    ) -> np.ndarray | Failure:
        """One pair, a pass each ordering: what is left to try where both together take too much memory."""
        columns = []
        for side in sides:
            tokens_N = pair_tokens(self.layout, prefix.lengths, side.lengths, 1, self.alignment)
            size = self.least(int(tokens_N[indices[0]]))
            found = self.finish(self.start(prefix, [side], indices, size))
            if isinstance(found, Failure):
                return found
            columns.append(found)
        return np.concatenate(columns, axis=1)

    def start(self, prefix: Ragged, sides: Sequence[Ragged], indices: np.ndarray, size: int) -> InFlightBatch:
        """Have the pass of these pairs run, filled up to `size` tokens where rows are fixed."""

        def run() -> InFlightBatch:
            batch = lay_out(self.layout, prefix, sides, indices, alignment=self.alignment)
            if self.static_shapes:
                batch = in_one_row(batch, size)
            found = PendingTensor(preference_log_odds(ordering_logits(self.network, batch)))
            return InFlightBatch(indices, batch.tokens_BT.size, found)

        found = self.attempt(run, indices)
        return InFlightBatch(indices, size, found) if isinstance(found, Failure) else found

    def finish(self, started: InFlightBatch) -> np.ndarray | Failure:
        """Log-odds that the first response wins: float32 [pairs, sides], or why there are none."""
        if isinstance(started.found, Failure):
            return started.found
        found = self.attempt(started.found.wait, started.pairs)
        if isinstance(found, Failure):
            return found
        self.forward_tokens += started.size
        return found.reshape(len(started.pairs), -1)

    def attempt(self, run: Callable[[], Result], pairs: np.ndarray) -> Result | Failure:
        """What `run`, of these pairs, returns, or why it failed."""
        try:
            with torch.inference_mode():
                return run()
        except WsdmRayError:
            raise
        # A token that is not in the vocabulary is an IndexError on a CPU.
        except (MemoryError, RuntimeError, IndexError, ValueError) as error:
            failure = self.failure(error, pairs)
        # Only here is the traceback gone, and with it what it held.
        try:
            free_memory()
        except RuntimeError as error:  # of the pass that still ran
            failure = self.failure(error, pairs)
        return failure

    def failure(self, error: Exception, pairs: np.ndarray) -> Failure:
        """What an error says of the pass of these pairs.

        Raises:
            DeviceLostError: the GPU is lost, by this pass or another that was started.
        """
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:SHOWN_CHARACTERS]
        of_memory = is_oom(error)
        if not of_memory and is_any_of(LOST, error):
            lost = np.concatenate([pairs, *(each.pairs for each in self.started)])
            raise DeviceLostError(np.sort(lost).tolist(), reason) from None
        return Failure(reason, of_memory)


def is_of_memory(found: np.ndarray | Failure) -> bool:
    return isinstance(found, Failure) and found.of_memory


def error_of(failure: Failure, tokens: int) -> str:
    """What a row says that failed alone, with so many tokens of one ordering."""
    if failure.of_memory:
        return f"{OUT_OF_MEMORY} at {tokens} tokens; score it with a lower --max-tokens"
    return f"the model fails on this row ({failure.reason})"


def check_not_all_failed(errors_N: np.ndarray) -> None:
    """Raise `ModelError` where several pairs were run and all failed alike: that is no row's fault."""
    errors_N = np.array([error for error in errors_N if OVER_BUDGET not in (error or "")], object)
    if len(errors_N) < 2 or any(error is None for error in errors_N):
        return
    of_memory = all(error.startswith(OUT_OF_MEMORY) for error in errors_N)
    if of_memory or len(set(errors_N)) == 1:
        remedy = "choose a --precision that takes less memory" if of_memory else "try --precision fp32"
        raise ModelError(f"all {len(errors_N)} pairs of a unit fail, each alone: {errors_N[0]}; {remedy}")


def is_oom(error: BaseException) -> bool:
    """Whether an error says that there is no memory left."""
    return is_any_of(MEMORY, error) or isinstance(error, MemoryError | torch.OutOfMemoryError)


def is_any_of(marks: Sequence[str], error: BaseException) -> bool:
    return any(mark.lower() in str(error).lower() for mark in marks)


def free_memory() -> None:
    """Give back what the GPU's memory holds for no tensor."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def to_probability(log_odds: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Sigmoid of log-odds over a temperature: float64, same shape. sigmoid(-x) is 1 - sigmoid(x) exactly."""
    return round_to_grid(centered_sigmoid(log_odds, temperature))


def combine(probabilities: np.ndarray) -> np.ndarray:
    """The mean over orderings: float32 [N], on the grid on which 1 - p is exact.

    Args:
        probabilities: float64 [N, orderings], of the given response_a.
    """
    return combine_models(probabilities[None], np.ones((1, *probabilities.shape), bool), [1.0])


def combine_models(
    probabilities_MNO: np.ndarray, ran_MNO: np.ndarray, weights: Sequence[float]
) -> np.ndarray:
    """The mean over the orderings that a model ran, and over models by their weights: float32 [N].

    It is on the grid on which 1 - p is exact. NaN where one that ran is not finite, or where none ran.

    Args:
        probabilities_MNO: float64 [models, N, orderings], of the given response_a.
        ran_MNO: bool [models, N, orderings].
        weights: one a model, above 0.
    """
    half_MN = np.where(ran_MNO, probabilities_MNO - 0.5, 0).sum(axis=2) / np.maximum(ran_MNO.sum(axis=2), 1)
    # Orderings first: a sum of two is the same either way round, and exchanging responses exchanges them.
    weights_MN = ran_MNO.any(axis=2) * np.asarray(weights, np.float64)[:, None]
    total_N = weights_MN.sum(axis=0)
    half_N = np.divide(
        (half_MN * weights_MN).sum(axis=0), total_N, out=np.full(len(total_N), np.nan), where=total_N > 0
    )
    return round_to_grid(half_N).astype(np.float32)
