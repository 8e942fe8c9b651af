"""The frozen weights and adapters of a network of transformers as `training_linear` takes them.

Weights of layers with the same input are laid side by side; the modules keep views of them, so nothing is
held twice.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wsdm_ray.config import HeadConfig
from wsdm_ray.errors import ModelError
from wsdm_ray.modeling.classifier import meta_model
from wsdm_ray.modeling.head import make_head
from wsdm_ray.modeling.merging import Merged, read_base
from wsdm_ray.modeling.quantization_config import NF4_BLOCK
from wsdm_ray.modeling.quantized_linear import LinearWeight, pack_weight
from wsdm_ray.modeling.training_linear import (
    AdaptedLinear,
    Adapter,
    FrozenWeight,
    adapted_linear,
)

__all__ = ["RowsLinear", "adapted_linear_of", "load_rows_network", "to_rows"]


class RowsLinear(nn.Linear):
    """A frozen linear layer whose weight is in rows of 8 bits; its GEMMs are of 8 bits both ways.

    PEFT takes it for an `nn.Linear`: its `weight` is empty, and only says device and type.
    """

    values: Tensor
    scale: Tensor
    hadamard: Tensor | None

    def __init__(self, packed: LinearWeight, dtype: torch.dtype):
        nn.Module.__init__(self)
        self.out_features, self.in_features = packed.values.shape
        empty = torch.empty(0, dtype=dtype, device=packed.values.device)
        self.weight = nn.Parameter(empty, requires_grad=False)
        self.bias = None if packed.bias is None else nn.Parameter(packed.bias, requires_grad=False)
        for name in ("values", "scale", "hadamard"):
            self.register_buffer(name, getattr(packed, name), persistent=False)
        self.fused = packed.fused

    def frozen(self) -> FrozenWeight:
        shape = (self.out_features, self.in_features)
        return FrozenWeight(self.values, self.scale, self.hadamard, self.fused, True, shape)

    def forward(self, input: Tensor) -> Tensor:
        layer = AdaptedLinear(self.frozen(), self.bias, (), 0.0)
        out = adapted_linear(input.reshape(-1, self.in_features), layer, None)
        return out.view(*input.shape[:-1], self.out_features)


def load_rows_network(
    folder: str, head: HeadConfig, *, seed: int, device: str, dtype: torch.dtype, quantization: str
) -> nn.Module:
    """As `load_network`, its linear layers in rows of 8 bits, by a precision of `TYPES`.

    Weights that are stored so are taken as they are, others are quantized on the device, one at a time.
    """
    merged = Merged(base=read_base(folder))
    network: Any = meta_model(merged.base.config)
    backbone: Any = network.get_submodule("model")
    for name, layer in list(backbone.named_modules()):
        if type(layer) is not nn.Linear:
            continue
        weight = merged.rows(f"{name}.weight", quantization, device)
        if weight is None:
            weight = merged.parameter(f"{name}.weight", device)
        biases = [] if layer.bias is None else [merged.parameter(f"{name}.bias", device)]
        packed = pack_weight([weight], biases, quantization, device=device, dtype=dtype)
        put(backbone, name, RowsLinear(packed, dtype))
    for name, parameter in list(backbone.named_parameters()):
        if parameter.is_meta:
            value = merged.parameter(name, device).to(dtype)
            path, _, leaf = name.rpartition(".")
            setattr(backbone.get_submodule(path), leaf, nn.Parameter(value, requires_grad=False))
    backbone.to(device)  # what is left are buffers
    network.config.use_cache = False
    network.score = make_head(head, network.config.get_text_config().hidden_size, seed).to(device)
    return network.eval()


def put(backbone: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of another."""
    path, _, leaf = name.rpartition(".")
    setattr(backbone.get_submodule(path), leaf, module)


def to_rows(backbone: nn.Module, precision: str, dtype: torch.dtype) -> None:
    """Make every linear layer a `RowsLinear` in place, one at a time, by a precision of `TYPES`."""
    for name, layer in list(backbone.named_modules()):
        if type(layer) is nn.Linear:
            biases = [] if layer.bias is None else [layer.bias.data]
            packed = pack_weight(
                [layer.weight.data], biases, precision, device=layer.weight.device, dtype=dtype
            )
            put(backbone, name, RowsLinear(packed, dtype))


def adapted_linear_of(modules: Sequence[nn.Module], dtype: torch.dtype, names: str) -> AdaptedLinear:
    """Linear layers with the same input, wrapped by PEFT or not, as one.

    Args:
        dtype: of activations.
        names: of the layers, for messages.
    """
    bases: list[Any] = [getattr(module, "base_layer", module) for module in modules]
    biases = [base.bias.detach().to(dtype) for base in bases if base.bias is not None]
    adapters, start, dropout = [], 0, 0.0
    for module, base in zip(modules, bases, strict=True):
        if (factors := lora_factors(module)) is not None:
            A, B, scale, dropout = factors
            adapters.append(Adapter(A, B, scale, start))
        start += base.out_features
    return AdaptedLinear(
        weight=frozen_weight(bases, dtype, names),
        bias=torch.cat(biases) if biases else None,
        adapters=tuple(adapters),
        dropout=dropout,
    )


def lora_factors(module: Any) -> tuple[Tensor, Tensor, float, float] | None:
    """A and B of a layer that PEFT has wrapped, the scale of their product, and the share of dropout."""
    if not hasattr(module, "lora_A"):
        return None
    [name] = module.active_adapters
    dropout = getattr(module.lora_dropout[name], "p", 0.0)
    return module.lora_A[name].weight, module.lora_B[name].weight, float(module.scaling[name]), dropout


def frozen_weight(bases: Sequence[Any], dtype: torch.dtype, names: str) -> FrozenWeight:
    """The weights of linear layers with the same input as one, of which the layers keep views.

    Raises:
        ModelError: some are quantized and others are not.
    """
    rows = sum(base.out_features for base in bases)
    shape = (rows, bases[0].in_features)
    if all(isinstance(base, RowsLinear) for base in bases):
        values, scale = side_by_side(bases, "values"), side_by_side(bases, "scale")
        return FrozenWeight(values, scale, bases[0].hadamard, all(base.fused for base in bases), True, shape)
    if all(hasattr(base.weight, "quant_state") for base in bases):
        return nf4_weight(bases, shape)
    if all(hasattr(base, "state") for base in bases):
        return int8_weight(bases, shape)
    if not all(base.weight.data.is_floating_point() for base in bases):
        raise ModelError(
            f"--base: of {names}, which training runs as one, some are quantized and others are not "
            "(llm_int8_skip_modules); take a base whose layers are alike, or the unquantized model"
        )
    values = torch.cat([base.weight.data.to(dtype) for base in bases])
    for base, part in zip(bases, values.split([base.out_features for base in bases]), strict=True):
        base.weight.data = part
    return FrozenWeight(values, None, None, False, False, shape)


def side_by_side(bases: Sequence[Any], name: str) -> Tensor:
    """A buffer of several layers, concatenated by rows; each layer's own becomes a view."""
    joined = torch.cat([getattr(base, name) for base in bases])
    for base, part in zip(bases, joined.split([base.out_features for base in bases]), strict=True):
        setattr(base, name, part)
    return joined


def int8_weight(bases: Sequence[Any], shape: tuple[int, int]) -> FrozenWeight:
    """Of bitsandbytes' int8 layers, each row with its largest absolute value for 127."""
    for base in bases:
        if base.weight.CB is not None:
            base.init_8bit_state()  # as its own first forward does
    values = torch.cat([base.state.CB for base in bases])
    scale = torch.cat([base.state.SCB for base in bases]).float() / 127
    for base, part in zip(bases, values.split([base.out_features for base in bases]), strict=True):
        base.state.CB = base.weight.data = part
    return FrozenWeight(values, scale, None, False, False, shape)


def nf4_weight(bases: Sequence[Any], shape: tuple[int, int]) -> FrozenWeight:
    """Of bitsandbytes' 4-bit layers; scales that are quantized themselves are held in float32."""
    from bitsandbytes.functional import dequantize_blockwise

    scales = []
    for base in bases:
        state = base.weight.quant_state
        assert state.blocksize == NF4_BLOCK, state.blocksize
        assert state.quant_type == "nf4", state.quant_type
        scale = state.absmax
        if state.nested:
            scale = dequantize_blockwise(scale, state.state2) + state.offset
        scales.append(scale.float().flatten())
    values = torch.cat([base.weight.data.flatten() for base in bases])[:, None]
    sizes = [base.weight.data.numel() for base in bases]
    for base, part in zip(bases, values.split(sizes), strict=True):
        base.weight.data = part
    return FrozenWeight(values, torch.cat(scales), None, False, False, shape)
