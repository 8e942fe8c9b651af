"""python -m jobs.score: see `wsdm_ray.config.ScoreConfig` for the options."""

import sys

from jobs._main import main
from jobs._ray import connect
from wsdm_ray.config import ScoreConfig
from wsdm_ray.scoring.pipeline import score


def run(config: ScoreConfig) -> None:
    connect()
    score(config)


if __name__ == "__main__":
    sys.exit(main(run, ScoreConfig))
