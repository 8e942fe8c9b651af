"""One driver at a time: who gets a lease, who is refused, who takes over, and when."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from wsdm_ray import storage
from wsdm_ray.errors import RunBusyError, RunMismatchError, StorageError
from wsdm_ray.runs import hold_run, lease
from wsdm_ray.runs.lease import Lease, Watch, beating, newest_lease, take_lease
from wsdm_ray.runs.process import ThisProcess, is_running
from wsdm_ray.storage import write_json

ROOT = Path(__file__).parents[3]


class Sleeper:
    """Sleeps no second, and does something each time instead."""

    def __init__(self, act=lambda: None):
        self.seconds, self.act = [], act

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self.act()


def unseen(act=lambda: None) -> Watch:
    """A watch of a process on another machine."""
    return Watch(is_running=lambda _: None, sleep=Sleeper(act))


def take(folder: object, watch: Watch | None = None, **of_process: object) -> Lease:
    return take_lease(str(folder), "out", ThisProcess(**of_process), watch or Watch())  # pyright: ignore


def test_a_held_lease_names_its_holder_until_it_is_released(tmp_path):
    first = take(tmp_path)
    with pytest.raises(RunBusyError) as caught:
        take(tmp_path)
    message = str(caught.value)
    for part in (
        "out: ",
        f"process {os.getpid()} on {os.uname().nodename}",
        "since 20",
        "wait for it, or end",
    ):
        assert part in message
    first.release()
    assert not list(tmp_path.iterdir())
    assert take(tmp_path).number == 1


HOLDER = """
import sys
from wsdm_ray.runs.lease import Watch, take_lease
from wsdm_ray.runs.process import ThisProcess
take_lease(sys.argv[1], "out", ThisProcess(), Watch())
print(flush=True)
sys.stdin.read()
"""


def test_a_killed_holder_is_followed_at_once(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        sleeper = Sleeper()
        with pytest.raises(RunBusyError, match=f"process {holder.pid} on"):
            take(tmp_path, Watch(sleep=sleeper))
        holder.kill()
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # dead, and nobody has asked how it ended
        assert take(tmp_path, Watch(sleep=sleeper)).number == 2
        assert not sleeper.seconds
    assert [path.name for path in tmp_path.iterdir()] == ["_lease-000002.json"]


def test_a_holder_on_another_machine_is_watched_by_its_count(tmp_path, caplog):
    first = take(tmp_path)
    with pytest.raises(RunBusyError):
        take(tmp_path, unseen(first.beat))
    watch = unseen()
    with caplog.at_level("INFO"):
        second = take(tmp_path, watch)
    assert isinstance(watch.sleep, Sleeper)
    assert watch.sleep.seconds == [lease.LOOK_SECONDS] * lease.LOOKS
    assert "if it gives no sign of life within 90 s, this process goes on" in caplog.text
    assert second.number == 2
    assert take(tmp_path / "other", unseen()).number == 1, "nobody is waited for where there is no lease"


def test_a_lease_that_is_released_while_it_is_watched_is_free(tmp_path):
    first = take(tmp_path)
    watch = unseen(first.release)
    assert take(tmp_path, watch).number == 1
    assert isinstance(watch.sleep, Sleeper)
    assert len(watch.sleep.seconds) == 1


def test_who_lost_its_lease_finds_out_and_renews_it_no_more(tmp_path):
    first = take(tmp_path)
    first.check()
    second = take(tmp_path, unseen())
    first.beat()
    assert first.is_lost
    with pytest.raises(RunBusyError, match=r"was taken over by process .* run the same command again"):
        first.check(reread=False)
    assert [path.name for path in tmp_path.iterdir()] == ["_lease-000002.json"]
    second.check()
    first.release()
    second.check()
    Path(second.path).unlink()
    with pytest.raises(RunBusyError, match="was taken over, and released"):
        second.check()


def test_a_thread_renews_it_also_after_the_store_was_away(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.001)
    away, renewed = iter([True, False, True]), threading.Event()

    def write(path, value, *, only_new=False):
        if not only_new and next(away, False):
            raise StorageError("away")
        if value["beat"] >= 3:
            renewed.set()
        return write_json(path, value, only_new=only_new)

    monkeypatch.setattr(storage, "write_json", write)
    with beating(take(tmp_path)) as held:
        assert renewed.wait(60)
        assert not held.is_lost
    assert newest_lease(str(tmp_path)) is None


def test_a_process_is_known_by_its_machine_its_id_and_its_start():
    mine = vars(ThisProcess())
    assert is_running(mine) is False, "this process, which does not hold that lease"
    parent = mine | {"pid": os.getppid(), "started": 1}
    assert is_running(parent) is False, "another process has its number now"
    for change in ({"machine": "elsewhere"}, {"machine": ""}, {"pid": None}):
        assert is_running(mine | change) is None
    assert is_running({}) is None
    nobody = mine | {"pid": 2**22 + 1}
    assert is_running(nobody) is False
    assert is_running(nobody | {"user": os.getuid() + 1}) is None, "others' processes may be hidden"


@pytest.mark.parametrize("same", [True, False])
def test_of_many_that_begin_at_once_one_gets_the_folder(tmp_path, same):
    many, rounds = 8, 6
    for number in range(rounds):
        begin, end = threading.Barrier(many), threading.Barrier(many)

        def run(seed: int, output=str(tmp_path / str(number)), begin=begin, end=end) -> str:
            begin.wait()
            try:
                with hold_run(output, "score", {"seed": 0 if same else seed}, restart=False):
                    end.wait()
                    return "held"
            except (RunBusyError, RunMismatchError) as error:
                end.wait()
                return type(error).__name__

        with ThreadPoolExecutor(many) as pool:
            results = sorted(pool.map(run, range(many)))
        refused = "RunBusyError" if same else "RunMismatchError"
        assert results == [refused] * (many - 1) + ["held"]
