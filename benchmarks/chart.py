"""A result as a picture: bars with their range, one panel for each unit. Needs matplotlib (the extra `charts`)."""

import importlib.util
from pathlib import Path

from results import Figure
from timing import OURS

NO_CHART = "No chart: matplotlib is not installed (pip install 'mlx-codegen[charts]')."


def can_draw() -> bool:
    """Whether matplotlib is there."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_chart(file: Path, title: str, figures: list[Figure]) -> None:
    """Write a PNG of all figures."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Picture

    units = list(dict.fromkeys(figure.unit for figure in figures))
    rows = [[figure for figure in figures if figure.unit == unit] for unit in units]
    picture = Picture(figsize=(9, 1.2 + sum(0.6 + 0.3 * len(row) for row in rows)), layout="constrained")
    FigureCanvasAgg(picture)
    picture.suptitle(title, fontsize=8)
    panels = picture.subplots(len(rows), 1, squeeze=False, height_ratios=[2 + len(row) for row in rows])[:, 0]
    for panel, unit, row in zip(panels, units, rows, strict=True):
        medians = [figure.value.median for figure in row]
        below = [figure.value.median - figure.value.min for figure in row]
        above = [figure.value.max - figure.value.median for figure in row]
        colours = ["tab:blue" if figure.side.startswith(OURS) else "tab:gray" for figure in row]
        labels = [f"{figure.name}, {figure.side}" for figure in row]
        panel.barh(range(len(row)), medians, xerr=(below, above), color=colours, capsize=2)
        panel.set_yticks(range(len(row)), labels, fontsize=8)
        panel.invert_yaxis()
        panel.set_xlabel(unit, fontsize=8)
        panel.tick_params(axis="x", labelsize=8)
    picture.savefig(file, dpi=120)
