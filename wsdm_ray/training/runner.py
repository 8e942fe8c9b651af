"""Training on Ray Train: check everything, run the workers to the last step, publish the classifier.

Ray Train keeps its own records under OUTPUT/_checkpoints; a run that is started again continues from the
latest checkpoint there. The classifier itself is in OUTPUT, as a checkpoint folder. Ray and torch take
seconds to import, and Ray more to start: they are, when all that needs neither has been checked. Not covered:
what is checked (`preflight`, `check`), the workers of a run (`ray_train`), what a worker does (`worker`),
what a step does (`loop`).
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from wsdm_ray.config import TrainConfig, to_dict
from wsdm_ray.errors import WsdmRayError
from wsdm_ray.runs import HeldRun, hold_run, numeric_versions
from wsdm_ray.telemetry import counted, logger
from wsdm_ray.training import preflight
from wsdm_ray.training.check import CheckedTraining
from wsdm_ray.training.metrics import format_metrics

if TYPE_CHECKING:
    from wsdm_ray.training.worker import WorkerResult

__all__ = ["train"]


def train(config: TrainConfig, on_failure: Callable[[str], None] = lambda output: None) -> dict[str, Any]:
    """Train a classifier; returns what run.json holds, or the figures of a dry run.

    Args:
        on_failure: is called with the output of a run that began and cannot go on; then its error is raised.

    Raises:
        DataError, ModelError, ConfigError: what was asked for cannot be done, found before anything runs.
        RunMismatchError: the output folder belongs to another run, or was begun with other versions.
        ClusterError: the workers do not fit the cluster, or died too often.
        WorkerDefectError: a defect in a worker.
    """
    checked, gpu = preflight.checked(config)
    if config.dry_run:
        from wsdm_ray.training.expected import describe

        return describe(checked, gpu)
    from wsdm_ray.training.preemption import forget
    from wsdm_ray.training.publish import check_published, published_files
    from wsdm_ray.training.ray_train import execute

    with hold_run(
        config.output,
        "train",
        checked.fingerprint,
        config.restart,
        numbers=numeric_versions(("peft", "bitsandbytes")),
        allow_version_change=config.allow_version_change,
    ) as run:
        if run.finished:
            check_published(config.output, published_files(run.finished))
            logger.info("train: %s is complete already", config.output)
            return run.finished
        if config.restart:
            forget(checked.worker_config.output)
        try:
            return report(run, checked, execute(checked))
        except WsdmRayError:
            on_failure(config.output)
            raise


def report(run: HeldRun, checked: CheckedTraining, result: Any) -> dict[str, Any]:
    """Publish the best checkpoint and write run.json; returns what it holds.

    Args:
        result: of Ray Train, as `execute` gives it.
    """
    from wsdm_ray.training.model_card import card_of
    from wsdm_ray.training.preemption import forget, interruptions_of
    from wsdm_ray.training.publish import best_checkpoint, publish

    config = checked.config
    assert result.best_checkpoints
    best, metrics = best_checkpoint(result.best_checkpoints, bool(config.valid))
    run.check()
    with best.as_directory() as folder:
        published = publish(folder, config.output, card_of(folder, checked, metrics))
    worker: WorkerResult = result.return_value
    assert worker.resolved
    content = {
        "config": to_dict(config),
        "resolved": dataclasses.asdict(worker.resolved),
        "counts": checked.counts.to_dict(),
        "metrics": metrics,
        "published": published,
        "interruptions": (interruptions := interruptions_of(checked.worker_config.output).to_dict()),
    }
    written = run.finish(content)
    forget(checked.worker_config.output)
    if interruptions["times"]:
        logger.info(
            "train: begun again %s, with a notice before %d of them; %s taken again",
            counted(interruptions["times"], "time"),
            interruptions["noticed"],
            counted(interruptions["steps_lost"], "step"),
        )
    logger.info(
        "train: %s holds the classifier of step %d%s", config.output, metrics["step"], format_metrics(metrics)
    )
    return written
