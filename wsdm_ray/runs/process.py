"""Which process this is, and whether another one, by what it said of itself, is at work still."""

import os
import socket
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Sight", "ThisProcess", "is_running"]

Sight = Callable[[Mapping[str, Any]], bool | None]
"""Whether a process runs, by its description: True, False, or None where it cannot be seen from here."""

HELD: set[str] = set()
"""Tokens of the leases that this process holds."""


def is_running(process: Mapping[str, Any]) -> bool | None:
    """Whether the process runs that described itself so; None where it may be on another machine.

    Only processes of the same boot of the same kernel, in the same namespace of process ids, can be seen: a
    container that was started again cannot see what ran in the one before it, nor two machines each other.
    A process id that was given to a later process is told by the time of its start.
    """
    machine, pid = process.get("machine"), process.get("pid")
    if not machine or machine != this_machine() or not isinstance(pid, int):
        return None
    since = started(pid)
    if since is None and process.get("user") != os.getuid():
        return None  # the system may hide what other users run
    if since != process.get("started"):
        return False
    return process.get("token") in HELD if pid == os.getpid() else True


def this_machine() -> str:
    """The boot of this kernel and the namespace of this process's id; empty where there is no /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def started(pid: int) -> int | None:
    """When a process was started, in ticks since the boot; None where none of that id runs."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # a program's name may hold spaces and brackets
    return None if fields[0] in "ZX" else int(fields[19])


@dataclass(frozen=True, kw_only=True)
class ThisProcess:
    """What the holder of a lease says of itself.

    token: of this lease alone. machine, user, started: by which others on the same machine see it.
    """

    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    machine: str = field(default_factory=this_machine)
    user: int = field(default_factory=os.getuid)
    started: int | None = field(default_factory=lambda: started(os.getpid()))
