"""Loss curves of one or several runs as a picture."""

import io
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from mlx_codegen.config import PHASES
from mlx_codegen.errors import UserError
from mlx_codegen.training.history import History, PhaseHistory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMOOTHED_SHARE = 0.03
"""The smoothed curve is the mean over so much of a phase, and over at least SMOOTHED_STEPS steps."""
SMOOTHED_STEPS = 5
# Okabe and Ito, 2008: colours that people with any kind of colour vision tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def smooth(values: np.ndarray) -> np.ndarray:
    """Running mean of a curve, (N,) to (N,); NaN (a skipped step) counts for nothing.

    At the start, where losses fall fast, the window is small and lies evenly around each step, so that the mean does not
    lag behind; at the end it reaches back only, so that the last values are means, too.
    """
    count = len(values)
    half = max(SMOOTHED_STEPS, round(SMOOTHED_SHARE * count)) // 2
    index = np.arange(count)
    first = index - np.minimum(index, half)
    last = np.minimum(index + np.minimum(index, half), count - 1) + 1
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    within = counts[last] - counts[first]
    return np.where(within > 0, (sums[last] - sums[first]) / np.maximum(within, 1), np.nan)


def draw_curves(runs: Mapping[str, History]) -> "Figure":
    """A column for each phase: losses above, the learning rate below; runs by name in colours of their own.

    Raises UserError where matplotlib is missing, or where no run has taken a step.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("pictures need matplotlib, which is not installed; install it: pip install matplotlib") from None
    phases = [name for name in PHASES if any(_has_steps(history, name) for history in runs.values())]
    if not phases:
        raise UserError(f"{', '.join(runs)}: no step is taken yet; there is nothing to draw")
    figure = Figure(figsize=(1.5 + 5.5 * len(phases), 6), dpi=120, layout="constrained")
    axes = figure.subplots(2, len(phases), height_ratios=(4, 1), sharex="col", squeeze=False)
    figure.suptitle(next(iter(runs)) if len(runs) == 1 else "lines: training loss, smoothed; dots: validation loss")
    for column, phase in enumerate(phases):
        losses, rates = axes[0][column], axes[1][column]
        for (name, history), colour in zip(runs.items(), itertools.cycle(COLOURS), strict=False):
            if _has_steps(history, phase):
                _draw_run(losses, rates, history.phases[phase], name, colour, alone=len(runs) == 1)
        _label(losses, rates, phase, first=column == 0)
    return figure


def as_png(figure: "Figure") -> bytes:
    """The picture's file."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _has_steps(history: History, phase: str) -> bool:
    return any(name == phase and past.steps for name, past in history.phases.items())


def _draw_run(losses: "Axes", rates: "Axes", past: PhaseHistory, name: str, colour: str, *, alone: bool) -> None:
    tokens = np.array([metrics.tokens_seen for metrics in past.steps])
    raw = np.array([np.nan if metrics.skipped else metrics.loss for metrics in past.steps])
    losses.plot(tokens, raw, color=colour, alpha=0.2, linewidth=0.8)
    losses.plot(tokens, smooth(raw), color=colour, linewidth=1.8, label="training, smoothed" if alone else name)
    _draw_validation(losses, past, COLOURS[1] if alone else colour, labelled=alone)
    rates.plot(tokens, [metrics.learning_rate for metrics in past.steps], color=colour, linewidth=1.2)


def _draw_validation(losses: "Axes", past: PhaseHistory, colour: str, *, labelled: bool) -> None:
    """A dot for each evaluation. The one before the first step joins no line: nothing is known of the way from there."""
    marks = np.array([(past.tokens_at(metrics.step), metrics.loss) for metrics in past.evaluations]).reshape(-1, 2)
    trained = marks[marks[:, 0] > 0]
    losses.plot(trained[:, 0], trained[:, 1], "--", color=colour, linewidth=1.0)
    label = "validation" if labelled else None
    losses.plot(marks[:, 0], marks[:, 1], "o", color=colour, markeredgecolor="white", label=label, clip_on=False, zorder=3)
    if labelled and (best := past.best()):
        at = (past.tokens_at(best.step), best.loss)
        side = "right" if at[0] > past.tokens_at(past.step()) / 2 else "left"
        text = f"best {best.loss:.3f}\n{best.bits_per_byte:.2f} bits/byte"
        losses.annotate(text, at, xytext=(0, 12), textcoords="offset points", ha=side, fontsize="small")


def _label(losses: "Axes", rates: "Axes", phase: str, *, first: bool) -> None:
    from matplotlib.ticker import EngFormatter

    losses.set_title(f"{phase} phase")
    losses.legend(frameon=False, loc="upper right")
    rates.set_xlabel("tokens trained on")
    rates.xaxis.set_major_formatter(EngFormatter(sep=" "))
    rates.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    rates.set_ylim(bottom=0)
    rates.set_xlim(left=0)
    if first:
        losses.set_ylabel("loss (nats per token)")
        rates.set_ylabel("learning rate")
    for axes in (losses, rates):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
