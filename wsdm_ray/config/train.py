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
)
from wsdm_ray.config.model import HeadConfig, LoraConfig, TextConfig

__all__ = ["Layout", "ObjectiveConfig", "OptimizerConfig", "TrainConfig"]

Orders = Literal["both", "ab", "ba"]
Layout = Literal["padded", "packed", "shared"]


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
    swap_consistency_weight: float = 0.0
    """Weight of a term that pulls the two orders of a pair together."""
    source_weights: dict[str, float] = field(default_factory=dict)
    """Weight of the rows of a source in the loss; of those that are not named it is 1."""

    def __post_init__(self) -> None:
        check(0 <= self.label_smoothing < 1, "objective.label_smoothing", self.label_smoothing, "in [0, 1)")
        check(0 <= self.teacher_weight <= 1, "objective.teacher_weight", self.teacher_weight, "in [0, 1]")
        check_positive("objective.teacher_temperature", self.teacher_temperature)
        check_not_negative("objective.swap_consistency_weight", self.swap_consistency_weight)
        for source, weight in self.source_weights.items():
            fits = 0 <= weight < math.inf
            check(fits, "objective.source_weights", f"{source} {weight}", "0 or more each")


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
    quantization: Literal["auto", "bnb-int8", "nf4", "none"] = "auto"
    """Of the frozen base; auto keeps what the folder holds and makes an unquantized one bnb-int8."""
    int8_activations: bool = False
    """Quantize activations to int8 as well, as LLM.int8() does, instead of bnb-int8 weights alone. Slower,
    and the result of a row depends on the others in its micro-batch."""
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
            self.orders == "both" or not self.objective.swap_consistency_weight,
            "objective.swap_consistency_weight",
            self.objective.swap_consistency_weight,
            "0 with one order",
        )
        check(self.checkpoint_steps >= 1, "checkpoint_steps", self.checkpoint_steps, "at least 1")
        check(self.max_failures >= 0, "max_failures", self.max_failures, "0 or more")
        check_token_budget(self.token_budget, self.text.max_tokens)
