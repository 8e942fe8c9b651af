"""Pairs in memory (frames, tables, data sets, iterables) to texts: what `Judge.score` takes.

Not covered: files (`wsdm_ray.inputs`).
"""

import difflib
import math
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from wsdm_ray.config import Columns
from wsdm_ray.errors import DataError
from wsdm_ray.inputs.cells import MalformedRowError
from wsdm_ray.inputs.messages import looks_like_lists, text_of
from wsdm_ray.inputs.rows import own_columns
from wsdm_ray.schema import TEXTS

__all__ = ["PairRows", "read_pair_rows"]


@dataclass(frozen=True, kw_only=True)
class PairRows:
    """N pairs in the order given.

    texts: by canonical column, N each; "" for what cannot be read.
    errors_N: object [N], why a row cannot be scored, else None.
    ids: as they were given; None where there were none.
    index: of the frame given, else 0 to N - 1.
    """

    texts: Mapping[str, Sequence[str]]
    errors_N: np.ndarray
    ids: pd.Series | None
    index: pd.Index

    def __len__(self) -> int:
        return len(self.errors_N)


def read_pair_rows(rows: Any, columns: Columns) -> PairRows:
    """The pairs of a frame, table, data set, or iterable of dicts or of (prompt, response_a, response_b).

    Args:
        columns: the names that the input gives to the canonical columns.

    Raises:
        DataError: it is nothing of that kind, or lacks a column, or a column of it holds no text.
    """
    if isinstance(rows, pd.DataFrame):
        names = [str(name) for name in rows.columns]
        columns = own_columns(names, columns)
        check_names(names, columns)
        ids: Any = rows[columns.id] if columns.id in rows.columns else None
        return pair_rows(lambda name: rows[name].tolist(), columns, ids, rows.index)
    table = as_table(rows)
    if table is not None:
        columns = own_columns(table.column_names, columns)
        check_names(table.column_names, columns)
        ids = None
        if columns.id in table.column_names:
            ids = table.select([columns.id]).to_pandas(integer_object_nulls=True)[columns.id]
        return pair_rows(
            lambda name: values_of(table.column(name)), columns, ids, pd.RangeIndex(table.num_rows)
        )
    return rows_one_by_one(rows, columns)


def as_table(rows: Any) -> pa.Table | None:
    """The Arrow table of what is one, or offers its columns as one; else None."""
    datasets = sys.modules.get("datasets")  # whoever gives one of its data sets has imported it
    if datasets is not None and isinstance(rows, datasets.Dataset):
        return rows.with_format("arrow")[:]
    if isinstance(rows, pa.RecordBatch):
        return pa.Table.from_batches([rows])
    if not hasattr(rows, "__arrow_c_stream__"):
        return None
    try:
        return pa.table(rows)
    except pa.ArrowException as error:  # one column, such as a Series
        raise DataError(
            f"a {type(rows).__name__}, which is no table: give a DataFrame, or a list of dicts or of "
            "(prompt, response_a, response_b)"
        ) from error


def values_of(column: pa.ChunkedArray) -> list[Any]:
    """The values of a column; bytes where some text of it is not UTF-8."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return column.cast(pa.large_binary()).to_pylist()


def rows_one_by_one(rows: Any, columns: Columns) -> PairRows:
    """The pairs of an iterable of dicts or of (prompt, response_a, response_b)."""
    kind = type(rows).__name__
    if isinstance(rows, Mapping):
        raise DataError(
            f"a {kind} of {', '.join(map(str, rows))}: give one table of it (such as rows['train']), a list "
            "of rows, or pandas.DataFrame(rows)"
        )
    if isinstance(rows, str | bytes) or not isinstance(rows, Iterable):
        raise DataError(
            f"a {kind}: give a DataFrame (collect() a lazy one), a table, a data set, or a list of dicts or "
            "of (prompt, response_a, response_b)"
        )
    values: dict[str, list[Any]] = {name: [] for name in TEXTS}
    ids: list[Any] = []
    names: dict[str, None] = {}
    by_name = False
    for number, row in enumerate(rows):
        if isinstance(row, Mapping):
            by_name = True
            names |= dict.fromkeys(row)
            ids.append(row.get(columns.id))
            triple = [row.get(getattr(columns, name)) for name in TEXTS]
        elif isinstance(row, tuple | list) and len(row) == len(TEXTS):
            ids.append(None)
            triple = row
        else:
            size = f" of {len(row)}" if isinstance(row, tuple | list) else ""
            raise DataError(
                f"row {number} (counted from 0) is a {type(row).__name__}{size}; give a dict or (prompt, "
                "response_a, response_b)"
            )
        for name, value in zip(TEXTS, triple, strict=True):
            values[name].append(value)
    if by_name:
        check_names(list(names), columns)
    known = pd.Series(ids, dtype=object if None in ids else None) if columns.id in names else None
    by_column = {getattr(columns, name): values[name] for name in TEXTS}
    return pair_rows(by_column.__getitem__, columns, known, pd.RangeIndex(len(ids)))


def check_names(names: Sequence[str], columns: Columns) -> None:
    """Raise `DataError` for a text column that is not among the names, or among them twice."""
    for canonical in TEXTS:
        name = getattr(columns, canonical)
        if names.count(name) > 1:
            raise DataError(f"has the column {name!r} {names.count(name)} times; rename one")
        if name not in names:
            raise DataError(
                f"no column {name!r}; {nearest(name, names)}give columns={{{canonical!r}: NAME}}; "
                f"there are: {', '.join(names) or 'none'}"
            )


def nearest(name: str, names: Collection[str]) -> str:
    near = difflib.get_close_matches(name, names, 1)
    return f"did you mean {near[0]!r}? " if near else ""


def pair_rows(
    column: Callable[[str], Sequence[Any]], columns: Columns, ids: pd.Series | None, index: pd.Index
) -> PairRows:
    """The pairs whose values `column` gives by the input's own names."""
    texts: dict[str, list[str]] = {}
    errors_N = np.full(len(index), None, object)
    values_of_text = {name: column(getattr(columns, name)) for name in TEXTS}
    read_text = text_of_list if all(map(are_lists, values_of_text.values())) else text_of_value
    for canonical, values in values_of_text.items():
        name = getattr(columns, canonical)
        read = [read_text(value) for value in values]
        wrong = [value for value, (_, why) in zip(values, read, strict=True) if why and NOT_TEXT in why]
        if wrong and all(why for _, why in read):
            raise DataError(f"column {name!r} holds values of type {type(wrong[0]).__name__}{NOT_TEXT}")
        texts[canonical] = [text for text, _ in read]
        for row, (_, why) in enumerate(read):
            if why:
                errors_N[row] = errors_N[row] or f"{canonical} {why}"
    return PairRows(texts=texts, errors_N=errors_N, ids=ids, index=index)


NOT_TEXT = ", not text"


def are_lists(values: Sequence[Any]) -> bool:
    """Whether all that is not null is a list of turns or messages, as such or as its JSON."""
    some = [value for value in values if not (value is None or isinstance(value, float))]
    if some and all(isinstance(value, str) for value in some):
        return looks_like_lists(some)
    return bool(some) and all(isinstance(value, list | tuple | np.ndarray) for value in some)


def text_of_list(value: Any) -> tuple[str, str | None]:
    """The text of a list of turns or messages, joined as in files, and why there is none."""
    if value is None or isinstance(value, float):
        return text_of_value(value)
    try:
        return text_of(value if isinstance(value, str) else list(value)) or "", None
    except MalformedRowError as error:
        return "", str(error)


def text_of_value(value: Any) -> tuple[str, str | None]:
    """A value as text, and why it is none; the text is "" then."""
    if isinstance(value, str):
        return value, None
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return "", "is null"
    if isinstance(value, bytes):
        try:
            return value.decode(), None
        except UnicodeDecodeError:
            return "", "is not UTF-8"
    return "", f"is of type {type(value).__name__}{NOT_TEXT}"
