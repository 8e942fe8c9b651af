"""A run that is finished says so by listings alone: before any row is read, and without Ray or torch."""

from collections.abc import Mapping
from typing import Any

from wsdm_ray.config import ScoreConfig
from wsdm_ray.errors import WsdmRayError
from wsdm_ray.inputs.files import list_inputs, listed_versions
from wsdm_ray.modeling.manifest import folder_digest
from wsdm_ray.runs import RUN_FILE, find_run, run_folder
from wsdm_ray.runs.names import listed
from wsdm_ray.scoring.check import options_of_the_output
from wsdm_ray.scoring.parts import digest_of_sizes, part_sizes
from wsdm_ray.storage import folder_identity, local_copy, model_location

__all__ = ["finished_run"]


def finished_run(config: ScoreConfig) -> dict[str, Any] | None:
    """What run.json holds, where this very command is finished and all its parts are there; else None.

    None as well where it is not plain, or something is wrong: the checks of the run say what.
    """
    if config.restart or config.dry_run or config.submission:
        return None
    try:
        earlier = find_run(config.output)
        if earlier is None or not earlier.finished or earlier.record["job"] != "score":
            return None
        if listed(run_folder(config.output)) != [RUN_FILE]:  # something is left to be tidied up
            return None
        is_same = is_of(config, earlier.record["fingerprint"]) and has_models(config, earlier.record)
        units = earlier.record["counts"]["units"]
        sizes, left = part_sizes(config.output), earlier.record.get("parts_digest")
        are_there = sorted(sizes) == [*range(units)] and left in (None, digest_of_sizes(sizes))
        return earlier.record if is_same and are_there else None
    except (WsdmRayError, KeyError):
        return None


def is_of(config: ScoreConfig, fingerprint: Mapping[str, Any]) -> bool:
    """Whether a fingerprint is that of the command, as far as that is known without a cluster and weights.

    What the cluster decided (`auto`) is as it was when the run was made.
    """
    options = options_of_the_output(config)
    if config.layout == "auto":
        options["layout"] = fingerprint["options"]["layout"]
    models = fingerprint["models"]
    return (
        options == fingerprint["options"]
        and len(models) == len(config.model)
        and all(config.precision in ("auto", model["precision"]) for model in models)
        and listed_versions(list_inputs(config.input)) == fingerprint["inputs"]
    )


def has_models(config: ScoreConfig, record: Mapping[str, Any]) -> bool:
    """Whether the models of a command are those of a run: by listings, or else by what is in them."""
    if record.get("model_identities") == [folder_identity(folder) for folder in config.model]:
        return True
    digests = [folder_digest(local_copy(model_location(folder))) for folder in config.model]
    return digests == [model["digest"] for model in record["fingerprint"]["models"]]
