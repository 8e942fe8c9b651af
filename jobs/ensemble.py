"""python -m jobs.ensemble: see `wsdm_ray.config.EnsembleConfig` for the options."""

import sys

from jobs._main import run_job

if __name__ == "__main__":
    sys.exit(run_job("ensemble"))
