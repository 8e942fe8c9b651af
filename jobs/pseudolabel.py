"""python -m jobs.pseudolabel: see `wsdm_ray.config.PseudolabelConfig` for the options."""

import sys

from jobs._main import main
from jobs._ray import connect
from wsdm_ray.config import PseudolabelConfig
from wsdm_ray.scoring.pseudolabels import pseudolabel


def run(config: PseudolabelConfig) -> None:
    connect()
    pseudolabel(config)


if __name__ == "__main__":
    sys.exit(main(run, PseudolabelConfig))
