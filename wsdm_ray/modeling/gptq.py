"""8-bit rows that keep what products give on pairs like those to be scored, rather than each weight.

Layer by layer, the unquantized model runs some pairs, and what each product takes is summed up as second
moments. By them two things are done to a layer before its weights are stored:

    balanced   each column of a product's input is divided by the square root of its usual size, and the
               weight's column multiplied by it (SmoothQuant, Xiao et al. 2023, before columns are spread).
               What makes the input divides, a norm or the rows of values and of up, so it costs nothing.
    rounded    a row's weights are rounded one after another, and those that follow make good what each
               rounding did to the products (GPTQ, Frantar et al. 2023).

The pairs are held as hidden states, the weights of one layer at a time. Not covered: fp8, most of whose error
are the three bits of its activations.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from wsdm_ray.errors import DataError, ModelError
from wsdm_ray.modeling.attention import DenseAttention, Heads, to_device
from wsdm_ray.modeling.families import Shape
from wsdm_ray.modeling.fused_decoder import FUSED_LINEARS, FusedDecoder, FusedLayer, norms_of, qkv_heads
from wsdm_ray.modeling.loading import make_fused_decoder
from wsdm_ray.modeling.merging import Merged
from wsdm_ray.modeling.quantized_linear import (
    LARGEST,
    LinearWeight,
    QuantizedTensor,
    add,
    gated_linear,
    hadamard,
    hadamard_rotate,
    linear,
    rms_norm,
)
from wsdm_ray.packing.layouts import Layout, lay_out
from wsdm_ray.schema import TEXTS
from wsdm_ray.storage import open_parquet
from wsdm_ray.text.encoding import EncodedPairs

__all__ = ["calibrate", "gptq_round", "run_layer", "sample_texts", "smooth"]

LEAST_SIZE = 0.01
"""Of a column, as a share of the average one's: it may be larger in other pairs."""

DAMPING = 0.1
"""Share of the average second moment that is added to each column's own: pairs are few, and others differ."""

COLUMNS_AT_ONCE = 128
"""Columns that are rounded before those after them are told."""

READ_ROWS = 2_000
"""Rows of a file that are in memory at a time."""

Moments = dict[str, Tensor]
"""By product: the sum over tokens of the products of its input's columns, float32 [in, in]."""


def sample_texts(files: Sequence[str], number: int) -> tuple[list[str], list[str], list[str]]:
    """Prompts, responses a and responses b of so many rows of parquet files, or of all, chosen at random.

    The same files give the same rows. Rows without one of the texts are left out.

    Raises:
        DataError: a column is missing or holds no strings; no row has all three.
    """
    rows = 0
    for path in files:
        with open_parquet(path) as file:
            for name in TEXTS:
                kind = file.schema_arrow.field(name).type if name in file.schema_arrow.names else None
                if kind not in (pa.string(), pa.large_string()):
                    raise DataError(
                        f"{path}: no strings in column {name} ({kind or 'there is none'}); make canonical "
                        "shards with `python -m jobs.prepare`"
                    )
            rows += file.metadata.num_rows
    chosen = np.sort(np.random.default_rng(0).permutation(rows)[:number])
    found: list[tuple[str, str, str]] = []
    start = 0
    for path in files:
        with open_parquet(path) as file:
            for batch in file.iter_batches(READ_ROWS, columns=list(TEXTS), use_threads=False):
                here = chosen[(chosen >= start) & (chosen < start + len(batch))] - start
                start += len(batch)
                columns = (batch.column(name).take(pa.array(here)).to_pylist() for name in TEXTS)
                found += [texts for texts in zip(*columns, strict=True) if None not in texts]
    if not found:
        raise DataError(f"{files[0]}: no pairs to calibrate on; give files that hold some")
    prompts, responses_a, responses_b = map(list, zip(*found, strict=True))
    return prompts, responses_a, responses_b


@torch.no_grad()
def calibrate(
    merged: Merged, pairs: EncodedPairs, device: str
) -> Iterator[dict[str, QuantizedTensor | Tensor]]:
    """What changes in each layer, by the name of the parameter: int8 rows of weights, other float32 tensors.

    All are on the CPU. The layers come in their order; what is not among them stays as it is.

    Raises:
        ModelError: what a layer takes or gives is not finite.
    """
    stack = make_fused_decoder(merged, "none", device, torch.float32, num_layers=0)
    sides = [pairs.suffix_ab, pairs.suffix_ba]
    passes = [lay_out("shared", pairs.prefix, sides, np.array([pair])) for pair in range(len(pairs))]
    states = [stack.embed(to_device(each.tokens_BT.reshape(-1), device)) for each in passes]
    for number in range(len(stack.shape.layer_types)):
        layer = stack.layer(lambda name: merged.parameter(name, device), lambda _: None, number, "none")
        moments: Moments = {}
        states = [
            run_layer(state, each, stack, layer, number, moments)
            for state, each in zip(states, passes, strict=True)
        ]
        if not all(bool(each.isfinite().all()) for each in moments.values()):
            raise ModelError(
                f"{merged.base.folder}: layer {number} takes or gives numbers that are not finite; check its "
                "weights"
            )
        layer = smooth(layer, moments, stack.shape)
        rows = {
            product: gptq_round(getattr(layer, product).values, moments[product]) for product in FUSED_LINEARS
        }
        yield by_parameter(layer, rows, stack.shape, number, merged.base.shapes)


def run_layer(
    x_TD: Tensor, batch: Layout, stack: FusedDecoder, layer: FusedLayer, number: int, moments: Moments
) -> Tensor:
    """What a layer gives of a pass, [T, D]; what its products take is added to `moments`."""

    def noted(product: str, taken: Tensor) -> Tensor:
        if product not in moments:
            moments[product] = taken.new_zeros(taken.shape[1], taken.shape[1])
        moments[product].addmm_(taken.T, taken)
        return taken

    shape, norms, kind = stack.shape, layer.norms, stack.shape.layer_types[number]
    epsilon = shape.norm_epsilon
    attention = DenseAttention({kind}, shape.sliding_window, x_TD.device).update(batch)
    rotation = stack.rotation(x_TD, to_device(batch.positions_BT.reshape(-1), x_TD.device), kind)
    normed_TD = noted("qkv", rms_norm(x_TD, norms["attention_in"], epsilon))
    heads = Heads(*qkv_heads(normed_TD, layer, rotation, shape, late=False), shape.query_scale, shape.softcap)
    y_TD = linear(noted("o", attention.attend(heads, kind)), layer.o)
    x_TD = add(x_TD, y_TD, norms.get("attention_out"), epsilon)
    normed_TD = noted("gate_up", rms_norm(x_TD, norms["mlp_in"], epsilon))
    with_gelu = shape.activation == "gelu_pytorch_tanh"
    inner_TF = noted("down", gated_linear(normed_TD, layer.gate_up, with_gelu=with_gelu))
    return add(x_TD, linear(inner_TF, layer.down), norms.get("mlp_out"), epsilon)


def smooth(layer: FusedLayer, moments: Moments, shape: Shape) -> FusedLayer:
    """A layer that gives the same, whose products take inputs of columns of more equal size.

    `moments` become those of its inputs.
    """
    size = {product: column_scales(each.diagonal()) for product, each in moments.items()}
    # Query heads that share a head of values get their columns from the same rows.
    per_head = moments["o"].diagonal().view(shape.num_kv_heads, -1, shape.head_dim).mean(1)
    values = column_scales(per_head.flatten())
    group = shape.num_heads // shape.num_kv_heads
    size["o"] = values.view(shape.num_kv_heads, 1, -1).expand(-1, group, -1).flatten()
    for product, each in size.items():
        moments[product] = moments[product] / each / each[:, None]

    def scaled(product: str, last: Tensor | None = None) -> LinearWeight:
        weight: LinearWeight = getattr(layer, product)
        rows = torch.ones_like(weight.values[:, 0])
        if last is not None:
            rows[-len(last) :] = 1 / last
        bias = None if weight.bias is None else weight.bias * rows
        return weight._replace(values=weight.values * size[product] * rows[:, None], bias=bias)

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
    """Of the sums of columns' squares: the square roots of their root mean squares, on average about 1."""
    sizes = squares.sqrt()
    sizes = sizes / sizes.mean().clamp_min(torch.finfo(sizes.dtype).tiny)
    return sizes.clamp_min(LEAST_SIZE).sqrt()


def gptq_round(weight: Tensor, moments: Tensor) -> QuantizedTensor:
    """A weight in int8 rows, its columns spread, for inputs of these second moments.

    Each row's products differ from the exact ones by e M e^T on such inputs, where e is what rounding did to
    it; a weight's part in that is divided among the columns after it, by the inverse of M.

    Args:
        weight: float32 [out, in]. moments: float32 [in, in].
    """
    matrix = hadamard(weight)
    rest = hadamard_rotate(weight, matrix)
    scale = rest.abs().amax(1).clamp_min(1e-12) / LARGEST[torch.int8]
    upper = inverse_root(hadamard_rotate(hadamard_rotate(moments, matrix).T.contiguous(), matrix))
    values = torch.empty_like(rest, dtype=torch.int8)
    for start in range(0, rest.shape[1], COLUMNS_AT_ONCE):
        block = slice(start, min(start + COLUMNS_AT_ONCE, rest.shape[1]))
        errors = torch.empty_like(rest[:, block])
        for at, column in enumerate(range(block.start, block.stop)):
            nearest = (rest[:, column] / scale).round().clamp(-LARGEST[torch.int8], LARGEST[torch.int8])
            values[:, column] = nearest
            errors[:, at] = (rest[:, column] - nearest * scale) / upper[column, column]
            rest[:, column : block.stop] -= errors[:, at, None] * upper[column, column : block.stop]
        rest[:, block.stop :] -= errors @ upper[block, block.stop :]
    return QuantizedTensor(values, scale / len(matrix))


def inverse_root(moments: Tensor) -> Tensor:
    """The upper triangular matrix whose transpose times itself is the inverse of damped moments, float32."""
    wide = moments.double()
    wide.diagonal().add_(DAMPING * wide.diagonal().mean().clamp_min(torch.finfo(wide.dtype).tiny))
    lower = torch.linalg.cholesky(wide.flip(0, 1))
    one = torch.eye(len(wide), dtype=wide.dtype, device=wide.device)
    return torch.linalg.solve_triangular(lower, one, upper=False).flip(0, 1).float()


def by_parameter(
    layer: FusedLayer,
    rows: Mapping[str, QuantizedTensor],
    shape: Shape,
    number: int,
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, QuantizedTensor | Tensor]:
    """A balanced layer's tensors under the names that transformers has for them."""
    found: dict[str, QuantizedTensor | Tensor] = {}
    for product, names in FUSED_LINEARS.items():
        paths = [f"layers.{number}.{name}" for name in names]
        sizes = [shapes[f"{path}.weight"][0] for path in paths]
        values, scale = (each.cpu().split(sizes) for each in rows[product])
        bias = getattr(layer, product).bias
        biases = [None] * len(paths) if bias is None else bias.cpu().split(sizes)
        for path, *weight, part in zip(paths, values, scale, biases, strict=True):
            found[f"{path}.weight"] = QuantizedTensor(*weight)
            if part is not None:
                found[f"{path}.bias"] = part
    for norm in ("attention_in", "mlp_in"):
        name = f"layers.{number}.{norms_of(shape.family)[norm]}.weight"
        found[name] = (layer.norms[norm] - shape.family.norm_offset).cpu()
    return found
