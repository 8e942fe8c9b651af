"""The head: two logits from the last token's hidden state; made anew, or read from a full checkpoint."""

import torch
from torch import nn

from wsdm_ray.config import HeadConfig
from wsdm_ray.errors import ModelError
from wsdm_ray.modeling.weight_files import read_tensor, tensor_shapes, weight_files

__all__ = ["HEADS", "check_head", "load_head", "make_head", "stored_head"]

HEADS = ("score", "classifier", "lm_head")
"""Names that the heads of models go by; `score` is ours."""
HEAD_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def make_head(config: HeadConfig, width: int, seed: int) -> nn.Module:
    """A new head for hidden states of `width`; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.kind == "linear":
            head: nn.Module = nn.Linear(width, 2, bias=False)
        else:
            head = nn.Sequential(
                nn.Dropout(config.dropout),
                nn.Linear(width, width // 2),
                nn.Dropout(config.dropout),
                nn.GELU(),
                nn.Linear(width // 2, 2),
            )
    return head.to(HEAD_TYPES[config.precision])


def stored_head(folder: str, config: HeadConfig, width: int) -> nn.Module:
    """The head of a full model's folder, on the CPU."""
    network = nn.Module()
    network.score = make_head(config, width, seed=0)
    load_head(network, folder)
    return network.get_submodule("score").eval()


def load_head(network: nn.Module, folder: str) -> None:
    """Fill the head of `network` from a full checkpoint folder."""
    head = network.get_submodule("score")
    files = weight_files(folder)
    found = {name: (path, shape) for path in files for name, shape in tensor_shapes(path, "score.").items()}
    check_head(folder, head, {name: shape for name, (_, shape) in found.items()})
    head.load_state_dict({name: read_tensor(path, f"score.{name}") for name, (path, _) in found.items()})


def check_head(folder: str, head: nn.Module, found: dict[str, tuple[int, ...]]) -> None:
    """Raise `ModelError` where stored head tensors are not those of `head`."""
    expected = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    if not found:
        raise ModelError(
            f"{folder}: has no head; it needs the tensors {', '.join('score.' + name for name in expected)}"
        )
    if found != expected:
        raise ModelError(f"{folder}: its head {found} does not fit this base, which needs {expected}")
