"""Options of the classifier itself (text, head, adapter) and of `quantize`."""

from dataclasses import dataclass
from typing import Literal

from wsdm_ray.config.checks import check, check_paths, check_positive, expand_home
from wsdm_ray.config.stores import StoreConfig

__all__ = ["HeadConfig", "LoraConfig", "QuantizeConfig", "TextConfig"]


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How a pair becomes tokens."""

    prompt_tag: str = "<prompt>: "
    """Text before the prompt. Example: --text.prompt-tag 'Question: '"""
    first_tag: str = "\n\n<response_a>: "
    """Text before the first response of an ordering. Example: --text.first-tag ' Answer 1: '"""
    second_tag: str = "\n\n<response_b>: "
    """Text before the second response of an ordering. Example: --text.second-tag ' Answer 2: '"""
    max_tokens: int = 2048
    """The most tokens of one ordering, with tags, bos and eos."""
    truncation: Literal["balanced", "left"] = "balanced"
    """balanced: each segment has its own budget and keeps its head and tail. left: the whole is cut on the
    left."""
    prompt_share: float = 0.25
    """balanced: the prompt's share of the text budget if the answers could use all of it."""

    def __post_init__(self) -> None:
        check(self.max_tokens >= 32, "text.max_tokens", self.max_tokens, "at least 32")
        check(0 < self.prompt_share < 1, "text.prompt_share", self.prompt_share, "between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """What turns the last token's hidden state into two logits (first response wins, second wins)."""

    kind: Literal["mlp", "linear"] = "mlp"
    """mlp: dropout, linear to half the hidden size, dropout, GELU, linear. linear: one bias-free linear."""
    dropout: float = 0.1
    """Dropout probability within the head."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the head's weights, in training and in scoring."""

    def __post_init__(self) -> None:
        check(0 <= self.dropout < 1, "head.dropout", self.dropout, "in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The low-rank adapter."""

    r: int = 64
    """Rank of the update."""
    alpha: float = 64
    """Scale: the update is multiplied by alpha / r."""
    dropout: float = 0.05
    """Dropout probability before the adapter."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Names of the linear layers that get an adapter. Example: --lora.targets q_proj v_proj"""

    def __post_init__(self) -> None:
        check(self.r >= 1, "lora.r", self.r, "at least 1")
        check_positive("lora.alpha", self.alpha)
        check(0 <= self.dropout < 1, "lora.dropout", self.dropout, "in [0, 1)")
        check(bool(self.targets), "lora.targets", self.targets, "at least one layer name")


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig(StoreConfig):
    """One quantized checkpoint from a base model."""

    base: str
    """Folder of a Hugging Face model with its tokenizer, or OWNER/NAME on the Hub. Example: --base
    gemma-2-9b-it"""
    output: str
    """Folder for the checkpoint. Example: --output quantized"""
    adapter: tuple[str, ...] = ()
    """Folders of adapters, of `train` or plain PEFT ones, or OWNER/NAME on the Hub, that are merged in first,
    in order.
    Example: --adapter model"""
    average: bool = False
    """Merge the mean of the adapters' updates, and take the mean of their heads, instead of merging them in
    order: one model of several folds. They must be of runs of `train` on the base, with one --seed."""
    precision: Literal["bnb-int8", "nf4", "w8a8-int8", "w8a8-fp8", "bf16"] = "bnb-int8"
    """For training and scoring: bnb-int8 (bitsandbytes' LLM.int8()), nf4, w8a8-int8 and w8a8-fp8. The last
    two are 8-bit weights and activations by rows; w8a8-fp8 is stored as compressed-tensors."""
    calibrate: tuple[str, ...] = ()
    """Canonical shards like the pairs to be scored; with w8a8-int8, weights are rounded so that the matmuls
    on some of these pairs stay close to the exact ones. Votes are not used. Example: --calibrate
    data/train"""
    calibration_pairs: int = 64
    """Pairs of --calibrate to use, chosen at random."""
    restart: bool = False
    """Delete what the output folder holds and start over."""

    def __post_init__(self) -> None:
        expand_home(self)
        check_paths(base=self.base, output=self.output)
        self.check_stores()
        check(
            not self.average or len(self.adapter) > 1,
            "adapter",
            " ".join(self.adapter),
            "two folders or more where --average is given",
        )
        check(
            not self.calibrate or self.precision == "w8a8-int8",
            "precision",
            self.precision,
            "w8a8-int8 where --calibrate is given",
        )
        check(self.calibration_pairs >= 1, "calibration_pairs", self.calibration_pairs, "at least 1")
