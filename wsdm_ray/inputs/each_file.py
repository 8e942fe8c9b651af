"""A function of each of many files, here in threads of this process; `score` has one for files that crash."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

__all__ = ["EachFile", "FileWork", "Take", "each_here"]


class FileWork(NamedTuple):
    """What is done with each file.

    function: is pickled where another process calls it, as are files and results. An error that it raises
    ends all, and is raised where it was asked for.
    died: the result of a file over which processes end, and how they end.
    threads: files that are at hand at the same time.
    """

    function: Callable[[Any], Any]
    died: Callable[[Any, str], Any]
    threads: int = 1


Take = Callable[[int, Any], None]
"""Takes the place of a file and its result, in any order."""

EachFile = Callable[[FileWork, Sequence[Any], Take], None]
"""Does the work with each file, and has each result taken."""


def each_here(work: FileWork, files: Sequence[Any], take: Take) -> None:
    """In this process: a file that ends it ends it."""
    with ThreadPoolExecutor(work.threads) as pool:
        for place, result in enumerate(pool.map(work.function, files)):
            take(place, result)
