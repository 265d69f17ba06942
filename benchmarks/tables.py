"""A table for people, drawn on a terminal or written as Markdown; both from the same rows."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table as RichTable
from timing import Spread

CELL_PADDING = 3
"""Blanks and line between two cells."""


@dataclass
class Table:
    """Rows of text under columns; the first `text_columns` are words, the others figures. Notes say how to read it."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    text_columns: int = 1


def show_spread(values: Spread | None, digits: int = 0) -> str:
    """`median (min to max)`; nothing for what was not measured."""
    if values is None:
        return ""
    if values.min == values.max:
        return f"{values.median:,.{digits}f}"
    return f"{values.median:,.{digits}f} ({values.min:,.{digits}f} to {values.max:,.{digits}f})"


def draw(tables: Iterable[Table], console: Console) -> None:
    """All tables with rows, each with its notes below."""
    for table in tables:
        if not table.rows:
            continue
        console.print(f"\n{table.title}", style="bold", highlight=False)  # a table's own title breaks at the table's width
        if _width(table) <= console.width:
            console.print(_as_table(table), highlight=False)
        else:
            _draw_as_list(table, console)
        for note in table.notes:
            console.print(note, style="dim", highlight=False)


def _width(table: Table) -> int:
    """Columns of a terminal that the table takes without breaking a cell."""
    widths = [max(map(len, cells)) for cells in zip(table.columns, *table.rows, strict=True)]
    return sum(width + CELL_PADDING for width in widths)


def _as_table(table: Table) -> RichTable:
    drawn = RichTable(box=SIMPLE, pad_edge=False)
    for number, column in enumerate(table.columns):
        drawn.add_column(column, justify="left" if number < table.text_columns else "right", no_wrap=True)
    for row in table.rows:
        drawn.add_row(*row)
    return drawn


def _draw_as_list(table: Table, console: Console) -> None:
    """For terminals that are too narrow: a line for each cell, so that no figure is cut."""
    for row in table.rows:
        console.print()
        for column, cell in zip(table.columns, row, strict=True):
            if cell:
                console.print(f"{column}: {cell}" if column else cell, highlight=False, soft_wrap=True)
    console.print()


def markdown(tables: Iterable[Table]) -> str:
    """The same as Markdown."""
    parts: list[str] = []
    for table in tables:
        if not table.rows:
            continue
        alignment = ["---" if number < table.text_columns else "---:" for number in range(len(table.columns))]
        lines = ["| " + " | ".join(cells) + " |" for cells in (table.columns, tuple(alignment), *table.rows)]
        parts.append("\n".join([f"## {table.title}", "", *lines]))
        parts += table.notes
    return "\n\n".join(parts) + "\n"
