"""Options of `evaluate`, `ensemble` and `quickstart`."""

import math
from dataclasses import dataclass, field

from wsdm_ray.config.checks import check, check_paths, check_positive, check_seed, expand_home
from wsdm_ray.config.data import Columns, VoteFormat, check_columns_of_format
from wsdm_ray.config.stores import StoreConfig
from wsdm_ray.config.submission import SubmissionConfig

__all__ = ["EnsembleConfig", "EvaluateConfig", "QuickstartConfig"]


@dataclass(frozen=True, kw_only=True)
class EnsembleConfig(SubmissionConfig, StoreConfig):
    """One set of predictions from several, joined by id."""

    predictions: tuple[str, ...]
    """Output folders of `score`, each with the same ids. Example: --predictions gemma qwen"""
    output: str
    """Folder for part-NNNNNN.parquet; run.json is in OUTPUT.run. Example: --output mean"""
    weights: tuple[float, ...] = ()
    """Weight of each set in the mean probability; by default equal, or fitted if --votes is given.
    Example: --weights 2 1"""
    votes: tuple[str, ...] = ()
    """Files, folders or globs with votes on all or some of these ids: weights and temperature are fitted on
    them. Example: --votes data/valid"""
    temperature: float | None = None
    """Divisor of the log-odds of the mean; by default 1, or fitted if --votes is given."""
    keep_columns: tuple[str, ...] = ()
    """Other columns of the first set to copy to the result. Example: --keep-columns language"""
    format: VoteFormat = "canonical"
    """The published data set whose columns and conventions the votes have; canonical takes `--columns`."""
    columns: Columns = field(default_factory=Columns)
    """The votes' own column names. Example: --columns.winner label"""
    make_ids: bool = False
    """Make ids from each file's path below --votes and the row number, as `score --make-ids` does."""
    restart: bool = False
    """Delete what the output folder holds and start over."""

    def __post_init__(self) -> None:
        expand_home(self)
        self.check_stores()
        check_paths(predictions=self.predictions, output=self.output)
        check_columns_of_format(self.format, self.columns)
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
        self.check_submission()


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(StoreConfig):
    """Compare predictions with votes."""

    predictions: tuple[str, ...]
    """Output folders of `score` or `ensemble`; further ones are compared with the first, row by row.
    Example: --predictions predictions"""
    votes: tuple[str, ...]
    """Files, folders or globs with the votes, as `prepare` reads them. Example: --votes data/valid"""
    output: str
    """Folder for metrics.json and report.html. Example: --output report"""
    bootstrap: int = 1_000
    """Bootstrap resamples for each confidence interval."""
    adaptive_tolerance: float = 0.0005
    """The most log loss, in nats, that the threshold recommended for `score --orders adaptive` may cost."""
    seed: int = 0
    """Seed of the bootstrap."""
    format: VoteFormat = "canonical"
    """The published data set whose columns and conventions the votes have; canonical takes `--columns`."""
    columns: Columns = field(default_factory=Columns)
    """The votes' own column names. Example: --columns.winner label"""
    make_ids: bool = False
    """Make ids from each file's path below --votes and the row number, as `score --make-ids` does."""

    def __post_init__(self) -> None:
        expand_home(self)
        self.check_stores()
        check_paths(predictions=self.predictions, votes=self.votes, output=self.output)
        check_columns_of_format(self.format, self.columns)
        check_seed(self.seed)
        check(
            len(set(self.predictions)) == len(self.predictions),
            "predictions",
            " ".join(self.predictions),
            "different folders",
        )
        check(self.bootstrap >= 20, "bootstrap", self.bootstrap, "at least 20")
        check(self.adaptive_tolerance >= 0, "adaptive_tolerance", self.adaptive_tolerance, "0 or more")


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig(StoreConfig):
    """The whole flow on synthetic votes, on one CPU machine."""

    output: str = "quickstart"
    """Folder for everything that is made. Example: --output quickstart"""
    rows: int = 8_000
    """Votes to make for training and validation; as a test set, up to 1,000 more are made."""
    seed: int = 0
    """Seed of the votes, the model and the training; the test set has the next one."""
    num_workers: int = 2
    """Workers of Ray Train, a CPU core each."""
    restart: bool = False
    """Delete what the output folder holds and start over."""

    def __post_init__(self) -> None:
        expand_home(self)
        check_paths(output=self.output)
        self.check_stores()
        check_seed(self.seed)
        check(self.rows >= 200, "rows", self.rows, "at least 200")
        check(self.num_workers >= 1, "num_workers", self.num_workers, "at least 1")
