"""Calibrated int8 weights: rounding that keeps the outputs on sample pairs, rather than each weight.

Layer by layer, the unquantized model runs some pairs, and the second moments of each linear layer's input are
summed up. They serve two steps before a layer's weights are stored:

    smooth       Each input column of a linear layer is divided by the square root of its typical size, and
                 the weight's column is multiplied by it (SmoothQuant, Xiao et al. 2023, before the Hadamard
                 rotation). The division is folded into what makes the input: a norm, or the rows of values
                 and of up. So it costs nothing at run time.
    gptq_round   The weights of a row are rounded one after another, and the later ones compensate what each
                 rounding did to the outputs (GPTQ, Frantar et al. 2023).

The pairs are held as hidden states, and the weights of one layer at a time. Not covered: fp8, most of whose
error comes from the three mantissa bits of its activations.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from wsdm_ray.errors import DataError, ModelError
from wsdm_ray.inputs.files import InputFile, with_partitions
from wsdm_ray.inputs.tables import read_tables
from wsdm_ray.inputs.values import texts_of
from wsdm_ray.modeling.attention import DenseAttention, Heads, to_device
from wsdm_ray.modeling.families import Shape
from wsdm_ray.modeling.fused_decoder import FusedDecoder
from wsdm_ray.modeling.fused_layer import FUSED_LINEARS, FusedLayer, norms_of, qkv_heads
from wsdm_ray.modeling.loading import make_fused_decoder
from wsdm_ray.modeling.merging import Merged
from wsdm_ray.modeling.quantized_linear import (
    QUANT_MAX,
    LinearWeight,
    QuantizedTensor,
    add_residual,
    gated_linear,
    hadamard,
    hadamard_rotate,
    linear,
    rms_norm,
)
from wsdm_ray.packing.layouts import Layout, lay_out
from wsdm_ray.schema import TEXTS
from wsdm_ray.text.encoding import EncodedPairs

__all__ = ["calibrate", "gptq_round", "run_layer", "sample_texts", "smooth"]

MIN_COLUMN_SIZE = 0.01
"""The smallest size of a column, relative to the average column: other pairs may use it more."""

DAMPING = 0.1
"""Share of the mean second moment that is added to each column's own, because the pairs are only a sample."""

COLUMNS_AT_ONCE = 128
"""Columns that are rounded before their errors update the columns after them."""

Moments = dict[str, Tensor]
"""By fused linear layer: the second moments of its input, summed over tokens, float32 [in, in]."""


def sample_texts(files: Sequence[InputFile], number: int) -> tuple[list[str], list[str], list[str]]:
    """Prompts, responses a and responses b of up to `number` random rows of files with canonical columns.

    The same files give the same rows. Rows that lack a text are left out.

    Raises:
        DataError: a column is missing or holds no texts; no row has all three.
    """
    rows = sum(len(table) for file in files for table in text_tables(file))
    chosen = np.sort(np.random.default_rng(0).permutation(rows)[:number])
    samples: list[tuple[str, str, str]] = []
    start = 0
    for table in (table for file in files for table in text_tables(file)):
        indices = chosen[(chosen >= start) & (chosen < start + len(table))] - start
        start += len(table)
        columns = (table[name].take(pa.array(indices)).to_pylist() for name in TEXTS)
        samples += [texts for texts in zip(*columns, strict=True) if None not in texts]
    if not samples:
        raise DataError(f"{files[0].path}: no pairs to calibrate on; give files that hold some")
    prompts, responses_a, responses_b = map(list, zip(*samples, strict=True))
    return prompts, responses_a, responses_b


def text_tables(file: InputFile) -> Iterator[pa.Table]:
    """The three texts of the rows of a file, a few rows at a time."""
    for part in read_tables(file.path, TEXTS, TEXTS):
        table = with_partitions(part, file)
        for name in TEXTS:
            if name not in table.column_names:
                raise DataError(
                    f"{file.path}: no column {name!r}; there are: {', '.join(table.column_names)}; make "
                    "canonical shards with `python -m jobs.prepare`"
                )
        yield pa.table({name: texts_of(table[name], name, file.path)[0] for name in TEXTS})


@torch.no_grad()
def calibrate(
    merged: Merged, pairs: EncodedPairs, device: str
) -> Iterator[dict[str, QuantizedTensor | Tensor]]:
    """What changes in each layer, by parameter name: quantized int8 weights, and other float32 tensors.

    All are on the CPU. The layers come in their order; parameters that are not named stay as they are.

    Raises:
        ModelError: an input or output of a layer is not finite.
    """
    decoder = make_fused_decoder(merged, "none", device, torch.float32, num_layers=0)
    orderings = [pairs.suffix_ab, pairs.suffix_ba]
    batches = [lay_out("shared", pairs.prefix, orderings, np.array([pair])) for pair in range(len(pairs))]
    states = [decoder.embed(to_device(batch.tokens_BT.reshape(-1), device)) for batch in batches]
    for number in range(len(decoder.shape.layer_types)):
        layer = decoder.make_layer(
            lambda name: merged.parameter(name, device), lambda _: None, number, "none"
        )
        moments: Moments = {}
        states = [
            run_layer(state, batch, decoder, layer, number, moments)
            for state, batch in zip(states, batches, strict=True)
        ]
        if not all(bool(moment.isfinite().all()) for moment in moments.values()):
            raise ModelError(
                f"{merged.base.folder}: layer {number} takes or gives numbers that are not finite; check its "
                "weights"
            )
        layer = smooth(layer, moments, decoder.shape)
        quantized = {name: gptq_round(getattr(layer, name).values, moments[name]) for name in FUSED_LINEARS}
        yield calibrated_parameters(layer, quantized, decoder.shape, number, merged.base.shapes)


def run_layer(
    x_TD: Tensor, batch: Layout, decoder: FusedDecoder, layer: FusedLayer, number: int, moments: Moments
) -> Tensor:
    """A layer's output for a batch, [T, D]; second moments of linear layers' inputs go to `moments`."""

    def observe(name: str, inputs: Tensor) -> Tensor:
        if name not in moments:
            moments[name] = inputs.new_zeros(inputs.shape[1], inputs.shape[1])
        moments[name].addmm_(inputs.T, inputs)
        return inputs

    shape, norms, layer_type = decoder.shape, layer.norms, decoder.shape.layer_types[number]
    epsilon = shape.norm_epsilon
    attention = DenseAttention({layer_type}, shape.sliding_window, x_TD.device).update(batch)
    rotation = decoder.rotation(x_TD, to_device(batch.positions_BT.reshape(-1), x_TD.device), layer_type)
    normed_TD = observe("qkv", rms_norm(x_TD, norms["attention_in"], epsilon))
    q, k, v = qkv_heads(normed_TD, layer, rotation, shape, rotate_in_attention=False)
    a_TD = attention.attend(Heads(q, k, v, shape.query_scale, shape.softcap), layer_type)
    x_TD = add_residual(x_TD, linear(observe("o", a_TD), layer.o), norms.get("attention_out"), epsilon)
    normed_TD = observe("gate_up", rms_norm(x_TD, norms["mlp_in"], epsilon))
    inner_TF = observe("down", gated_linear(normed_TD, layer.gate_up, activation=shape.activation))
    return add_residual(x_TD, linear(inner_TF, layer.down), norms.get("mlp_out"), epsilon)


def smooth(layer: FusedLayer, moments: Moments, shape: Shape) -> FusedLayer:
    """A layer with the same output, the inputs of whose linear layers have columns of more equal size.

    `moments` become those of the new inputs.
    """
    size = {name: column_scales(moment.diagonal()) for name, moment in moments.items()}
    # Query heads that share a key-value head get their columns from the same rows of values.
    per_head = moments["o"].diagonal().view(shape.num_kv_heads, -1, shape.head_dim).mean(1)
    values = column_scales(per_head.flatten())
    group = shape.num_heads // shape.num_kv_heads
    size["o"] = values.view(shape.num_kv_heads, 1, -1).expand(-1, group, -1).flatten()
    for name, columns in size.items():
        moments[name] = moments[name] / columns / columns[:, None]

    def scaled(name: str, last: Tensor | None = None) -> LinearWeight:
        weight: LinearWeight = getattr(layer, name)
        rows = torch.ones_like(weight.values[:, 0])
        if last is not None:
            rows[-len(last) :] = 1 / last
        bias = None if weight.bias is None else weight.bias * rows
        return weight._replace(values=weight.values * size[name] * rows[:, None], bias=bias)

    norms = {
        "attention_in": layer.norms["attention_in"] / size["qkv"],
        "mlp_in": layer.norms["mlp_in"] / size["gate_up"],
    }
    return FusedLayer(
        qkv=scaled("qkv", values),
        o=scaled("o"),
        gate_up=scaled("gate_up", size["down"]),
        down=scaled("down"),
        norms=layer.norms | norms,
    )


def column_scales(squares: Tensor) -> Tensor:
    """The square roots of columns' root mean squares, on average about 1, from their sums of squares."""
    sizes = squares.sqrt()
    sizes = sizes / sizes.mean().clamp_min(torch.finfo(sizes.dtype).tiny)
    return sizes.clamp_min(MIN_COLUMN_SIZE).sqrt()


def gptq_round(weight: Tensor, moments: Tensor) -> QuantizedTensor:
    """A weight in int8 after the Hadamard rotation, rounded for inputs of these second moments.

    The squared error of a row's outputs on such inputs is e M e^T, where e is the row's rounding error and M
    the moments. The error of a weight is distributed over the columns after it, by the inverse of M.

    Args:
        weight: float32 [out, in]. moments: float32 [in, in].
    """
    matrix = hadamard(weight)
    rest = hadamard_rotate(weight, matrix)
    scale = rest.abs().amax(1).clamp_min(1e-12) / QUANT_MAX[torch.int8]
    upper = inverse_root(hadamard_rotate(hadamard_rotate(moments, matrix).T.contiguous(), matrix))
    values = torch.empty_like(rest, dtype=torch.int8)
    for start in range(0, rest.shape[1], COLUMNS_AT_ONCE):
        block = slice(start, min(start + COLUMNS_AT_ONCE, rest.shape[1]))
        errors = torch.empty_like(rest[:, block])
        for offset, column in enumerate(range(block.start, block.stop)):
            nearest = (rest[:, column] / scale).round().clamp(-QUANT_MAX[torch.int8], QUANT_MAX[torch.int8])
            values[:, column] = nearest
            errors[:, offset] = (rest[:, column] - nearest * scale) / upper[column, column]
            rest[:, column : block.stop] -= errors[:, offset, None] * upper[column, column : block.stop]
        rest[:, block.stop :] -= errors @ upper[block, block.stop :]
    return QuantizedTensor(values, scale / len(matrix))


def inverse_root(moments: Tensor) -> Tensor:
    """The upper triangular matrix whose transpose times itself is the inverse of damped moments, float32."""
    wide = moments.double()
    wide.diagonal().add_(DAMPING * wide.diagonal().mean().clamp_min(torch.finfo(wide.dtype).tiny))
    lower = torch.linalg.cholesky(wide.flip(0, 1))
    one = torch.eye(len(wide), dtype=wide.dtype, device=wide.device)
    return torch.linalg.solve_triangular(lower, one, upper=False).flip(0, 1).float()


def calibrated_parameters(
    layer: FusedLayer,
    quantized: Mapping[str, QuantizedTensor],
    shape: Shape,
    number: int,
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, QuantizedTensor | Tensor]:
    """A smoothed layer's tensors by their names in transformers."""
    parameters: dict[str, QuantizedTensor | Tensor] = {}
    for fused_name, names in FUSED_LINEARS.items():
        paths = [f"layers.{number}.{name}" for name in names]
        sizes = [shapes[f"{path}.weight"][0] for path in paths]
        values, scale = (tensor.cpu().split(sizes) for tensor in quantized[fused_name])
        bias = getattr(layer, fused_name).bias
        biases = [None] * len(paths) if bias is None else bias.cpu().split(sizes)
        for path, *weight, bias_part in zip(paths, values, scale, biases, strict=True):
            parameters[f"{path}.weight"] = QuantizedTensor(*weight)
            if bias_part is not None:
                parameters[f"{path}.bias"] = bias_part
    for norm in ("attention_in", "mlp_in"):
        name = f"layers.{number}.{norms_of(shape.family)[norm]}.weight"
        parameters[name] = (layer.norms[norm] - shape.family.norm_offset).cpu()
    return parameters
