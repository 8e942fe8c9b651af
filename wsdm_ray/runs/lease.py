"""One driver at a time works on an output: a lease in its folder, which ends when its holder does.

A lease is a file `_lease-NNNNNN.json`. The highest number that is there is the lease in force.

    take     create file N + 1, only where there is none: of several drivers one does. The holder then deletes
             lower ones, which no longer count. N is at least the number in the run's record (`records`)
    beat     every `BEAT_SECONDS` the holder counts up in its own file, which nobody else writes. Where a
             higher number is there, or its own file is gone, the lease is lost, for good
    release  the holder deletes its file

Who finds a lease in force takes the next one at once where the holder is seen to be dead: a process of the
same machine that is gone. Where it is seen to live, the run is busy. Else the file is looked at `LOOKS`
times, every `LOOK_SECONDS`: the run is busy once its count changes, and the lease is over where it never
does. Counts are compared, and looks counted, so that no clock matters, be it stepped or another machine's; a
process that is stopped for a while does not look, and so does not take a lease for older than it is.

A lease can be lost while its holder lives (stopped, or cut off from the store for longer than `LOOKS`): it
saves work, and is no lock. What keeps outputs right is in `opening`.
"""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from wsdm_ray import storage
from wsdm_ray.errors import DataError, RunBusyError, StorageError
from wsdm_ray.runs.names import lease_name, lease_number, listed
from wsdm_ray.runs.process import HELD, Sight, ThisProcess, is_running
from wsdm_ray.telemetry import logger

__all__ = ["Lease", "Watch", "beating", "newest_lease", "shown", "take_lease"]

BEAT_SECONDS = 10.0
LOOK_SECONDS = 2.0
LOOKS = 45


@dataclass(frozen=True, kw_only=True)
class Watch:
    """How the holder of another lease is watched.

    is_running: whether a process, by its description, is seen to run. sleep: waits so many seconds.
    """

    is_running: Sight = is_running
    sleep: Callable[[float], object] = time.sleep


class Lease:
    """A lease that this process took.

    Args:
        place: the folder that it is in.
        output: the folder that it is for, as errors name it.
    """

    def __init__(self, place: str, output: str, number: int, content: dict[str, Any]):
        self.output, self.place, self.number, self.content = output, place, number, content
        self.path = storage.join(place, lease_name(number))
        self.is_lost = False
        self.lock = threading.Lock()

    @property
    def claim(self) -> str:
        """Of a folder that is given to a run under this lease (`records`)."""
        return f"{self.number} {self.content['token']}"

    def beat(self) -> None:
        """Count up in the file, unless the lease is lost."""
        with self.lock:
            if not self.reread():
                self.content["beat"] += 1
                storage.write_json(self.path, self.content)

    def reread(self) -> bool:
        """Whether the lease is lost, by what is in the folder now."""
        numbers = leases_in(self.place)
        self.is_lost = self.is_lost or self.number not in numbers or max(numbers) > self.number
        return self.is_lost

    def check(self, *, reread: bool = True) -> None:
        """Raise `RunBusyError` where the lease is lost.

        Args:
            reread: what is in the folder now; else what the last beat found there counts.
        """
        if not (self.reread() if reread else self.is_lost):
            return
        holder = newest_lease(self.place)
        who = f"was taken over by {shown(holder)}" if holder else "was taken over, and released"
        raise RunBusyError(
            f"{self.output}: {who} while this process was stopped or cut off; wait for the other one, or run "
            "the same command again, which finishes the work"
        )

    def release(self) -> None:
        """Delete the file; where that fails, the lease ends with this process."""
        HELD.discard(self.content["token"])
        with self.lock, contextlib.suppress(StorageError):
            self.is_lost = True
            storage.delete_file(self.path)


def take_lease(
    place: str, output: str, process: ThisProcess, watch: Watch, above: int = 0, command: str = ""
) -> Lease:
    """The lease of a folder, once no other is in force.

    Args:
        place, output: as of `Lease`.
        process: of its holder.
        above: its number is higher than this.
        command: what its holder is at work on.

    Raises:
        RunBusyError: another process holds it.
    """
    since = datetime.now(UTC).isoformat(timespec="seconds")
    content = dataclasses.asdict(process) | {"command": command, "since": since, "beat": 0}
    HELD.add(process.token)
    try:
        while True:
            earlier = leases_in(place)
            number = max(earlier, default=0)
            if number:
                wait_for_end(storage.join(place, lease_name(number)), output, watch)
                if max(leases_in(place), default=0) != number:
                    continue  # another one waited, too, or it was released
            lease = Lease(place, output, max(number, above) + 1, content)
            if storage.write_json(lease.path, content, only_new=True):
                for older in earlier:
                    storage.delete_file(storage.join(place, lease_name(older)))
                return lease
    except BaseException:
        HELD.discard(process.token)
        raise


@contextlib.contextmanager
def beating(lease: Lease, renewed: bool = True) -> Iterator[Lease]:
    """The lease until the end, when it is released.

    Args:
        renewed: by a thread, every `BEAT_SECONDS`.
    """
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(BEAT_SECONDS) and not lease.is_lost:
            try:
                lease.beat()
            except StorageError as error:  # the store may be back at the next beat
                logger.warning("%s", error)

    if renewed:
        threading.Thread(target=beat, name=f"lease of {lease.output}", daemon=True).start()
    try:
        yield lease
    finally:
        stop.set()
        lease.release()


def leases_in(place: str) -> list[int]:
    """Numbers of the leases in a folder."""
    return [number for name in listed(place) if (number := lease_number(name)) is not None]


def newest_lease(place: str) -> Mapping[str, Any] | None:
    """What the lease in force holds, if there is one."""
    number = max(leases_in(place), default=0)
    return read_lease(storage.join(place, lease_name(number))) if number else None


def read_lease(path: str) -> Mapping[str, Any] | None:
    """What a lease holds; None where it is gone, an empty dict where it cannot be understood."""
    try:
        found = storage.read_json(path)
    except DataError:
        return {}
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    return found if isinstance(found, dict) else {}


def wait_for_end(path: str, output: str, watch: Watch) -> None:
    """Return once the lease is over: its holder is dead, it was released, or it was never renewed.

    Raises:
        RunBusyError: its holder is alive.
    """
    first = read_lease(path)
    if first is None:
        return
    runs = watch.is_running(first)
    if runs is False:
        logger.info("%s: was left by %s, which is gone; this process goes on", output, shown(first))
        return
    if runs is None:
        logger.info(
            "%s: was begun by %s, which cannot be seen from here; if it gives no sign of life within %.0f s, "
            "this process goes on", output, shown(first), LOOKS * LOOK_SECONDS,
        )  # fmt: skip
        if not shows_life(path, first, watch):
            return
    raise RunBusyError(
        f"{output}: {shown(first)} is at work on it; wait for it, or end that process and run the same "
        "command again"
    )


def shows_life(path: str, first: Mapping[str, Any], watch: Watch) -> bool:
    """Whether a lease is renewed while it is watched; it may be released meanwhile."""
    for _ in range(LOOKS):
        watch.sleep(LOOK_SECONDS)
        now = read_lease(path)
        if now != first:
            return now is not None
    return False


def shown(lease: Mapping[str, Any]) -> str:
    """The holder of a lease, for people."""
    return f"process {lease.get('pid', '?')} on {lease.get('host', '?')} (since {lease.get('since', '?')})"
