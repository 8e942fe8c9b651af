"""The splits of `votes_study.py` by prompt: held-out votes, votes to choose a checkpoint by, and folds."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wsdm_ray.config import PrepareConfig
from wsdm_ray.data.prepare import prepare
from wsdm_ray.data.splitting import group_digests
from wsdm_ray.storage import write_parquet

__all__ = ["choose_by_prompt", "fold_folder", "split", "split_folds", "split_train"]


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


def fold_folder(work: Path, number: int) -> Path:
    """Where the votes and runs of a fold are; those of the first are the study's own."""
    return work / "folds" / str(number) if number else work
