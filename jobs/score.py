"""python -m jobs.score: see `wsdm_ray.config.ScoreConfig` for the options."""

import sys

from jobs._main import run_job

if __name__ == "__main__":
    sys.exit(run_job("score"))
