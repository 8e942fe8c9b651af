"""The Ray that all integration tests share."""

import os

import ray

from wsdm_ray import storage


def test_workers_reach_the_stores(ray_session, bucket):
    """Workers inherit the session's environment, so that what they write is where the driver looks for it."""

    @ray.remote(num_cpus=0.5)
    def write(path: str) -> int:
        storage.write_json(path, {"by": "worker"})
        return os.getpid()

    assert ray.cluster_resources()["CPU"] == 2
    assert ray.get(write.remote(f"{bucket}/from.json")) != os.getpid()
    assert storage.read_json(f"{bucket}/from.json") == {"by": "worker"}
