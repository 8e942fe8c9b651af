"""Deaths on record, beside those of lost GPUs."""

from wsdm_ray.scoring.crash_records import (
    crash_record_path,
    list_crash_records,
    list_death_records,
    read_deaths,
    write_deaths,
)
from wsdm_ray.scoring.isolation import PartDeath
from wsdm_ray.storage import write_json


def test_deaths_are_read_back_by_stage_and_unit(tmp_path):
    output = str(tmp_path / "out")
    assert read_deaths(output) == {}
    died = [PartDeath(start=0, stop=9, reason="process died: signal 11")]
    write_deaths(output, ("read", 12), died)
    write_deaths(output, ("score", 12), died * 2)
    write_json(crash_record_path(output, 12), [])
    assert read_deaths(output) == {("read", 12): died, ("score", 12): died * 2}
    assert len(list_death_records(output)) == 2
    assert list_crash_records(output) == [crash_record_path(output, 12)]
