"""The live picture of a training run. On a terminal it moves; in a pipe or log it prints a line now and then."""

import sys
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import TextIO, cast

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from mlx_codegen.cli.lasting_output import LastingOutput
from mlx_codegen.observer import EvaluationMetrics, Observer, PhaseStart, StepMetrics

SPARKS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 48
SECONDS_BETWEEN_LINES = 15.0


def sparkline(values: list[float], width: int = SPARK_WIDTH) -> str:
    """A curve in one line of text: the means of `width` equal parts, lowest to highest."""
    if not values:
        return ""
    width = min(width, len(values))
    bounds = [len(values) * part // width for part in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(bounds, bounds[1:], strict=False)]
    low, high = min(means), max(means)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARKS[round((mean - low) * scale)] for mean in means)


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


class TrainingDisplay(Observer):
    """Draws what the library reports. Use as a context manager."""

    def __init__(self, console: Console | None = None, silent: bool = False) -> None:
        """`silent` for a process that trains beside one that shows."""
        self._console = console or Console(file=cast(TextIO, LastingOutput(sys.stdout)), quiet=silent)
        self._moving = self._console.is_terminal
        self._bar = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(bar_width=None), TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("step {task.completed:,} of {task.total:,}"), console=self._console, expand=True,
        )  # fmt: skip
        self._task: TaskID | None = None
        self._live: Live | None = None
        self._start: PhaseStart | None = None
        self._losses: list[float] = []
        self._recent: deque[float] = deque(maxlen=20)
        self._step: StepMetrics | None = None
        self._evaluation: EvaluationMetrics | None = None
        self._skipped = 0
        self._last_line = 0.0

    def __enter__(self) -> "TrainingDisplay":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._stop_live()

    def in_phase(self) -> bool:
        """True while a phase is being trained."""
        return self._task is not None

    def on_message(self, text: str) -> None:
        self._console.print(text, style="dim", highlight=False, soft_wrap=True)

    def on_prepare(self, source: str, documents: int, text_bytes: int) -> None:
        line = f"{source}: {documents:,} documents, {text_bytes / 1e6:.1f} MB tokenised"
        if self._moving:
            self._show(Text(line))
        elif time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._line(line)

    def on_phase_start(self, start: PhaseStart) -> None:
        self._stop_live()
        self._start = start
        self._losses, self._step, self._evaluation, self._skipped = [], None, None, 0
        self._recent.clear()
        text = "streamed text, "
        if start.train_tokens is not None:
            epochs = start.total_steps * start.tokens_per_step / max(1, start.train_tokens)
            text = f"{start.train_tokens:,} tokens x {epochs:.2g} epochs = "
        self._console.print(
            f"[bold]{start.phase} phase[/]: {start.parameters / 1e6:.1f} M parameters, {text}"
            f"{start.total_steps:,} steps of {start.tokens_per_step:,} tokens, {start.precision}",
            highlight=False,
            soft_wrap=True,
        )
        self._task = self._bar.add_task(start.phase, total=start.total_steps, completed=start.first_step)

    def on_step(self, metrics: StepMetrics) -> None:
        self._step = metrics
        if metrics.skipped:
            self._skipped += 1
        else:
            self._losses.append(metrics.loss)
            self._recent.append(metrics.loss)
        if self._task is not None:
            self._bar.update(self._task, completed=metrics.step)
        if self._moving:
            self._show(self._picture())
        elif time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._line(self._facts())

    def on_evaluation(self, metrics: EvaluationMetrics) -> None:
        self._evaluation = metrics
        if not self._moving:
            self._line(f"{metrics.phase} step {metrics.step:,}: {self._validation()}")

    def on_phase_end(self, phase: str, reason: str) -> None:
        self._stop_live()
        if self._step is not None:
            self._console.print(f"{phase} phase {reason}: {self._facts()}", highlight=False, soft_wrap=True)
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None

    def on_checkpoint(self, path: Path, step: int) -> None:
        """Shown by its silence: saving is the normal case."""

    def _line(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)  # a log has no width
        self._last_line = time.monotonic()

    def _show(self, picture: Table | Text | Group) -> None:
        if self._live is None:
            self._live = Live(console=self._console, refresh_per_second=2, transient=True)
            self._live.start()
        self._live.update(picture)

    def _stop_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _picture(self) -> Group:
        return Group(self._bar, Text(self._facts(), style="dim"), Text(sparkline(self._losses), style="cyan"))

    def _facts(self) -> str:
        step = self._step
        assert step is not None
        loss = sum(self._recent) / len(self._recent) if self._recent else float("nan")
        facts = [f"step {step.step:,}", f"loss {loss:.3f}", self._validation(), f"lr {step.learning_rate:.1e}"]
        facts += [f"{step.tokens_per_second:,.0f} tokens/s", f"{step.peak_memory_bytes / 2**30:.1f} GiB"]
        if self._skipped:
            facts.append(f"{self._skipped} steps skipped")
        if step.tokens_per_second and self._start and step.step < step.total_steps:
            left = (step.total_steps - step.step) * self._start.tokens_per_step / step.tokens_per_second
            facts.append(f"{duration(left)} left")
        return " · ".join(fact for fact in facts if fact)

    def _validation(self) -> str:
        if self._evaluation is None:
            return ""
        return f"validation {self._evaluation.loss:.3f} ({self._evaluation.bits_per_byte:.2f} bits/byte)"
