"""The metrics that jobs export: each is on the page and on the dashboard, and what they name exists."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

from tests.unit.fake_metrics import fake_metrics
from wsdm_ray import exported_metrics
from wsdm_ray.events import EVENTS, Event
from wsdm_ray.exported_metrics import EventLog, ExportedMetrics
from wsdm_ray.metric_names import METRICS, SCORE_METRICS, TRAIN_METRICS
from wsdm_ray.scoring.run_status import RunStatus
from wsdm_ray.training.progress import TrainingStatus

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/metrics.md").read_text("utf-8")
DASHBOARD = json.loads((ROOT / "cluster/grafana/wsdm_ray.json").read_text("utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
OF_RAY = {f"ray_{name}" for name in METRICS_GAUGES}
EXPORTED = {metric.exported for metric in METRICS}


def names_in(expression: str) -> set[str]:
    """The metrics of an expression in PromQL."""
    return set(re.findall(r"\bray_\w+", expression))


def test_names_are_unlike_and_what_prometheus_takes():
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    assert all(re.fullmatch(r"wsdm_ray_[a-z_]+", metric.name) for metric in METRICS)
    assert {metric.kind for metric in METRICS} == {"counter", "gauge"}


@pytest.mark.parametrize(("metrics", "status"), [(SCORE_METRICS, RunStatus), (TRAIN_METRICS, TrainingStatus)])
def test_every_metric_is_a_field_of_the_status(metrics, status):
    assert set(metrics) <= set(status.__dataclass_fields__)


def test_the_page_lists_every_metric_and_event():
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    metrics = [
        f"| `{metric.exported}` | {metric.kind} | {metric.unit} | "
        f"{', '.join(f'`{label}`' for label in metric.labels)} | {metric.meaning} |"
        for metric in METRICS
    ]
    assert rows == [*metrics, *(f"| `{kind}` | {meaning} |" for kind, meaning in EVENTS.items())]


def test_names_in_the_text_exist():
    assert names_in(PAGE) - {"ray_"} <= EXPORTED | OF_RAY
    for kinds in re.findall(r'event=~"([\w|]+)"', PAGE):
        assert set(kinds.split("|")) <= set(EVENTS)


def test_the_dashboard_shows_what_is_exported_and_nothing_else():
    shown = set().union(*map(names_in, EXPRESSIONS))
    assert shown - OF_RAY == EXPORTED
    assert shown & OF_RAY == {"ray_node_gram_used", "ray_node_gpus_utilization"}


def test_counters_are_shown_by_their_growth():
    """But for single figures, as totals begin anew with each process."""
    counters = {metric.exported for metric in METRICS if metric.kind == "counter"}
    for panel in PANELS:
        for target in panel["targets"]:
            for name in names_in(target["expr"]) & counters:
                grown = re.search(rf"(rate|increase)\({name}{{[^}}]*}}\[[\w$]+\]\)", target["expr"])
                assert grown or panel["type"] == "stat", target["expr"]


def test_the_dashboard_can_be_imported_as_it_is():
    """Its variables are the data source and the Ray cluster, and panels do not overlap."""
    source, session = DASHBOARD["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    assert (session["name"], session["allValue"]) == ("session", ".*")
    assert all('{SessionName=~"$session"}' in expression for expression in EXPRESSIONS)
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Scoring", "Training", "Events", "GPUs (metrics of Ray)"]
    assert "id" not in DASHBOARD, "Grafana gives it one"
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not taken & cells, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    for panel in PANELS:
        for place in (panel, *panel["targets"]):
            assert place["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_metrics(monkeypatch)


def test_a_gauge_that_is_not_known_stays_and_a_counter_never_goes_back():
    made: Any = ExportedMetrics(TRAIN_METRICS, {"pairs": 100})
    for steps, loss, pairs in ((1, 0.5, 90), (3, None, 130), (2, 0.25, 120)):
        made.update(vars(TrainingStatus(9, steps=steps, loss=loss, pairs=pairs)))
    assert made.counters["steps"].recorded == [1, 2]
    assert made.counters["pairs"].recorded == [30]
    assert made.gauges["loss"].recorded == [0.5, 0.25]
    assert made.gauges["valid_log_loss"].recorded == []


def test_every_event_is_counted_and_frequent_ones_are_logged_now_and_then(monkeypatch):
    lines, now = [], [0.0]
    monkeypatch.setattr(exported_metrics.logger, "warning", lambda *text: lines.append(text[0] % text[1:]))
    log: Any = EventLog("train", clock=lambda: now[0])
    for seconds in (0, 10, 40):
        now[0] = seconds
        log.note(Event(kind="store_retried", count=4, process=7))
        log.note(Event(kind="worker_died", worker="of rank 1", reason="RuntimeError:\n  NCCL"))
    assert log.counter.by_event == {"store_retried": 12, "worker_died": 3}
    died = "train: worker_died: worker of rank 1: RuntimeError: NCCL"
    retried = "train: store_retried 4 times: process 7"
    assert lines == [retried, died, died, retried, died]


def test_an_event_that_the_page_does_not_list_is_a_defect():
    with pytest.raises(AssertionError, match="no_such is not in EVENTS"):
        Event(kind="no_such")
