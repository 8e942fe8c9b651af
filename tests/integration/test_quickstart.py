"""The quickstart end to end, on few votes."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_quickstart_leaves_everything_it_speaks_of(tmp_path):
    output = tmp_path / "quickstart"
    command = [
        sys.executable,
        "-m",
        "jobs.quickstart",
        "--output",
        str(output),
        "--rows",
        "600",
        "--num-workers",
        "1",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
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
    counts = json.loads((output / "data" / "run.json").read_text())["counts"]
    assert metrics["rows"] == counts["kept"]["valid"]
    assert metrics["share_of_best"] is not None
    assert "report.html" in done.stdout
    assert "python -m jobs.score --model" in done.stdout
    assert "Traceback" not in done.stderr
