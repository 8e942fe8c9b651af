"""Where each token of a micro-batch lies, and what it may attend to.

Shape suffixes: B rows, T tokens of a row, S orderings (pair by pair, in the order asked for).

A layout holds the attention mask as three numbers a token: its group (pairs or orderings that must not attend
to each other), its branch within the group (0 for what all branches share) and its position. Query token q
attends to key token k when they are of one group, k's branch is 0 or q's own, and k's position is not after
q's. A sliding window compares positions too.

    padded   a row an ordering:                          [prompt a b . .] [prompt b a . .]
    packed   one row, a group an ordering:               [prompt a b prompt b a prompt ...]
    shared   one row, a group a pair, the prompt once:   [prompt a b b a prompt ...]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from wsdm_ray.packing.ragged import Ragged

__all__ = ["Layout", "lay_out", "round_up"]

Number = TypeVar("Number", int, np.ndarray)


@dataclass(frozen=True)
class Layout:
    """One micro-batch.

    tokens_BT: int64; positions_BT: int64, from 0 in each ordering; groups_BT: int32, -1 for padding;
    branches_BT: int32; last_S: int64, index into the flat B * T of each ordering's last token.
    """

    tokens_BT: np.ndarray
    positions_BT: np.ndarray
    groups_BT: np.ndarray
    branches_BT: np.ndarray
    last_S: np.ndarray

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return int((self.groups_BT >= 0).sum())

    @property
    def cu_seqlens(self) -> np.ndarray:
        """Where the sequences of a layout of one row begin, and its end: int32 [sequences + 1].

        Padding is a sequence too. Not for `shared`, whose orderings are no sequences of their own.
        """
        groups_T = self.groups_BT[0]
        starts = np.flatnonzero(np.diff(groups_T)) + 1
        return np.concatenate([[0], starts, [len(groups_T)]]).astype(np.int32)


def lay_out(
    layout: str,
    prefix: Ragged,
    suffixes: Sequence[Ragged],
    pairs: np.ndarray,
    pad_id: int = 0,
    row_tokens: int = 0,
    alignment: int = 1,
) -> Layout:
    """The micro-batch that holds `pairs` (int [P]), each with one ordering a member of `suffixes`.

    Args:
        prefix: what a pair's orderings share, a list a pair.
        suffixes: the rest of each ordering, one `Ragged` an ordering.
        pad_id: token of the padding.
        row_tokens: pad each row to at least so many tokens.
        alignment: groups begin at multiples of it, with padding between them, and rows end there.
    """
    placed: list[tuple[int, int, np.ndarray, int, int, int]] = []  # row, start, ids, position, group, branch
    filled: list[int] = [] if layout == "padded" else [0]  # tokens of each row so far
    last: list[tuple[int, int]] = []  # row and index in it

    def put(ids: np.ndarray, first: int, group: int, branch: int) -> None:
        placed.append((len(filled) - 1, filled[-1], ids, first, group, branch))
        filled[-1] += len(ids)

    for number, pair in enumerate(pairs.tolist()):
        head = prefix[pair]
        for ordering, suffix in enumerate(suffixes):
            if layout == "padded":
                filled.append(0)
            group, branch = (number, ordering + 1) if layout == "shared" else (len(last), 0)
            if layout != "shared" or not ordering:
                filled[-1] = round_up(filled[-1], alignment)
                put(head, 0, group, 0)
            put(suffix[pair], len(head), group, branch)
            last.append((len(filled) - 1, filled[-1] - 1))

    row_tokens = round_up(max([*filled, row_tokens, 1]), alignment)
    shape = (len(filled), row_tokens)
    tokens, positions = np.full(shape, pad_id, np.int64), np.zeros(shape, np.int64)
    groups, branches = np.full(shape, -1, np.int32), np.zeros(shape, np.int32)
    for row, start, ids, first, group, branch in placed:
        here = slice(start, start + len(ids))
        tokens[row, here] = ids
        positions[row, here] = np.arange(first, first + len(ids))
        groups[row, here] = group
        branches[row, here] = branch
    last_S = np.asarray([row * row_tokens + index for row, index in last])
    return Layout(tokens, positions, groups, branches, last_S)


def round_up(number: Number, step: int) -> Number:
    """The next multiple of `step`."""
    return -(-number // step) * step
