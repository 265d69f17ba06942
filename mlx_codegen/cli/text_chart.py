"""A chart of plain characters, for any terminal."""

import math
from collections.abc import Sequence
from itertools import pairwise

CURVE, POINT = "*", "o"
Points = Sequence[tuple[float, float]]


def text_chart(curve: Points, points: Points, width: int, height: int) -> list[str]:
    """`height` lines of at most `width` characters: a curve of `*` with single `o` on it, and the lowest and highest y.

    Each column shows the mean of its part of the curve; values that are not finite are left out.
    """
    curve, points = _finite(curve), _finite(points)
    if not curve and not points:
        return []
    margin = 7
    columns, rows = max(8, width - margin), max(3, height - 2)
    x_high = max(x for x, _ in (*curve, *points)) or 1.0
    means = _column_means(curve, columns, x_high)
    values = [*means.values(), *(y for _, y in points)]
    low, high = min(values), max(values)
    canvas = [[" "] * columns for _ in range(rows)]

    def row(y: float) -> int:
        return round((high - y) / (high - low) * (rows - 1)) if high > low else rows - 1

    before = None
    for column, mean in means.items():
        here = row(mean)
        for each in _between(before, here):
            canvas[each][column] = CURVE
        before = here
    for x, y in points:
        canvas[row(y)][_column(x, columns, x_high)] = POINT
    labels = {0: f"{high:.2f}", rows - 1: f"{low:.2f}"}
    lines = [f"{labels.get(number, ''):>{margin - 2}} |{''.join(cells)}".rstrip() for number, cells in enumerate(canvas)]
    return [*lines, " " * (margin - 1) + "+" + "-" * columns, _axis(margin, columns, x_high)]


def _finite(points: Points) -> Points:
    return [(x, y) for x, y in points if math.isfinite(y)]


def _column(x: float, columns: int, x_high: float) -> int:
    return min(columns - 1, int(x / x_high * columns))


def _column_means(curve: Points, columns: int, x_high: float) -> dict[int, float]:
    """The mean of y for every column from the first to the last of the curve; on straight lines where no value lies."""
    parts: dict[int, list[float]] = {}
    for x, y in curve:
        parts.setdefault(_column(x, columns, x_high), []).append(y)
    means = {column: sum(parts[column]) / len(parts[column]) for column in sorted(parts)}
    for (left, y), (right, z) in list(pairwise(means.items())):
        means |= {column: y + (z - y) * (column - left) / (right - left) for column in range(left + 1, right)}
    return dict(sorted(means.items()))


def _between(before: int | None, here: int) -> range:
    """Rows to fill so that a steep part stays one line."""
    if before is None or before == here:
        return range(here, here + 1)
    return range(before + 1, here + 1) if here > before else range(here, before)


def _axis(margin: int, columns: int, x_high: float) -> str:
    line = f"{short(x_high)} tokens".rjust(columns)
    return " " * margin + (f"0{line[1:]}" if line.startswith("  ") else line)


def short(number: float) -> str:
    """`719 k`, `2.05 M`: three digits."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"
