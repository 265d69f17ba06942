"""Tokens per second that can be trusted: waiting for data counts, evaluation and the first step (compilation) do not."""

import time
from collections import deque
from collections.abc import Callable

WINDOW_STEPS = 50


class Throughput:
    """Measures training steps between `start()` and `stop(tokens)`; everything outside is not counted.

    Call `stop` only after the device has finished (`mx.eval`), or it measures nothing but Python.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._steps: deque[tuple[int, float]] = deque(maxlen=WINDOW_STEPS)
        self._started = 0.0
        self._warmed_up = False
        self.seconds = 0.0
        """All measured time in seconds, the first step included: what the training cost."""

    def start(self) -> None:
        """A step begins, its wait for data included."""
        self._started = self._clock()

    def stop(self, tokens: int) -> None:
        """The step's results are there."""
        duration = self._clock() - self._started
        self.seconds += duration
        if self._warmed_up:
            self._steps.append((tokens, duration))
        self._warmed_up = True

    def tokens_per_second(self) -> float:
        """Over the last 50 steps; 0 until the second step is done."""
        seconds = sum(duration for _, duration in self._steps)
        return sum(tokens for tokens, _ in self._steps) / seconds if seconds else 0.0
