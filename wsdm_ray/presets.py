"""Whole training configs by name: each a function of what every run has of its own: base, data, output."""

from collections.abc import Callable

from wsdm_ray.config import HeadConfig, LoraConfig, OptimizerConfig, TextConfig, TrainConfig

__all__ = ["PRESETS", "smollm2_135m", "tiny"]


def tiny(base: str, train: tuple[str, ...], output: str, valid: tuple[str, ...] = ()) -> TrainConfig:
    """For a random model of two layers on the arena's short votes, on a CPU."""
    return TrainConfig(
        base=base,
        train=train,
        valid=valid,
        output=output,
        pairs_per_step=32,
        token_budget=2_048,
        text=TextConfig(max_tokens=512),
        head=HeadConfig(dropout=0.0),
        lora=LoraConfig(r=16, alpha=16, dropout=0.0),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_fraction=0.05),
        checkpoint_steps=100,
    )


def smollm2_135m(base: str, train: tuple[str, ...], output: str, valid: tuple[str, ...] = ()) -> TrainConfig:
    """For SmolLM2-135M on real votes, on one GPU."""
    return TrainConfig(
        base=base,
        train=train,
        valid=valid,
        output=output,
        epochs=2.0,
        pairs_per_step=32,
        token_budget=32_768,
        text=TextConfig(max_tokens=1_024),
        lora=LoraConfig(r=32, alpha=64),
        optimizer=OptimizerConfig(learning_rate=3e-4, warmup_fraction=0.05, schedule="cosine"),
        checkpoint_steps=100,
    )


PRESETS: dict[str, Callable[..., TrainConfig]] = {"smollm2_135m": smollm2_135m, "tiny": tiny}
"""What `--preset NAME` takes."""
