"""Synthetic votes whose best reachable accuracy is known."""

import sys

from jobs._main import main
from wsdm_ray.config import ArenaConfig
from wsdm_ray.data.arena import make_arena

if __name__ == "__main__":
    sys.exit(main(make_arena, ArenaConfig))
