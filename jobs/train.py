"""python -m jobs.train: options are in `wsdm_ray.config.TrainConfig`, presets in `wsdm_ray.presets`."""

import difflib
import sys

import tyro

from jobs._main import check_repeated, main
from jobs._ray import connect
from wsdm_ray.config import TrainConfig
from wsdm_ray.errors import ConfigError, WsdmRayError
from wsdm_ray.evaluation.curves import write_curves
from wsdm_ray.presets import PRESETS
from wsdm_ray.runs import STARTED_FILE, names_in
from wsdm_ray.telemetry import logger
from wsdm_ray.training.runner import train


def run(config: TrainConfig) -> None:
    connect()
    try:
        train(config)
    except WsdmRayError:
        if STARTED_FILE in names_in(config.output):  # a run that failed is looked at first of all
            draw(config.output)
        raise
    draw(config.output)


def draw(output: str) -> None:
    """Write the curves; what goes wrong there is no reason to call a run failed."""
    try:
        write_curves(output)
    except Exception as error:
        logger.warning("train: no training.html: %s", error)


def take_preset(argv: list[str]) -> tuple[TrainConfig | None, list[str]]:
    """The config that `--preset NAME` names, if it stands in `argv`, and the arguments without it."""
    check_repeated(argv)
    for index, argument in enumerate(argv):
        if argument == "--preset" or argument.startswith("--preset="):
            taken = 1 if "=" in argument else 2
            name = argument.partition("=")[2] or "".join(argv[index + 1 : index + 2]) or "(no name)"
            if name not in PRESETS:
                near = difflib.get_close_matches(name, PRESETS, 1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise ConfigError(f"--preset {name}: {hint}there are {', '.join(sorted(PRESETS))}")
            preset = PRESETS[name](base=tyro.MISSING, train=tyro.MISSING, output=tyro.MISSING)
            return preset, argv[:index] + argv[index + taken :]
    return None, argv


if __name__ == "__main__":
    try:
        default, arguments = take_preset(sys.argv[1:])
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    sys.exit(main(run, TrainConfig, arguments, default=default))
