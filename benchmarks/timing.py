"""Step times become windows, windows become a median with its spread; sides that take turns become ratios.

Imports neither MLX nor anything of ours: peers are measured with it, too.
"""

import statistics
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field

Step = tuple[int, float]
"""Tokens of one step (of training, or one call of a generator) and the seconds that it took."""
OURS, MLX_LM, PYTORCH = "ours", "mlx-lm", "PyTorch"


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of several measurements."""

    median: float
    min: float
    max: float


def spread(values: Iterable[float]) -> Spread:
    """Raises statistics.StatisticsError when there is nothing to summarise."""
    numbers = list(values)
    return Spread(statistics.median(numbers), min(numbers), max(numbers))


def tokens_per_second(steps: Iterable[Step], window_seconds: float) -> list[float]:
    """Throughput of windows of whole steps, each at least `window_seconds` long.

    What is left at the end is too short to be one of them, unless it is all there is.
    """
    rates: list[float] = []
    tokens, seconds = 0, 0.0
    for step_tokens, step_seconds in steps:
        tokens, seconds = tokens + step_tokens, seconds + step_seconds
        if seconds >= window_seconds:
            rates.append(tokens / seconds)
            tokens, seconds = 0, 0.0
    if not rates and seconds > 0:
        rates.append(tokens / seconds)
    return rates


class Enough(Exception):  # noqa: N818 (it ends a measurement, which is no error)
    """Raised by a Recorder: a trainer of somebody else's has no other way to stop after so many seconds."""


class Recorder:
    """Collects steps until the time is over. Left out are the first steps of each shape, in which graphs are compiled."""

    def __init__(self, seconds: float, warm_up_steps: int = 2) -> None:
        self.steps: list[Step] = []
        self._seconds = seconds
        self._warm_up_steps = warm_up_steps
        self._seen: dict[Hashable, int] = {}

    def add(self, tokens: int, seconds: float, shape: Hashable = None) -> None:
        """One step. Raises Enough after the last that is wanted, of which there is at least one."""
        self._seen[shape] = self._seen.get(shape, 0) + 1
        if self._seen[shape] > self._warm_up_steps:
            self.steps.append((tokens, seconds))
            if sum(duration for _, duration in self.steps) >= self._seconds:
                raise Enough


@dataclass
class Side:
    """One side of a comparison: all windows together, and the median of each round."""

    rate: Spread
    rounds: list[float]


@dataclass
class Peer(Side):
    """Another program, with ours over it for each pair of rounds."""

    ratio: Spread
    ratios: list[float]


@dataclass
class Comparison:
    """Ours beside peers that did the same work in the same minutes."""

    ours: Side
    peers: dict[str, Peer] = field(default_factory=dict)


def take_turns(
    rounds: int, peers: Iterable[str], measure: Callable[[str], list[float]], report: Callable[[str], None]
) -> Comparison:
    """Ours, peer, ours, peer ...: a machine that slows down slows all, so what counts is the ratio of a pair.

    `measure(side)` gives the rates of its windows; `report` takes a line for each round.
    """
    sides = [OURS, *peers]
    windows: dict[str, list[float]] = {side: [] for side in sides}
    medians: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(1, rounds + 1):
        for side in sides:
            rates = measure(side)
            windows[side] += rates
            medians[side].append(spread(rates).median)
        report(f"round {number}: " + ", ".join(f"{side} {medians[side][-1]:,.4g}" for side in sides))
    comparison = Comparison(Side(spread(windows[OURS]), medians[OURS]))
    for side in sides[1:]:
        ratios = [ours / peer for ours, peer in zip(medians[OURS], medians[side], strict=True)]
        comparison.peers[side] = Peer(spread(windows[side]), medians[side], spread(ratios), ratios)
    return comparison
