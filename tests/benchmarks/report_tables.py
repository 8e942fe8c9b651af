"""A table of Markdown, as every page of results has it."""

from collections.abc import Iterable, Sequence

__all__ = ["table"]


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a table: its columns' names, and a line a row of cells."""
    return [line(columns), f"|{'---|' * len(columns)}", *map(line, rows)]


def line(cells: Sequence[object]) -> str:
    """One line; an empty cell is one space."""
    return "".join(f"| {cell} " if cell != "" else "| " for cell in cells) + "|"
