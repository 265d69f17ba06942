"""A comparison in the terminal: tables where they fit, lists where they do not, bars, and what moved."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.bar import Bar
from rich.box import SIMPLE
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from mlx_codegen.evaluation.compare import Change, Comparison, Row, method, signed
from mlx_codegen.evaluation.figures import Figure
from mlx_codegen.evaluation.report import figure_texts

PIPE_COLUMNS = 200
NARROWEST_NAME, LONGEST_BAR = 26, 50
COLOURS = ("blue", "yellow", "green", "magenta", "cyan", "red")
MOST_NAMED = 8
"""Figures that moved are named in the answer, so many of them."""


def draw_comparison(comparison: Comparison) -> None:
    """Everything, the answer last, where a terminal shows it."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = PIPE_COLUMNS  # a pipe has no width of its own; rows must not be broken there
    parts = [(title, list(rows)) for title, rows in groupby(comparison.rows, key=lambda row: row.title)]
    tables = [_table(comparison.names, title, rows) for title, rows in parts]
    longest = max((len(_name(row)) for row in comparison.rows), default=0)
    if all(_width(console, table) - max(0, longest - NARROWEST_NAME) <= console.width for table in tables):
        console.print(*tables, sep="\n")
    else:
        for title, rows in parts:
            console.print(title, style="italic")
            console.print(*_list(comparison.names, rows), sep="\n")
    _draw_bars(console, comparison)
    for note in comparison.notes:
        console.print(f"! {note}", style="yellow", soft_wrap=True)
    console.print(method(comparison), style="dim", soft_wrap=True)
    for number, name in enumerate(comparison.names[1:], 1):
        console.print(_answer(comparison, number, name), style="bold", soft_wrap=True)


def _width(console: Console, table: Table) -> int:
    """What a table takes where nothing of it is wrapped; only the names of figures may be."""
    return Measurement.get(console, console.options.update(max_width=10_000), table).maximum


def _table(names: Sequence[str], title: str, rows: list[Row]) -> Table:
    """A column for each model, and after all but the first one for its change."""
    table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False)
    table.add_column("figure", min_width=NARROWEST_NAME)
    for number, name in enumerate(names):
        table.add_column(name.replace("/", "/\n"), justify="right", no_wrap=True)
        if number:
            table.add_column("change", no_wrap=True)
    for row in rows:
        cells = [Text(_name(row))]
        for number, (figure, change) in enumerate(zip(row.figures, row.changes, strict=True)):
            cells += [Text(_value(figure)), *([_change(row, change)] if number else [])]
        table.add_row(*cells)
    return table


def _list(names: Sequence[str], rows: list[Row]) -> Iterator[Text]:
    """The same for a narrow terminal: each figure in lines below each other."""
    for row in rows:
        yield Text(f" {_name(row)}")
        for name, figure, change in zip(names, row.figures, row.changes, strict=True):
            yield Text(f"   {_value(figure)} {name}")
            if change is not None:
                yield Text("     ").append(_change(row, change))
    yield Text()


def _name(row: Row) -> str:
    return row.name if row.unit in ("%", "") else f"{row.name}, {row.unit}"


def _value(figure: Figure | None) -> str:
    return "–" if figure is None else figure_texts(figure)[0].removesuffix(figure.unit if figure.unit != "%" else "").rstrip()


def _change(row: Row, change: Change | None) -> Text:
    """`+5.6 (+1.2 to +9.8) ▲`, plain where it moved and dim where it may be noise."""
    if change is None:
        return Text("")
    text = signed(change.difference, row.unit)
    if change.verdict in ("no interval", "too few samples"):
        return Text(f"{text} {change.verdict}", style="dim")
    text += f" ({signed(change.low, row.unit)} to {signed(change.high, row.unit)})"
    return Text(f"{text} {_arrow(change)}", style="bold") if change.moved else Text(text, style="dim")


def _arrow(change: Change) -> str:
    return "▲" if change.difference > 0 else "▼"


def _draw_bars(console: Console, comparison: Comparison) -> None:
    """Rates that the project has an aim for, else those that moved."""
    rates = [row for row in comparison.rows if row.unit == "%"]
    chosen = [row for row in rates if row.target is not None] or [row for row in rates if row.moved]
    label = min(max(map(len, comparison.names)), console.width // 3)
    for row in chosen:
        aim = f", aim {row.target:.0%}" if row.target is not None else ""
        console.print(f"{row.name}{aim}")
        grid = Table.grid(padding=(0, 1))
        for column in (label, min(LONGEST_BAR, console.width - label - 9), 6):
            grid.add_column(width=column, no_wrap=True)
        for number, (name, figure) in enumerate(zip(comparison.names, row.figures, strict=True)):
            bar = Bar(1, 0, figure.value if figure else 0, color=COLOURS[number % len(COLOURS)])
            grid.add_row(Text(name[-label:]), bar, Text(_value(figure)))
        console.print(grid)
    if chosen:
        console.print()


def _answer(comparison: Comparison, number: int, name: str) -> str:
    """What moved between the first report and this one, what the project has an aim for first."""
    changes = [(row, change) for row in comparison.rows if (change := row.changes[number])]
    moved = sorted(((row, change) for row, change in changes if change.moved), key=lambda pair: pair[0].target is None)
    against = f"{name} against {comparison.names[0]}"
    if not changes:
        return f"{against}: no figure in common"
    if not moved:
        return f"{against}: nothing moved by more than noise (of {len(changes)} figures)"
    named = ", ".join(f"{row.name} {signed(change.difference, row.unit)}" for row, change in moved[:MOST_NAMED])
    more = f", and {len(moved) - MOST_NAMED} more" if len(moved) > MOST_NAMED else ""
    return f"{against}: {len(moved)} of {len(changes)} figures moved: {named}{more}"
