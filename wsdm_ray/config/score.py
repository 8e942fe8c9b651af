"""Options of `score` and `pseudolabel`."""

from dataclasses import dataclass, field
from typing import Literal

from wsdm_ray.config.checks import check, check_not_negative, check_paths, expand_home
from wsdm_ray.config.data import Columns, VoteFormat, check_columns_of_format
from wsdm_ray.config.stores import StoreConfig
from wsdm_ray.config.submission import SubmissionConfig
from wsdm_ray.config.train import Layout

__all__ = ["PseudolabelConfig", "ScoreConfig"]

ScoreOrders = Literal["both", "ab", "ba", "adaptive"]
Precision = Literal["auto", "fp32", "bf16", "w8a8-int8", "w8a8-fp8", "bnb-int8", "nf4"]


@dataclass(frozen=True, kw_only=True)
class ScoringConfig(StoreConfig):
    """What `score` and `pseudolabel` share."""

    model: tuple[str, ...]
    """Checkpoint folder of `train` or `quantize`, or OWNER/NAME on the Hub; several are averaged.
    Example: --model gemma qwen"""
    model_weights: tuple[float, ...] = ()
    """Weight of each model in the mean probability; by default equal. Example: --model-weights 2 1"""
    input: tuple[str, ...]
    """Parquet, Arrow, JSON or CSV files, folders or globs with the columns id, prompt, response_a,
    response_b. Example: --input 'pairs/*.parquet'"""
    format: VoteFormat = "canonical"
    """The published data set whose columns and conventions the input has; canonical takes `--columns`."""
    make_ids: bool = False
    """Make ids from each file's path below the input and the row number, where a file has none."""
    output: str
    """Folder for part-NNNNNN.parquet; run.json is in OUTPUT.run. Example: --output predictions"""
    base: tuple[str, ...] = ()
    """Folder of the base model, by default where it was in training: one for all models, or one for each (any
    folder for a model that needs none). Example: --base quantized"""
    orders: ScoreOrders = "both"
    """ab is (prompt, response_a, response_b), ba the swapped ordering, both their average. adaptive: one
    ordering of the first model, then the others for rows in doubt."""
    adaptive_threshold: float = 0.2
    """adaptive: a row is in doubt if its probability is less than this from 0.5."""
    precision: Precision = "auto"
    """auto: fp32 on a CPU; w8a8-int8 on H100 and H200; on other GPUs the first of w8a8-fp8, w8a8-int8 and
    bnb-int8 that the GPU has. fp32, bf16, w8a8-int8 and w8a8-fp8 merge the adapter in float32; w8a8 is 8-bit
    weights and activations with a scale for each row. bnb-int8 and nf4 are bitsandbytes', with the adapter
    beside the base: the least memory for several adapters of one base."""
    layout: Layout | Literal["auto"] = "auto"
    """auto: shared (the prompt once for both orderings) on a GPU in bf16, w8a8-int8 and w8a8-fp8; else
    padded."""
    token_budget: int | None = None
    """The most tokens of one micro-batch; halved for the rest of the run if memory runs out; by default
    2,048 on a CPU, and on a GPU what its free memory allows up to 16,896. Example: --token-budget 8192"""
    max_tokens: int | None = None
    """The most tokens of one ordering; by default as many as in training. Example: --max-tokens 1024"""
    unit_rows: int | None = None
    """Rows of one work unit: one output file, the unit of commit and resume. By default 1,000 divided by the
    number of models; fewer, down to 125, of small inputs and for the last rows of large ones. Example:
    --unit-rows 500"""
    on_bad_file: Literal["fail", "skip"] = "fail"
    """fail: files that cannot be read are listed, and nothing is scored. skip: they are left out, which
    run.json says; rows that turn out to be damaged later get an error."""
    duplicate_ids: Literal["error", "keep"] = "error"
    """keep: score rows whose id an earlier row has, with a warning."""
    replicas: int | Literal["auto"] = "auto"
    """Processes that hold a model, at most. auto: one for each GPU, or without GPUs one for each node, also
    of nodes that join the cluster while the job runs. Example: --replicas 4"""
    min_replicas: int | None = None
    """Begin with as few replicas where the cluster has no room for more; others follow as nodes join. By
    default all of --replicas, and with auto what is there. Example: --min-replicas 1"""
    wait_for_resources_seconds: float | None = None
    """Wait so long for nodes that the job needs. By default 1,800 on a cluster that scales by itself, else
    not at all."""
    unit_timeout_seconds: float | None = None
    """End a process that reads or scores one unit for so long, as if it had died; by default never. With a
    store, more than --store-timeout-seconds."""
    gpu_hour_price: float | None = None
    """Price of one GPU for an hour: progress then shows the cost so far, and a dry run the whole. Example:
    --gpu-hour-price 2.5"""
    logits: bool = False
    """Add the columns logit_ab and logit_ba: log-odds that response_a wins, before any temperature."""
    columns: Columns = field(default_factory=Columns)
    """The input's own column names. Example: --columns.prompt question"""
    dry_run: bool = False
    """Check the options, the inputs and every node of the cluster, print the plan and what it takes, and
    exit."""
    restart: bool = False
    """Delete what the output folder holds and start over."""
    allow_version_change: bool = False
    """Go on with a run that was begun with other versions of torch, transformers, tokenizers, ftfy, of this
    package's arithmetic, or, where its models take them, of bitsandbytes or PEFT, which give other numbers;
    run.json records it."""

    def __post_init__(self) -> None:
        expand_home(self)
        self.check_stores()
        check_paths(model=self.model, input=self.input, output=self.output)
        check_columns_of_format(self.format, self.columns)
        check(
            len(self.base) in (0, 1, len(self.model)) and all(self.base),
            "base",
            self.base,
            f"one folder, or one for each of the {len(self.model)} models",
        )
        check(self.unit_rows is None or self.unit_rows >= 1, "unit_rows", self.unit_rows, "at least 1")
        check(
            not self.model_weights or len(self.model_weights) == len(self.model),
            "model_weights",
            self.model_weights,
            f"one for each of the {len(self.model)} models",
        )
        check(
            all(0 < weight < float("inf") for weight in self.model_weights),
            "model_weights",
            self.model_weights,
            "above 0 each",
        )
        check(
            0 < self.adaptive_threshold <= 0.5, "adaptive_threshold", self.adaptive_threshold, "in (0, 0.5]"
        )
        check(
            self.token_budget is None or self.token_budget >= 64,
            "token_budget",
            self.token_budget,
            "at least 64",
        )
        check(self.max_tokens is None or self.max_tokens >= 32, "max_tokens", self.max_tokens, "at least 32")
        most = None if self.replicas == "auto" else self.replicas
        check(most is None or most >= 1, "replicas", self.replicas, "at least 1")
        check(
            self.min_replicas is None or 1 <= self.min_replicas <= (most or self.min_replicas),
            "min_replicas",
            self.min_replicas,
            f"between 1 and --replicas ({self.replicas})",
        )
        if self.wait_for_resources_seconds is not None:
            check_not_negative("wait_for_resources_seconds", self.wait_for_resources_seconds)
        for name in ("unit_timeout_seconds", "gpu_hour_price"):
            value = getattr(self, name)
            check(value is None or 0 < value < float("inf"), name, value, "above 0")
        # Else a store that is away for a while would look like rows that cannot be scored.
        on_store = any("://" in path for path in (*self.model, *self.input, self.output))
        limit = self.unit_timeout_seconds
        check(
            limit is None or not on_store or limit > self.store_timeout_seconds,
            "unit_timeout_seconds",
            limit,
            f"above --store-timeout-seconds {self.store_timeout_seconds:g}: a store may be waited for "
            "so long",
        )


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(SubmissionConfig, ScoringConfig):
    """Score every row of a data set of pairs."""

    strict: bool = False
    """Exit with 1, after all is written, if rows have an error because their process died."""
    keep_columns: tuple[str, ...] = ()
    """Columns of the input to copy to the predictions. Example: --keep-columns language model_a"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_submission()
        check("" not in self.keep_columns, "keep_columns", self.keep_columns, "names of columns")


@dataclass(frozen=True, kw_only=True)
class PseudolabelConfig(ScoringConfig):
    """Score unlabelled pairs and make training shards of them, OUTPUT/train."""

    output: str
    """Folder for train/, predictions/ and run.json. Example: --output pseudolabels"""
    predictions: str | None = None
    """Folder for the predictions, by default OUTPUT/predictions. Predictions of the same model, input and
    options in it, of `score` or of this job, are reused. Example: --predictions predictions"""
    hard_threshold: float | None = None
    """Keep only rows whose winner has at least this probability, with that winner as the label; by default
    every row is kept with its probability as a soft label. Example: --hard-threshold 0.95"""
    exclude: tuple[str, ...] = ()
    """Canonical shards whose prompts are left out and counted. Example: --exclude data/valid"""
    source: str = "pseudolabels"
    """Value of the shards' `source` column. Example: --source pseudolabels-2"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self.hard_threshold is None or 0.5 <= self.hard_threshold < 1,
            "hard_threshold",
            self.hard_threshold,
            "in [0.5, 1)",
        )
