"""python -m jobs.quantize: see `wsdm_ray.config.QuantizeConfig` for the options."""

import sys

from jobs._main import main
from wsdm_ray.config import QuantizeConfig
from wsdm_ray.modeling.quantization import quantize

if __name__ == "__main__":
    sys.exit(main(quantize, QuantizeConfig))
