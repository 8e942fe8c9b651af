"""The splits of `votes_study.py` by prompt: held-out votes, votes to choose a checkpoint by, and folds."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from wsdm_ray.config import PrepareConfig
from wsdm_ray.data.prepare import prepare
from wsdm_ray.data.splitting import group_digests
from wsdm_ray.storage import write_parquet

__all__ = [
    "choose_by_prompt",
    "fold_folder",
    "split",
    "split_folds",
    "split_sources",
    "split_train",
    "write_unvoted",
]

pc: Any = pyarrow.compute  # its functions are made at import, unseen by type checkers


def split(votes: str, work: Path) -> None:
    """A fifth to judge by, by prompt; of the rest a tenth to choose by, by prompt and by row number."""
    prepare(PrepareConfig(input=(votes,), output=f"{work}/outer", valid_fraction=0.2))
    choose_by_prompt(work)
    rest = (f"{work}/outer/train",)
    prepare(PrepareConfig(input=rest, output=f"{work}/by_row", valid_fraction=0.1, split="modulo"))


def choose_by_prompt(work: Path) -> None:
    rest = (f"{work}/outer/train",)
    prepare(PrepareConfig(input=rest, output=f"{work}/by_prompt", valid_fraction=0.1))


def split_folds(work: Path, folds: int) -> None:
    """For each fold but the first (`split`), the votes that it holds out and a split of the rest, by prompt.

    What is there already stays, as a run knows its inputs by when they were written, too.
    """
    from sklearn.model_selection import GroupKFold

    if folds == 1 or (fold_folder(work, folds - 1) / "by_prompt" / "run.json").exists():
        return
    judged, rest = (pq.read_table(f"{work}/outer/{name}") for name in ("valid", "train"))
    groups = np.unique(group_digests(rest["prompt"].to_pylist()), return_inverse=True)[1]
    parts = GroupKFold(folds - 1).split(groups, groups=groups)
    for number, (others, held_out) in enumerate(parts, 1):
        folder = fold_folder(work, number)
        tables = {"train": pa.concat_tables([judged, rest.take(others)]), "valid": rest.take(held_out)}
        for name, table in tables.items():
            write_parquet(f"{folder}/outer/{name}/part-000000.parquet", table)
        choose_by_prompt(folder)


def split_train(work: Path, parts: int) -> None:
    """The train votes without each of some parts, by prompt, and the part; what is there already stays."""
    from sklearn.model_selection import GroupKFold

    if (work / "parts" / str(parts - 1) / "held_out").exists():
        return
    table = pq.read_table(f"{work}/by_prompt/train")
    groups = np.unique(group_digests(table["prompt"].to_pylist()), return_inverse=True)[1]
    for number, (others, held_out) in enumerate(GroupKFold(parts).split(groups, groups=groups)):
        for name, rows in (("train", others), ("held_out", held_out)):
            write_parquet(f"{work}/parts/{number}/{name}/part-000000.parquet", table.take(rows))


def split_sources(work: Path, others: Sequence[str]) -> None:
    """The train votes of some sources and those of the rest, which are the target; what is there stays."""
    if (work / "sources").exists() or not others:
        return
    table = pq.read_table(f"{work}/by_prompt/train")
    is_other = pc.is_in(table["source"], value_set=pa.array(others, table["source"].type))
    for name, rows in (("others", is_other), ("target", pc.invert(is_other))):
        write_parquet(f"{work}/sources/{name}/train/part-000000.parquet", table.filter(rows))


def write_unvoted(work: Path) -> None:
    """Pairs of responses to a prompt of the train votes that are not among them; what is there stays."""
    if (work / "unvoted").exists():
        return
    voted: dict[str, set[tuple[str, str]]] = defaultdict(set)
    table = pq.read_table(f"{work}/by_prompt/train", columns=["prompt", "response_a", "response_b"])
    for prompt, *pair in zip(*(column.to_pylist() for column in table.columns), strict=True):
        voted[prompt].add((min(pair), max(pair)))
    rows = [
        {"id": f"unvoted-{number}-{at}", "prompt": prompt, "response_a": pair[0], "response_b": pair[1]}
        for number, (prompt, pairs) in enumerate(voted.items())
        for at, pair in enumerate(combinations(sorted(set(chain(*pairs))), 2))
        if pair not in pairs
    ]
    write_parquet(f"{work}/unvoted/part-000000.parquet", pa.Table.from_pylist(rows))


def fold_folder(work: Path, number: int) -> Path:
    """Where the votes and runs of a fold are; those of the first are the study's own."""
    return work / "folds" / str(number) if number else work
