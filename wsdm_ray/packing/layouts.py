"""Where each token of a pass lies, and what it may attend to.

Shape suffixes: B rows of the pass, T tokens of a row, S orderings (pair by pair, in the order asked for).

A layout says who sees whom by three numbers a token: its group (pairs or orderings that must not see each
other), its branch within the group (0 for what all branches share) and its position. Token q sees token k
when they are of one group, k's branch is 0 or q's own, and k's position is not after q's. A sliding window
compares positions too.

    padded   a row an ordering:                          [prompt a b . .] [prompt b a . .]
    packed   one row, a group an ordering:               [prompt a b prompt b a prompt ...]
    shared   one row, a group a pair, the prompt once:   [prompt a b b a prompt ...]
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wsdm_ray.packing.ragged import Ragged

__all__ = ["Layout", "lay_out"]


@dataclass(frozen=True)
class Layout:
    """One forward pass.

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
    def bounds(self) -> np.ndarray:
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
) -> Layout:
    """The pass that holds `pairs` (int [P]), each with one ordering a member of `suffixes`.

    Args:
        prefix: what a pair's orderings share, a list a pair.
        suffixes: the rest of each ordering, one `Ragged` an ordering.
        pad_id: token of the padding.
        row_tokens: pad each row to at least so many tokens.
    """
    runs: list[list[tuple[np.ndarray, int, int, int]]] = []  # a row: (ids, first position, group, branch)
    ends: list[tuple[int, int]] = []  # of each ordering: its row, the index of the run that ends it
    if layout != "padded":
        runs.append([])
    for number, pair in enumerate(pairs.tolist()):
        head = prefix[pair]
        if layout == "shared":
            runs[0].append((head, 0, number, 0))
        for ordering, suffix in enumerate(suffixes):
            if layout == "padded":
                runs.append([])
            group, branch = (number, ordering + 1) if layout == "shared" else (len(ends), 0)
            if layout != "shared":
                runs[-1].append((head, 0, group, branch))
            runs[-1].append((suffix[pair], len(head), group, branch))
            ends.append((len(runs) - 1, len(runs[-1]) - 1))

    width = max([sum(len(run[0]) for run in row) for row in runs] + [row_tokens, 1])
    tokens = np.full((len(runs), width), pad_id, np.int64)
    positions = np.zeros((len(runs), width), np.int64)
    groups = np.full((len(runs), width), -1, np.int32)
    branches = np.zeros((len(runs), width), np.int32)
    run_ends: list[list[int]] = []
    for row, row_runs in enumerate(runs):
        at = 0
        run_ends.append([])
        for ids, first, group, branch in row_runs:
            here = slice(at, at + len(ids))
            tokens[row, here] = ids
            positions[row, here] = np.arange(first, first + len(ids))
            groups[row, here] = group
            branches[row, here] = branch
            at += len(ids)
            run_ends[-1].append(at - 1)
    last = np.asarray([row * width + run_ends[row][run] for row, run in ends], np.int64)
    return Layout(tokens, positions, groups, branches, last)
