"""What this machine says of itself."""

import shutil
import sys
from pathlib import Path

import pytest

from wsdm_ray import __version__
from wsdm_ray.errors import StorageError
from wsdm_ray.preflight import node
from wsdm_ray.preflight.node import (
    Gpu,
    Probe,
    facts_here,
    gpus_here,
    largest_gpus,
    output_probe,
    visible_gpus,
)

MIB = 1 << 20


def test_what_can_be_read_and_what_cannot(tmp_path):
    (tmp_path / "there").write_text("x")
    model = tmp_path / "model"
    model.mkdir()
    fine = facts_here(Probe(files=(f"{tmp_path}/there",), folders=(str(model),), seen=f"{tmp_path}/there"))
    assert (fine.unreadable, fine.sees_output, fine.fetch_bytes) == ((), True, 0)
    assert fine.versions["wsdm_ray"] == __version__
    assert {"ray", "torch", "transformers", "peft", "bitsandbytes"} <= set(fine.versions)
    assert not any("+" in version for version in fine.versions.values())
    lost = facts_here(
        Probe(files=(f"{tmp_path}/none",), folders=(f"{tmp_path}/gone",), seen=f"{tmp_path}/no")
    )
    assert [line.partition(":")[0] for line in lost.unreadable] == [f"{tmp_path}/none", f"{tmp_path}/gone"]
    assert not lost.sees_output


def test_what_is_to_be_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(node, "bytes_to_fetch", {"s3://b/one": 5, "s3://b/two": 7}.__getitem__)
    monkeypatch.setattr(node, "cache_folder", lambda: str(tmp_path))
    facts = facts_here(Probe(folders=("s3://b/one", "s3://b/two")))
    assert facts.fetch_bytes == 12
    assert facts.cache_free_bytes == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)


def test_gpus_as_nvidia_smi_has_them():
    said = "NVIDIA H100 80GB HBM3, 81559, 81000\\nNVIDIA L4, SXM, 23034, 20\\n"
    found = gpus_here((sys.executable, "-c", f"print('{said}')"))
    assert found == (
        Gpu(name="NVIDIA H100 80GB HBM3", total_bytes=81_559 * MIB, free_bytes=81_000 * MIB),
        Gpu(name="NVIDIA L4, SXM", total_bytes=23_034 * MIB, free_bytes=20 * MIB),
    )
    for silent in ("raise SystemExit(9)", "print('[N/A], [N/A], [N/A]')"):
        assert gpus_here((sys.executable, "-c", silent)) == ()
    assert gpus_here(("no-such-program",)) == ()


def test_the_gpus_that_a_job_may_get(monkeypatch):
    small, large, busy = (
        Gpu(name="any", total_bytes=total, free_bytes=free) for total, free in ((2, 2), (24, 24), (24, 1))
    )
    assert largest_gpus((small, large, busy), 1) == (large,)
    assert largest_gpus((small, busy, large), 2.0) == (large, busy)
    assert largest_gpus((small, large), 0) == ()
    for named, seen in (("0", (large,)), ("", ()), ("1,2", (large, small)), ("0,1,2,3", (large, small))):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        assert visible_gpus((small, large)) == seen
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_gpus((small, large)) == (small, large)


def test_the_probe_is_in_the_nearest_folder_and_leaves_nothing(tmp_path, monkeypatch):
    with output_probe(f"{tmp_path}/new/out") as seen:
        assert seen is not None
        assert Path(seen).parent == tmp_path
        assert Path(seen).exists()
    assert list(tmp_path.iterdir()) == []
    with output_probe("s3://bucket/out") as seen:
        assert seen is None
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="file/out: "), output_probe(f"{tmp_path}/file/out"):
        pass

    def denied(path: Path, *arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "touch", denied)
    with pytest.raises(StorageError, match="out: permission denied"), output_probe(f"{tmp_path}/out"):
        pass
