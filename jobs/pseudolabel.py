"""python -m jobs.pseudolabel: see `wsdm_ray.config.PseudolabelConfig` for the options."""

import sys

from jobs._main import run_job

if __name__ == "__main__":
    sys.exit(run_job("pseudolabel"))
