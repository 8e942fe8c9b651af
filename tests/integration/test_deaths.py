"""Rows that end the processes which read or score them, through Ray Data."""

import functools
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.integration.conftest import score_config
from tests.integration.gates import wait_for
from tests.integration.scrape import scraped
from wsdm_ray.errors import DataError
from wsdm_ray.scoring.pipeline import check, execute, score
from wsdm_ray.scoring.read_ahead import most_open_units

pytestmark = pytest.mark.usefixtures("ray_session")

KILLS_REPLICA, KILLS_READER = 49, 114
"""Rows of a unit of one, and of one of seven: a replica takes long to start."""


def kill_at(identity: str, table: pa.Table) -> None:
    """End this process, as a crash in native code would, where the row is there and has no error yet."""
    import os
    import signal

    if any(row == {"id": identity, "error": None} for row in table.select(["id", "error"]).to_pylist()):
        os.kill(os.getpid(), signal.SIGKILL)


def poisoned(replica_kills: str, reader_kills: str, notes: str):
    """A replica and a reader that a row each kills. The reader notes each unit, and the replica how many.

    Both reach their processes by value.
    """
    from wsdm_ray.scoring.encode import encode_unit
    from wsdm_ray.scoring.replica import Replica

    kill = functools.partial(kill_at, reader_kills), functools.partial(kill_at, replica_kills)

    def encode(unit, models, keep):
        from pathlib import Path

        Path(notes, f"read-{unit.number}").touch()
        table = encode_unit(unit, models, keep)
        kill[0](table)
        return table

    class PoisonedReplica(Replica):
        def __call__(self, batch):
            from pathlib import Path

            names = [path.name for path in Path(notes).iterdir()]
            read, begun = (sum(name.startswith(kind) for name in names) for kind in ("read", "begun"))
            Path(notes, f"begun-{int(batch['unit'][0])}-{read - begun}").touch()
            return super().__call__(batch)

        def score(self, encoded, number=0, suspects=(), left_out=None):
            kill[1](encoded)
            return super().score(encoded, number, suspects, left_out)

    return PoisonedReplica, encode


@pytest.mark.long
def test_rows_that_kill_replicas_and_readers_get_the_error(
    scored, classifier, source, pairs, tmp_path, caplog
):
    output, notes = tmp_path / "out", tmp_path / "notes"
    notes.mkdir()
    caplog.set_level("INFO", logger="wsdm_ray")
    ids = pairs["id"].to_pylist()
    config = score_config(classifier, source, output, strict=True, unit_rows=7)
    run = execute(check(config), *poisoned(ids[KILLS_REPLICA], ids[KILLS_READER], str(notes)))
    found = pa.concat_tables([pq.read_table(path) for path in sorted(output.glob("part-*.parquet"))])
    expected = pa.concat_tables([pq.read_table(path) for path in sorted(scored.glob("part-*.parquet"))])
    assert found["id"].to_pylist() == ids
    died = "process died: signal 9"
    errors = {row: error for row, error in enumerate(found["error"].to_pylist()) if error}
    assert errors == {7: "prompt is null", KILLS_REPLICA: died, KILLS_READER: died}
    good = [row for row in range(120) if row not in errors]
    probabilities = [table["prob_a"].take(good).to_pylist() for table in (found, expected)]
    assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-5)
    counts = json.loads(Path(f"{scored}.run/run.json").read_text())["counts"]
    unread = expected["tokens"][KILLS_READER].as_py() - found["tokens"][KILLS_READER].as_py()
    assert run["counts"] == counts | {"errors": 3, "tokens": counts["tokens"] - unread, "units": 18}
    assert run["processes_died"] == 3 + (3 + 1 + 1 + 2)
    assert run["rows_given_up"] == 2
    assert run["error_kinds"][died] == {"rows": 2, "example": ids[KILLS_REPLICA]}
    assert f"2 rows: {died}; one is id {ids[KILLS_REPLICA]}" in caplog.text
    assert [path.name for path in Path(f"{output}.run").iterdir()] == ["run.json"]
    ahead = [int(path.name.split("-", 2)[2]) for path in notes.glob("begun-*")]
    most = most_open_units(slots=1, readers=2) + 1  # one is begun although nothing else runs
    assert max(ahead) <= most, "units that were read and not begun, also while a replica starts"
    wait_for(lambda: scraped("ray_wsdm_ray_score_").get("process_deaths_total", 0) >= run["processes_died"])
    exported = scraped("ray_wsdm_ray_score_")
    assert exported["input_rows"] == 120
    assert exported["replicas_at_work"] == 0
    assert {"rows_total", "row_errors_total", "tokens_total", "units_total"} <= exported.keys()
    assert scraped("ray_wsdm_ray_")["events_total"] > 0
    dead = r"score: replica_died: unit \d+, rows \d+ to \d+, process \d+, worker \w+, on \S+: process died"
    assert re.search(dead, caplog.text)
    assert "score: row_given_up: unit" in caplog.text
    # All is written; the same command says so, and that it was strict.
    with pytest.raises(DataError, match=r"2 rows end the process that reads or scores them.*--strict"):
        score(config)
