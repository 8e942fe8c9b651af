"""Several sets of predictions to one: `python -m jobs.ensemble --predictions DIR... --output DIR`."""

import sys

from jobs._main import main
from wsdm_ray.config import EnsembleConfig
from wsdm_ray.evaluation.ensemble import ensemble

if __name__ == "__main__":
    sys.exit(main(ensemble, EnsembleConfig))
