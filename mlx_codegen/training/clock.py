"""Tokens per second that can be trusted: waiting for data counts; evaluation, the first step (compilation) and pauses do not."""

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
        self._paused = False
        self.seconds = 0.0
        """All measured time in seconds, the first step included: what the training cost."""

    def start(self) -> None:
        """A step begins, its wait for data included."""
        self._paused = False
        self._started = self._clock()

    def stop(self, tokens: int) -> None:
        """The step's results are there."""
        duration = self._clock() - self._started
        if self._paused:
            self.seconds += min(duration, self._mean_duration())
            return
        self.seconds += duration
        if self._warmed_up:
            self._steps.append((tokens, duration))
        self._warmed_up = True

    def tokens_per_second(self) -> float:
        """Over the last 50 steps; 0 until the second step is done."""
        seconds = sum(duration for _, duration in self._steps)
        return sum(tokens for tokens, _ in self._steps) / seconds if seconds else 0.0

    @contextmanager
    def noticing_pauses(self) -> Iterator[None]:
        """Inside, a step during which this process was stopped (Ctrl-Z, SIGSTOP) counts as long as the mean of the others.

        The kernel says when it lets a process go on (SIGCONT); only the main thread can hear it. A machine that sleeps
        needs no such care: monotonic clocks sleep, too.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGCONT, self._note_pause)
        try:
            yield
        finally:
            signal.signal(signal.SIGCONT, before or signal.SIG_DFL)

    def _note_pause(self, number: int, frame: object) -> None:
        self._paused = True

    def _mean_duration(self) -> float:
        return sum(duration for _, duration in self._steps) / len(self._steps) if self._steps else 0.0
