"""python -m jobs.train: see `wsdm_ray.config.TrainConfig` for the options."""

import sys

from jobs._main import main
from jobs._ray import connect
from wsdm_ray.config import TrainConfig
from wsdm_ray.training.runner import train


def run(config: TrainConfig) -> None:
    connect()
    train(config)


if __name__ == "__main__":
    sys.exit(main(run, TrainConfig))
