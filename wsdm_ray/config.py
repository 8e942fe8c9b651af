"""Every option of every job: frozen dataclasses that check themselves. They import neither torch nor ray.

The resolved config of a run is written beside its output. A field's docstring is its help text.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from wsdm_ray.errors import ConfigError

__all__ = [
    "ArenaConfig",
    "Columns",
    "EnsembleConfig",
    "EvaluateConfig",
    "HeadConfig",
    "LoraConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "PrepareConfig",
    "PseudolabelConfig",
    "QuantizeConfig",
    "QuickstartConfig",
    "ScoreConfig",
    "TextConfig",
    "TrainConfig",
    "to_dict",
]

Orders = Literal["both", "ab", "ba"]
ScoreOrders = Literal["both", "ab", "ba", "adaptive"]
Layout = Literal["padded", "packed", "shared"]
Precision = Literal["auto", "fp32", "bf16", "int8", "fp8", "bnb-int8", "nf4"]
VoteFormat = Literal[
    "canonical", "wsdm", "lmsys-57k", "lmsys-33k", "ultrafeedback", "orpo-dpo-mix", "hh-rlhf", "dpo"
]


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain values, ready for JSON."""
    return dataclasses.asdict(config)


def check(condition: bool, option: str, value: object, remedy: str) -> None:
    """Raise `ConfigError` that names the option, its value and what it takes."""
    if not condition:
        raise ConfigError(f"--{option.replace('_', '-')} {value}: must be {remedy}")


def check_positive(option: str, value: float | None) -> None:
    """Raise `ConfigError` for a number that is given and not above 0, or infinite."""
    if value is not None:
        check(value > 0, option, value, "above 0")
        check(value < math.inf, option, value, "finite")


def check_not_negative(option: str, value: float) -> None:
    """Raise `ConfigError` for a number below 0, or an infinite one."""
    check(value >= 0, option, value, "0 or more")
    check(value < math.inf, option, value, "finite")


def check_seed(seed: int) -> None:
    check(0 <= seed < 2**63, "seed", seed, "from 0 to 2**63 - 1")


def check_paths(**paths: str | tuple[str, ...]) -> None:
    for option, value in paths.items():
        check(
            bool(value) and (not isinstance(value, tuple) or all(value)), option, value or "(empty)", "given"
        )


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The names that an input gives to the canonical columns."""

    id: str = "id"
    prompt: str = "prompt"
    response_a: str = "response_a"
    response_b: str = "response_b"
    winner: str = "winner"
    prob_a: str = "prob_a"
    model_a: str = "model_a"
    model_b: str = "model_b"
    language: str = "language"
    source: str = "source"


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How a pair becomes tokens."""

    prompt_tag: str = "<prompt>: "
    """Text before the prompt."""
    first_tag: str = "\n\n<response_a>: "
    """Text before the response that stands first."""
    second_tag: str = "\n\n<response_b>: "
    """Text before the response that stands second."""
    max_tokens: int = 2048
    """The most tokens of one ordering, with tags, bos and eos."""
    truncation: Literal["balanced", "left"] = "balanced"
    """balanced: each segment has its own budget and keeps head and tail. left: cut the whole on its left."""
    prompt_share: float = 0.25
    """balanced: the share of the text budget that is the prompt's when the answers could use all of it."""

    def __post_init__(self) -> None:
        check(self.max_tokens >= 32, "text.max_tokens", self.max_tokens, "at least 32")
        check(0 < self.prompt_share < 1, "text.prompt_share", self.prompt_share, "between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """What turns the last token's hidden state into two logits (first response wins, second wins)."""

    kind: Literal["mlp", "linear"] = "mlp"
    """mlp: dropout, linear to half the width, dropout, GELU, linear. linear: one bias-free linear."""
    dropout: float = 0.1
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the head's weights, in training and in scoring."""

    def __post_init__(self) -> None:
        check(0 <= self.dropout < 1, "head.dropout", self.dropout, "in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The low-rank adapter."""

    r: int = 64
    """Rank."""
    alpha: float = 64
    """Scale: the update is multiplied by alpha / r."""
    dropout: float = 0.05
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Names of the linear layers that get an adapter."""

    def __post_init__(self) -> None:
        check(self.r >= 1, "lora.r", self.r, "at least 1")
        check_positive("lora.alpha", self.alpha)
        check(0 <= self.dropout < 1, "lora.dropout", self.dropout, "in [0, 1)")
        check(bool(self.targets), "lora.targets", self.targets, "at least one layer name")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule."""

    kind: Literal["adamw", "adamw_8bit"] = "adamw"
    """adamw_8bit keeps its state in 8 bit (bitsandbytes)."""
    learning_rate: float = 2e-4
    head_learning_rate: float | None = None
    """Of the head, where it is to learn at another rate than the adapter."""
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_fraction: float = 0.025
    """Share of the steps over which the learning rate rises linearly."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How it falls afterwards."""
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        check_positive("optimizer.learning_rate", self.learning_rate)
        check_positive("optimizer.head_learning_rate", self.head_learning_rate)
        check_not_negative("optimizer.weight_decay", self.weight_decay)
        check(all(0 <= beta < 1 for beta in self.betas), "optimizer.betas", self.betas, "in [0, 1) each")
        check(0 <= self.warmup_fraction <= 1, "optimizer.warmup_fraction", self.warmup_fraction, "in [0, 1]")
        check(self.max_grad_norm > 0, "optimizer.max_grad_norm", self.max_grad_norm, "above 0")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is minimized."""

    label_smoothing: float = 0.0
    """Share of each label that is given to both responses alike."""
    teachers: tuple[str, ...] = ()
    """Predictions of other models on the train rows, folders of `score`, joined by id and averaged."""
    teacher_weight: float = 0.9
    """Share of the teachers in the loss of the rows that they have; the vote has the rest."""
    teacher_temperature: float = 5.0
    """What log-odds of teachers and student are divided by before they are compared."""
    order_agreement: float = 0.0
    """Weight of a term that pulls the two orders of a pair together."""
    source_weights: dict[str, float] = field(default_factory=dict)
    """Weight of the rows of a source in the loss; of those that are not named it is 1."""

    def __post_init__(self) -> None:
        check(0 <= self.label_smoothing < 1, "objective.label_smoothing", self.label_smoothing, "in [0, 1)")
        check(0 <= self.teacher_weight <= 1, "objective.teacher_weight", self.teacher_weight, "in [0, 1]")
        check_positive("objective.teacher_temperature", self.teacher_temperature)
        check_not_negative("objective.order_agreement", self.order_agreement)
        for source, weight in self.source_weights.items():
            fits = 0 <= weight < math.inf
            check(fits, "objective.source_weights", f"{source} {weight}", "0 or more each")


@dataclass(frozen=True, kw_only=True)
class ArenaConfig:
    """Synthetic votes with a known best accuracy."""

    output: str
    """Folder for the shards and run.json."""
    rows: int = 5_000
    seed: int = 0
    lengths: Literal["real", "short"] = "real"
    """real: median about 1,000 tokens a triple with a long tail. short: about a tenth of that."""
    restart: bool = False
    """Delete what the output folder holds and start over."""

    def __post_init__(self) -> None:
        check_paths(output=self.output)
        check_seed(self.seed)
        check(self.rows >= 1, "rows", self.rows, "at least 1")


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Raw votes to canonical shards."""

    input: tuple[str, ...]
    """Parquet, JSON (an object a line, or a list in a .json file) or CSV files, folders of them, or globs."""
    output: str
    """Folder for train/, valid/ and run.json."""
    valid_fraction: float = 0.1
    """Share of the rows that go to valid."""
    split: Literal["prompt", "modulo"] = "prompt"
    """prompt: whole prompt groups, so that none is on both sides. modulo: every n-th row (the recipe)."""
    seed: int = 0
    """Decides which prompt groups go to valid."""
    ties: Literal["drop", "soft"] = "drop"
    """drop: leave ties out, counted. soft: keep them with prob_a 0.5."""
    format: VoteFormat = "canonical"
    """The published data set whose columns and conventions the input has; canonical takes `--columns`."""
    exclude: tuple[str, ...] = ()
    """Canonical shards whose prompts are to be left out, counted."""
    columns: Columns = field(default_factory=Columns)
    """The input's own column names, where they differ."""
    make_ids: bool = False
    """Make ids from file name and row number where the input has none."""
    shard_rows: int = 20_000
    """Rows of one output file."""
    restart: bool = False
    """Delete what the output folder holds and start over."""

    def __post_init__(self) -> None:
        check_paths(input=self.input, output=self.output)
        check_seed(self.seed)
        check(0 <= self.valid_fraction < 1, "valid_fraction", self.valid_fraction, "in [0, 1)")
        check(
            self.split == "prompt" or self.valid_fraction <= 0.5,
            "valid_fraction",
            self.valid_fraction,
            "at most 0.5 with --split modulo",
        )
        check(self.shard_rows >= 1, "shard_rows", self.shard_rows, "at least 1")


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """One quantized checkpoint from a base model."""

    base: str
    """Folder of a Hugging Face model with its tokenizer."""
    output: str
    adapter: tuple[str, ...] = ()
    """Folders of adapters, of `train` or plain PEFT ones, that are merged in first, in order."""
    precision: Literal["int8", "nf4", "fp8", "int8-rows", "bf16"] = "int8"
    """int8 and nf4 are bitsandbytes', for training and scoring. For scoring alone: fp8, compressed-tensors',
    and int8-rows, which `score --precision int8` takes as they are."""
    calibrate: tuple[str, ...] = ()
    """Canonical shards like what will be scored: int8-rows are then rounded so that products on some of these
    pairs stay near the exact ones. The votes on them do not matter."""
    calibration_pairs: int = 64
    """How many of them, chosen at random."""
    restart: bool = False
    """Delete what the output folder holds and start over."""

    def __post_init__(self) -> None:
        check_paths(base=self.base, output=self.output)
        check(
            not self.calibrate or self.precision == "int8-rows",
            "precision",
            self.precision,
            "int8-rows where --calibrate is given",
        )
        check(self.calibration_pairs >= 1, "calibration_pairs", self.calibration_pairs, "at least 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Fine-tune a classifier on votes.

    `--preset NAME` starts from a whole config: gemma2_9b, gemma3_270m, qwen25_14b, recipe_gemma2_9b_ab,
    recipe_gemma2_9b_ba, smollm2_135m or tiny.
    """

    base: str
    """Folder of a Hugging Face model, quantized or not, with its tokenizer."""
    train: tuple[str, ...]
    """Canonical shards: files, folders or globs."""
    output: str
    """Folder for the classifier and its checkpoints."""
    valid: tuple[str, ...] = ()
    """Canonical shards that training never sees."""
    num_workers: int = 1
    seed: int = 0
    epochs: float = 1.0
    """Passes over the train rows."""
    max_steps: int | None = None
    """Stop after so many optimizer steps."""
    pairs_per_step: int = 16
    """Pairs of one optimizer step over all workers, whatever their number."""
    orders: Orders = "both"
    """both: each pair in both orderings within the same step."""
    layout: Layout | Literal["auto"] = "auto"
    """auto: packed on a GPU, without padding, unless the family caps its attention scores; else padded."""
    token_budget: int = 16_384
    """The most tokens of one forward pass on one worker."""
    micro_batches: int | None = None
    """The fewest forward passes of a step over all workers; by default one a worker. Fix it to get the same
    numbers from another number of workers."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of activations: bf16 where the GPU has it, else fp32."""
    quantization: Literal["auto", "int8", "nf4", "none"] = "auto"
    """Of the frozen base; auto keeps what the folder holds and makes an unquantized one int8."""
    int8_activations: bool = False
    """Multiply int8 weights by activations in int8, as LLM.int8() does, instead of by activations as they
    are. Slower, and the result of a row depends on its neighbours."""
    gradient_checkpointing: bool = False
    """Trade time for memory."""
    compile: Literal["auto", "yes", "no"] = "auto"
    """Compile the model's layers, once at the start of every worker, which takes a minute or more. auto: on a
    GPU, in the layout packed, for 100 steps or more."""
    text: TextConfig = field(default_factory=TextConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    mix: dict[str, float] = field(default_factory=dict)
    """Share of the rows of a source that every epoch has, above 1 for repeats; of others all, once."""
    allow_leakage: bool = False
    """Go on where a prompt stands both in train and in valid, which makes the valid metrics too good."""
    loss_spike: float = 5.0
    """Stop where the loss of a step is over so many times the median of the 50 steps before it."""
    tensorboard: bool = True
    """Write event files for TensorBoard to OUTPUT/tensorboard."""
    wandb: str | None = None
    """Weights & Biases project to log every step to (`pip install wsdm_ray[wandb]`)."""
    checkpoint_steps: int = 200
    """Optimizer steps between checkpoints; the last step always makes one."""
    max_failures: int = 3
    """How often dead workers are replaced before the job fails."""
    restart: bool = False
    """Delete what the output folder holds and start over."""

    def __post_init__(self) -> None:
        check_paths(base=self.base, train=self.train, output=self.output)
        check_seed(self.seed)
        check(self.num_workers >= 1, "num_workers", self.num_workers, "at least 1")
        check_positive("epochs", self.epochs)
        check(self.max_steps is None or self.max_steps >= 1, "max_steps", self.max_steps, "at least 1")
        check(self.pairs_per_step >= 1, "pairs_per_step", self.pairs_per_step, "at least 1")
        check(
            self.micro_batches is None or self.micro_batches >= 1,
            "micro_batches",
            self.micro_batches,
            "at least 1",
        )
        for source, share in self.mix.items():
            check(0 <= share < math.inf, "mix", f"{source} {share}", "0 or more each")
        check(self.loss_spike > 1, "loss_spike", self.loss_spike, "above 1")
        check(
            self.orders == "both" or not self.objective.order_agreement,
            "objective.order_agreement",
            self.objective.order_agreement,
            "0 with one order",
        )
        check(self.checkpoint_steps >= 1, "checkpoint_steps", self.checkpoint_steps, "at least 1")
        check(self.max_failures >= 0, "max_failures", self.max_failures, "0 or more")
        check_token_budget(self.token_budget, self.text.max_tokens)


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Score every row of a parquet data set."""

    model: tuple[str, ...]
    """Checkpoint folder of `train` or `quantize`; more than one is averaged."""
    model_weights: tuple[float, ...] = ()
    """Weight of each model in the mean probability; by default all alike."""
    input: tuple[str, ...]
    """Parquet files, folders or globs with the columns id, prompt, response_a, response_b."""
    output: str
    """Folder for part-NNNNNN.parquet and run.json."""
    base: tuple[str, ...] = ()
    """Where the base is, if not where it was in training: one folder for all models, or one for each
    (of a model that needs none, any)."""
    orders: ScoreOrders = "both"
    """adaptive: one ordering of the first model, and all the others only where that one is in doubt."""
    adaptive_threshold: float = 0.2
    """adaptive: a row is in doubt where its probability is less than this from 0.5."""
    precision: Precision = "auto"
    """auto: int8 on H100 and H200, fp8 on other GPUs that have it, else int8 or bnb-int8; fp32 on a CPU.
    fp32, bf16, int8 and fp8 merge the adapter in float32; int8 and fp8 then have a scale for each row of
    weights and activations; a model stored in such rows keeps them. bnb-int8 and nf4 are bitsandbytes', the
    adapter beside the base: the least memory for several adapters of one."""
    layout: Layout | Literal["auto"] = "auto"
    """auto: shared (the prompt once for both orderings) on a GPU in bf16, int8 and fp8; else padded."""
    token_budget: int | None = None
    """The most tokens of one forward pass, halved for good where memory runs out; by default 2,048 on a CPU,
    on a GPU what its free memory allows up to 16,896."""
    max_tokens: int | None = None
    """The most tokens of one ordering; by default as many as in training."""
    unit_rows: int = 2_000
    """Rows of one work unit: one output file, the unit of commit and resume."""
    replicas: int | None = None
    """Processes that hold a model; by default one a GPU, or one on a machine without."""
    logits: bool = False
    """Add the columns logit_ab and logit_ba: log-odds that response_a wins, before any temperature."""
    columns: Columns = field(default_factory=Columns)
    """The input's own column names, where they differ."""
    dry_run: bool = False
    """Print the plan and leave."""
    restart: bool = False
    """Delete what the output folder holds and start over."""

    def __post_init__(self) -> None:
        check_paths(model=self.model, input=self.input, output=self.output)
        check(
            len(self.base) in (0, 1, len(self.model)) and all(self.base),
            "base",
            self.base,
            f"one folder, or one for each of the {len(self.model)} models",
        )
        check(self.unit_rows >= 1, "unit_rows", self.unit_rows, "at least 1")
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
        check(self.replicas is None or self.replicas >= 1, "replicas", self.replicas, "at least 1")


@dataclass(frozen=True, kw_only=True)
class PseudolabelConfig(ScoreConfig):
    """Score unlabelled pairs and make training shards of them, OUTPUT/train."""

    predictions: str | None = None
    """Folder for the predictions, by default OUTPUT/predictions. What `score` or another run of this job left
    there for the same model, input and options is used as it is."""
    hard_threshold: float | None = None
    """Keep only rows whose winner is at least so probable, with that winner as the label; by default every
    row is kept with its probability as a soft label."""
    exclude: tuple[str, ...] = ()
    """Canonical shards whose prompts are to be left out, counted."""
    source: str = "pseudolabels"
    """What the shards' `source` column says."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self.hard_threshold is None or 0.5 <= self.hard_threshold < 1,
            "hard_threshold",
            self.hard_threshold,
            "in [0.5, 1)",
        )


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


def check_token_budget(token_budget: int, max_tokens: int) -> None:
    """Both orderings of the longest pair must fit one forward pass."""
    check(
        token_budget >= 2 * max_tokens,
        "token_budget",
        token_budget,
        f"at least twice max_tokens ({max_tokens})",
    )
