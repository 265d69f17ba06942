"""Step times become windows, windows become a median with its spread."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

Step = tuple[int, float]
"""Tokens of one training step and the seconds that it took."""


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
