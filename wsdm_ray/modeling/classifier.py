"""A backbone with a head that says which of two responses wins.

The network is what `AutoModelForSequenceClassification` makes, with its `score` replaced by our head, so that
plain transformers and PEFT can load what is saved. Only the last token of each ordering reaches the head.
"""

import contextlib
import types
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn

from wsdm_ray.config import HeadConfig, LoraConfig
from wsdm_ray.errors import ConfigError, ModelError
from wsdm_ray.modeling.attention import training_backend
from wsdm_ray.modeling.compilation import compile_deterministic
from wsdm_ray.modeling.families import head_dim_of, shape_of
from wsdm_ray.modeling.head import make_head
from wsdm_ray.modeling.quantization_config import NF4_BLOCK, bitsandbytes_config
from wsdm_ray.packing.layouts import Layout
from wsdm_ray.storage import reason

__all__ = [
    "add_lora",
    "check_complete",
    "check_targets",
    "check_widths",
    "compile_layers",
    "load_network",
    "loading",
    "meta_model",
    "model_config",
    "ordering_logits",
    "peft_warnings",
    "preference_log_odds",
    "set_threads",
    "trainable_parameters",
    "unwrap_peft",
]


def load_network(
    folder: str, head: HeadConfig, *, seed: int, device: str, dtype: torch.dtype, quantization: str
) -> nn.Module:
    """The frozen backbone of a model folder with a new head.

    Args:
        dtype: of everything that is not quantized, but the head, which has its own.
        quantization: `bnb-int8`, `nf4` or `none`; a folder that is quantized already stays as it is.

    Raises:
        ModelError: the folder is no model of a supported family, or its weights are not safetensors.
    """
    config = model_config(folder)
    stored = getattr(config, "quantization_config", None)
    options: dict[str, Any] = {}
    if device == "cpu" and (quantization == "nf4" if stored is None else stored.get("load_in_4bit")):
        check_widths(folder, config)
    if stored is None and quantization != "none":
        options["quantization_config"] = bitsandbytes_config(quantization, dtype)
    # By number: transformers loads in threads of its own, whose current GPU is the first.
    place = f"cuda:{torch.cuda.current_device()}" if device == "cuda" else device
    with loading(folder):
        network, found = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=2, dtype=dtype, attn_implementation=training_backend(config).implementation,
            device_map={"": place}, local_files_only=True, trust_remote_code=False, use_safetensors=True,
            output_loading_info=True, ignore_mismatched_sizes=True, **options,
        )  # fmt: skip  # a head of another number of labels gives way to ours
    check_complete(folder, found)
    # Those beside quantized weights come in the type they are stored in.
    for parameter in network.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    network.requires_grad_(False)
    network.config.use_cache = False
    network.score = make_head(head, network.config.get_text_config().hidden_size, seed).to(device)
    return network.eval()


def model_config(folder: str) -> Any:
    """The config of a model folder. Raises `ModelError` where `shape_of` refuses the model."""
    quiet()
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        said = " ".join(str(error).split())
        raise ModelError(f"{folder}: no usable config.json ({said})") from error
    try:
        shape_of(config)
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from error
    return config


def meta_model(config: Any) -> nn.Module:
    """The classifier of a config without its weights: parameters on the device `meta`, buffers real."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        network = transformers.AutoModelForSequenceClassification.from_config(
            config, dtype=torch.float32, attn_implementation=training_backend(config).implementation
        )
    return network.requires_grad_(False).eval()


@contextlib.contextmanager
def loading(folder: str) -> Iterator[None]:
    """Turn what transformers raises at weights it cannot load into a `ModelError` that names the folder."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{folder}: cannot be loaded ({reason(error)}); fetch or save the model anew"
        ) from error


def check_complete(folder: str, found: dict[str, Any]) -> None:
    """Raise `ModelError` where weights of the backbone were not in the folder: they would be random."""
    lacking = {*found["missing_keys"], *(str(name[0]) for name in found["mismatched_keys"])}
    lacking = {name for name in lacking if not name.startswith("score.")}
    if lacking:
        raise ModelError(
            f"{folder}: its weights lack {sorted(lacking)[0]} and {len(lacking) - 1} other tensors, "
            "or have them in another shape; fetch or save the model anew"
        )


def check_widths(folder: str, config: Any) -> None:
    """Raise `ModelError` where bitsandbytes has no products on a CPU with such weights in nf4."""
    heads = config.num_attention_heads * head_dim_of(config)
    odd = [each for each in (config.hidden_size, heads, config.intermediate_size) if each % NF4_BLOCK]
    if odd:
        raise ModelError(
            f"{folder}: has layers of {odd[0]} columns, and on a CPU nf4 takes multiples of {NF4_BLOCK}; "
            "use bnb-int8"
        )


def add_lora(network: nn.Module, config: LoraConfig, seed: int) -> nn.Module:
    """`network` wrapped by PEFT: an adapter on the layers that `config` names, and a head that trains whole.

    Raises:
        ConfigError: a target names no layer.
    """
    import peft

    check_targets(network, config)
    with torch.random.fork_rng(devices=[]), peft_warnings():
        torch.manual_seed(seed)
        wrapped = peft.get_peft_model(
            network,
            peft.LoraConfig(
                task_type="SEQ_CLS", r=config.r, lora_alpha=config.alpha, lora_dropout=config.dropout,  # pyright: ignore[reportArgumentType]
                bias="none", target_modules=list(config.targets), modules_to_save=["score"],
            ),
        )  # fmt: skip
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad and ".score." not in name:
            parameter.data = parameter.data.float()
    return wrapped


def check_targets(network: nn.Module, config: LoraConfig) -> None:
    """Raise `ConfigError` where a target of the adapter names no layer of the backbone."""
    leaves = {
        name.rsplit(".", 1)[-1]
        for name, module in network.get_submodule("model").named_modules()
        if isinstance(module, nn.Linear)
    }
    missing = [target for target in config.targets if target not in leaves]
    if missing:
        raise ConfigError(
            f"--lora.targets {' '.join(missing)}: no such layer; there are {', '.join(sorted(leaves))}"
        )


def compile_layers(network: nn.Module, backend: Any = "inductor") -> None:
    """Have the layers compiled for training, at their first forward: one compilation serves all layers and
    passes of any length. Evaluation runs them as they are.
    """
    model = unwrap_peft(network)
    model.enable_input_require_grads()  # else the first layer, whose input has no gradient, is compiled apart
    plain = type(model.model.layers[0]).forward
    compiled = compile_deterministic(plain, dynamic=True, backend=backend)

    def forward(self: nn.Module, *args: Any, **options: Any) -> Any:
        return (compiled if self.training else plain)(self, *args, **options)

    for layer in model.model.layers:
        layer.forward = types.MethodType(forward, layer)


def unwrap_peft(network: Any) -> Any:
    """The sequence-classification model, without PEFT's wrapper; adapters work inside its layers."""
    return network.get_base_model() if hasattr(network, "get_base_model") else network


def ordering_logits(network: nn.Module, layout: Layout) -> torch.Tensor:
    """Logits of each ordering of a micro-batch: float32 [S, 2], (first response wins, second wins).

    A device with bfloat16 weights computes under autocast, so that float32 adapters meet them in one type.
    """
    model = unwrap_peft(network)
    backbone = model.model
    embedding = backbone.get_input_embeddings().weight
    device, dtype = embedding.device, embedding.dtype
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        hidden = backbone(
            input_ids=torch.from_numpy(layout.tokens_BT).to(device),
            position_ids=torch.from_numpy(layout.positions_BT).to(device),
            use_cache=False,
            **training_backend(model.config).arguments(layout, dtype, device),
        ).last_hidden_state
    last = hidden.flatten(0, 1)[torch.from_numpy(layout.last_S).to(device)]
    with torch.autocast(device.type, enabled=False):
        return model.score(last.to(next(model.score.parameters()).dtype)).float()


def trainable_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Name to parameter of all that trains, in a fixed order."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


def preference_log_odds(logits_S2: torch.Tensor) -> torch.Tensor:
    """Log-odds that the response that stands first wins: float32 [S]."""
    return logits_S2[:, 0] - logits_S2[:, 1]


@contextlib.contextmanager
def peft_warnings() -> Iterator[None]:
    """Let pass what PEFT's use of transformers warns of: names that are to go in later versions.

    Its warning of tensors that an adapter lacks gives way to an error of ours.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        yield


def quiet() -> None:
    """Silence what transformers prints on every load: progress bars, and that `score` is new (it is ours)."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def set_threads(threads: int | None) -> None:
    """Bound the CPU threads of this process's products."""
    if threads:
        torch.set_num_threads(max(int(threads), 1))
