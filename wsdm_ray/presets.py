"""Whole training configs by name. Each preset is a function of base, data and output.

`recipe_*` are the baseline: the settings of a WSDM Cup silver medal. Its data is prepared with `--format
wsdm`; it logged every step to Weights & Biases, as `--wandb PROJECT` does. The other presets are this
project's own. Those of SmolLM2 and Gemma-3 were chosen on held-out real votes. Those of 9B and 14B models
follow what stronger solutions of the same contest published. Those of Qwen2.5-0.5B and 1.5B lie between the
two. What has been measured at its size is in docs/training.md.
"""

import dataclasses
from collections.abc import Callable

from wsdm_ray.config import HeadConfig, LoraConfig, OptimizerConfig, TextConfig, TrainConfig

__all__ = [
    "PRESETS",
    "gemma2_9b",
    "gemma3_270m",
    "qwen25_0_5b",
    "qwen25_1_5b",
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
    """For Gemma-3-270M on real votes, on one GPU; `smollm2_135m` with half the scale of LoRA."""
    config = smollm2_135m(base, train, output, valid)
    return dataclasses.replace(config, lora=dataclasses.replace(config.lora, alpha=64))


def qwen25_0_5b(base: str, train: tuple[str, ...], output: str, valid: tuple[str, ...] = ()) -> TrainConfig:
    """For a model like Qwen2.5-0.5B on one GPU; `gemma3_270m` at a lower rate, in smaller micro-batches."""
    config = gemma3_270m(base, train, output, valid)
    return dataclasses.replace(
        config, token_budget=8_192, optimizer=dataclasses.replace(config.optimizer, learning_rate=2e-4)
    )


def qwen25_1_5b(base: str, train: tuple[str, ...], output: str, valid: tuple[str, ...] = ()) -> TrainConfig:
    """For a model like Qwen2.5-1.5B on one GPU; its rates are between those of smaller and of 9B models."""
    config = qwen25_0_5b(base, train, output, valid)
    return dataclasses.replace(
        config,
        lora=LoraConfig(r=64, alpha=64),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=1.5e-4, head_learning_rate=5e-5),
    )


def gemma2_9b(base: str, train: tuple[str, ...], output: str, valid: tuple[str, ...] = ()) -> TrainConfig:
    """For a model like Gemma-2-9B on GPUs of 80 GB: both orders in a step, texts truncated in the middle."""
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
    """For a model like Qwen2.5-14B; the settings of `gemma2_9b`."""
    return gemma2_9b(base, train, output, valid)


def recipe_gemma2_9b_ab(
    base: str, train: tuple[str, ...], output: str, valid: tuple[str, ...] = ()
) -> TrainConfig:
    """The baseline's first model: Gemma-2-9B in bnb-int8, trained on (prompt, a, b) alone."""
    return TrainConfig(
        base=base,
        train=train,
        valid=valid,
        output=output,
        seed=0xFACED,
        epochs=1.0,
        pairs_per_step=16,  # 2 micro-batches of 8 rows
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
    """The baseline's second model: the same on (prompt, b, a) with the labels swapped."""
    return dataclasses.replace(recipe_gemma2_9b_ab(base, train, output, valid), orders="ba")


PRESETS: dict[str, Callable[..., TrainConfig]] = {
    preset.__name__: preset
    for preset in (
        gemma2_9b,
        gemma3_270m,
        qwen25_0_5b,
        qwen25_14b,
        qwen25_1_5b,
        recipe_gemma2_9b_ab,
        recipe_gemma2_9b_ba,
        smollm2_135m,
        tiny,
    )
}
"""What `--preset NAME` takes."""
