# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import)
"""Which rows are duplicates, whose prompts are known elsewhere, and which prompt groups go to valid.

Pure functions on digests, but for the one that takes them from files. A digest is 16 bytes of BLAKE2b; many
of them are a numpy array of dtype S16.
"""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wsdm_ray.data.cleaning import REASONS
from wsdm_ray.errors import DataError
from wsdm_ray.inputs.files import list_inputs, with_partitions
from wsdm_ray.inputs.tables import read_tables
from wsdm_ray.inputs.values import texts_of
from wsdm_ray.text.digests import DIGEST, digest, digests
from wsdm_ray.text.groups import prompt_group_key

__all__ = [
    "among",
    "choose_valid",
    "duplicate_reasons",
    "every_nth",
    "first_repeated",
    "group_digests",
    "pair_digests",
    "prompt_digests",
]

SAME_LABEL = 1e-9
"""Soft labels that differ by less are the same: 1 - (1 - p) is not p to the last bit."""


def group_digests(prompts: Iterable[str]) -> np.ndarray:
    """Digests of the normalized prompts (N, S16): prompts of one digest are one prompt group."""
    return digests(map(prompt_group_key, prompts))


def prompt_digests(paths: Sequence[str]) -> np.ndarray:
    """Digests of the normalized prompts of canonical shards, one a row, in file order (N, S16).

    They are what `pair_digests` and `group_digests` give for the same prompts. Files are read a few rows at a
    time, so that memory holds 16 bytes a row.

    Args:
        paths: files, folders or globs.

    Raises:
        DataError: a file cannot be read, has no column `prompt`, or a prompt is no text.
        StorageError: a path is missing or cannot be read.
    """
    parts = [np.empty(0, DIGEST)]
    for file in list_inputs(paths):
        done = 0
        for part in read_tables(file.path, {"prompt"}, {"prompt"}):
            table = with_partitions(part, file)
            if "prompt" not in table.column_names:
                there = ", ".join(table.column_names)
                raise DataError(f"{file.path}: no column 'prompt'; there are: {there}")
            prompts, _ = texts_of(table["prompt"], "prompt", file.path)
            row = pc.index(prompts.is_null(), True).as_py()
            if row >= 0:
                raise DataError(
                    f"{file.path}: the prompt of row {done + row} (counted from 0) is null or not UTF-8; "
                    "make canonical shards with `python -m jobs.prepare`"
                )
            parts.append(group_digests(prompts.to_pylist()))
            done += len(table)
    return np.concatenate(parts)


def among(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which digests are among others (N, bool).

    Args:
        values: digests (N,).
        known: digests in ascending order, as np.unique gives them (M,).
    """
    if not len(known):
        return np.zeros(len(values), bool)
    places = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return known[places] == values


def pair_digests(table: pa.Table, prob_a: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Digests of prompts and pairs; those of a pair do not depend on which response is response_a.

    Args:
        table: N rows with cleaned texts.
        prob_a: label of each row (N,).

    Returns:
        Digests of the normalized prompts (N,), digests of the pairs (N,), and the labels of the responses in
        sorted order (N,), so that the same pair the other way round with the opposite vote is the same thing.
    """
    prompts, pairs, swapped = [], [], []
    for prompt, a, b in zip(
        *(table[name].to_pylist() for name in ("prompt", "response_a", "response_b")), strict=True
    ):
        key = prompt_group_key(prompt)
        prompts.append(digest(key))
        swapped.append(a > b)
        pairs.append(digest(key, min(a, b), max(a, b)))
    return np.array(prompts, DIGEST), np.array(pairs, DIGEST), np.where(swapped, 1 - prob_a, prob_a)


def duplicate_reasons(pairs: np.ndarray, prob: np.ndarray) -> np.ndarray:
    """Index into `REASONS` of each row that repeats an earlier one or contradicts another, else -1 (N, int8).

    The first of several copies with the same label stays. Of copies with different labels none does.

    Args:
        pairs: digests from `pair_digests` (N,).
        prob: labels in sorted order, from `pair_digests` (N,).
    """
    _, first, group = np.unique(pairs, return_index=True, return_inverse=True)
    low, high = np.full(len(first), np.inf), np.full(len(first), -np.inf)
    np.minimum.at(low, group, prob)
    np.maximum.at(high, group, prob)
    conflict = (high - low > SAME_LABEL)[group]
    repeated = first[group] != np.arange(len(pairs))
    codes = [REASONS.index("conflicting_duplicate"), REASONS.index("duplicate")]
    return np.select([conflict, repeated], codes, default=-1).astype(np.int8)


def first_repeated(values: np.ndarray) -> int | None:
    """Index of the first value that was there before; None where all are different."""
    _, first = np.unique(values, return_index=True)
    if len(first) == len(values):
        return None
    seen = np.zeros(len(values), bool)
    seen[first] = True
    return int((~seen).argmax())


def every_nth(rows: int, fraction: float) -> np.ndarray:
    """Which rows go to valid (rows, bool): those whose number is a multiple of 1 / `fraction`, rounded."""
    if not fraction:
        return np.zeros(rows, bool)
    return np.arange(rows) % max(round(1 / fraction), 1) == 0


def choose_valid(prompts: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Which rows go to valid (N, bool): whole prompt groups, by the order of a hash, until there are enough.

    A group that would make valid more than twice as large as asked for, or leave train empty, is passed over.

    Args:
        prompts: digests of the normalized prompts (N,).
    """
    groups, group, sizes = np.unique(prompts, return_inverse=True, return_counts=True)
    salt = str(seed).encode()
    ranks = np.array(
        [hashlib.blake2b(name, digest_size=16, key=salt).digest() for name in groups.tolist()], DIGEST
    )
    wanted = fraction * len(prompts)
    most = min(2 * int(np.ceil(wanted)), len(prompts) - 1)
    taken = np.zeros(len(groups), bool)
    reached = 0
    for index in np.argsort(ranks, kind="stable").tolist():
        if reached >= wanted:
            break
        if reached + sizes[index] <= most:
            taken[index] = True
            reached += int(sizes[index])
    return taken[group]
