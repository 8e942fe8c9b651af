"""`wsdm-ray cache`: what is kept on this machine, and how it goes."""

import pytest

from jobs._cli import main


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A cache of one copy of 3 MB."""
    monkeypatch.setenv("WSDM_RAY_CACHE", str(tmp_path / "cache"))
    copy = tmp_path / "cache" / "s3-bucket-model-0123"
    copy.mkdir(parents=True, mode=0o700)
    (copy / "model.safetensors").write_bytes(bytes(3_000_000))
    return copy


@pytest.mark.parametrize("words", [["cache"], ["cache", "list"]])
def test_what_is_kept_is_listed(kept, capsys, words):
    assert main(words) == 0
    entry, total = capsys.readouterr().out.splitlines()
    assert entry.split()[:4] == ["0.003", "GB", "last", "used"]
    assert entry.endswith("  s3-bucket-model-0123")
    assert total.strip() == f"0.003 GB in 1 folders in {kept.parent}; models of the Hub: `hf cache ls`"
    assert kept.is_dir()


def test_clear_deletes_it(kept, capsys):
    assert main(["cache", "clear"]) == 0
    assert f"deleted from {kept.parent}" in capsys.readouterr().out
    assert list(kept.parent.iterdir()) == []
    assert main(["cache"]) == 0
    assert capsys.readouterr().out.strip().startswith("0.000 GB in 0 folders")


@pytest.mark.parametrize("words", [["empty"], ["clear", "all"]])
def test_other_words_delete_nothing(kept, capsys, words):
    assert main(["cache", *words]) == 2
    assert capsys.readouterr().err.startswith(
        f"error: wsdm-ray cache {' '.join(words)}: usage: wsdm-ray cache "
    )
    assert kept.is_dir()


def test_a_cache_that_is_not_ones_own_is_one_line(kept, capsys):
    kept.parent.chmod(0o777)
    assert main(["cache", "clear"]) == 1
    assert capsys.readouterr().err.startswith(f"error: {kept.parent}: everybody may write into it; ")
    assert kept.is_dir()


def test_help(capsys):
    assert main(["cache", "--help"]) == 0
    assert capsys.readouterr().out == "usage: wsdm-ray cache [list | clear]\n"
