"""Which deaths are no fault of the rows that a process had, and what is lost with them."""

import pytest

from wsdm_ray.scoring.preemption import Holder, died_of_notice, rows_lost, was_preempted


@pytest.mark.parametrize(
    ("status", "noticed", "expected"),
    [(-15, False, True), (-9, False, False), (-9, True, True), (-11, False, False), (75, False, False)],
)
def test_a_process_that_was_asked_to_end(status, noticed, expected):
    assert died_of_notice(status, noticed) == expected


def test_a_ray_worker_that_was_lost_with_its_node():
    nodes = {"n1", "n2"}
    assert not was_preempted(Holder(worker="w1", node="n1"), set(), nodes)
    assert was_preempted(Holder(worker="w1", node="n1"), {"w1"}, nodes), "it was asked to end"
    assert was_preempted(Holder(worker="w1", node="n3"), set(), nodes), "its node is gone, or drained"
    assert not was_preempted(Holder(), set(), nodes), "nothing is known of it"


def test_rows_lost():
    assert (rows_lost(250, 0.5), rows_lost(250, 0.0), rows_lost(3, 0.99)) == (125, 0, 2)
