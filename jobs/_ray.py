"""How a job gets its Ray: see `wsdm_ray.session`."""

from wsdm_ray.session import connect

__all__ = ["connect"]
