"""A function of each of many files in a child process, and files that end it."""

import contextlib
import ctypes
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.inputs.table_files import write_lines
from wsdm_ray.config import ScoreConfig
from wsdm_ray.errors import ClusterError, StorageError
from wsdm_ray.inputs import conversion
from wsdm_ray.inputs.conversion import parquet_inputs
from wsdm_ray.inputs.each_file import FileWork, each_here
from wsdm_ray.inputs.faults import BadFiles
from wsdm_ray.inputs.files import list_inputs
from wsdm_ray.inputs.rows import Reading
from wsdm_ray.scoring import check, child_process, each_apart, input_facts
from wsdm_ray.scoring.child_process import Death
from wsdm_ray.scoring.plan import ScorePlan, make_plan
from wsdm_ray.storage import count_retry, retries, store_timeout
from wsdm_ray.telemetry import logger

CRASHES = "crashes"
"""Files with this in their names end the process that reads them."""


def crash(path: str) -> None:
    if CRASHES in path:
        ctypes.string_at(0)


def double(number: int) -> int:
    return 2 * number


def crash_at_three(number: int) -> int:
    crash(CRASHES if number % 10 == 3 else "")
    return number


def crash_once(folder: str) -> str:
    """Ends the process the first time."""
    mark = Path(folder, "read")
    if not mark.exists():
        mark.touch()
        crash(CRASHES)
    return "read"


def tell(number: int) -> float:
    logger.warning("file %d is odd", number)
    logger.info("store: file %d", number)
    count_retry("test", 2)
    return store_timeout()


def refuse(number: int) -> int:
    if number == 2:
        raise StorageError("no keys for file 2")
    return number


def defect(number: int) -> int:
    return number // 0


def called(function: Any, files: list[Any], threads: int = 1) -> dict[int, Any]:
    found: dict[int, Any] = {}
    work = FileWork(function, lambda file, reason: f"{file}: {reason}", threads)
    each_apart.each_apart(work, files, found.__setitem__)
    return found


@pytest.mark.parametrize("threads", [1, 4])
def test_every_file_has_its_result(threads):
    assert called(double, list(range(300)), threads) == {number: 2 * number for number in range(300)}
    assert called(double, []) == {}


@pytest.mark.parametrize("threads", [1, 4])
def test_files_that_end_the_process_are_known_and_the_others_are_read(threads, capfd):
    found = called(crash_at_three, list(range(14)), threads)
    died = {number: f"{number}: process died: signal 11" for number in (3, 13)}
    assert found == {number: number for number in range(14)} | died
    assert not capfd.readouterr().err


def test_one_death_may_be_by_chance(tmp_path):
    assert called(crash_once, [str(tmp_path)]) == {0: "read"}


def test_what_the_child_tells_is_told_here(caplog, monkeypatch):
    monkeypatch.setattr("wsdm_ray.storage.patience.PATIENCE.seconds", 77.0)
    before = retries().get("test", 0)
    caplog.set_level("INFO", logger="wsdm_ray")
    assert called(tell, [5, 6]) == {0: 77.0, 1: 77.0}
    assert [(each.levelname, each.getMessage()) for each in caplog.records] == [
        ("WARNING", "file 5 is odd"),
        ("INFO", "store: file 5"),
        ("WARNING", "file 6 is odd"),
        ("INFO", "store: file 6"),
    ]
    assert retries()["test"] == before + 4


def test_an_error_ends_all_and_is_the_same_here():
    with pytest.raises(StorageError, match=r"^no keys for file 2$"):
        called(refuse, list(range(9)), 2)
    with pytest.raises(Exception, match=r"each_apart.py(.|\n)*ZeroDivisionError"):
        called(defect, [1])


@pytest.mark.parametrize("error", [StorageError("disk: full"), OSError(28, "No space left on device")])
def test_an_error_of_who_takes_the_results_is_no_death(error):
    """Such as of a disk that is full of ids' hashes: the results that came before it must not be lost."""
    taken = []

    def take(place: int, result: int) -> None:
        if place == 1:
            raise error
        taken.append(result)

    with pytest.raises(type(error)) as caught:
        each_apart.each_apart(FileWork(double, lambda file, reason: -1), [1, 2, 3], take)
    assert caught.value is error
    assert taken == [2]


def test_a_process_that_is_asked_to_end_says_nothing_of_the_file():
    asked, died = Death("process died: signal 15", preempted=True), Death("process died: signal 9")
    for outcomes, expected in (
        ([asked, asked, died, asked, ""], None),
        ([asked, died, asked, died], died),
        ([asked] * each_apart.MAX_PREEMPTED, asked),
    ):
        answers = iter(outcomes)
        child: Any = SimpleNamespace(alive=True, call=lambda files, answers=answers: next(answers))
        assert each_apart.called_alone(child, 0, "file") == expected
        assert not list(answers)


def test_no_process_stays_and_one_that_cannot_start_is_an_error(monkeypatch):
    made: list[Any] = []

    class Child(child_process.ChildProcess):
        def __init__(self, *given: Any, **options: Any):
            super().__init__(*given, **options)
            made.append(self)

    monkeypatch.setattr(each_apart, "ChildProcess", Child)
    called(double, [1])
    with contextlib.suppress(StorageError):
        called(refuse, [2])
    assert [child.alive for child in made] == [False, False]
    monkeypatch.setattr(child_process, "COMMAND", "raise SystemExit(7)")
    said = r"no process can be started to read the input \(.*{}\); free memory on this machine"
    with pytest.raises(ClusterError, match=said.format("exit status 7")):
        called(double, [1])

    def no_memory(*given: Any, **options: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(child_process.subprocess, "Popen", no_memory)
    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ClusterError, match=said.format("Cannot allocate memory")):
        called(double, [1])
    assert len(os.listdir("/proc/self/fd")) == open_before


class CrashingReader(input_facts.FactsReader):
    def __call__(self, source: conversion.ParquetInput) -> Any:
        crash(source.shown)
        return super().__call__(source)


def crashing_conversion(reading: Reading, given: tuple[Any, str]) -> Any:
    crash(given[0].path)
    return CONVERTED(reading, given)


CONVERTED = conversion.converted


def pairs(ids: list[int]) -> pa.Table:
    texts = [f"text {number}" for number in ids]
    return pa.table({"id": ids, "prompt": texts, "response_a": texts, "response_b": texts})


def planned(paths: list[str], bad: BadFiles) -> ScorePlan:
    inputs = list_inputs(paths)
    sources = parquet_inputs(inputs, Reading(labels=False), bad, each_apart.each_apart)
    return make_plan(sources, 10, files=inputs, bad=bad, each_file=each_apart.each_apart)


def test_files_that_crash_their_library_are_bad_files(tmp_path, monkeypatch):
    monkeypatch.setattr(input_facts, "FactsReader", CrashingReader)
    monkeypatch.setattr(conversion, "converted", crashing_conversion)
    paths = []
    for number, name in enumerate(["a", f"{CRASHES}_b", "c"]):
        paths.append(str(tmp_path / f"{name}.parquet"))
        pq.write_table(pairs([2 * number, 2 * number + 1]), paths[-1])
    for number, name in ((10, "d"), (11, f"{CRASHES}_e")):
        paths.append(str(write_lines(tmp_path / f"{name}.jsonl", *pairs([number]).to_pylist())))
    plan = planned(paths, BadFiles(skip=True))
    assert plan.rows == 5
    died = "reading it ends the process (process died: signal 11); it is damaged: copy or make it anew"
    reasons = {file.file: file.reason for file in plan.bad_files}
    assert reasons == {path: f"{path}: {died}" for path in (paths[1], paths[4])}


def test_score_reads_its_input_so(tmp_path, monkeypatch):
    asked: list[str] = []

    def noted(work: FileWork, *given: Any) -> None:
        asked.append(repr(work.function))
        each_here(work, *given)

    monkeypatch.setattr(check, "each_apart", noted)
    monkeypatch.setattr(check, "check_manifest_there", lambda *given: None)
    path = str(write_lines(tmp_path / "x.jsonl", *pairs([1]).to_pylist()))
    config = ScoreConfig(model=(str(tmp_path / "none"),), input=(path,), output=str(tmp_path / "out"))
    with pytest.raises(StorageError, match="none: no such folder"):  # the model is looked at last
        check.check_inputs(config)
    assert "converted" in asked[0]
    assert "FactsReader" in asked[1]
