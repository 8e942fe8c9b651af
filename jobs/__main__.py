"""python -m jobs: the list of jobs, as `wsdm-ray` prints it."""

import sys

from jobs._cli import main

if __name__ == "__main__":
    sys.exit(main())
