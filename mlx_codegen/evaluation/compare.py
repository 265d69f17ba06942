"""Reports side by side: which figure moved, and whether by more than noise.

Two models that answered the same prompts are compared prompt by prompt: a hard prompt is hard for both, and that much of
the noise cancels. The differences of the prompts are drawn again and again with replacement (a paired bootstrap; Efron and
Tibshirani, 1993; Koehn, 2004); a figure moved if 95 % of the draws lie on one side of zero. Where the prompts are not the
same, or a report does not tell them, the intervals of both figures are combined as if they were independent, the root of
the sum of squares, which calls fewer things moved.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mlx_codegen.evaluation.figures import CONFIDENCE, RESAMPLES, Figure, PartResult
from mlx_codegen.evaluation.report import without_nan

FEWEST = 10
"""With fewer prompts than this on a side, chance looks like a change."""
UNMEASURED_SETTINGS = ("jobs", "parts")
"""Settings that change no figure; parts are compared by what is there."""
REDUNDANT = "perplexity"
"""The exponential of the loss, which is compared."""


@dataclass
class StoredReport:
    """A report that was read. Its settings may be those of another version, so they are kept as they stand there."""

    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    parts: list[PartResult] = field(default_factory=list)
    tokenizer: str = ""
    """Hash of its tokenizer; empty where the report does not tell."""
    outdated: bool = False
    """True if the model was trained on since."""


@dataclass(frozen=True)
class Change:
    """How a figure differs from the first report's."""

    difference: float
    low: float
    high: float
    prompts: int
    """Prompts that both reports have; 0 where they are compared as independent."""
    verdict: Literal["moved", "within noise", "too few samples", "no interval"]

    @property
    def moved(self) -> bool:
        """Whether by more than noise."""
        return self.verdict == "moved"


@dataclass(frozen=True)
class Row:
    """One figure in all reports; None where a report has it not."""

    part: str
    title: str
    name: str
    figures: list[Figure | None]
    changes: list[Change | None]
    """Against the first report; as many as reports, the first always None."""

    @property
    def unit(self) -> str:
        """What is counted; the same in all reports."""
        return next(figure.unit for figure in self.figures if figure is not None)

    @property
    def target(self) -> float | None:
        """What the project wants to reach."""
        return next((figure.target for figure in self.figures if figure and figure.target is not None), None)

    @property
    def moved(self) -> bool:
        """Whether any report's figure did."""
        return any(change.moved for change in self.changes if change)


@dataclass
class Comparison:
    """What is drawn and written."""

    names: list[str]
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a reader must know: other settings, missing parts, reports that are out of date."""


def compare(names: Sequence[str], reports: Sequence[StoredReport]) -> Comparison:
    """Puts reports side by side; the first is what the others are measured against."""
    rows = []
    parts = {part.name: part.title for report in reports for part in report.parts}
    for part, title in parts.items():
        figures = [{} if found is None else found.figures for found in (_part(report, part) for report in reports)]
        for name in dict.fromkeys(name for of_report in figures for name in of_report):
            found = [_known(of_report.get(name)) for of_report in figures]
            if sum(figure is not None for figure in found) > 1 and not name.endswith(REDUNDANT):
                rows.append(Row(part, title, name, found, _changes(found, reports)))
    return Comparison(list(names), rows, _notes(names, reports))


def _changes(figures: list[Figure | None], reports: Sequence[StoredReport]) -> list[Change | None]:
    """Against the first figure; what counts tokens has no change where the tokenizers differ."""
    changes: list[Change | None] = [None]
    for figure, report in zip(figures[1:], reports[1:], strict=True):
        same = report.tokenizer == reports[0].tokenizer or figure is None or "token" not in figure.unit
        changes.append(change(figures[0], figure) if same else None)
    return changes


def change(first: Figure | None, other: Figure | None) -> Change | None:
    """The difference `other - first`; None where one is missing or counts something else."""
    if first is None or other is None or first.unit != other.unit:
        return None
    common = sorted(first.prompts.keys() & other.prompts.keys())
    if len(common) >= FEWEST and 2 * len(common) >= min(len(first.prompts), len(other.prompts)):
        return _paired(first, other, common)
    return _independent(first, other)


def _paired(first: Figure, other: Figure, common: list[str]) -> Change:
    # (2, N) sums and (2, N) numbers of values for N prompts
    sums, counts = np.array([[figure.prompts[key] for key in common] for figure in (first, other)]).transpose(2, 0, 1)
    drawn = np.random.default_rng(0).integers(0, len(common), (RESAMPLES, len(common)))
    means = np.stack([s[drawn].sum(axis=1) / c[drawn].sum(axis=1) for s, c in zip(sums, counts, strict=True)])
    low, high = np.quantile(means[1] - means[0], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    before, after = sums.sum(axis=1) / counts.sum(axis=1)
    moved = low > 0 or high < 0
    return Change(float(after - before), float(low), float(high), len(common), "moved" if moved else "within noise")


def _independent(first: Figure, other: Figure) -> Change:
    difference = other.value - first.value
    widths = [figure.high - figure.low for figure in (first, other)]
    margin = math.hypot(*widths) / 2
    low, high = difference - margin, difference + margin
    # A rate of 0 or 1 has an interval without width; anything else without one was never given any
    if not math.isfinite(margin) or (first.unit != "%" and not margin):
        return Change(difference, math.nan, math.nan, 0, "no interval")
    if min(first.samples, other.samples) < FEWEST:
        return Change(difference, low, high, 0, "too few samples")
    return Change(difference, low, high, 0, "moved" if low > 0 or high < 0 else "within noise")


def short_names(paths: Sequence[Path]) -> list[str]:
    """Names that tell paths apart and are no longer than that takes: `tiny` and `nano`, or `code/best` and `code/last`."""
    plain = [path.parent if path.name == "report.json" else path.with_suffix("") for path in (p.absolute() for p in paths)]
    for length in range(1, max(len(path.parts) for path in plain) + 1):
        names = ["/".join(path.parts[-length:]) for path in plain]
        if len(set(names)) == len(set(plain)):
            break
    return [name if names.count(name) == 1 else f"{name} ({names[:i].count(name) + 1})" for i, name in enumerate(names)]


def as_json(comparison: Comparison) -> str:
    """For programs; what is not known is null. Values of single prompts are left out: the reports have them."""
    values = asdict(comparison)
    for row in values["rows"]:
        for figure in row["figures"]:
            (figure or {}).pop("prompts", None)
    return json.dumps(without_nan({**values, "method": method(comparison)}), indent=2, ensure_ascii=False)


def method(comparison: Comparison) -> str:
    """How it was told what moved, and how many figures would seem to by chance."""
    changes = [change for row in comparison.rows for change in row.changes if change]
    paired = sum(change.prompts > 0 for change in changes)
    how = "prompt by prompt (paired bootstrap)" if paired else "as independent samples (both intervals combined)"
    if 0 < paired < len(changes):
        how += f"; {len(changes) - paired} of {len(changes)} as independent samples, for lack of common prompts"
    chance = len(changes) * (1 - CONFIDENCE)
    return (
        f"▲ ▼: more than noise, the {CONFIDENCE:.0%} interval of the difference leaves zero out. Compared {how}. "
        f"Of {len(changes)} differences about {chance:.0f} would seem to move by chance alone."
    )


def signed(number: float, unit: str) -> str:
    """A difference for a reader: `+5.6` for rates, in points of a hundred; else in the figure's unit."""
    if not number:
        return "0"
    if unit == "%":
        return f"{100 * number:+.1f}"
    size = abs(number)
    return f"{number:+,.{3 if size < 1 else 2 if size < 10 else 1 if size < 100 else 0}f}"


def _known(figure: Figure | None) -> Figure | None:
    return None if figure is None or math.isnan(figure.value) else figure


def _notes(names: Sequence[str], reports: Sequence[StoredReport]) -> list[str]:
    notes = []
    for key in dict.fromkeys(key for report in reports for key in report.settings if key not in UNMEASURED_SETTINGS):
        values = [report.settings.get(key, "not set") for report in reports]
        if any(value != values[0] for value in values):
            each = ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))
            notes.append(f"measured with another {key.replace('_', ' ')}: {each}")
    for part in dict.fromkeys(part.name for report in reports for part in report.parts):
        notes += _part_notes(part, {name: _part(report, part) for name, report in zip(names, reports, strict=True)})
    if len({report.tokenizer for report in reports}) > 1:
        notes.append("the tokenizers differ: what is counted in tokens is not compared; bits per byte are")
    outdated = [name for name, report in zip(names, reports, strict=True) if report.outdated]
    return [*notes, *(f"{name} was trained on after it was measured; evaluate it again" for name in outdated)]


def _part_notes(part: str, found: dict[str, PartResult | None]) -> Iterator[str]:
    """What one part does not have in every report."""
    if missing := [name for name, result in found.items() if result is None]:
        yield f"{part} was not measured: {', '.join(missing)}"
    measured = {name: result for name, result in found.items() if result is not None}
    yield from (f"{part}, {name}: {'; '.join(result.notes)}" for name, result in measured.items() if not result.figures)
    figures = {name: list(result.figures) for name, result in measured.items() if result.figures}
    times = Counter(figure for of_report in figures.values() for figure in of_report)
    for name, of_report in figures.items():
        alone = [figure for figure in of_report if times[figure] == 1]
        if alone and len(figures) > 1:
            yield f"{part}, only {name} has: {', '.join(alone)}"


def _part(report: StoredReport, name: str) -> PartResult | None:
    return next((part for part in report.parts if part.name == name), None)
