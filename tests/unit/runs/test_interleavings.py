"""Drivers of one folder in every order that matters: the output is right, and each says what is true.

The store is one in memory, whose requests are played in chosen orders (`interleaving`). Each driver claims,
takes the lease, commits the parts that are missing, adds up and finishes, with the code that `score` uses.
"""

import itertools

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.runs.interleaving import Actor, Killed, gated_store, play
from wsdm_ray import storage
from wsdm_ray.config import Columns
from wsdm_ray.errors import DataError, RunBusyError, RunMismatchError
from wsdm_ray.inputs.conversion import ParquetInput
from wsdm_ray.inputs.files import InputFile
from wsdm_ray.runs import hold_run, lease
from wsdm_ray.runs.lease import Watch
from wsdm_ray.runs.names import listed
from wsdm_ray.runs.opening import Driver
from wsdm_ray.runs.records import find_run
from wsdm_ray.scoring.parts import (
    UnitReport,
    add_up,
    completed_units,
    delete_others,
    parts_are_there,
    read_footer,
    write_part,
)
from wsdm_ray.scoring.plan import ScorePlan, WorkUnit

SOURCE = ParquetInput(file=InputFile("a", "a"), columns=Columns())
PLAN = ScorePlan((WorkUnit(0, SOURCE, 0, 1), WorkUnit(1, SOURCE, 1, 1)), id_type=pa.int64())
OUTPUT = "memory://runs/out"
TABLE = pa.table({"id": [1]})


@pytest.fixture(autouse=True)
def store(monkeypatch):
    monkeypatch.setattr(lease, "LOOKS", 2)
    with gated_store():
        yield


class Committed:
    """The units that each driver scored."""

    def __init__(self) -> None:
        self.units: list[int] = []


def driver(
    seed: int = 0, restart: bool = False, *, seen: bool | None = None, committed: Committed | None = None
) -> Actor:
    """A driver of the command with this seed; `seen`: what it sees of whoever holds the lease."""

    def watched(_: float) -> None:
        storage.exists("memory://runs/elsewhere")  # others have their turns while it sleeps

    who = Driver(watch=Watch(is_running=lambda _: seen, sleep=watched), beats=False)

    def run() -> str:
        with hold_run(
            OUTPUT, "score", {"seed": seed}, restart,
            is_whole=lambda _: parts_are_there(PLAN, OUTPUT), driver=who,
        ) as held:  # fmt: skip
            if held.finished:
                return "complete"
            completed = completed_units(PLAN, OUTPUT, held.digest)
            held.check()
            delete_others(OUTPUT, completed)
            fresh = []
            for unit in PLAN.units:
                if unit.number not in completed:
                    if committed:
                        committed.units.append(unit.number)
                    fresh.append(write_part(OUTPUT, TABLE, UnitReport(unit=unit.number, rows=1), held.digest))
            add_up(PLAN, OUTPUT, completed, fresh, held.digest)
            held.finish({"seed": seed})
            return "finished"

    return Actor(run)


def requests_of_a_calm_run() -> int:
    with gated_store():
        return driver().go_on().requests


def check_output(seed: int = 0) -> None:
    """The folder holds the finished run of the command with this seed, and nothing else."""
    earlier = find_run(OUTPUT)
    assert earlier is not None
    assert earlier.finished
    assert earlier.record["fingerprint"] == {"seed": seed}
    assert earlier.record["seed"] == seed
    digests = {read_footer(f"{OUTPUT}/{name}")[1] for name in listed(OUTPUT)}
    assert sorted(listed(OUTPUT)) == ["part-000000.parquet", "part-000001.parquet"]
    assert len(digests) == 1
    assert parts_are_there(PLAN, OUTPUT)


def check_ended(*actors: Actor) -> None:
    """Each returned, or raised what a user can understand."""
    for actor in actors:
        assert isinstance(actor.result, str | RunBusyError | RunMismatchError | DataError | Killed), (
            actor.result
        )


def check_left_right(*actors: Actor) -> None:
    """Who says that it is done is right; the same command again finishes what is left."""
    check_ended(*actors)
    if any(isinstance(actor.result, str) for actor in actors):
        check_output()
    assert driver(seen=False).go_on().result in ("finished", "complete")
    check_output()
    assert listed("memory://runs/out.run") == ["run.json"]


def test_a_calm_run_and_the_same_command_again():
    assert driver().go_on().result == "finished"
    check_output()
    assert driver().go_on().result == "complete"


def each_pause() -> range:
    """How many requests a driver has made when it is stopped."""
    return range(requests_of_a_calm_run() + 1)


def test_a_killed_driver_is_followed_at_once_and_nothing_is_scored_again():
    for pause in each_pause():
        with gated_store():
            committed = Committed()
            first = driver(committed=committed).go_on(pause)
            first.kill()
            there = {int(name[5:11]) for name in listed(OUTPUT)}
            committed.units.clear()
            second = driver(seen=False, committed=committed).go_on()
            assert second.result in ("finished", "complete"), (pause, second.result)
            assert not there & set(committed.units), pause
            check_left_right(first, second)


def test_while_the_first_is_seen_to_live_the_second_ends_and_changes_nothing():
    for pause in each_pause():
        with gated_store():
            first = driver().go_on(pause)
            second = driver(seen=True).go_on()
            first.go_on()
            results = [first.result, second.result]
            assert any(result in ("finished", "complete") for result in results), (pause, results)
            check_left_right(first, second)


def test_a_stopped_driver_that_another_took_over_for_ends_right_when_it_goes_on():
    for pause in each_pause():
        with gated_store():
            first = driver().go_on(pause)
            second = driver().go_on()  # cannot see the first, and waits until its lease is over
            assert second.result in ("finished", "complete"), (pause, second.result)
            check_output()
            first.go_on()
            check_left_right(first, second)


def test_the_one_that_took_over_is_stopped_in_its_turn():
    pauses = list(itertools.product(each_pause(), each_pause()))
    for one, other in pauses[::13]:
        with gated_store():
            first, second = driver().go_on(one), driver().go_on(other)
            first.go_on()
            second.go_on()
            check_left_right(first, second)


@settings(max_examples=25, deadline=None, database=None)
@given(turns=st.lists(st.integers(0, 2), max_size=90), seen=st.sampled_from([None, True]))
def test_three_drivers_in_any_order(turns, seen):
    with gated_store():
        actors = [driver(seen=seen) for _ in range(3)]
        play(actors, turns)
        check_left_right(*actors)


def test_of_two_commands_at_the_same_instant_one_gets_the_folder():
    for pause in each_pause():
        with gated_store():
            first = driver(seed=0).go_on(pause)
            second = driver(seed=1, seen=True).go_on()
            first.go_on()
            results = [first.result, second.result]
            assert results.count("finished") == 1, (pause, results)
            winner = results.index("finished")
            refused = results[1 - winner]
            assert isinstance(refused, RunMismatchError)
            assert "seed: " in str(refused) or "another command" in str(refused)
            check_output(winner)


def test_restart_beside_a_live_run_is_refused_and_deletes_nothing():
    for pause in each_pause():
        with gated_store():
            first = driver(seed=0).go_on(pause)
            before = listed(OUTPUT)
            second = driver(seed=1, restart=True, seen=True).go_on()
            if isinstance(second.result, RunBusyError):
                assert listed(OUTPUT) == before
                assert first.go_on().result == "finished"
                check_output(0)
            else:  # the first had not begun yet, or was done
                assert second.result == "finished"
                first.go_on()
                check_ended(first)
                check_output(1)


def test_a_stopped_driver_does_no_harm_to_the_run_that_has_its_folder_now():
    for pause in each_pause():
        with gated_store():
            first = driver(seed=0).go_on(pause)
            second = driver(seed=1, restart=True).go_on()
            assert second.result == "finished", (pause, second.result)
            first.go_on()
            check_ended(first)
            check_output(1)
            assert not isinstance(first.result, str) or first.result == "finished", pause


def test_a_part_that_a_finished_run_lost_is_made_again():
    for pause in each_pause():
        with gated_store():
            assert driver().go_on().result == "finished"
            storage.delete_file(f"{OUTPUT}/part-000001.parquet")
            first = driver().go_on(pause)
            second = driver().go_on()
            first.go_on()
            assert second.result in ("finished", "complete")
            check_left_right(first, second)


def test_what_a_stopped_driver_writes_is_not_taken_for_the_record_of_a_later_run():
    for pause, later in itertools.product(list(each_pause())[::3], range(8, requests_of_a_calm_run(), 7)):
        with gated_store():
            first = driver(seed=0).go_on(pause)
            second = driver(seed=1, restart=True).go_on(later)
            begun = find_run(OUTPUT)
            if begun and not begun.finished and begun.record["fingerprint"] == {"seed": 1}:
                second.kill()
                first.go_on()
                assert not isinstance(first.result, str), (pause, later)
                assert driver(seed=1, seen=False).go_on().result == "finished", (pause, later)
                check_output(1)
