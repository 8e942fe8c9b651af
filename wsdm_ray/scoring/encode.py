# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import)
"""The CPU half of scoring a work unit: texts to token ids, as one Arrow table.

A unit travels to its replica as the bytes of that table in one cell, so that Ray Data can neither split nor
join it.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wsdm_ray.config import TextConfig
from wsdm_ray.errors import ModelError
from wsdm_ray.packing.ragged import Ragged
from wsdm_ray.schema import TEXTS
from wsdm_ray.scoring.kept_columns import NO_COLUMNS, encoded_kept
from wsdm_ray.scoring.model_spec import ModelSpec
from wsdm_ray.scoring.plan import WorkUnit
from wsdm_ray.scoring.unit_rows import read_ids, read_with_kept
from wsdm_ray.storage import copy_of_files
from wsdm_ray.text.encoding import TOKENIZER_FILES, EncodedPairs, PairEncoder, ba_first
from wsdm_ray.text.normalize import fix_text

__all__ = [
    "encode_texts",
    "encode_unit",
    "encode_without_texts",
    "encoded_pairs",
    "encoder_of",
    "table_from_bytes",
    "table_to_bytes",
]

SLICE_CHARACTERS = 1_000_000
"""Characters of texts that are tokenized at a time: a tokenizer takes some 50 bytes for each."""


@functools.lru_cache(maxsize=4)
def encoder_of(folder: str, text: TextConfig) -> PairEncoder:
    """The encoder of a model: one in each process, kept for the units that follow."""
    with copy_of_files(folder, TOKENIZER_FILES) as files:
        try:
            return PairEncoder(files, text)
        except ModelError as error:
            raise ModelError(str(error).replace(files, folder)) from error


def encode_unit(unit: WorkUnit, models: Sequence[ModelSpec], keep: pa.Schema = NO_COLUMNS) -> pa.Table:
    """The unit's rows as an Arrow table of ids, errors, columns to keep and, for each model, token ids.

    A row with a fault or a null text has an `error` and the token ids of empty texts.
    """
    (rows, faults), kept = read_with_kept(unit, keep)
    lengths_N = np.sum([pc.binary_length(rows[name]).fill_null(0).to_numpy() for name in TEXTS], axis=0)
    tables = []
    for part in bounded_slices(lengths_N):
        few = rows.slice(part.start, part.stop - part.start)
        texts, errors_N = readable_texts(few)
        for row in faults.keys() & set(range(part.start, part.stop)):
            errors_N[row - part.start] = str(faults[row])
        tables.append(encode_texts(few.column("id"), texts, errors_N, models))
    encoded = pa.concat_tables(tables).combine_chunks()
    for name in kept.column_names:
        encoded = encoded.append_column(name, kept[name])
    return encoded


def encode_without_texts(
    unit: WorkUnit, error: str, models: Sequence[ModelSpec], keep: pa.Schema = NO_COLUMNS
) -> pa.Table:
    """The unit's rows, as of `encode_unit`, each with `error`; of its files, only the ids are read."""
    texts = {str(name): [""] * unit.rows for name in TEXTS}
    encoded = encode_texts(read_ids(unit), texts, np.full(unit.rows, error, object), models)
    for name, column in encoded_kept(encoded.select([]), [""] * len(keep), keep):
        encoded = encoded.append_column(name, column)
    return encoded


def bounded_slices(lengths_N: np.ndarray) -> Iterator[slice]:
    """Rows, one after the other, in slices of at most `SLICE_CHARACTERS`, or of one row.

    Args:
        lengths_N: int [N], characters or bytes of the texts of each row; N is at least 1.
    """
    ends_N = np.cumsum(lengths_N)
    start = 0
    while start < len(ends_N):
        most = (ends_N[start - 1] if start else 0) + SLICE_CHARACTERS
        stop = max(int(np.searchsorted(ends_N, most, side="right")), start + 1)
        yield slice(start, stop)
        start = stop


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
    lengths_N = np.sum([[len(text) for text in texts[name]] for name in TEXTS], axis=0)
    parts = [
        encode_few({name: texts[name][part] for name in TEXTS}, models) for part in bounded_slices(lengths_N)
    ]
    table = pa.concat_tables(parts).combine_chunks()
    return table.add_column(0, "error", pa.array(errors_N, pa.string())).add_column(0, "id", ids)


def encode_few(texts: Mapping[str, Sequence[str]], models: Sequence[ModelSpec]) -> pa.Table:
    """Token ids of rows that are few enough to be tokenized at once; their texts are repaired once."""
    first_N = ba_first(texts["response_a"], texts["response_b"])
    fixed = [[fix_text(text) for text in texts[name]] for name in TEXTS]
    encoded = {"ba_first": pa.array(first_N)}  # the same for every model
    for number, model in enumerate(models):
        pairs = encoder_of(model.folder, model.manifest.text).encode_fixed(fixed, first_N)
        encoded |= {
            f"prefix_{number}": pairs.prefix.to_arrow(),
            f"suffix_ab_{number}": pairs.suffix_ab.to_arrow(),
            f"suffix_ba_{number}": pairs.suffix_ba.to_arrow(),
            f"cut_{number}": pa.array(pairs.cut_tokens_N),
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
