"""python -m jobs.prepare: see `wsdm_ray.config.PrepareConfig` for the options."""

import sys

from jobs._main import run_job

if __name__ == "__main__":
    sys.exit(run_job("prepare"))
