"""How a process gets its Ray; what starts one is in the integration tests."""

import pytest

from wsdm_ray import session
from wsdm_ray.errors import ClusterError


@pytest.mark.parametrize("address", ["http://head:8265", "ray://head:10001", "tcp://head:6379"])
def test_the_address_of_a_client_is_refused_before_ray_sees_it(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(session.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(session.ray, "init", None)
    with pytest.raises(ClusterError, match=f"^RAY_ADDRESS={address}: .*; `ray job submit` takes an http://"):
        session.connect()
