"""The quickstart end to end, on few votes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.integration.conftest import NO_COMPILER, RAY_ENVIRONMENT
from tests.integration.lines import unexpected
from wsdm_ray.data.splitting import prompt_digests
from wsdm_ray.evaluation.join import read_predictions

ROOT = Path(__file__).parents[2]


def run_quickstart(output: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | RAY_ENVIRONMENT | NO_COMPILER
    command = [sys.executable, "-m", "jobs.quickstart", "--output", str(output)]
    return subprocess.run(
        [*command, "--rows", "200", "--num-workers", "1"],
        cwd=ROOT,
        env={name: value for name, value in environment.items() if name != "RAY_ADDRESS"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.long
@pytest.mark.timeout(1_200)  # a hang is found, a busy machine is no failure
def test_the_quickstart_leaves_everything_it_speaks_of(tmp_path):
    output = tmp_path / "quickstart"
    done = run_quickstart(output)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in (
        "arena",
        "data/train",
        "data/valid",
        "quantized",
        "model",
        "predictions",
        "report/report.html",
    ):
        assert (output / name).exists(), name
    metrics = json.loads((output / "report" / "metrics.json").read_text())
    counts = json.loads((output / "test" / "run.json").read_text())["counts"]
    assert metrics["rows"] == counts["kept"]["train"] > 0
    assert counts["kept"]["valid"] == 0
    assert metrics["share_of_best"] is not None
    check_test_set(output)
    check_last_lines(output, metrics, done.stdout)
    assert not unexpected(done.stderr)


def check_test_set(output: Path) -> None:
    """The rows that were scored neither trained the classifier nor chose its checkpoint."""
    test, seen = ((output / name) for name in ("test/train", "data"))
    predictions = read_predictions(str(output / "predictions"))
    assert predictions["id"].to_pylist() == pq.read_table(test)["id"].to_pylist()
    seen_prompts = prompt_digests([str(seen / "train"), str(seen / "valid")])
    assert not set(seen_prompts.tolist()) & set(prompt_digests([str(test)]).tolist())


def check_last_lines(output: Path, metrics: dict, told: str) -> None:
    """Both accuracies with their rows, the headline on the test set, and where to go on."""
    trained = json.loads((output / "model" / "run.json").read_text())["metrics"]
    low, high = metrics["accuracy_ci95"]
    headline = (
        f"test accuracy   {metrics['accuracy']:.3f} ({low:.3f} to {high:.3f}) on {metrics['rows']} votes"
    )
    assert headline in told
    assert f"best possible {metrics['best_accuracy']:.3f};" in told
    assert f"valid accuracy  {trained['valid_accuracy']:.3f}" in told
    counts = json.loads((output / "data" / "run.json").read_text())["counts"]
    assert trained["valid_rows"] == counts["kept"]["valid"]
    assert f"on {trained['valid_rows']} votes, by which the checkpoint was chosen" in told
    assert "report.html" in told
    assert "python -m jobs.score --model" in told
