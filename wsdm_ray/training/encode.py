# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import)
"""Rows of a set of votes to token ids, each worker its own share of them.

A step's rows: each worker encodes every n-th, and all exchange what they encoded, since all cut the same
micro-batches from them. The valid set: each worker keeps the share that it encoded, and scores it.
"""

import numpy as np
import pyarrow.compute as pc

from wsdm_ray.data.votes import Votes
from wsdm_ray.packing.ragged import Ragged
from wsdm_ray.schema import TEXTS
from wsdm_ray.text.encoding import EncodedPairs, PairEncoder
from wsdm_ray.training.distributed import WorkerGroup

__all__ = ["encode_rows", "encode_together", "interleave", "valid_shares"]

CHUNK = 1_024
"""Rows that are tokenized at once: a tokenizer holds tens of bytes for each token until all are done."""


def encode_rows(encoder: PairEncoder, votes: Votes, rows: np.ndarray) -> EncodedPairs:
    """The pairs of `rows` (int [n]), in that order."""
    starts = range(0, max(len(rows), 1), CHUNK)
    chunks = [encoder.encode(*votes.texts(rows[start : start + CHUNK])) for start in starts]
    return concatenate(chunks) if len(chunks) > 1 else chunks[0]


def encode_together(encoder: PairEncoder, votes: Votes, rows: np.ndarray, group: WorkerGroup) -> EncodedPairs:
    """The pairs of `rows` (int [n]), in that order, the same on every worker, each encoded by one of them.

    A group that cannot exchange beside its steps encodes all rows on each worker.
    """
    if not group.can_exchange:
        return encode_rows(encoder, votes, rows)
    return interleave(group.all_gather(encode_rows(encoder, votes, rows[group.rank :: group.size])))


def valid_shares(votes: Votes, shares: int) -> list[np.ndarray]:
    """The rows of each share of the valid set: int64 [about N / shares], ascending, with about the same text.

    Votes are dealt out by the length of their texts, so that nothing is tokenized to know who scores what.
    """
    characters_N = sum(pc.utf8_length(votes.table[name]).to_numpy().astype(np.int64) for name in TEXTS)
    longest_first = np.argsort(-np.asarray(characters_N), kind="stable")
    return [np.sort(longest_first[share::shares]) for share in range(shares)]


def interleave(parts: list[EncodedPairs]) -> EncodedPairs:
    """The pairs of n parts in turns, one of each: the inverse of n shares of every n-th pair."""
    whole = concatenate(parts)
    firsts = np.cumsum([0, *(len(part) for part in parts[:-1])])
    order = [
        first + turn
        for turn in range(max(len(part) for part in parts))
        for first, part in zip(firsts.tolist(), parts, strict=True)
        if turn < len(part)
    ]
    return whole.take(order)


def concatenate(parts: list[EncodedPairs]) -> EncodedPairs:
    """The pairs of all parts, one part after the other."""

    def joined(texts: list[Ragged]) -> Ragged:
        ends = np.cumsum(np.concatenate([[0], *(each.lengths for each in texts)]), dtype=np.int64)
        return Ragged(np.concatenate([each.values for each in texts]), ends)

    return EncodedPairs(
        joined([part.prefix for part in parts]),
        joined([part.suffix_ab for part in parts]),
        joined([part.suffix_ba for part in parts]),
        np.concatenate([part.cut_tokens_N for part in parts]),
        np.concatenate([part.ba_first_N for part in parts]),
    )
