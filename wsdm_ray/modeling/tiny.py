"""Tiny random models of every family, with a tokenizer made on the spot: for the quickstart and for tests."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from wsdm_ray.modeling.classifier import quiet

__all__ = ["make_tiny_model", "make_tokenizer"]

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")


def make_tokenizer(folder: str, texts: Iterable[str], vocabulary: int) -> None:
    """Save a byte-level BPE tokenizer trained on `texts`; like Gemma's, it starts every text with <bos>."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos = tokenizer.token_to_id("<bos>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", bos)]
    )
    named = {f"{token.strip('<>')}_token": token for token in SPECIAL}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)


def make_tiny_model(
    folder: str,
    texts: Iterable[str],
    *,
    family: str = "gemma2",
    vocabulary: int = 2048,
    width: int = 64,
    layers: int = 2,
    window: int = 64,
    seed: int = 0,
) -> None:
    """Write a random causal language model of `family` with its own tokenizer to a local folder.

    Args:
        window: sliding window in tokens, for families that have one.
    """
    quiet()
    Path(folder).mkdir(parents=True, exist_ok=True)
    make_tokenizer(folder, texts, vocabulary)
    heads, head_dim = 2, width // 2
    common: dict[str, Any] = {
        "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": 2 * width,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": 1,
        "head_dim": head_dim, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
        "max_position_embeddings": 8192,
    }  # fmt: skip
    special: dict[str, dict[str, Any]] = {
        "gemma2": {"sliding_window": window, "query_pre_attn_scalar": head_dim},
        "gemma3_text": {
            "sliding_window": window,
            "query_pre_attn_scalar": head_dim,
            "layer_types": [("sliding_attention", "full_attention")[i % 2] for i in range(layers)],
        },
        "llama": {},
        "qwen2": {},
        "qwen3": {},
    }
    config = transformers.AutoConfig.for_model(family, **common, **special[family])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
