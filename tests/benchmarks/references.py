"""What our scoring is compared with: the recipe's loop, and the transformers pipeline.

Both take the token ids that the engine takes, so all see the very same tokens.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from wsdm_ray.config import HeadConfig, LoraConfig
from wsdm_ray.modeling.classifier import add_lora, preference_log_odds, unwrap_peft
from wsdm_ray.modeling.head import make_head
from wsdm_ray.text.encoding import EncodedPairs

__all__ = [
    "both_orderings",
    "left_padded",
    "pipeline_scorer",
    "random_network",
    "recipe_batches",
    "recipe_network",
    "score_recipe",
    "sequences_of",
    "to_bitsandbytes",
    "to_nf4",
]


def sequences_of(pairs: EncodedPairs) -> list[np.ndarray]:
    """Every pair in `ab`, then every pair in `ba`: int32 ids of 2 N sequences."""
    return [
        np.concatenate([pairs.prefix[i], suffix[i]])
        for suffix in (pairs.suffix_ab, pairs.suffix_ba)
        for i in range(len(pairs))
    ]


def both_orderings(first_wins_S: np.ndarray) -> np.ndarray:
    """Log-odds of the given response_a [N, 2], of those of the response that stands first [2 N]."""
    ab, ba = first_wins_S.reshape(2, -1)
    return np.stack([ab, -ba], 1)


def random_network(config: Any, device: str, dtype: torch.dtype, attention: str | None = None) -> Any:
    """The transformers classifier of a config with random weights, made on the device.

    Args:
        attention: None for what transformers chooses.
    """
    with torch.device(device):
        network = transformers.AutoModelForSequenceClassification.from_config(
            config, dtype=dtype, attn_implementation=attention
        )
    return network.requires_grad_(False).eval()


def recipe_network(config: Any, device: str, dtype: torch.dtype) -> nn.Module:
    """Random weights the way the recipe holds a model: 8-bit linears, its adapter beside them, its head."""
    network = random_network(config, device, dtype, attention="eager")
    to_bitsandbytes(network.get_submodule("model"))
    network.is_loaded_in_8bit = True  # by which PEFT knows which of its layers to put there
    network.score = make_head(HeadConfig(precision="bf16"), config.hidden_size, seed=0).to(device)
    lora = LoraConfig(r=64, alpha=4, dropout=0.05)
    return add_lora(network, lora, seed=0).requires_grad_(False).eval()


def to_bitsandbytes(backbone: nn.Module) -> None:
    """Make every linear layer an LLM.int8() one in place, one at a time, with the recipe's threshold."""
    import bitsandbytes
    from bitsandbytes.functional import int8_vectorwise_quant

    for name, layer in list(backbone.named_modules()):
        if not isinstance(layer, nn.Linear):
            continue
        made = bitsandbytes.nn.Linear8bitLt(
            layer.in_features, layer.out_features, bias=False, has_fp16_weights=False, threshold=6.0,
            device="meta",
        )  # fmt: skip
        values, scales, _ = int8_vectorwise_quant(layer.weight.data.to(torch.float16))
        made.weight = bitsandbytes.nn.Int8Params(
            values, requires_grad=False, has_fp16_weights=False, CB=values, SCB=scales
        )
        made.bias = layer.bias
        path, _, leaf = name.rpartition(".")
        setattr(backbone.get_submodule(path), leaf, made)


def to_nf4(backbone: nn.Module) -> None:
    """Make every linear layer a 4-bit one of bitsandbytes in place, as a model that is loaded in nf4."""
    import bitsandbytes

    for name, layer in list(backbone.named_modules()):
        if not isinstance(layer, nn.Linear):
            continue
        made = bitsandbytes.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
        )
        made.weight = bitsandbytes.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
        made.bias = layer.bias
        path, _, leaf = name.rpartition(".")
        setattr(backbone.get_submodule(path), leaf, made.to(layer.weight.device))


def recipe_batches(sequences: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
    """Indices of sequences sorted by length, longest first, so many at a time."""
    order = np.argsort([-len(ids) for ids in sequences], kind="stable")
    return [order[start : start + size] for start in range(0, len(order), size)]


@torch.inference_mode()
def score_recipe(
    network: nn.Module, sequences: Sequence[np.ndarray], batches: Sequence[np.ndarray]
) -> np.ndarray:
    """Log-odds that the first response wins, of the sequences in `batches`: float32 [S], others NaN.

    A batch is padded on the left to its longest, and runs with fp16 autocast where there is a GPU. The head
    gets the last token alone; the recipe gives it every token, which takes it about 0.1 % longer.
    """
    model = unwrap_peft(network)
    embedding = model.get_input_embeddings().weight
    on_gpu = embedding.device.type == "cuda"
    found_S = np.full(len(sequences), np.nan, np.float32)
    for indices in batches:
        chosen = [sequences[index] for index in indices]
        tokens_BT, mask_BT = left_padded(chosen, model.config.pad_token_id or 0)
        with torch.autocast("cuda", torch.float16) if on_gpu else contextlib.nullcontext():
            hidden_BTD = model.model(
                input_ids=tokens_BT.to(embedding.device), attention_mask=mask_BT.to(embedding.device),
                use_cache=False,
            ).last_hidden_state  # fmt: skip
            last_BD = hidden_BTD[:, -1].to(next(model.score.parameters()).dtype)
            logits_B2 = model.score(last_BD).float()
        found_S[indices] = preference_log_odds(logits_B2).cpu().numpy()
    return found_S


def left_padded(sequences: Sequence[np.ndarray], pad_id: int) -> tuple[Tensor, Tensor]:
    """Tokens and mask of a batch, padded on the left: int64 [B, T] both."""
    width = max(len(ids) for ids in sequences)
    tokens_BT = np.full((len(sequences), width), pad_id, np.int64)
    mask_BT = np.zeros_like(tokens_BT)
    for row, ids in enumerate(sequences):
        tokens_BT[row, width - len(ids) :] = ids
        mask_BT[row, width - len(ids) :] = 1
    return torch.from_numpy(tokens_BT), torch.from_numpy(mask_BT)


class Ids(transformers.PreTrainedTokenizer):
    """A tokenizer whose texts are the ids themselves."""

    def __init__(self) -> None:
        super().__init__(pad_token="<pad>", model_max_length=10**6)

    def get_vocab(self) -> dict[str, int]:
        return {"<pad>": 0}

    @property
    def vocab_size(self) -> int:
        return 10**6

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return text.split()

    def _convert_token_to_id(self, token: str) -> int:
        return 0 if token == "<pad>" else int(token)


def pipeline_scorer(model: Any, device: str) -> Callable[..., np.ndarray]:
    """The transformers pipeline around a model, as a function like `score_recipe` with a batch size."""
    model.config.pad_token_id = 0
    run = transformers.TextClassificationPipeline(model=model, tokenizer=Ids(), framework="pt", device=device)

    def score(sequences: Sequence[np.ndarray], order: np.ndarray, batch_size: int) -> np.ndarray:
        texts = [" ".join(map(str, sequences[place].tolist())) for place in order]
        found_S = np.full(len(sequences), np.nan, np.float32)
        results = run(texts, batch_size=batch_size, top_k=None, function_to_apply="none")
        for place, found in zip(order, results, strict=True):
            by_label = {each["label"]: each["score"] for each in found}
            found_S[place] = by_label["LABEL_0"] - by_label["LABEL_1"]
        return found_S

    return score
