"""Measured speeds that estimates start from. A test holds them equal to tests/benchmarks/results."""

from dataclasses import dataclass
from typing import Literal

from wsdm_ray.preflight.model_size import parameters_of

__all__ = ["MEASURED", "MODELS", "SIZES", "Job", "Measured"]

Job = Literal["score", "train"]

SIZES: dict[str, dict[str, int]] = {
    "gemma2-9b": {
        "vocab_size": 256_000, "hidden_size": 3_584, "intermediate_size": 14_336, "num_hidden_layers": 42,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256,
    },
    "llama3-8b": {
        "vocab_size": 128_256, "hidden_size": 4_096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8,
    },
    "qwen25-14b": {
        "vocab_size": 152_064, "hidden_size": 5_120, "intermediate_size": 13_824, "num_hidden_layers": 48,
        "num_attention_heads": 40, "num_key_value_heads": 8,
    },
}  # fmt: skip
"""Models that were timed, by the name of their shape, as config.json has their sizes."""

MODELS = {name: parameters_of(sizes) for name, sizes in SIZES.items()}
"""Their numbers of weights."""

H100, H200 = "NVIDIA H100 80GB HBM3", "NVIDIA H200"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The speed of one GPU at one job. Tokens are those of whole orderings, also where these share prompts.

    gpu: as nvidia-smi has it. model: a key of `MODELS`. precision: of the weights of linear layers.
    tokens_per_second: the median of the turns, rounded.
    source, way: the file in tests/benchmarks/results, and the `way` of its row.
    memory_gib: what the run was held to, where that is not the whole GPU.
    """

    job: Job
    gpu: str
    model: str
    precision: str
    tokens_per_second: int
    source: str
    way: str
    memory_gib: float | None = None


MEASURED: tuple[Measured, ...] = (
    Measured(
        job="score", gpu=H100, model="gemma2-9b", precision="w8a8-int8", tokens_per_second=70_507,
        source="score_gpu_gemma2-9b_fourth_h100.json", way="w8a8-int8 shared",
    ),
    Measured(
        job="score", gpu=H100, model="gemma2-9b", precision="w8a8-fp8", tokens_per_second=68_305,
        source="score_gpu_gemma2-9b_fourth_h100.json", way="w8a8-fp8 shared",
    ),
    Measured(
        job="score", gpu=H100, model="gemma2-9b", precision="bf16", tokens_per_second=40_056,
        source="score_gpu_gemma2-9b.json", way="bf16 shared",
    ),
    Measured(
        job="score", gpu=H100, model="llama3-8b", precision="w8a8-int8", tokens_per_second=83_685,
        source="score_gpu_llama3-8b.json", way="int8 shared",
    ),
    Measured(
        job="score", gpu=H100, model="llama3-8b", precision="w8a8-fp8", tokens_per_second=81_359,
        source="score_gpu_llama3-8b.json", way="fp8 shared",
    ),
    Measured(
        job="score", gpu=H100, model="llama3-8b", precision="bf16", tokens_per_second=46_349,
        source="score_gpu_llama3-8b.json", way="bf16 shared",
    ),
    Measured(
        job="score", gpu=H200, model="gemma2-9b", precision="w8a8-fp8", tokens_per_second=64_509,
        source="score_gpu_gemma2-9b_h200.json", way="fp8 shared",
    ),
    Measured(
        job="score", gpu=H200, model="llama3-8b", precision="w8a8-fp8", tokens_per_second=76_238,
        source="score_gpu_llama3-8b_h200.json", way="fp8 shared",
    ),
    Measured(
        job="score", gpu=H200, model="llama3-8b", precision="bf16", tokens_per_second=45_068,
        source="score_gpu_llama3-8b_h200.json", way="bf16 shared",
    ),
    Measured(
        job="score", gpu=H200, model="qwen25-14b", precision="w8a8-fp8", tokens_per_second=40_503,
        source="score_gpu_qwen25-14b_h200.json", way="fp8 shared",
    ),
    Measured(
        job="score", gpu=H200, model="qwen25-14b", precision="bf16", tokens_per_second=24_096,
        source="score_gpu_qwen25-14b_h200.json", way="bf16 shared",
    ),
    Measured(
        job="train", gpu=H200, model="gemma2-9b", precision="w8a8-int8", tokens_per_second=16_714,
        source="train_gpu_gemma2-9b_h200.json", way="w8a8-int8 shared", memory_gib=79,
    ),
    Measured(
        job="train", gpu=H200, model="gemma2-9b", precision="w8a8-fp8", tokens_per_second=16_239,
        source="train_gpu_gemma2-9b_h200.json", way="w8a8-fp8 shared", memory_gib=79,
    ),
    Measured(
        job="train", gpu=H200, model="gemma2-9b", precision="none", tokens_per_second=12_380,
        source="train_gpu_gemma2-9b_h200.json", way="none shared", memory_gib=79,
    ),
    Measured(
        job="train", gpu=H200, model="gemma2-9b", precision="bnb-int8", tokens_per_second=12_084,
        source="train_gpu_gemma2-9b_h200.json", way="bnb-int8 shared", memory_gib=79,
    ),
    Measured(
        job="train", gpu=H200, model="gemma2-9b", precision="nf4", tokens_per_second=8_459,
        source="train_gpu_gemma2-9b_24gb_h200.json", way="nf4 shared", memory_gib=23,
    ),
    Measured(
        job="train", gpu=H200, model="llama3-8b", precision="w8a8-int8", tokens_per_second=22_176,
        source="train_gpu_llama3-8b_h200.json", way="w8a8-int8 packed", memory_gib=79,
    ),
    Measured(
        job="train", gpu=H200, model="llama3-8b", precision="none", tokens_per_second=15_691,
        source="train_gpu_llama3-8b_h200.json", way="none packed", memory_gib=79,
    ),
    Measured(
        job="train", gpu=H200, model="qwen25-14b", precision="w8a8-int8", tokens_per_second=11_497,
        source="train_gpu_qwen25-14b_h200.json", way="w8a8-int8 packed", memory_gib=79,
    ),
)  # fmt: skip
