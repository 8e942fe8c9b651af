"""Ids and file names, whatever they are, stay in the output folder and break no line."""

import json
import logging
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wsdm_ray import storage
from wsdm_ray.config import PrepareConfig
from wsdm_ray.data.prepare import prepare
from wsdm_ray.errors import DataError, ModelError, StorageError
from wsdm_ray.modeling.weight_files import INDEX, weight_files
from wsdm_ray.scoring.error_kinds import ErrorKind
from wsdm_ray.scoring.parts import Totals
from wsdm_ray.scoring.pipeline import log_totals
from wsdm_ray.scoring.plan import part_name
from wsdm_ray.telemetry import PlainFormatter
from wsdm_ray.training.health import step_error

NAMES = (
    "../../escaped", "/tmp/escaped", "a/../../escaped", "nul\x00", "line\nend", "\r\nx", "\x1b[2J",
    "x" * 100_000, "", ".", "..", "~", "$(touch escaped)", "%s%d{0}", "‮abc", "C:\\escaped",
)  # fmt: skip


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_ids_name_no_file(tmp_path):
    """Files have the numbers of units and shards; ids come out as they went in."""
    assert part_name(7) == "part-000007.parquet"
    texts = {name: [f"{name} {row}" for row in range(16)] for name in ("prompt", "response_a", "response_b")}
    rows = texts | {"id": [name or "empty" for name in NAMES], "winner": ["model_a", "model_b"] * 8}
    rows |= {"language": list(NAMES), "source": list(NAMES)}
    pq.write_table(pa.table(rows), tmp_path / "votes.parquet")
    out = tmp_path / "in" / "out"
    prepare(PrepareConfig(input=(str(tmp_path / "votes.parquet"),), output=str(out), valid_fraction=0.25))
    written = [name for name in files_in(tmp_path) if name != "votes.parquet"]
    assert written
    assert all(name.startswith("in/out/") for name in written)
    kept = [pq.read_table(path) for path in out.rglob("*.parquet")]
    assert {value for table in kept for value in table["id"].to_pylist()} <= {*NAMES, "empty"}
    assert not Path("/tmp/escaped").exists()


def shown(record: logging.LogRecord) -> str:
    return PlainFormatter("%(message)s").format(record)


@pytest.mark.parametrize("name", NAMES)
def test_an_id_in_the_log_breaks_no_line(name, caplog):
    caplog.set_level("INFO", logger="wsdm_ray")
    totals = Totals(
        rows=1, errors=1, cut=0, tokens=0, rerun=0, units=1, resumed_units=0, halvings=0,
        smallest_budget=None, kinds={f"broken {name[:50]}": ErrorKind(1, name)},
    )  # fmt: skip
    counts = {"replicas_lost": 0, "processes_died": 0, "preemptions": {"times": 0}, "store_retries": 0}
    log_totals("out", totals, counts, [], 1.0)
    lines = [shown(record) for record in caplog.records]
    assert len(lines) == 2
    assert all((len(line.splitlines()) == 1 and line.isprintable()) or "\u202e" in line for line in lines)


@pytest.mark.parametrize("name", NAMES)
def test_an_id_in_an_error_breaks_no_line(name):
    errors = [
        DataError(f"x.parquet: id {name} is twice"),
        step_error(
            3,
            loss=9.0,
            weight=1.0,
            usual=0.5,
            grad_norm=1.0,
            num_rows=8,
            worst_ids=[name],
            checkpoint_steps=2,
        ),
    ]
    for error in errors:
        assert len(str(error).splitlines()) == 1
        assert not {"\x1b", "\x00", "\n", "\r"} & set(str(error))


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "sub/x.safetensors", ".."])
def test_an_index_names_files_of_its_folder_alone(tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "other.safetensors").touch()
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ModelError, match=r"which is no file of this folder|no \.\., which .* names"):
        weight_files(str(folder))


def test_objects_of_a_store_stay_in_the_copy_of_their_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WSDM_RAY_CACHE", str(tmp_path / "cache"))
    fs = fsspec.filesystem("memory")
    names = ("config.json", "a\nb", "\x1b[2J", "$(touch x)", "x" * 200)
    for name in names:
        fs.pipe_file(f"/hostile/model/{name}", b"{}")
    copy = Path(storage.local_copy("memory://hostile/model"))
    assert copy.is_relative_to(tmp_path / "cache")
    assert files_in(copy) == sorted(names)
    fs.store["/hostile/model/.."] = fs.store["/hostile/model/config.json"]
    with pytest.raises(StorageError):
        storage.local_copy("memory://hostile/model")
    assert files_in(tmp_path) == [str((copy / name).relative_to(tmp_path)) for name in sorted(names)]
    fs.rm("/hostile", recursive=True)
