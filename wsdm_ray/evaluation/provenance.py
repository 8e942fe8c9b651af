"""Where predictions come from, by the run.json of the job that made them."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from wsdm_ray.storage import filesystem, list_files

__all__ = ["facts", "provenance"]

SHOWN_DIGEST = 12
"""A page shows so many characters of a digest; metrics.json has all of it."""


def provenance(predictions: str, run: dict[str, Any]) -> dict[str, Any]:
    """What made the predictions; a value is None, and `models` empty, where run.json does not say.

    Args:
        predictions: their folder.
        run: its run.json, or empty.

    Returns:
        `predictions`; `job`; `models` (`folder`, `digest`, `precision`, `weight` of each; of an ensemble, the
        folders of the sets); `orders`; `temperature` (of an ensemble); `date` (of the end of the run, or of
        the newest file where run.json does not say), in UTC; `version` of wsdm_ray.
    """
    config, fingerprint = (as_dict(run.get(key)) for key in ("config", "fingerprint"))
    job = run.get("job")
    ensemble = job == "ensemble"
    folders = as_list(config.get("predictions" if ensemble else "model"))
    models = [] if ensemble else as_list(fingerprint.get("models"))
    weights = as_list(run.get("weights") if ensemble else config.get("model_weights"))
    return {
        "predictions": predictions,
        "job": job,
        "models": [
            {
                "folder": folder,
                "digest": as_dict(at(models, place)).get("digest"),
                "precision": as_dict(at(models, place)).get("precision"),
                "weight": at(weights, place),
            }
            for place, folder in enumerate(folders)
        ],
        "orders": config.get("orders"),
        "temperature": run.get("temperature") if ensemble else None,
        "date": run.get("finished") or newest(predictions),
        "version": as_dict(run.get("versions")).get("wsdm_ray"),
    }


def facts(source: dict[str, Any]) -> list[tuple[str, str]]:
    """Titles and values for people, of what `provenance` knows."""
    models = source["models"]
    found = [("Predictions", source["predictions"])]
    if models:
        title = "Sets" if source["job"] == "ensemble" else "Models" if len(models) > 1 else "Model"
        found.append((title, "; ".join(map(model_in_words, models))))
    precisions = list(dict.fromkeys(model["precision"] for model in models if model["precision"]))
    temperature = source["temperature"]
    found += [
        ("Precision", ", ".join(precisions)),
        ("Orders", source["orders"] or ""),
        ("Temperature", f"{temperature:.3f}" if isinstance(temperature, float) else ""),
        ("Date", re.sub(r"T(\d\d:\d\d).*", r" \1 UTC", source["date"] or "")),
        ("Version", f"wsdm_ray {source['version']}" if source["version"] else ""),
    ]
    return [(title, str(value)) for title, value in found if value]


def model_in_words(model: dict[str, Any]) -> str:
    digest = f" (digest {str(model['digest'])[:SHOWN_DIGEST]})" if model["digest"] else ""
    weight = f", weight {model['weight']:.3g}" if isinstance(model["weight"], int | float) else ""
    return f"{model['folder']}{digest}{weight}"


def newest(predictions: str) -> str | None:
    """When the newest file was written, in UTC, or None where a store does not say."""
    times: list[datetime] = []
    for path in list_files(predictions):
        fs, inner = filesystem(path)
        try:
            times.append(fs.modified(inner))
        except (NotImplementedError, OSError):
            return None
    return max(times).astimezone(UTC).isoformat(timespec="seconds") if times else None


def as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def at(values: Sequence[Any], place: int) -> Any:
    return values[place] if place < len(values) else None
