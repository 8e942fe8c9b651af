"""python -m jobs.train: see `wsdm_ray.config.TrainConfig` for the options."""

import sys

from jobs._main import run_job

if __name__ == "__main__":
    sys.exit(run_job("train"))
