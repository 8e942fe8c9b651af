"""The CPU half of scoring a work unit: texts to token ids, as one Arrow table.

A unit travels to its replica as the bytes of that table in one cell, so that Ray Data can neither split nor
join it.
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from wsdm_ray.config import TextConfig
from wsdm_ray.packing.ragged import Ragged
from wsdm_ray.schema import TEXTS
from wsdm_ray.scoring.kept_columns import NO_COLUMNS, encoded_kept, kept_names
from wsdm_ray.scoring.model_spec import ModelSpec
from wsdm_ray.scoring.plan import WorkUnit, canonical_unit, own_names, read_columns, read_unit_ids
from wsdm_ray.storage import local_copy
from wsdm_ray.text.encoding import EncodedPairs, PairEncoder

__all__ = [
    "encode_texts",
    "encode_unit",
    "encode_without_texts",
    "encoded_pairs",
    "encoder_of",
    "table_from_bytes",
    "table_to_bytes",
]


@functools.lru_cache(maxsize=4)
def encoder_of(folder: str, text: TextConfig) -> PairEncoder:
    """The encoder of a model: one in each process, kept for the units that follow."""
    return PairEncoder(local_copy(folder), text)


def encode_unit(unit: WorkUnit, models: Sequence[ModelSpec], keep: pa.Schema = NO_COLUMNS) -> pa.Table:
    """The unit's rows as an Arrow table of ids, errors, columns to keep and, for each model, token ids.

    A row with a fault or a null text has an `error` and the token ids of empty texts.
    """
    pair, kept = own_names(unit.source), kept_names(unit.source, keep)
    table = read_columns(unit, (*pair, *kept))
    rows, faults = canonical_unit(unit, table.select([name for name in pair if name in table.column_names]))
    texts, errors_N = readable_texts(rows)
    for row, fault in faults.items():
        errors_N[row] = str(fault)
    encoded = encode_texts(rows.column("id"), texts, errors_N, models)
    for name, column in encoded_kept(table, kept, keep):
        encoded = encoded.append_column(name, column)
    return encoded


def encode_without_texts(
    unit: WorkUnit, error: str, models: Sequence[ModelSpec], keep: pa.Schema = NO_COLUMNS
) -> pa.Table:
    """The unit's rows, as of `encode_unit`, each with `error`; of its files, only the ids are read."""
    ids = read_unit_ids(unit)
    texts = {str(name): [""] * unit.rows for name in TEXTS}
    encoded = encode_texts(ids, texts, np.full(unit.rows, error, object), models)
    for name, column in encoded_kept(encoded.select([]), kept_names(unit.source, keep), keep):
        encoded = encoded.append_column(name, column)
    return encoded


def readable_texts(rows: pa.Table) -> tuple[dict[str, list[str]], np.ndarray]:
    """The texts of rows by column, "" where one is null, and why a row has an error, or None: object [N]."""
    texts, errors_N = {}, np.full(len(rows), None, object)
    for name in reversed(TEXTS):  # the first one names the error
        errors_N[rows.column(name).is_null().to_numpy()] = f"{name} is null"
        texts[name] = [value or "" for value in rows.column(name).to_pylist()]
    return texts, errors_N


def encode_texts(
    ids: pa.Array | pa.ChunkedArray,
    texts: Mapping[str, Sequence[str]],
    errors_N: np.ndarray,
    models: Sequence[ModelSpec],
) -> pa.Table:
    """N rows as an Arrow table of ids, errors and, for each model, token ids.

    Args:
        texts: prompts and responses by canonical column, N each; "" for what cannot be read.
        errors_N: object [N], why a row cannot be scored, else None.
    """
    encoded = {"id": ids, "error": pa.array(errors_N, pa.string())}
    for number, model in enumerate(models):
        pairs = encoder_of(model.folder, model.manifest.text).encode(*(texts[name] for name in TEXTS))
        encoded |= {
            f"prefix_{number}": pairs.prefix.to_arrow(),
            f"suffix_ab_{number}": pairs.suffix_ab.to_arrow(),
            f"suffix_ba_{number}": pairs.suffix_ba.to_arrow(),
            f"cut_{number}": pa.array(pairs.cut_tokens_N),
            "ba_first": pa.array(pairs.ba_first_N),  # the same for every model
        }
    return pa.table(encoded)


def encoded_pairs(encoded: pa.Table, number: int) -> EncodedPairs:
    """The pairs of a table of `encode_unit`, as model `number` reads them."""
    prefix, suffix_ab, suffix_ba = (
        Ragged.from_arrow(encoded.column(f"{name}_{number}")) for name in ("prefix", "suffix_ab", "suffix_ba")
    )
    cut, ba_first = (encoded.column(name).to_numpy() for name in (f"cut_{number}", "ba_first"))
    return EncodedPairs(prefix, suffix_ab, suffix_ba, cut, ba_first)


def table_to_bytes(table: pa.Table) -> bytes:
    """The table as an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def table_from_bytes(data: bytes) -> pa.Table:
    """The table of an Arrow stream."""
    return pa.ipc.open_stream(data).read_all()
