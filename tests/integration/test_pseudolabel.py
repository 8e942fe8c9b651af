"""Pseudolabels of a real classifier in an object store: soft ones, then hard ones by the same predictions."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wsdm_ray.config import PseudolabelConfig
from wsdm_ray.scoring.pseudolabels import pseudolabel
from wsdm_ray.storage import join, list_files, open_parquet, write_parquet


def read(folder: str) -> list[dict[str, Any]]:
    tables = []
    for path in list_files(folder):
        with open_parquet(path) as file:
            tables.append(file.read())
    return pa.concat_tables(tables).to_pylist()


def test_soft_and_hard_labels_of_one_scoring(
    ray_session, classifier: Path, prepared: Path, s3_bucket: str, tmp_path: Path
):
    votes = pq.read_table(list_files(f"{prepared}/train"))
    rows = votes.drop_columns(["winner", "best_prob_a", "source"]).slice(0, 50).to_pylist()
    rows[7]["prompt"] = None
    rows[8]["response_b"] = "\n"
    pairs = join(s3_bucket, "pairs", "rows.parquet")
    write_parquet(pairs, pa.Table.from_pylist(rows))
    soft = PseudolabelConfig(
        model=(str(classifier),),
        input=(pairs,),
        output=join(s3_bucket, "soft"),
        unit_rows=20,
        token_budget=2_048,
    )
    run = pseudolabel(soft)
    assert run["counts"]["kept"] == 48
    assert {reason: rows for reason, rows in run["counts"]["dropped"].items() if rows} == {
        "null_text": 1,
        "empty_response": 1,
    }
    predicted = {row["id"]: row["prob_a"] for row in read(join(soft.output, "predictions"))}
    labelled = read(join(soft.output, "train"))
    kept = [row for number, row in enumerate(rows) if number not in (7, 8)]
    assert labelled == [
        {name: row[name] for name in ("id", "prompt", "response_a", "response_b")}
        | {"prob_a": predicted[row["id"]]}
        | {name: row[name] for name in ("model_a", "model_b", "language")}
        | {"source": "pseudolabels"}
        for row in kept
    ]
    assert len({row["prob_a"] for row in labelled}) > 40

    threshold = sorted(max(p, 1 - p) for p in (row["prob_a"] for row in labelled))[24]
    hard = pseudolabel(
        PseudolabelConfig(
            model=soft.model,
            input=soft.input,
            output=str(tmp_path / "hard"),
            predictions=join(soft.output, "predictions"),
            hard_threshold=threshold,
            unit_rows=20,
            token_budget=2_048,
        )
    )
    found = {row["id"]: row["winner"] for row in read(f"{tmp_path}/hard/train")}
    assert found == {
        row["id"]: "model_a" if row["prob_a"] > 0.5 else "model_b"
        for row in labelled
        if max(row["prob_a"], 1 - row["prob_a"]) >= threshold
    }
    assert hard["counts"]["kept"] == len(found) >= 24
    assert hard["counts"]["dropped"]["below_threshold"] == 48 - len(found)
    assert not Path(tmp_path / "hard/predictions").exists()
