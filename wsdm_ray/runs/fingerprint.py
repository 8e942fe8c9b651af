"""What a fingerprint is made of, its digest, and what differs between two of them.

A fingerprint is a dict of everything that decides the output: options, inputs, models. Versions of code and
libraries are kept beside it (`versions`): they may change, where the user says so.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from wsdm_ray import storage
from wsdm_ray.config import to_dict

__all__ = ["changes", "digest_of", "file_versions", "options", "plain"]

SHOWN_CHANGES = 5

NEVER_OF_THE_OUTPUT = ("allow_version_change", "store_timeout_seconds")
"""Options that decide nothing of what comes out, of any job."""


def digest_of(fingerprint: Mapping[str, Any]) -> str:
    """A digest of a fingerprint, which each file of its run can carry: 32 hexadecimal digits."""
    text = json.dumps(plain(fingerprint), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def options(config: Any, *, leave_out: Sequence[str] = ("output", "restart")) -> dict[str, Any]:
    """The options of a config that decide what comes out, as plain values."""
    unused = {*leave_out, *NEVER_OF_THE_OUTPUT}
    return {name: value for name, value in plain(to_dict(config)).items() if name not in unused}


def file_versions(files: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Size, version and place of each file by its path: what a fingerprint keeps of its inputs."""
    found = (storage.file_identity(path) for path in files)
    return {identity.pop("path"): identity | {"place": place} for place, identity in enumerate(found)}


def changes(earlier: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two JSON-like values, as `name: old -> new`; after five, only how many more."""
    found = list(differences(earlier, now, name))
    more = len(found) - SHOWN_CHANGES
    return found[:SHOWN_CHANGES] + ([f"and {more} more"] if more > 0 else [])


def differences(earlier: Any, now: Any, name: str) -> Iterator[str]:
    if isinstance(earlier, dict) and isinstance(now, dict):
        for key in {**earlier, **now}:
            inner = key if name in ("", "fingerprint") else f"{name}.{key}"
            if key not in now:
                yield f"{inner}: gone"
            elif key not in earlier:
                yield f"{inner}: new"
            else:
                yield from differences(earlier[key], now[key], inner)
    elif isinstance(earlier, list) and isinstance(now, list) and len(earlier) == len(now):
        for index, (old, new) in enumerate(zip(earlier, now, strict=True)):
            yield from differences(old, new, f"{name}[{index}]")
    elif earlier != now:
        yield f"{name}: {shown(earlier)} -> {shown(now)}"


def shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def plain(value: Any) -> Any:
    """The value as it comes back from JSON: tuples are lists, keys are strings."""
    return json.loads(json.dumps(value, default=str))
