"""An output folder belongs to one run: the same run finds its work again, another one is refused.

names, fingerprint, overlap, versions   what a run is called, made of and kept from
records                                 run.json and _run.json
process, lease                          who is at work
opening                                 a run from its beginning to its end, and why that is safe
"""

from wsdm_ray.runs.fingerprint import changes, digest_of, file_versions, options
from wsdm_ray.runs.names import PRIVATE_FOLDER, RUN_FILE, STARTED_FILE, names_in, run_folder
from wsdm_ray.runs.opening import HeldRun, hold_run
from wsdm_ray.runs.overlap import check_no_overlap, check_no_overwrite, comparable
from wsdm_ray.runs.records import amend_run, find_run, read_run
from wsdm_ray.runs.versions import check_same_numbers, numeric_versions, versions

__all__ = [
    "PRIVATE_FOLDER",
    "RUN_FILE",
    "STARTED_FILE",
    "HeldRun",
    "amend_run",
    "changes",
    "check_no_overlap",
    "check_no_overwrite",
    "check_same_numbers",
    "comparable",
    "digest_of",
    "file_versions",
    "find_run",
    "hold_run",
    "names_in",
    "numeric_versions",
    "options",
    "read_run",
    "run_folder",
    "versions",
]
