"""Encoding by shares: whoever encodes what, all have the same pairs."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from tests.unit.training.conftest import learnable_votes
from wsdm_ray.config import TextConfig
from wsdm_ray.text.encoding import EncodedPairs, PairEncoder
from wsdm_ray.training import encode
from wsdm_ray.training.distributed import WorkerGroup
from wsdm_ray.training.encode import encode_rows, encode_together, interleave, valid_shares


@dataclass(frozen=True)
class GroupOfRecords(WorkerGroup):
    """Workers of which each only puts down what it has for the others."""

    given: tuple[EncodedPairs, ...] = ()
    sent: list[EncodedPairs] | None = None

    @property
    def can_exchange(self) -> bool:
        return True

    def all_gather(self, value):
        assert self.sent is not None
        self.sent.append(value)
        return list(self.given or [value])


@pytest.fixture
def encoder(base) -> PairEncoder:
    return PairEncoder(base, TextConfig(max_tokens=40))


def same(one: EncodedPairs, other: EncodedPairs) -> bool:
    arrays = [
        (pairs.prefix.values, pairs.prefix.offsets, pairs.suffix_ab.values, pairs.suffix_ab.offsets,
         pairs.suffix_ba.values, pairs.suffix_ba.offsets, pairs.cut_tokens_N, pairs.ba_first_N)
        for pairs in (one, other)
    ]  # fmt: skip
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(*arrays, strict=True))


@pytest.mark.parametrize("size", [1, 2, 3, 20])
def test_a_step_is_the_same_whoever_encoded_it(encoder, size):
    votes, rows = learnable_votes(40, 0), np.random.default_rng(0).permutation(40)[:16]
    expected = encoder.encode(*votes.texts(rows))
    sent: list[EncodedPairs] = []
    for rank in range(size):
        encode_together(encoder, votes, rows, GroupOfRecords(rank, size, sent=sent))
    assert [len(part) for part in sent] == [len(rows[rank::size]) for rank in range(size)]
    assert same(interleave(sent), expected)
    last = GroupOfRecords(0, size, given=tuple(sent), sent=[])
    assert same(encode_together(encoder, votes, rows, last), expected)


def test_chunks_leave_no_seam(encoder, monkeypatch):
    votes, rows = learnable_votes(40, 0), np.arange(40)
    expected = encoder.encode(*votes.texts(rows))
    monkeypatch.setattr(encode, "CHUNK", 7)
    asked: list[int] = []
    plain = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda *texts: asked.append(len(texts[0])) or plain(*texts))
    assert same(encode_rows(encoder, votes, rows), expected)
    assert asked == [7, 7, 7, 7, 7, 5]
    assert len(encode_rows(encoder, votes, rows[:0])) == 0


@pytest.mark.parametrize("size", [1, 3, 50])
def test_shares_of_the_valid_set_have_each_row_once_and_like_lengths(size):
    votes = learnable_votes(40, 0)
    shares = valid_shares(votes, size)
    assert np.sort(np.concatenate(shares)).tolist() == list(range(40))
    if size == 3:
        length_N = np.array([sum(map(len, texts)) for texts in zip(*votes.texts(np.arange(40)), strict=True)])
        lengths = [int(length_N[share].sum()) for share in shares]
        assert max(lengths) - min(lengths) <= length_N.max()


def test_workers_score_their_shares_of_the_valid_set_which_they_encode_once(trainer_of, monkeypatch):
    valid = learnable_votes(13, 3)
    whole = trainer_of(valid=valid)
    expected = whole.valid_log_odds(valid)
    asked: list[int] = []
    monkeypatch.setattr(
        "wsdm_ray.training.loop.encode_rows",
        lambda encoder, votes, rows: asked.append(len(rows)) or encode_rows(encoder, votes, rows),
    )
    monkeypatch.setattr(WorkerGroup, "all_reduce", lambda self, tensor: tensor)
    found = torch.zeros_like(expected)
    for rank in range(2):
        trainer = trainer_of(valid=valid, group=WorkerGroup(rank, 2))
        share = trainer.valid_log_odds(valid)
        assert torch.equal(share, trainer.valid_log_odds(valid))
        found += share
    assert asked == [7, 6], "each its share, once"
    assert torch.allclose(found, expected, atol=1e-6)
    assert len(whole.valid_log_odds(learnable_votes(5, 4))) == 5, "other votes are encoded anew"
    assert asked == [7, 6, 5]
