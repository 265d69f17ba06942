"""Result files: written, found again, compared. One run of one benchmark on one machine is one JSON file."""

import datetime
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fingerprint import Facts, commit, fingerprint
from tables import Table
from timing import OURS, Spread

from mlx_codegen.errors import UserError

SMALLEST_NOISE = 0.03
"""Two runs that differ by less are equal, however steady each of them was."""
UNKNOWN_NOISE = 0.15
"""Of a figure that was measured once."""


@dataclass(frozen=True)
class Figure:
    """One measured quantity, with the name under which the next run has it, too."""

    name: str
    side: str
    unit: str
    value: Spread
    more_is_better: bool = True


@dataclass(frozen=True)
class Difference:
    """A figure in two runs."""

    before: Figure
    after: Figure

    @property
    def gain(self) -> float:
        """1.1: a tenth better than before; 0.9: a tenth worse."""
        before, after = self.before.value.median, self.after.value.median
        return after / before if self.before.more_is_better else before / after

    @property
    def noise(self) -> float:
        """How much less or more the median may be by chance: half the range of the less steady run, as a share of it."""
        return max(SMALLEST_NOISE, _half_range(self.before.value), _half_range(self.after.value))

    def words(self) -> str:
        """`faster`, `slower`, or `within noise`."""
        if abs(self.gain - 1) <= self.noise:
            return "within noise"
        return "faster" if self.gain > 1 else "slower"


def new_file(folder: Path, benchmark: str, facts: Facts) -> Path:
    """A name that is still free: a second run on one day gets a number, nothing is written over."""
    today = datetime.datetime.now(datetime.timezone.utc)
    name = f"{benchmark}-{fingerprint(facts)}-{today:%Y-%m-%d}"
    names = (f"{name}{f'-{number}' if number > 1 else ''}.json" for number in range(1, 1000))
    return next(folder / each for each in names if not (folder / each).exists())


def result_values(benchmark: str, facts: Facts, figures: list[Figure], **more: Any) -> dict[str, Any]:
    """What a result file holds."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "benchmark": benchmark,
        "time": now.isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": facts,
        "figures": [asdict(figure) for figure in figures],
        **more,
    }


def read_result(file: Path) -> dict[str, Any]:
    """A result file. Raises UserError if it is none."""
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        figures_of(values)
        values["benchmark"], values["machine"]["chip"], values["time"]
        return values
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; mlx-codegen bench writes such files") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file} is no result of mlx-codegen bench") from None


def figures_of(values: dict[str, Any]) -> list[Figure]:
    """The figures in a result. Raises KeyError or TypeError if something is missing."""
    return [Figure(**{**figure, "value": Spread(**figure["value"])}) for figure in values["figures"]]


def newest_result(folder: Path, benchmark: str, facts: Facts) -> Path | None:
    """The last result of this benchmark on this machine, by the time in it; unreadable files are passed over."""
    times: list[tuple[str, Path]] = []
    for file in folder.glob(f"{benchmark}-{fingerprint(facts)}-*.json"):
        try:
            times.append((str(read_result(file)["time"]), file))
        except UserError:
            continue
    return max(times)[1] if times else None


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[Difference]:
    """Every figure that both runs have, in the order of the later."""
    earlier = {(figure.name, figure.side): figure for figure in figures_of(before)}
    later = figures_of(after)
    return [Difference(earlier[key], each) for each in later if (key := (each.name, each.side)) in earlier]


def slower_than_before(found: Iterable[Difference]) -> list[str]:
    """A line for each figure of ours (and of our ratio to a peer) that is worse by more than the noise."""
    return [
        f"{each.after.name} ({each.after.side}): {each.after.value.median:,.4g} {each.after.unit}, before "
        f"{each.before.value.median:,.4g}: {1 - each.gain:.0%} worse, noise {each.noise:.0%}"
        for each in found
        if each.after.side.startswith(OURS) and each.words() == "slower"
    ]


def comparison_table(before: dict[str, Any], after: dict[str, Any]) -> Table:
    """Two results of the same benchmark side by side. Raises UserError where nothing can be compared."""
    if before["benchmark"] != after["benchmark"]:
        raise UserError(f"one file measured {before['benchmark']}, the other {after['benchmark']}: compare two of a kind")
    found = differences(before, after)
    if not found:
        raise UserError("the two files have no figure in common: they measured other sizes")
    table = Table(
        f"{before['benchmark']}: {_origin(before)} → {_origin(after)}",
        ("what", "side", "unit", "before", "after", "gain", "noise", ""),
        text_columns=3,
    )
    for each in found:
        medians = (f"{figure.value.median:,.4g}" for figure in (each.before, each.after))
        words = (f"× {each.gain:.2f}", f"{each.noise:.0%}", each.words())
        table.rows.append((each.after.name, each.after.side, each.after.unit, *medians, *words))
    if fingerprint(before["machine"]) != fingerprint(after["machine"]):
        table.notes.append("Different machines: " + " and ".join(str(each["machine"]["chip"]) for each in (before, after)) + ".")
    table.notes.append(
        "Gain: above 1 is better. Noise: half the range of the less steady run's windows, at least "
        f"{SMALLEST_NOISE:.0%}; {UNKNOWN_NOISE:.0%} for what was measured once."
    )
    return table


def _half_range(value: Spread) -> float:
    return UNKNOWN_NOISE if value.min == value.max else (value.max - value.min) / 2 / value.median


def _origin(values: dict[str, Any]) -> str:
    return f"{str(values['time'])[:10]} ({values.get('commit') or 'no commit'})"
