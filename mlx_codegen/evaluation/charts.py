"""Figures as pictures: a bar for each, with its interval and, where the project has an aim, a mark for it.

Needs matplotlib, which is an extra: nothing else in the evaluation does.
"""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlx_codegen.errors import UserError
from mlx_codegen.evaluation.compare import Change, Comparison, Row
from mlx_codegen.evaluation.figures import Figure
from mlx_codegen.evaluation.report import Report, figure_texts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INSTALL_HINT = "matplotlib is not installed; pip install 'mlx-codegen[charts]'"
# Okabe and Ito (2008): colours that people with any colour vision tell apart
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
AIM_COLOUR = "#D55E00"
# All lengths are in inches
WIDTH, HEADER, RIGHT, CHARACTER = 9.0, 0.6, 1.15, 0.062
BAR, GAP, PANEL = 0.15, 0.12, 0.62
"""A bar, the space between two figures, a panel's title and axis."""
DOTS_PER_INCH = 120
KEY = "thin lines: 95 % intervals; orange marks: aims"


def report_png(report: Report) -> bytes:
    """A report's figures, a panel for each part and unit. Raises UserError without matplotlib."""
    rows = [
        Row(part.name, part.title, name, [figure], [None])
        for part in report.parts
        for name, figure in part.figures.items()
        if not math.isnan(figure.value)
    ]
    settings = report.settings
    sampling = f"temperature {settings.temperature:g}, samples a prompt {settings.samples}, seed {settings.seed}"
    return _png(f"{report.model}\n{sampling}\n{KEY}", rows, [])


def comparison_png(comparison: Comparison) -> bytes:
    """The figures of several models beside each other; ▲ and ▼ are what moved. Raises UserError without matplotlib."""
    key = f"▲ ▼: differs from {comparison.names[0]} by more than noise\n{KEY}"
    return _png(key, comparison.rows, comparison.names)


def _png(title: str, rows: Sequence[Row], names: Sequence[str]) -> bytes:
    try:
        from matplotlib.figure import Figure as Picture
        from matplotlib.patches import Patch
    except ImportError:
        raise UserError(INSTALL_HINT) from None
    panels = _panels(rows)
    bars = max(1, len(names))
    heights = [len(panel) * (bars * BAR + GAP) for panel in panels.values()]
    height = HEADER + sum(heights) + PANEL * len(panels)
    left = 0.2 + CHARACTER * max((len(row.name) for row in rows), default=0)
    picture = Picture(figsize=(WIDTH, height), dpi=DOTS_PER_INCH)
    picture.text(0.01, 1 - 0.1 / height, title, fontsize=8, va="top")
    top = height - HEADER
    for ((part, unit), panel), panel_height in zip(panels.items(), heights, strict=True):
        top -= PANEL + panel_height
        axes = picture.add_axes((left / WIDTH, (top + PANEL / 2) / height, 1 - (left + RIGHT) / WIDTH, panel_height / height))
        axes.set_title(part if unit == "%" else f"{part} ({unit})", fontsize=9, loc="left", fontweight="bold")
        _draw_panel(axes, panel, bars)
    if names and panels:
        handles = [Patch(color=_colour(number), label=name) for number, name in enumerate(names)]
        picture.legend(handles=handles, fontsize=8, loc="upper right", ncols=min(3, bars), frameon=False)
    buffer = io.BytesIO()
    picture.savefig(buffer, format="png")
    return buffer.getvalue()


def _panels(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows by part and unit. Loss and perplexity are left out where bits per byte say the same."""
    panels: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        panels.setdefault((row.title, row.unit), []).append(row)
    said = {title for title, unit in panels if unit == "bits/byte"}
    return {key: panel for key, panel in panels.items() if key[0] not in said or key[1] not in ("", "nats/token")}


def _draw_panel(axes: "Axes", rows: list[Row], bars: int) -> None:
    """Figures from top to bottom, each with a bar for each model."""
    step = bars + GAP / BAR
    scale = 100 if rows[0].unit == "%" else 1
    for model in range(bars):
        places = [number * step + model for number, row in enumerate(rows) if row.figures[model]]
        found = [(figure, row.changes[model]) for row in rows if (figure := row.figures[model])]
        values = [figure.value * scale for figure, _ in found]
        # An interval may lie beside a value that is not the mean of its draws
        below = [max(0.0, (figure.value - figure.low) * scale) for figure, _ in found]
        above = [max(0.0, (figure.high - figure.value) * scale) for figure, _ in found]
        whiskers: dict[str, Any] = {"elinewidth": 0.8, "capsize": 2, "ecolor": "#333333"}
        axes.barh(places, values, 0.9, color=_colour(model), xerr=(below, above), error_kw=whiskers)
        for place, (figure, change) in zip(places, found, strict=True):
            axes.text(1.01, place, _value(figure, change), transform=axes.get_yaxis_transform(), fontsize=8, va="center")
    for number, row in enumerate(rows):
        if row.target is not None:
            middle = number * step + (bars - 1) / 2
            axes.plot([row.target * scale] * 2, [middle - bars / 2, middle + bars / 2], color=AIM_COLOUR, linewidth=2)
    axes.set_yticks([number * step + (bars - 1) / 2 for number in range(len(rows))], [row.name for row in rows], fontsize=8)
    axes.set_ylim(len(rows) * step - step + bars - 0.3, -0.7)
    if scale == 100:
        axes.set_xlim(0, 100)
    axes.tick_params(axis="x", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _colour(model: int) -> str:
    return COLOURS[model % len(COLOURS)]


def _value(figure: Figure, change: Change | None) -> str:
    arrow = "" if change is None or not change.moved else " ▲" if change.difference > 0 else " ▼"
    return figure_texts(figure)[0] + arrow
