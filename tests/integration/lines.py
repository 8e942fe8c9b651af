"""What a job may print: its own lines, and no library's. What is not expected is what `unexpected` gives."""

import re

__all__ = ["unexpected"]

COLOUR = re.compile(r"\x1b\[\d*m")
FROM_WORKER = re.compile(r"^\(\w+ pid=\d+(, ip=[\d.]+)?\) ")
EXPECTED = (
    r"\d\d:\d\d:\d\d +\S.*",  # a line of the package's own log
    r"process \d+: models loaded in .*",
    r"error: .*",
    r"Failed to send resource request for train-\w+\. If this only happens transiently .*",  # busy
    r"",
)
OF_SUBMISSION = (
    r"Job submission server address: .*",
    r"-*",
    r"Job 'raysubmit_\w+' (submitted successfully|succeeded)",
    r"Next steps",
    r"  (Query the (logs|status) of the job|Request the job to be stopped):",
    r"    ray job (logs|status|stop) raysubmit_\w+",
    r"Tailing logs until the job exits \(disable with --no-wait\):",
    r".*\s(INFO|WARNING|SUCC)\s(cli|dashboard_sdk|packaging|sdk|working_dir)\.py:\d+ -- .*",
    r"Running entrypoint for job raysubmit_\w+: .*",
    r".*\sINFO\sjob_manager\.py:\d+ -- Runtime env is setting up\.",
)
"""Lines of the command `ray job submit`, which runs where the user is."""


def unexpected(output: str, *, submitted: bool = False) -> list[str]:
    """The lines of a job's output that are not its own, nor, if `submitted`, of Ray's command."""
    plain = COLOUR.sub("", output)
    lines = (FROM_WORKER.sub("", line) for line in plain.splitlines())
    patterns = EXPECTED + (OF_SUBMISSION if submitted else ())
    known = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
    return [line for line in lines if not known.fullmatch(line.rstrip())]
