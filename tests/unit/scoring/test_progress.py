"""How far replicas are: reported at most once a second, shown ahead of what is done, never counted."""

from types import SimpleNamespace

import numpy as np
import pytest

from wsdm_ray.scoring.engine import log_odds
from wsdm_ray.scoring.progress import ProgressActor, Reporter, rows_ahead


def test_the_actor_forgets_what_is_finished():
    actor = ProgressActor()
    actor.update(3, 0.25, 100)
    actor.update(4, 0.5, 50)
    actor.update(3, 0.75, 300)
    assert actor.read([]) == {3: (0.75, 300), 4: (0.5, 50)}
    assert actor.read([4, 9]) == {3: (0.75, 300)}


def test_a_replica_reports_at_most_once_a_second():
    now, sent = [0.0], []
    actor = SimpleNamespace(update=SimpleNamespace(remote=lambda *report: sent.append(report)))
    report = Reporter(actor, clock=lambda: now[0])
    for tenth in range(25):
        now[0] = tenth / 10
        report(7, tenth / 25, tenth)
    assert sent == [(7, 0.0, 0), (7, 10 / 25, 10), (7, 20 / 25, 20)]


def test_rows_ahead_are_those_of_open_units():
    rows = {1: 10, 2: 20, 3: 5}
    latest = {1: (0.55, 40), 2: (0.5, 60), 3: (1.0, 9), 8: (0.5, 7)}
    assert rows_ahead(latest, rows, finished={2: "report"}) == (5 + 5, 40 + 9)
    assert rows_ahead({}, rows, finished=()) == (0, 0)


@pytest.mark.parametrize("orders", ["both", "ab", "adaptive"])
def test_a_replica_says_how_far_a_unit_is(score, orders, classifiers):
    from tests.unit.scoring.conftest import random_rows

    reports: list[tuple[int, float, int]] = []
    options = {"models": classifiers, "orders": orders, "token_budget": 300}
    table, _ = score(random_rows(30), **options)
    shown, _ = score(random_rows(30), report_progress=lambda *report: reports.append(report), **options)
    assert shown.equals(table), "it changes no bit"
    shares = [share for _, share, _ in reports]
    assert {unit for unit, _, _ in reports} == {0}
    assert shares[0] == 0.0
    assert shares == sorted(shares)
    assert len(set(shares)) > 5
    assert shares[-1] == 1.0 or orders == "adaptive"
    assert max(shares) <= 1.0
    tokens = [tokens for _, _, tokens in reports]
    assert tokens == sorted(tokens)


def test_micro_batches_are_counted_as_they_are_done(classifiers):
    from tests.unit.scoring.fakes import FakeScorer
    from wsdm_ray.packing.ragged import Ragged
    from wsdm_ray.text.encoding import EncodedPairs

    ids = Ragged.from_lists([np.arange(5)] * 12)
    other = Ragged.from_lists([np.arange(1, 6)] * 12)
    pairs = EncodedPairs(ids, ids, other, np.zeros(12, int), np.zeros(12, bool))
    seen: list[tuple[int, int]] = []
    scores = log_odds(
        FakeScorer(), pairs, (0, 1), layout="padded", token_budget=80,  # pyright: ignore[reportArgumentType]
        on_progress=lambda done, tokens: seen.append((done, tokens)),
    )  # fmt: skip
    assert seen[-1] == (12, scores.forward_tokens)
    assert [done for done, _ in seen] == [4, 8, 12]
