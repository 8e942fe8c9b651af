"""Options of `train`."""

import math
from dataclasses import dataclass, field
from typing import Literal

from wsdm_ray.config.checks import (
    check,
    check_not_negative,
    check_paths,
    check_positive,
    check_seed,
    check_token_budget,
    expand_home,
)
from wsdm_ray.config.model import HeadConfig, LoraConfig, TextConfig
from wsdm_ray.config.stores import StoreConfig

__all__ = ["Layout", "ObjectiveConfig", "OptimizerConfig", "TrainConfig"]

Orders = Literal["both", "ab", "ba"]
Layout = Literal["padded", "packed", "shared"]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule."""

    kind: Literal["adamw", "adamw_8bit"] = "adamw"
    """adamw_8bit keeps the state of AdamW in 8 bits (bitsandbytes)."""
    learning_rate: float = 2e-4
    """Peak learning rate of the adapter, reached after warmup."""
    head_learning_rate: float | None = None
    """Peak learning rate of the head; by default that of the adapter. Example:
    --optimizer.head-learning-rate 1e-4"""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's two moving averages. Example: --optimizer.betas 0.9 0.95"""
    warmup_fraction: float = 0.025
    """Share of the steps over which the learning rate rises linearly."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after warmup."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""

    def __post_init__(self) -> None:
        check_positive("optimizer.learning_rate", self.learning_rate)
        check_positive("optimizer.head_learning_rate", self.head_learning_rate)
        check_not_negative("optimizer.weight_decay", self.weight_decay)
        check(all(0 <= beta < 1 for beta in self.betas), "optimizer.betas", self.betas, "in [0, 1) each")
        check(0 <= self.warmup_fraction <= 1, "optimizer.warmup_fraction", self.warmup_fraction, "in [0, 1]")
        check(self.max_grad_norm > 0, "optimizer.max_grad_norm", self.max_grad_norm, "above 0")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The loss."""

    label_smoothing: float = 0.0
    """Share of each label that is divided equally between both responses."""
    teachers: tuple[str, ...] = ()
    """Predictions of other models on the train rows, folders of `score`, joined by id and averaged.
    Example: --objective.teachers gemma-on-train qwen-on-train"""
    teacher_weight: float = 0.9
    """Share of the teachers in the loss of the rows that they scored; the vote has the rest."""
    teacher_temperature: float = 5.0
    """Divisor of the log-odds of teachers and student before they are compared."""
    swap_consistency_weight: float = 0.0
    """Weight of a loss term that pulls the two orderings of a pair together."""
    length_balance: float = 0.0
    """How far votes are weighted so that the longer response wins half of them, among votes whose lengths
    differ alike: 0 not at all, 1 fully."""
    source_weights: dict[str, float] = field(default_factory=dict)
    """Weight of the rows of a source in the loss; by default 1.
    Example: --objective.source-weights pseudolabels 0.5"""

    def __post_init__(self) -> None:
        expand_home(self)
        check(0 <= self.label_smoothing < 1, "objective.label_smoothing", self.label_smoothing, "in [0, 1)")
        check(0 <= self.teacher_weight <= 1, "objective.teacher_weight", self.teacher_weight, "in [0, 1]")
        check_positive("objective.teacher_temperature", self.teacher_temperature)
        check_not_negative("objective.swap_consistency_weight", self.swap_consistency_weight)
        check(0 <= self.length_balance <= 1, "objective.length_balance", self.length_balance, "in [0, 1]")
        for source, weight in self.source_weights.items():
            fits = 0 <= weight < math.inf
            check(fits, "objective.source_weights", f"{source} {weight}", "0 or more each")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(StoreConfig):
    """Fine-tune a classifier on votes.

    `--preset NAME` starts from a whole config: gemma2_9b, gemma3_270m, qwen25_0_5b, qwen25_14b, qwen25_1_5b,
    recipe_gemma2_9b_ab, recipe_gemma2_9b_ba, smollm2_135m or tiny.
    """

    base: str
    """Folder of a Hugging Face model, quantized or not, with its tokenizer, or OWNER/NAME on the Hub.
    Example: --base quantized"""
    train: tuple[str, ...]
    """Canonical shards: files, folders or globs. Example: --train data/train pseudolabels/train"""
    output: str
    """Folder for the classifier and its checkpoints. Example: --output model"""
    valid: tuple[str, ...] = ()
    """Canonical shards to validate on; the checkpoint with the lowest log loss on them is kept.
    Example: --valid data/valid"""
    start_from: str | None = None
    """Folder of an earlier `train` on the same base, local, remote or on the Hub, whose adapter and head this
    run starts with instead of new ones. Example: --start-from warm-up"""
    num_workers: int = 1
    """Workers of Ray Train: one for each GPU, or CPU processes."""
    min_workers: int | None = None
    """Go on with as few workers where the cluster has no place for more, and with more again where it has;
    the steps stay the same. By default all of --num-workers."""
    wait_for_resources_seconds: float | None = None
    """Wait so long for nodes that the workers need. By default 1,800 on a cluster that scales by itself, else
    not at all."""
    seed: int = 0
    """Seed of the order of the rows, dropout and initial weights."""
    epochs: float = 1.0
    """Passes over the train rows."""
    max_steps: int | None = None
    """Stop after this many optimizer steps; by default after the epochs."""
    pairs_per_step: int = 16
    """Pairs of one optimizer step, over all workers together."""
    orders: Orders = "both"
    """ab is (prompt, response_a, response_b), ba the swapped ordering. both: each pair in both orderings
    within the same step."""
    layout: Layout | Literal["auto"] = "auto"
    """auto: on a GPU one row without padding, packed, or shared where the family soft-caps its attention
    scores; else padded."""
    token_budget: int = 16_384
    """The most tokens of one micro-batch. A GPU with too little memory for it takes half, or half of that."""
    micro_batches: int | None = None
    """For how many workers the micro-batches of a step are cut: each gets as many full ones, and what is left
    is spread over all; by default --num-workers. Fix it for the same numbers from another --num-workers."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of activations. auto: bf16 if the GPU supports it, else fp32."""
    quantization: Literal["auto", "bnb-int8", "nf4", "w8a8-int8", "w8a8-fp8", "none"] = "auto"
    """Precision of the frozen base. auto keeps that of the folder; an unquantized base becomes bnb-int8, or
    w8a8-int8 if its hidden size is 3,584 or more and all GPUs are H100 or H200. With bnb-int8 and nf4, GEMMs
    take dequantized weights; with w8a8-int8 and w8a8-fp8 they are of 8 bits, forward and backward."""
    int8_activations: bool = False
    """Round activations to 8 bits for bnb-int8 matmuls, as LLM.int8() does, instead of keeping them in their
    own precision. Slower, and the result of a row depends on its neighbours."""
    gradient_checkpointing: Literal["auto", "yes", "no"] = "auto"
    """Compute activations again in the backward pass: slower, with less memory. auto: on a GPU, in as many
    layers as its memory asks for."""
    shard_base: bool = False
    """Shard the base's layers and AdamW's state over the workers, which gather a layer from each other before
    it runs (FSDP), and keep embeddings in memory of the CPU: less memory of the GPU, for much traffic between
    GPUs. For several workers on GPUs with bf16, or on CPUs with w8a8-int8 or w8a8-fp8."""
    compile: Literal["auto", "yes", "no"] = "auto"
    """Compile the model's layers at the start of every worker, which takes from 20 s to over a minute. auto:
    on a GPU, in the layouts packed and shared, for 100 steps or more."""
    text: TextConfig = field(default_factory=TextConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    mix: dict[str, float] = field(default_factory=dict)
    """Share of the rows of a source in every epoch, above 1 for repeats; by default 1.
    Example: --mix lmsys-57k 0.5 wsdm 2"""
    allow_leakage: bool = False
    """Train even if a prompt is both in train and in valid, which makes the valid metrics too good."""
    loss_spike: float = 5.0
    """Stop if the loss of a step is above this many times the median of the 50 steps before it; never up to
    3.0 nats, in the first ten steps, or in a step of fewer than 8 sequences."""
    tensorboard: bool = True
    """Write event files for TensorBoard to OUTPUT/tensorboard."""
    wandb: str | None = None
    """Weights & Biases project to log every step to (`pip install -e '.[wandb]'`). Example: --wandb arena"""
    checkpoint_steps: int = 200
    """Optimizer steps between checkpoints; the last step always makes one."""
    max_failures: int = 3
    """How often failed workers are replaced before the job fails."""
    gpu_hour_price: float | None = None
    """Price of one GPU for an hour: a dry run then says what the run costs. Example: --gpu-hour-price 2.5"""
    dry_run: bool = False
    """Check the options, the inputs and every node of the cluster, print what the run takes, and exit."""
    restart: bool = False
    """Delete what the output folder holds and start over."""
    allow_version_change: bool = False
    """Go on with a run that was begun with other versions of torch, transformers, tokenizers, ftfy,
    bitsandbytes, PEFT or of this package's arithmetic, which give other numbers; run.json records it."""

    def __post_init__(self) -> None:
        expand_home(self)
        self.check_stores()
        check_positive("gpu_hour_price", self.gpu_hour_price)
        check_paths(base=self.base, train=self.train, output=self.output)
        check_seed(self.seed)
        check(self.num_workers >= 1, "num_workers", self.num_workers, "at least 1")
        check(
            self.min_workers is None or 1 <= self.min_workers <= self.num_workers,
            "min_workers",
            self.min_workers,
            f"between 1 and --num-workers ({self.num_workers})",
        )
        if self.wait_for_resources_seconds is not None:
            check_not_negative("wait_for_resources_seconds", self.wait_for_resources_seconds)
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
            self.orders == "both" or not self.objective.swap_consistency_weight,
            "objective.swap_consistency_weight",
            self.objective.swap_consistency_weight,
            "0 with one order",
        )
        check(self.checkpoint_steps >= 1, "checkpoint_steps", self.checkpoint_steps, "at least 1")
        check(self.max_failures >= 0, "max_failures", self.max_failures, "0 or more")
        check_token_budget(self.token_budget, self.text.max_tokens)
