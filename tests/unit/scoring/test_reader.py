"""A reader whose process dies over rows: they get the error, the others are read as ever."""

import dataclasses
import json
from collections import Counter

import pyarrow as pa
import pytest

from tests.unit.scoring.conftest import random_rows
from tests.unit.scoring.fakes import plan_of
from tests.unit.scoring.supervised import AskedToEnd, FakeChild, Killed, NotedCoordination, supervision_of
from wsdm_ray.errors import StorageError
from wsdm_ray.events import Event
from wsdm_ray.scoring.crash_records import list_crash_records, list_death_records, read_deaths
from wsdm_ray.scoring.encode import encode_unit, encode_without_texts, table_from_bytes, table_to_bytes
from wsdm_ray.scoring.plan import WorkUnit, place_of
from wsdm_ray.scoring.reader import Reader, reading
from wsdm_ray.scoring.supervision import Supervisor
from wsdm_ray.storage import patience

DIED = "process died: signal 11"


@pytest.fixture
def unit(write) -> WorkUnit:
    return plan_of([write(random_rows(30))], 20).units[1]


def reader_of(classifiers, output, dies, ids_die=False, **options) -> tuple[Reader, FakeChild]:
    """A reader that dies over units for which `dies` is true."""

    def read(unit):
        if dies(unit):
            raise Killed(DIED)
        return table_to_bytes(encode_unit(unit, classifiers[:1]))

    def read_ids(unit, error):
        if ids_die:
            raise Killed(DIED)
        return table_to_bytes(encode_without_texts(unit, error, classifiers[:1]))

    child = FakeChild({"read": read, "read_ids": read_ids}, options.pop("starts", ()))
    return Reader(supervision_of(output, **options), child), child


def test_the_process_around_a_reader_waits_for_stores_as_long_as_the_user_says(tmp_path):
    """It writes the records of deaths, and has perhaps never asked the store before."""
    supervision = dataclasses.replace(supervision_of(tmp_path), store_timeout_seconds=3_600.0)
    Reader(supervision, FakeChild({}))
    assert patience.PATIENCE.seconds == patience.PATIENCE.first_seconds == 3_600.0


def test_a_row_that_kills_its_reader_gets_the_error(classifiers, unit, tmp_path):
    output, coordination = tmp_path / "out", NotedCoordination()
    expected = encode_unit(unit, classifiers[:1])
    poison = 26  # of the file: the unit's seventh row
    reader, child = reader_of(
        classifiers, output, lambda part: part.slices[0].start <= poison < part.slices[0].start + part.rows,
        coordination=coordination,
    )  # fmt: skip
    found = reader(unit)
    assert (found["unit"], found["rows"], found["error"]) == (1, 10, "")
    table = table_from_bytes(found["encoded"])
    assert table.schema == expected.schema
    assert table["error"].to_pylist() == [DIED if row == 6 else None for row in range(10)]
    assert table["id"].to_pylist() == list(range(20, 30))
    good = pa.array([row != 6 for row in range(10)])
    assert table.filter(good).equals(expected.filter(good))
    deaths = read_deaths(str(output))[("read", 1)]
    assert len(deaths) == 3 + 3 + 1
    assert {(death.start, death.stop) for death in deaths[-2:]} == {(6, 7)}
    assert coordination.told.count(("died", ("read", 1), 0, 10, DIED)) == 3
    assert coordination.told[-1] == ("ended", ("read", 1))
    lines = [str(event) for event in coordination.events]
    assert lines[0] == "reader_died: unit 1, rows 0 to 9: process died: signal 11"
    assert lines[3] == "unit_bisected: unit 1, rows 0 to 9"
    assert lines[-1] == "row_given_up: unit 1, rows 6 to 6: process died: signal 11"
    kinds = Counter(event.kind for event in coordination.events)
    assert kinds == {"reader_died": 7, "unit_bisected": 3, "row_given_up": 1}
    assert set(child.timeouts) == {7.0}
    assert not list_crash_records(str(output)), "of GPUs"
    assert len(list_death_records(str(output))) == 1


def test_a_row_whose_processes_are_always_asked_to_end_is_given_up(classifiers, unit, tmp_path):
    """As a guard of the machine's memory does, before it kills."""

    def read(part):
        if part.slices[0].start <= 26 < part.slices[0].start + part.rows:
            raise AskedToEnd("process died: signal 15")
        return table_to_bytes(encode_unit(part, classifiers[:1]))

    def read_ids(part, error):
        return table_to_bytes(encode_without_texts(part, error, classifiers[:1]))

    child = FakeChild({"read": read, "read_ids": read_ids})
    table = table_from_bytes(Reader(supervision_of(tmp_path / "out"), child)(unit)["encoded"])
    assert [row for row, error in enumerate(table["error"].to_pylist()) if error] == [6]
    assert child.started <= 10 * (3 + 4 + 2), "ten processes a death: of the unit, its parts, and the row"


def test_ids_of_several_types_are_joined_as_text(classifiers, write, tmp_path):
    rows = random_rows(8)
    as_text = rows.set_column(0, "id", rows["id"].cast(pa.string()))
    files = [write(rows.slice(0, 4)), write(as_text.slice(4), "others.parquet")]
    [unit] = plan_of(files, 20).units
    reader, _ = reader_of(
        classifiers, tmp_path / "out", lambda part: any(one.source.shown == files[1] for one in part.slices)
    )
    found = reader(unit)
    assert found["error"] == ""
    table = table_from_bytes(found["encoded"])
    assert table["id"].to_pylist() == [str(number) for number in range(8)]
    assert table["error"].to_pylist() == [None] * 4 + [DIED] * 4


def test_the_deaths_of_an_earlier_run_are_not_died_again(classifiers, unit, tmp_path):
    first, _ = reader_of(classifiers, tmp_path / "out", lambda part: part.rows > 5)
    whole = first(unit)
    deaths = read_deaths(str(tmp_path / "out"))
    assert [death.stop for death in deaths[("read", 1)]] == [10, 10, 10]
    again, child = reader_of(classifiers, tmp_path / "out", lambda part: part.rows > 5, deaths=deaths)
    assert again(unit) == whole
    assert child.started == 1


def test_a_file_whose_ids_cannot_be_read_either_is_named(classifiers, unit, tmp_path):
    reader, _ = reader_of(classifiers, tmp_path / "out", lambda part: True, ids_die=True)
    kind, text = json.loads(reader(unit)["error"])
    assert kind == "DataError"
    assert text.startswith(f"{place_of(unit)}: reading it ends the process, even of the ids alone ({DIED})")
    assert "\n" not in text


def test_what_ends_the_run_ends_it_at_once(classifiers, unit, tmp_path):
    def no_store(part):
        raise StorageError("s3://bucket/a.parquet: denied; check the credentials")

    reader, child = reader_of(classifiers, tmp_path / "out", no_store)
    assert json.loads(reader(unit)["error"])[0] == "StorageError"
    assert child.started == 1


def test_readers_that_cannot_start_end_the_run(classifiers, unit, tmp_path):
    reader, child = reader_of(
        classifiers, tmp_path / "out", lambda part: False, starts=["process died: exit status 1"] * 3
    )
    kind, text = json.loads(reader(unit)["error"])
    assert kind == "ClusterError"
    assert "no process can be started to read the input" in text
    assert "exit status 1" in text
    assert child.started == 3
    assert reader(unit)["error"] == "", "it is tried again at the next unit"


def test_requests_that_were_sent_again_are_told_after_each_unit(classifiers, unit, monkeypatch):
    events: list[Event] = []
    retried = {"s3": 0}
    monkeypatch.setattr("wsdm_ray.events.retries", lambda: retried)
    monkeypatch.setattr("wsdm_ray.events.TOLD", {"retries": 0})

    def encode(unit, models, keep):
        retried["s3"] += 4
        raise StorageError("s3://b/x: away")

    answer = reading(encode, classifiers[:1], pa.schema([]), {}, 1.0, events.append)
    for _ in range(2):
        value, error = answer(("read", unit))
        assert value is None
        assert "away" in error
    assert [str(event) for event in events] == ["store_retried 4 times"] * 2


def test_events_of_a_child_go_to_the_run_and_its_other_messages_do_not(tmp_path):
    coordination, messages = NotedCoordination(), []
    supervisor = Supervisor(supervision_of(tmp_path, coordination), "reader", messages.append)
    for message in (event := Event(kind="store_retried"), (3, 0.5, 70)):
        supervisor.child.on_message(message)
    assert coordination.events == [event]
    assert messages == [(3, 0.5, 70)]
