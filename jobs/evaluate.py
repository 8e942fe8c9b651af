"""Predictions against votes: `python -m jobs.evaluate --predictions DIR --votes PATH... --output DIR`."""

import sys

from jobs._main import main
from wsdm_ray.config import EvaluateConfig
from wsdm_ray.evaluation.evaluate import evaluate

if __name__ == "__main__":
    sys.exit(main(evaluate, EvaluateConfig))
