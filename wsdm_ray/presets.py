"""Whole training configs by name: each a function of what every run has of its own: base, data, output.

`recipe_*` are the silver medal's settings of the WSDM Cup (prepare its data with `--format wsdm`); it logged
every step to Weights & Biases, which `--wandb PROJECT` does. The others are this project's own. Those of the
small models were chosen on held-out real votes (tests/benchmarks/LOG.md); those of 9B and 14B models follow
what stronger solutions of the same contest published, and have not been measured at that size.
"""

import dataclasses
from collections.abc import Callable

from wsdm_ray.config import HeadConfig, LoraConfig, OptimizerConfig, TextConfig, TrainConfig

__all__ = [
    "PRESETS",
    "gemma2_9b",
    "gemma3_270m",
    "qwen25_14b",
    "recipe_gemma2_9b_ab",
    "recipe_gemma2_9b_ba",
    "smollm2_135m",
    "tiny",
]


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
        epochs=1.5,
        pairs_per_step=32,
        token_budget=16_384,
        text=TextConfig(max_tokens=2_048),
        lora=LoraConfig(r=32, alpha=128),
        optimizer=OptimizerConfig(
            learning_rate=3e-4, head_learning_rate=1e-4, warmup_fraction=0.05, schedule="cosine"
        ),
        checkpoint_steps=100,
    )


def gemma3_270m(base: str, train: tuple[str, ...], output: str, valid: tuple[str, ...] = ()) -> TrainConfig:
    """For Gemma-3-270M on real votes, on one GPU; the settings of `smollm2_135m` but for a smaller scale."""
    config = smollm2_135m(base, train, output, valid)
    return dataclasses.replace(config, lora=dataclasses.replace(config.lora, alpha=64))


def gemma2_9b(base: str, train: tuple[str, ...], output: str, valid: tuple[str, ...] = ()) -> TrainConfig:
    """For a Gemma-2-9B class model on GPUs of 80 GB: both orders in a step, each text cut in its middle."""
    return TrainConfig(
        base=base,
        train=train,
        valid=valid,
        output=output,
        pairs_per_step=16,
        token_budget=16_384,
        gradient_checkpointing=True,
        text=TextConfig(max_tokens=2_048),
        lora=LoraConfig(r=64, alpha=64),
        optimizer=OptimizerConfig(
            kind="adamw_8bit", learning_rate=1e-4, warmup_fraction=0.025, schedule="cosine"
        ),
        checkpoint_steps=200,
    )


def qwen25_14b(base: str, train: tuple[str, ...], output: str, valid: tuple[str, ...] = ()) -> TrainConfig:
    """For a Qwen2.5-14B class model; the settings of `gemma2_9b`."""
    return gemma2_9b(base, train, output, valid)


def recipe_gemma2_9b_ab(
    base: str, train: tuple[str, ...], output: str, valid: tuple[str, ...] = ()
) -> TrainConfig:
    """The recipe's first model: Gemma-2-9B in bnb-int8, trained on (prompt, a, b) alone."""
    return TrainConfig(
        base=base,
        train=train,
        valid=valid,
        output=output,
        seed=0xFACED,
        epochs=1.0,
        pairs_per_step=16,  # 8 rows and 2 passes
        orders="ab",
        layout="padded",
        token_budget=8 * 2_200,
        precision="bf16",
        quantization="bnb-int8",
        int8_activations=True,
        gradient_checkpointing=True,
        text=TextConfig(
            prompt_tag="<prompt>: ",
            first_tag="\n\n<response_a>: ",
            second_tag="\n\n<response_b>: ",
            max_tokens=2_200,
            truncation="left",
        ),
        head=HeadConfig(kind="mlp", dropout=0.1, precision="bf16"),
        lora=LoraConfig(
            r=64,
            alpha=4,
            dropout=0.05,
            targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        ),
        optimizer=OptimizerConfig(
            kind="adamw_8bit", learning_rate=2e-4, warmup_fraction=0.025, schedule="linear"
        ),
        checkpoint_steps=1_000,
    )


def recipe_gemma2_9b_ba(
    base: str, train: tuple[str, ...], output: str, valid: tuple[str, ...] = ()
) -> TrainConfig:
    """The recipe's second model: the same on (prompt, b, a) with the labels swapped."""
    return dataclasses.replace(recipe_gemma2_9b_ab(base, train, output, valid), orders="ba")


PRESETS: dict[str, Callable[..., TrainConfig]] = {
    preset.__name__: preset
    for preset in (
        gemma2_9b,
        gemma3_270m,
        qwen25_14b,
        recipe_gemma2_9b_ab,
        recipe_gemma2_9b_ba,
        smollm2_135m,
        tiny,
    )
}
"""What `--preset NAME` takes."""
