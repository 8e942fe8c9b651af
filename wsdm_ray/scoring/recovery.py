"""What follows from a failed micro-batch: the kind of an error, and the decision. Pure but for the exception.

out of memory    halve the token budget for all that follows; a pair that is alone already runs its two
                 orderings separately; if that fails too, the row gets an error
any other error  retry the pairs one by one; a pair that is alone already gets an error
device lost      nothing more can run in this process: `DeviceLostError`
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wsdm_ray.errors import ModelError
from wsdm_ray.modeling.memory_errors import OUT_OF_MEMORY, is_oom

__all__ = [
    "Action",
    "DeviceLostError",
    "FailedBatch",
    "Failure",
    "Recovery",
    "check_not_all_failed",
    "describe_error",
    "is_device_lost",
    "over_budget_error",
    "recover",
    "row_error",
]

OVER_BUDGET = "over the token budget"

DEVICE_LOST_MESSAGES = (
    "device-side assert",
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "unspecified launch failure",
    "launch timed out",
    "uncorrectable",
    "device is lost",
)
"""Parts of the messages of CUDA errors after which every further call of the process fails."""

MAX_REASON_CHARACTERS = 200
"""A library's message is cut to this many characters in a row's `error`."""


class DeviceLostError(Exception):
    """The GPU of this process can do nothing more.

    pairs: indices of the pairs in micro-batches that were started and not done.
    """

    def __init__(self, pairs: Sequence[int], reason: str):
        super().__init__(reason)
        self.pairs, self.reason = list(pairs), reason


@dataclass(frozen=True)
class Failure:
    """Why a micro-batch has no logits. `reason` is the first line of the error."""

    reason: str
    is_oom: bool


class Action(enum.Enum):
    """What the runner does with the pairs of a failed micro-batch."""

    HALVE_BUDGET = enum.auto()
    """Plan them and all that wait again, within the lowered token budget."""
    SPLIT_ORDERINGS = enum.auto()
    """Run the two orderings of the only pair in a micro-batch each."""
    ISOLATE_PAIRS = enum.auto()
    """Run each pair in a micro-batch of its own."""
    GIVE_UP = enum.auto()
    """Give the only pair an error."""


@dataclass(frozen=True, kw_only=True)
class FailedBatch:
    """All of a failed micro-batch that the decision depends on."""

    is_oom: bool
    num_pairs: int
    num_orderings: int
    num_tokens: int
    """Without the padding that fills the micro-batch up to a static shape."""
    size: int
    """Tokens that it had, padding included."""
    least_size: int
    """The fewest tokens, padding included, that a micro-batch of these pairs can have."""


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """What to do, and the token budget of every later micro-batch."""

    action: Action
    token_budget: int
    halvings: int = 0
    """How many times the budget was halved to arrive there."""


def recover(failed: FailedBatch, token_budget: int, budget_step: int = 1) -> Recovery:
    """The decision after a failed micro-batch.

    Args:
        token_budget: the present one, in tokens.
        budget_step: lowered budgets are multiples of it where they can be, in tokens.
    """
    is_single = failed.num_pairs == 1
    if not failed.is_oom:
        return Recovery(
            action=Action.GIVE_UP if is_single else Action.ISOLATE_PAIRS, token_budget=token_budget
        )
    if is_single and failed.size <= failed.least_size:
        action = Action.SPLIT_ORDERINGS if failed.num_orderings > 1 else Action.GIVE_UP
        return Recovery(action=action, token_budget=token_budget)
    too_many = failed.size if failed.size > failed.least_size else failed.num_tokens
    halvings = 0
    while not halvings or token_budget >= too_many:
        half = token_budget // 2
        token_budget = half // budget_step * budget_step or half
        halvings += 1
    return Recovery(action=Action.HALVE_BUDGET, token_budget=token_budget, halvings=halvings)


def is_device_lost(error: BaseException) -> bool:
    """Whether an error says that the GPU of this process can do nothing more."""
    said = str(error).lower()
    return not is_oom(error) and any(message.lower() in said for message in DEVICE_LOST_MESSAGES)


def describe_error(error: BaseException) -> str:
    """The first line of an error, at most `MAX_REASON_CHARACTERS` long."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:MAX_REASON_CHARACTERS]


def row_error(failure: Failure, num_tokens: int) -> str:
    """The `error` of a row that failed alone, with `num_tokens` tokens in one ordering."""
    if failure.is_oom:
        return f"{OUT_OF_MEMORY} at {num_tokens} tokens; score it with a lower --max-tokens"
    return f"the model fails on this row ({failure.reason})"


def over_budget_error(num_tokens: int, layout: str, token_budget: int) -> str:
    """The `error` of a row that takes more tokens than a micro-batch may have."""
    return (
        f"takes {num_tokens} tokens in the layout {layout}, {OVER_BUDGET} of {token_budget}; score it with a "
        "higher --token-budget or a lower --max-tokens"
    )


def check_not_all_failed(errors_N: np.ndarray) -> None:
    """Raise `ModelError` where several pairs were run and all failed alike: that is no row's fault."""
    errors_N = np.array([error for error in errors_N if OVER_BUDGET not in (error or "")], object)
    if len(errors_N) < 2 or any(error is None for error in errors_N):
        return
    all_oom = all(error.startswith(OUT_OF_MEMORY) for error in errors_N)
    if all_oom or len(set(errors_N)) == 1:
        remedy = "choose a --precision that takes less memory" if all_oom else "try --precision fp32"
        raise ModelError(f"all {len(errors_N)} pairs of a unit fail, each alone: {errors_N[0]}; {remedy}")
