"""Which cluster a dry run asks."""

import sys
import types

import pytest

from wsdm_ray.preflight.job import answers, cluster_at_hand
from wsdm_ray.preflight.node import Probe


@pytest.mark.parametrize(
    ("address", "ray", "found"),
    [
        (None, None, False),
        ("auto", None, True),
        (None, types.SimpleNamespace(is_initialized=lambda: False), False),
        (None, types.SimpleNamespace(is_initialized=lambda: True), True),
    ],
)
def test_a_cluster_is_at_hand_where_it_is_named_or_joined(address, ray, found, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setitem(sys.modules, "ray", ray)
    assert cluster_at_hand() is found


def test_without_a_cluster_this_machine_answers_alone(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wsdm_ray.preflight.nodes", None)
    [facts], silent = answers(Probe(files=(f"{tmp_path}/none",)), assumed=True)
    assert (facts.unreadable, silent) == ((), {}), "it has read what it is to read already"
    with pytest.raises(ImportError):
        answers(Probe(), assumed=False)
