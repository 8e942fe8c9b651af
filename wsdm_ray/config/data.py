"""Options of `arena` and `prepare`, and the names of an input's columns."""

from dataclasses import dataclass, field
from typing import Literal

from wsdm_ray.config.checks import check, check_paths, check_seed, expand_home
from wsdm_ray.config.stores import StoreConfig
from wsdm_ray.errors import ConfigError

__all__ = ["ArenaConfig", "Columns", "PrepareConfig", "VoteFormat", "check_columns_of_format"]

VoteFormat = Literal[
    "canonical", "wsdm", "lmsys-57k", "lmsys-33k", "arena-140k", "ultrafeedback", "ultrafeedback-raw",
    "orpo-dpo-mix", "hh-rlhf", "helpsteer2", "helpsteer3", "dpo",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The names that an input gives to the canonical columns; case matters only between several alike."""

    id: str = "id"
    """Unique id of a row."""
    prompt: str = "prompt"
    """What the user asked."""
    response_a: str = "response_a"
    """The first answer."""
    response_b: str = "response_b"
    """The second answer."""
    winner: str = "winner"
    """The vote: model_a, model_b or, where ties are read, tie."""
    prob_a: str = "prob_a"
    """A soft label: the probability that response_a wins."""
    model_a: str = "model_a"
    """Name of the chatbot of response_a; optional."""
    model_b: str = "model_b"
    """Name of the chatbot of response_b; optional."""
    language: str = "language"
    """Language of the prompt; optional, for metrics by language."""
    source: str = "source"
    """Data set that the row comes from; optional, for mixtures and weights by source."""

    def __post_init__(self) -> None:
        names = [self.id, self.prompt, self.response_a, self.response_b]
        for name in names:
            check(
                names.count(name) == 1,
                "columns",
                name,
                "the column of one role (id, prompt, a response)",
            )


def check_columns_of_format(format: VoteFormat, columns: Columns) -> None:
    """Raise `ConfigError` for names of columns beside a format that has its own."""
    if format != "canonical" and columns != Columns():
        raise ConfigError(
            f"--columns: --format {format} has its own columns; leave one of the two options out"
        )


@dataclass(frozen=True, kw_only=True)
class ArenaConfig(StoreConfig):
    """Synthetic votes with a known best accuracy."""

    output: str
    """Folder for the shards and run.json. Example: --output arena"""
    rows: int = 5_000
    """Votes to make."""
    seed: int = 0
    """Seed of the texts and the votes; a row is a function of the seed and its number."""
    lengths: Literal["real", "short"] = "real"
    """real: median about 1,000 tokens a triple with a long tail. short: about a tenth of that."""
    restart: bool = False
    """Delete what the output folder holds and start over."""

    def __post_init__(self) -> None:
        expand_home(self)
        check_paths(output=self.output)
        self.check_stores()
        check_seed(self.seed)
        check(self.rows >= 1, "rows", self.rows, "at least 1")


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(StoreConfig):
    """Raw votes to canonical shards."""

    input: tuple[str, ...]
    """Parquet, Arrow, JSON (an object a line, or a list in a .json file) or CSV files, folders of them, or
    globs. Example: --input train.parquet 'more/*.csv'"""
    output: str
    """Folder for train/, valid/ and run.json. Example: --output data"""
    valid_fraction: float = 0.1
    """Share of the rows that go to valid."""
    split: Literal["prompt", "modulo"] = "prompt"
    """prompt: whole prompt groups, so that none is on both sides. modulo: every n-th row, as the baseline
    does."""
    seed: int = 0
    """Seed of the choice of the prompt groups that go to valid."""
    ties: Literal["drop", "soft"] = "drop"
    """drop: leave ties out and count them. soft: keep them with prob_a 0.5."""
    format: VoteFormat = "canonical"
    """The published data set whose columns and conventions the input has; canonical takes `--columns`."""
    exclude: tuple[str, ...] = ()
    """Canonical shards whose prompts are left out and counted. Example: --exclude data/train data/valid"""
    columns: Columns = field(default_factory=Columns)
    """The input's own column names. Example: --columns.prompt question"""
    make_ids: bool = False
    """Make ids from each file's path below the input and the row number, where a file has none."""
    shard_rows: int = 20_000
    """Rows of one output file; the last file may have fewer."""
    restart: bool = False
    """Delete what the output folder holds and start over."""

    def __post_init__(self) -> None:
        expand_home(self)
        self.check_stores()
        check_paths(input=self.input, output=self.output)
        check_columns_of_format(self.format, self.columns)
        check_seed(self.seed)
        check(0 <= self.valid_fraction < 1, "valid_fraction", self.valid_fraction, "in [0, 1)")
        check(
            self.split == "prompt" or self.valid_fraction <= 0.5,
            "valid_fraction",
            self.valid_fraction,
            "at most 0.5 with --split modulo",
        )
        check(self.shard_rows >= 1, "shard_rows", self.shard_rows, "at least 1")
