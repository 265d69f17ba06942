"""Step times become windows, windows become a median with its spread; two sides that take turns become a ratio."""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

Step = tuple[int, float]
"""Tokens of one step (of training, or one call of a generator) and the seconds that it took."""
OURS, PEER = "ours", "mlx-lm"


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


@dataclass(kw_only=True)
class Comparison:
    """Ours beside the peer: all windows together, the median of each round, and the ratio of each pair of rounds."""

    ours: Spread | None = None
    peer: Spread | None = None
    ratio: Spread | None = None
    ours_rounds: list[float] = field(default_factory=list)
    peer_rounds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    def take_turns(
        self, rounds: int, with_peer: bool, measure: Callable[[str], list[float]], report: Callable[[str], None]
    ) -> None:
        """Ours, peer, ours, peer ...: a machine that slows down slows both, so what counts is the ratio of a pair."""
        ours: list[float] = []
        peer: list[float] = []
        for number in range(1, rounds + 1):
            windows = measure(OURS)
            ours += windows
            self.ours_rounds.append(spread(windows).median)
            line = f"round {number}: ours {self.ours_rounds[-1]:,.4g}"
            if with_peer:
                windows = measure(PEER)
                peer += windows
                self.peer_rounds.append(spread(windows).median)
                self.ratios.append(self.ours_rounds[-1] / self.peer_rounds[-1])
                line += f", mlx-lm {self.peer_rounds[-1]:,.4g}, ratio {self.ratios[-1]:.2f}"
            report(line)
        self.ours = spread(ours)
        if with_peer:
            self.peer, self.ratio = spread(peer), spread(self.ratios)
