"""One run of the fault campaign (tests/benchmarks/fault_campaign.py): what struck it shows nowhere."""

from pathlib import Path

import pyarrow as pa
import pytest
import ray

from tests.integration.campaign import Campaign, run_once
from tests.integration.conftest import score_config
from tests.integration.fault_proxy import FaultProxy
from tests.integration.struck_run import Injected, hashing_replica, make_model, make_pairs
from wsdm_ray.scoring.encode import encode_unit
from wsdm_ray.scoring.pipeline import check

UNITS, UNIT_ROWS = 8, 25


@pytest.mark.long
def test_a_run_that_was_struck_is_as_a_calm_one(
    ray_session: None, s3_proxy: FaultProxy, s3_bucket: str, tmp_path: Path
):
    """A killed driver and failing requests, then the same command until it is done."""
    make_pairs(f"{s3_bucket}/pairs", UNITS, UNITS * UNIT_ROWS)
    make_model(str(tmp_path / "model"))
    campaign = Campaign(
        bucket=s3_bucket,
        proxy=s3_proxy,
        address=ray.get_runtime_context().gcs_address,
        model=str(tmp_path / "model"),
        pairs=f"{s3_bucket}/pairs",
        logs=tmp_path,
        units=UNITS,
        unit_rows=UNIT_ROWS,
    )
    outcome = run_once(campaign, calm(campaign), 1, ["store faults", "driver"])
    assert not outcome.wrong
    assert outcome.struck == ["store faults", "driver"]
    assert outcome.statuses == [-9, 0]
    assert sum(outcome.faults.values()) > 3


def calm(campaign: Campaign) -> pa.Table:
    """The predictions of every unit, one after the other in this process."""
    options = {"model": (campaign.model,), "input": (campaign.pairs,), "unit_rows": campaign.unit_rows}
    run = check(score_config(Path(), Path(), Path(campaign.logs / "calm"), **options))
    replica = hashing_replica(Injected())(run.replica)
    encoded = [encode_unit(unit, run.replica.models) for unit in run.plan.units]
    return pa.concat_tables([replica.score(unit, number)[0] for number, unit in enumerate(encoded)])
