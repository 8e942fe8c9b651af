"""`wsdm-ray cache`: which copies of remote models this machine keeps, and their removal."""

import sys
import time
from collections.abc import Sequence

from jobs._registry import SCRIPT
from wsdm_ray.errors import WsdmRayError

__all__ = ["cache"]

USAGE = f"usage: {SCRIPT} cache [list | clear]"


def cache(words: Sequence[str]) -> int:
    """The exit status of `wsdm-ray cache ...`; prints what there is, or what was deleted."""
    if list(words) in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    if list(words) not in ([], ["list"], ["clear"]):
        print(f"error: {SCRIPT} cache {' '.join(words)}: {USAGE}", file=sys.stderr)
        return 2
    from wsdm_ray.storage import cache_folder, cached_folders, clear_cache

    try:
        folder = cache_folder()
        found = clear_cache() if list(words) == ["clear"] else cached_folders()
    except WsdmRayError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    for entry in found:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used))
        print(f"{entry.bytes / 1e9:9.3f} GB  last used {used}  {entry.name}")
    total = sum(entry.bytes for entry in found) / 1e9
    done = "deleted from" if list(words) == ["clear"] else "in"
    print(f"{total:9.3f} GB in {len(found)} folders {done} {folder}; models of the Hub: `hf cache ls`")
    return 0
