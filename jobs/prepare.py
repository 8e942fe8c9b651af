"""Raw votes to canonical shards: clean, dedupe, split by prompt group."""

import sys

from jobs._main import main
from wsdm_ray.config import PrepareConfig
from wsdm_ray.data.prepare import prepare

if __name__ == "__main__":
    sys.exit(main(prepare, PrepareConfig))
