"""What this machine's Ray exports for Prometheus."""

import urllib.request

import ray
from prometheus_client.parser import text_string_to_metric_families

__all__ = ["scraped"]


def scraped(prefix: str) -> dict[str, float]:
    """Metrics with a prefix, by the rest of their names, as Prometheus reads them; or none.

    Processes export what they count every few seconds.
    """
    [node] = [node for node in ray.nodes() if node["Alive"]]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=30) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    samples = [sample for family in families for sample in family.samples]
    return {
        sample.name.removeprefix(prefix): sample.value for sample in samples if sample.name.startswith(prefix)
    }
