"""The code of docs/python.md and the notebook in examples/ run, and a judge gives the numbers of `score`."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import ray

from tests.integration.conftest import NO_COMPILER

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "python.md"
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def test_the_code_of_the_page_runs(ray_session, classifier, prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(classifier)
    votes = pd.read_parquet(prepared / "valid")
    votes.to_parquet("pairs.parquet")
    names: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE):
        exec(compile(block, PAGE.name, "exec"), names)
    assert "--ties sft: did you mean soft? must be one of drop, soft" in capsys.readouterr().out
    assert ray.is_initialized()
    scored = pd.read_parquet("predictions")
    judged = names["predictions"]
    assert judged["id"].tolist() == scored["id"].tolist() == votes["id"].tolist()
    for column in ("prob_a", "prob_a_ab", "prob_a_ba"):  # to a rounding: a replica has other threads
        np.testing.assert_allclose(judged[column], scored[column], rtol=1e-5)
    for column in ("tokens", "cut_tokens"):
        np.testing.assert_array_equal(judged[column], scored[column])


@pytest.mark.long
def test_the_notebook_runs_in_a_fresh_process(ray_session, tmp_path):
    (path,) = NOTEBOOKS
    cells = json.loads(path.read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code), "outputs are left out"
    address = ray.get_runtime_context().gcs_address  # a Ray of its own would take its time
    done = subprocess.run(
        [sys.executable, "-c", "\n".join("".join(cell["source"]) for cell in code)],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=250,
        env=os.environ | NO_COMPILER | {"RAY_ADDRESS": address},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"^best possible accuracy 0\.\d{3}$", done.stdout, re.MULTILINE)
    assert re.search(r"^0\.\d{3} of \d\d votes$", done.stdout, re.MULTILINE)
    assert (tmp_path / "report" / "report.html").exists()
    assert "pipeline_tag: text-classification" in (tmp_path / "model" / "README.md").read_text()
