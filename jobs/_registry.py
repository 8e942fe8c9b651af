"""The jobs in the order of the flow: what each does, its options, and the function that runs it.

Importing this module imports no job. `python -m jobs.NAME` and `wsdm-ray NAME` both start here.
"""

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wsdm_ray.config

__all__ = ["JOBS", "SCRIPT", "Job", "command", "job_of"]

SCRIPT = "wsdm-ray"
"""Name of the console script, as pyproject.toml has it."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One command line.

    Args:
        summary: one line for the list of jobs.
        example: options of a whole command.
        config: name of a class of `wsdm_ray.config`; each field is an option.
        function: what runs, as "module:function", imported when the options are parsed. It connects to Ray
            itself, when all that needs no cluster has been checked.
    """

    name: str
    summary: str
    example: str
    config: str
    function: str

    def config_type(self) -> type[Any]:
        """The class of the options."""
        return getattr(wsdm_ray.config, self.config)

    def run(self, config: Any) -> Any:
        """Import the job and run it; returns what its function does."""
        importlib.import_module("wsdm_ray.storage").set_store_timeout(config.store_timeout_seconds)
        module, _, name = self.function.partition(":")
        return getattr(importlib.import_module(module), name)(config)


JOBS: dict[str, Job] = {
    job.name: job
    for job in (
        Job(
            name="quickstart",
            summary="Run the whole flow on synthetic votes: train, score and evaluate a tiny model on a CPU",
            example="--output quickstart",
            config="QuickstartConfig",
            function="jobs._quickstart:quickstart",
        ),
        Job(
            name="arena",
            summary="Make synthetic votes whose best reachable accuracy is known",
            example="--output arena --rows 5000 --lengths short",
            config="ArenaConfig",
            function="wsdm_ray.data.arena:make_arena",
        ),
        Job(
            name="prepare",
            summary="Turn raw votes into canonical shards: clean, drop duplicates, split by prompt",
            example="--input train.parquet --format wsdm --output data",
            config="PrepareConfig",
            function="wsdm_ray.data.prepare:prepare",
        ),
        Job(
            name="quantize",
            summary="Write a quantized checkpoint of a base model, with adapters merged in on request",
            example="--base gemma-2-9b-it --precision bnb-int8 --output quantized",
            config="QuantizeConfig",
            function="wsdm_ray.modeling.quantization:quantize",
        ),
        Job(
            name="train",
            summary="Fine-tune a classifier on votes with QLoRA on Ray Train",
            example="--preset tiny --base quantized --train data/train --valid data/valid --output model",
            config="TrainConfig",
            function="jobs._train:train_and_draw",
        ),
        Job(
            name="score",
            summary="Score every row of a data set of pairs on Ray Data",
            example="--model model --input pairs.parquet --output predictions",
            config="ScoreConfig",
            function="wsdm_ray.scoring.pipeline:score",
        ),
        Job(
            name="pseudolabel",
            summary="Score unlabelled pairs and make training shards of them",
            example="--model model --input unlabelled.parquet --output pseudolabels --hard-threshold 0.95",
            config="PseudolabelConfig",
            function="wsdm_ray.scoring.pseudolabels:pseudolabel",
        ),
        Job(
            name="ensemble",
            summary="Combine several sets of predictions into one, with a submission file on request",
            example="--predictions gemma qwen --weights 2 1 --output mean --submission submission.csv",
            config="EnsembleConfig",
            function="wsdm_ray.evaluation.ensemble:ensemble",
        ),
        Job(
            name="evaluate",
            summary="Compare predictions with votes: metrics.json and a report",
            example="--predictions predictions --votes data/valid --output report",
            config="EvaluateConfig",
            function="wsdm_ray.evaluation.evaluate:evaluate",
        ),
    )
}


def job_of(config_type: type[Any]) -> Job:
    """The job whose options a config class holds."""
    return next(job for job in JOBS.values() if job.config == config_type.__name__)


def command(name: str) -> str:
    """How this process's user starts a job: `wsdm-ray NAME`, or `python -m jobs.NAME`."""
    return f"{SCRIPT} {name}" if Path(sys.argv[0]).stem == SCRIPT else f"python -m jobs.{name}"
