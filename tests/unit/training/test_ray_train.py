"""What training asks of Ray, without a cluster."""

import logging
import pickle

from wsdm_ray.noise import TRACEBACKS
from wsdm_ray.training.check import ClusterResources
from wsdm_ray.training.ray_train import SayWhatIsWaitedFor, resources_of


def test_gpus_are_known_by_the_names_that_ray_gives_them():
    head = {"CPU": 4.0, "node:__internal_head__": 1.0, "accelerator_type:T4": 1.0}  # Ray may use no GPU of it
    h100s = {"CPU": 32.0, "GPU": 8.0, "accelerator_type:H100": 1.0}
    unnamed = {"CPU": 8.0, "GPU": 1.0}
    assert resources_of([]) == ClusterResources(cpus=0, gpus=0)
    assert resources_of([head, h100s]) == ClusterResources(cpus=36, gpus=8, gpu_types=frozenset({"H100"}))
    assert resources_of([h100s, unnamed]).gpu_types == {"H100", "unknown"}


def test_the_controller_is_quiet_as_soon_as_it_has_its_callbacks(monkeypatch):
    logger = logging.getLogger(next(iter(TRACEBACKS)))
    monkeypatch.setattr(logger, "filters", [])
    pickle.loads(pickle.dumps(SayWhatIsWaitedFor("a worker", None)))
    assert logger.filters
