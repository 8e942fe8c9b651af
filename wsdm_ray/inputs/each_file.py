"""A function of each of many files, here in threads of this process; `score` has one for files that crash."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

__all__ = ["EachFile", "each_here"]


class EachFile(Protocol):
    """Calls a function of one file for each of `files`.

    An error that it raises ends all, and is raised here.
    """

    def __call__(
        self,
        function: Callable[[Any], Any],
        files: Sequence[Any],
        take: Callable[[int, Any], None],
        died: Callable[[Any, str], Any],
        threads: int = 1,
    ) -> None:
        """
        Args:
            function: is pickled where another process calls it, as are files and results.
            take: takes the place of a file and its result, in any order.
            died: the result of a file over which processes end, and how they end.
            threads: files that are at hand at the same time.
        """
        ...


def each_here(
    function: Callable[[Any], Any],
    files: Sequence[Any],
    take: Callable[[int, Any], None],
    died: Callable[[Any, str], Any],
    threads: int = 1,
) -> None:
    """In this process: a file that ends it ends it."""
    with ThreadPoolExecutor(threads) as pool:
        for place, result in enumerate(pool.map(function, files)):
            take(place, result)
