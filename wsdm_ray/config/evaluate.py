"""Options of `evaluate`, `ensemble` and `quickstart`."""

import math
from dataclasses import dataclass, field

from wsdm_ray.config.checks import check, check_paths, check_positive, check_seed
from wsdm_ray.config.data import Columns

__all__ = ["EnsembleConfig", "EvaluateConfig", "QuickstartConfig"]


@dataclass(frozen=True, kw_only=True)
class EnsembleConfig:
    """One set of predictions from several, joined by id."""

    predictions: tuple[str, ...]
    """Output folders of `score`, each with the same ids."""
    output: str
    """Folder for part-NNNNNN.parquet and run.json."""
    weights: tuple[float, ...] = ()
    """Weight of each set in the mean probability; by default all alike, or fitted where there are votes."""
    votes: tuple[str, ...] = ()
    """Canonical shards with votes on all or some of these ids: weights and temperature are fitted on them."""
    temperature: float | None = None
    """What the log-odds of the mean are divided by; by default 1, or fitted where there are votes."""
    submission: str | None = None
    """CSV file with the columns id and winner to write as well."""
    columns: Columns = field(default_factory=Columns)
    """The votes' own column names, where they differ."""
    restart: bool = False
    """Delete what the output folder holds and start over."""

    def __post_init__(self) -> None:
        check_paths(predictions=self.predictions, output=self.output)
        check(
            not self.weights or len(self.weights) == len(self.predictions),
            "weights",
            self.weights,
            f"one for each of the {len(self.predictions)} sets of predictions",
        )
        check(
            not self.weights or (min(self.weights) >= 0 and 0 < sum(self.weights) < math.inf),
            "weights",
            self.weights,
            "0 or more, and not all 0",
        )
        check_positive("temperature", self.temperature)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Compare predictions with votes."""

    predictions: str
    """Output folder of `score`."""
    votes: tuple[str, ...]
    """Canonical shards with the votes: files, folders or globs."""
    output: str
    """Folder for metrics.json and report.html."""
    bootstrap: int = 1_000
    """Resamples behind each interval."""
    adaptive_tolerance: float = 0.0005
    """Log loss, in nats, that the threshold recommended for `score --orders adaptive` may cost."""
    seed: int = 0
    columns: Columns = field(default_factory=Columns)
    """The votes' own column names, where they differ."""

    def __post_init__(self) -> None:
        check_paths(predictions=self.predictions, votes=self.votes, output=self.output)
        check_seed(self.seed)
        check(self.bootstrap >= 20, "bootstrap", self.bootstrap, "at least 20")
        check(self.adaptive_tolerance >= 0, "adaptive_tolerance", self.adaptive_tolerance, "0 or more")


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """The whole flow on synthetic votes, on one CPU machine."""

    output: str = "quickstart"
    rows: int = 8_000
    """Votes to make."""
    seed: int = 0
    num_workers: int = 2
    restart: bool = False
    """Delete what the output folder holds and start over."""

    def __post_init__(self) -> None:
        check_paths(output=self.output)
        check_seed(self.seed)
        check(self.rows >= 200, "rows", self.rows, "at least 200")
        check(self.num_workers >= 1, "num_workers", self.num_workers, "at least 1")
